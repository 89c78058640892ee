"""Changes told in prose: `0.627 → 0.650 (+2.3%)`, `7.97 (1.6% better)`, `0.056 vs 0.030, ~2x`."""

import re
from collections.abc import Sequence

from assay.core.reported.checks.common import Findings, Found, agree, at, ratio
from assay.core.reported.document import Block
from assay.core.reported.quantities import END, NUMBER, START, Quantity, quantity

WORSE = "better|worse|lower|higher|reduction|improvement|increase|decrease|drop|gain|fewer|smaller|larger|faster|slower|less|more|relative|rel|absolute|abs|change"
PRINTED = (
    rf"(?P<about>[~≈])?\s?(?P<d>{NUMBER})\s?(?P<unit>%|pp\b|pts?\b|points?\b|[x×](?!\w)|)"
    rf"(?P<word>(?:\s(?:{WORSE})\b\.?){{0,2}})"
)
CHANGE = re.compile(
    rf"{START}(?P<a>{NUMBER})\s?(?P<ua>%?)\s{{0,4}}(?P<join>→|\bto\b)\s{{0,8}}(?P<b>{NUMBER})\s?(?P<ub>%?)"
    rf"\s{{0,6}}[(\[,]\s{{0,4}}{PRINTED}\s{{0,2}}(?:[)\]]|$)"
)
TIMES = re.compile(
    rf"{START}(?P<a>{NUMBER})\s?%?\s(?:vs\.?|versus)\s{{1,3}}(?P<b>{NUMBER})\s?%?\s{{0,2}}[,;(]\s{{0,2}}"
    rf"(?P<about>[~≈])?\s?(?P<d>{NUMBER})\s?(?P<unit>[x×])(?!\w)"
)
LISTED = re.compile(
    rf"{START}(?P<b>{NUMBER})\s?(?P<ub>%?)\s{{0,6}}[(\[]\s{{0,6}}(?P<about>[~≈])?(?P<d>{NUMBER})\s?(?P<unit>%)\s{{0,4}}"
    rf"(?P<word>(?:{WORSE})\b)(?:\s(?:than|vs\.?)\s(?:the\s)?baseline)?\s{{0,6}}[)\]]"
)
BASELINE = re.compile(
    rf"\bbaseline\b(?:\s{{0,3}}\([^()]{{0,60}}\))?[^\d()]{{0,30}}{START}(?P<a>{NUMBER})\s?%?{END}",
    re.IGNORECASE,
)


def changes(block: Block) -> Findings:
    """A change that is neither the difference of the two numbers nor their ratio."""
    text = block.clean
    for found in CHANGE.finditer(text) if "→" in text or "to" in text else ():
        a, b, d = (quantity(found[name]) for name in ("a", "b", "d"))
        if a and b and d and (d.signed or found["unit"] or found["word"]):
            yield from _change(block, found, (a, b, d), percent=found["ub"] == "%")
    for found in TIMES.finditer(text) if "vs" in text or "versus" in text else ():
        a, b, d = (quantity(found[name]) for name in ("a", "b", "d"))
        if a and b and d and d.value > 0:
            slack = 0.25 * d.value if found["about"] else 0.0
            bounds = [ratio(a, b), ratio(b, a)]
            if not any(agree(d, low - slack, high + slack) for low, high in bounds):
                value = max(a.value, b.value) / min(a.value, b.value)
                yield _found(
                    block, found, f"{value:.3g}x", f"{a.text} and {b.text} differ {value:.3g}-fold"
                )


def against_baseline(blocks: Sequence[Block]) -> Findings:
    """In a list with a baseline: per cents better or worse that the values do not give."""
    for start, stop in _lists(blocks):
        items = blocks[start:stop]
        bases = [found for item in items if (found := BASELINE.search(item.clean))]
        base = quantity(bases[0]["a"]) if len(bases) == 1 else None
        for item in items if base else ():
            for found in LISTED.finditer(item.clean):
                b, d = quantity(found["b"]), quantity(found["d"])
                if base and b and d:
                    yield from _change(item, found, (base, b, d), percent=found["ub"] == "%")


def _lists(blocks: Sequence[Block]) -> list[tuple[int, int]]:
    """Runs of list items that follow each other."""
    runs, start = [], None
    for at_, block in enumerate([*blocks, None]):
        if block is not None and block.kind == "item":
            start = at_ if start is None else start
        elif start is not None:
            runs.append((start, at_))
            start = None
    return runs


def _change(
    block: Block,
    found: "re.Match[str]",
    values: tuple[Quantity, Quantity, Quantity],
    *,
    percent: bool,
) -> Findings:
    a, b, d = values
    unit, size = found["unit"], Quantity(abs(d.value), d.half, d.text)
    slack = 0.25 * size.value if found["about"] else 0.0
    low, high = b.low - a.high, b.high - a.low
    points = [(low, high), (-high, -low)]
    hundred = [(100 * x, 100 * y) for x, y in points]
    relative = [(100 * (x - 1), 100 * (y - 1)) for x, y in (ratio(b, a), ratio(a, b))]
    relative += [(-y, -x) for x, y in relative]
    plain = [ratio(b, a), ratio(a, b)]
    fits = {"%": relative + (points if percent else []), "": points}.get(
        unit, plain if unit in "x×" else points + hundred
    )
    if any(agree(size, x - slack, y + slack) for x, y in fits):
        return
    difference, change = b.value - a.value, 100 * (b.value / a.value - 1) if a.value else 0.0
    truth = f"{difference:+.4g}" + (f", {change:+.3g} %" if a.value else "")
    says = f"from {a.text} to {b.text} is {truth}"
    if unit == "%" and any(agree(size, x, y) for x, y in hundred):
        yield _found(
            block, found, truth, f"{says}; {d.text}% is the difference times 100"
        )._replace(
            severity="note", way_out="Say that these are points, or give the relative change."
        )
        return
    if unit == "" and found["word"]:
        return  # "3 lower" may count something else.
    yield _found(block, found, truth, says)


def _found(block: Block, found: "re.Match[str]", recomputed: str, says: str) -> Found:
    line, column = at(block, found.start())
    return Found(
        "change", line, column, " ".join(found[0].split()), recomputed,
        f"A change must follow from its two numbers: {says}.",
        "Correct the change, or the number that is wrong.",
    )  # fmt: skip
