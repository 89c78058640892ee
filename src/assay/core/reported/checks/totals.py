"""Equations (`4 x 8 = 32`), and totals that every entry has as a multiple of its steps."""

import math
import re
from collections import defaultdict

from assay.core.reported.checks.common import Findings, Found, agree
from assay.core.reported.document import Block, Document
from assay.core.reported.quantities import END, NUMBER, Quantity, quantity, shown

SCALED = rf"{NUMBER}(?:[kKMB](?!\w))?"
EQUATION = re.compile(
    rf"(?<![\w.,)(/^*=+×-])(?<![+*/×x=^-] ){SCALED}(?:\s{{0,2}}(?:[x×*·]|(?<=\s)[+/÷−-](?=\s))\s{{0,2}}{SCALED}){{1,12}}\s{{0,3}}"
    rf"(?P<equal>=|≈)\s{{0,3}}(?P<about>[~≈]\s?)?(?P<c>{SCALED}){END}(?!\s?[x×*·/÷^%+=]|\s[-−])"
)
TERM = re.compile(SCALED)
STEPS = re.compile(
    rf"\b(?P<name>steps(?:_used)?|num_steps|n_steps)\s{{0,2}}[=:]\s{{0,2}}(?P<n>{NUMBER}){END}"
)
TOTAL = re.compile(rf"\b(?P<name>total\w{{0,60}})\s{{0,2}}[=:]\s{{0,2}}(?P<n>{NUMBER}){END}")


def equations(block: Block) -> Findings:
    """An equation of printed numbers that does not hold."""
    told = "=" in block.text or "≈" in block.text
    for found in EQUATION.finditer(block.clean) if told else ():
        left = found[0][: found.start("equal") - found.start()]
        terms = [_number(term[0]) for term in TERM.finditer(left)]
        result = _number(found["c"])
        signs = {char for char in TERM.sub(" ", left) if not char.isspace()}
        kinds = {"x×*·": "*", "+": "+", "/÷": "/", "-−": "-"}
        kind = {next((kinds[k] for k in kinds if sign in k), "?") for sign in signs}
        if result is None or None in terms or len(terms) < 2 or len(kind) != 1:
            continue
        known = [term for term in terms if term is not None]
        bounds = _bounds(known, kind.pop())
        if bounds is None:
            continue
        slack = 0.1 * abs(result.value) if found["equal"] == "≈" or found["about"] else 0.0
        if agree(result, bounds[0] - slack, bounds[1] + slack):
            continue
        value = sum(bounds) / 2
        line, column = block.place(found.start())
        yield Found(
            "equation", line, column, " ".join(found[0].split()), shown(value, result),
            f"Both sides of an equation must be equal: {' '.join(left.split())} is {shown(value, result, more=1)}.",
            "Correct the number that is wrong.",
        )  # fmt: skip


def _number(text: str) -> Quantity | None:
    scaled = text[-1:] in "kKMB"
    return quantity(text[:-1] if scaled else text, text[-1] if scaled else "")


def _bounds(terms: list[Quantity], kind: str) -> tuple[float, float] | None:
    """Between which values a sum, product or quotient lies; whole numbers are exact."""
    ends = [
        (t.value, t.value) if t.whole and t.text[-1:].isdigit() else (t.low, t.high) for t in terms
    ]
    lows, highs = [low for low, _ in ends], [high for _, high in ends]
    if kind == "+":
        return math.fsum(lows), math.fsum(highs)
    if any(low <= 0 for low in lows):
        return None
    if kind == "-":
        return lows[0] - math.fsum(highs[1:]), highs[0] - math.fsum(lows[1:])
    if kind == "*":
        return math.prod(lows), math.prod(highs)
    return (lows[0] / highs[1], highs[0] / lows[1]) if len(terms) == 2 else None


def multiples(document: Document) -> Findings:
    """A total that is no multiple of its steps, where the same total elsewhere is."""
    known: dict[str, list[tuple[Block, re.Match[str], int, int]]] = defaultdict(list)
    for blocks in document.sections:
        told = [block for block in blocks if block.prose]
        steps = {found["n"] for block in told for found in STEPS.finditer(block.clean)}
        count = quantity(steps.pop()) if len(steps) == 1 else None
        if count is None or not count.whole or count.value < 2:
            continue
        for block in told:
            for found in TOTAL.finditer(block.clean):
                total = quantity(found["n"])
                if total and total.whole:
                    known[found["name"]].append((block, found, int(total.value), int(count.value)))
    for name, entries in known.items():
        yield from _broken(name, entries)


def _broken(name: str, entries: list[tuple[Block, re.Match[str], int, int]]) -> Findings:
    each: dict[int, int] = defaultdict(int)
    for _, _, total, steps in entries:
        if total % steps == 0:
            each[total // steps] += 1
    usual = max(each, key=lambda size: each[size], default=0)
    whole = sum(each.values())
    for block, found, total, steps in entries:
        if total % steps and whole >= 2 and each[usual] >= 2:
            line, column = block.place(found.start())
            yield Found(
                "multiple", line, column, found[0], f"{usual * steps:,}",
                f"{name} is {usual:,} times the steps in {each[usual]} entries; {total:,} is no "
                f"multiple of {steps} steps.",
                "Look up the total and the steps.",
            )  # fmt: skip
