"""k of n and the share beside it: `122 / 128 (95.5%)`, `0.1933 (80,670 errors / 100,000)`."""

import math
import re
from itertools import permutations

from assay.core.reported.checks.common import Findings, Found, agree, whole
from assay.core.reported.document import Block
from assay.core.reported.quantities import END, NUMBER, START, Quantity, quantity, shown
from assay.core.reported.tables import Table

WORDS = r"(?:\s+[A-Za-z][A-Za-z_-]{0,20}){0,3}"
COUNTS = r"(?:errors?|wrong|failed|failures?|misses|missed|incorrect|correct|right|passed|solved|hits|successes)"
OF = rf"(?:(?:\s{{1,3}}{COUNTS})?\s{{0,4}}/\s{{0,4}}|{WORDS}\s{{1,4}}(?:of|out of)\s{{1,4}}(?:the\s)?)"
UNSIGNED = rf"(?![+\-−]){NUMBER}"
PAIR = rf"(?P<k>{UNSIGNED}){OF}(?P<n>{UNSIGNED}){END}"
AFTER = re.compile(
    rf"{START}{PAIR}(?P<what>{WORDS})\s{{0,6}}(?:[(\[=:→]|,\s(?:i\.e\.|or))\s{{0,4}}(?P<about>[~≈])?\s?(?P<p>{UNSIGNED})\s?(?P<unit>%)(?=\s{{0,4}}(?:[)\],;.|]|$)|\s[a-z]{{3,12}}ed\b)"
)
EQUAL = re.compile(
    rf"{START}{PAIR}(?P<what>)\s{{0,3}}=\s{{0,3}}(?P<about>[~≈])?\s?(?P<p>[01]?\.\d{{1,12}})(?P<unit>){END}"
)
BEFORE = re.compile(
    rf"{START}(?P<about>(?<=[~≈]))?(?P<p>{UNSIGNED})\s?(?P<unit>%|)\s{{0,8}}(?:[A-Za-z]{{1,12}}\s{{1,4}})?[(\[]\s{{0,4}}{PAIR}(?P<what>{WORDS})\s{{0,4}}[)\],;]"
)
OTHER = re.compile(rf"(?!\s{COUNTS}\s*$)\s[A-Za-z]", re.IGNORECASE)
"""Behind k/n: what is counted, so that a per cent beside it may be of something else."""
ORDER = re.compile(
    r"\b(?:epoch|fold|step|seed|task|batch|layer|iter(?:ation)?|run|round|stage|phase|checkpoint|trial|part|page|day|week|"
    r"exp(?:eriment)?|chunk|shard|file|split|level|version|client|temperature|ratio|attempt|try|example|sample|question)\s{0,3}[#:=]?\s{0,3}$",
    re.IGNORECASE,
)
"""Before k: it is a number in an order, and what follows k/n is another thing's share."""
FRACTION = re.compile(r"(?P<k>\d[\d,]{0,12})\s?(?:/|of|out of)\s?(?P<n>\d[\d,]{0,12})")
PART = re.compile(
    rf"{START}(?P<k>{NUMBER})(?P<what>)\s{{0,4}}[(\[]\s{{0,2}}(?P<about>[~≈])?(?P<p>{UNSIGNED})\s?(?P<unit>%)\sof\s(?P<n>{NUMBER}){END}"
)
COUNTED = re.compile(
    rf"{START}(?P<k>\d{{1,6}})(?:\s(?:out of|of)\s|/)(?P<n>\d{{1,6}})\s"
    r"(?P<what>seeds|runs|models|tasks|folds|trials|heads|cases|arms|configs|clients|checks|problems|examples|correct|passed|solved|right)\b"
)


def shares(block: Block) -> Findings:
    """A share that is not k/n, nor 1 - k/n; more counted than there are."""
    if "/" not in block.text and "of" not in block.text:
        return
    seen: set[int] = set()
    for pattern in (AFTER, EQUAL, BEFORE, PART):
        for found in pattern.finditer(block.clean):
            k, n, p = (quantity(found[name]) for name in ("k", "n", "p"))
            before = block.clean[max(0, found.start("k") - 24) : found.start("k")]
            if pattern is not PART and ORDER.search(before):
                continue
            if k and n and p and n.value > 0 and found.start("n") not in seen:
                seen.add(found.start("n"))
                yield from _share(block, found, k, n, p)
    for found in COUNTED.finditer(block.clean):
        if int(found["k"]) > int(found["n"]):
            line, column = block.place(found.start())
            yield Found(
                "count", line, column, found[0].strip(), f"at most {found['n']}",
                f"No more than {found['n']} of {found['n']} {found['what']} can be counted.",
                "Look up both counts.",
            )  # fmt: skip


def _share(block: Block, found: "re.Match[str]", k: Quantity, n: Quantity, p: Quantity) -> Findings:
    scale = 100.0 if found["unit"] == "%" else 1.0
    if scale == 1.0 and not (p.value <= 1 and p.half < 0.5 and k.value <= n.value):
        return
    exact = k.half if "." in k.text else 0.0
    low, high = ((k.value + end) / n.value * scale for end in (-exact, exact))
    point = k.value / n.value * scale
    printed = whole(block, found)
    if found["about"] and min(abs(p.value - point), abs(p.value - scale + point)) <= 0.2 * p.value:
        return
    if _rounds(p, point) or _rounds(p, scale - point):
        return
    line, column = block.place(found.start())
    better = f"{shown(point, p)}{found['unit']}"
    division = f"{k.text}/{n.text} is {shown(point, p, more=1)}{found['unit']}"
    wrong = Found(
        "share", line, column, printed, better, f"{division}, printed as {p.text}{found['unit']}.",
        "Correct the share, or the counts if they are what is wrong.",
    )  # fmt: skip
    cut = math.isclose(_cut(point, p), p.value) or math.isclose(_cut(scale - point, p), p.value)
    if cut or agree(p, low, high) or OTHER.search(found["what"]):
        why = "it may be the share of something else"
        if agree(p, low, high):
            why = "only an unprinted digit of the count could give it"
        why = "cut off, not rounded" if cut else why
        wrong = wrong._replace(severity="note", says=f"{wrong.says[:-1]}: {why}.")
    yield wrong


def _rounds(p: Quantity, value: float) -> bool:
    return agree(p, value, value)


def _cut(value: float, p: Quantity) -> float:
    """A value without the digits that are not printed."""
    step = 2 * p.half
    return math.floor(value / step + 1e-9) * step


def share_columns(table: Table) -> Findings:
    """A column of per cents that is k/n of two columns, or of a column "k/n", but for a row."""
    parts = {at: _parts(table, at) for at in range(len(table.head))}
    whole_ones = [
        n for n in table.numeric if all(q.whole and not q.unit for _, q in table.column(n))
    ]
    for first, second in permutations(whole_ones[:8], 2):
        pairs = {
            id(row): (k, n)
            for row in table.rows
            if (k := row.cells[first].quantity)
            and (n := row.cells[second].quantity)
            and k.value <= n.value
        }
        parts[len(parts)] = pairs if len(pairs) == len(table.rows) else {}
    for place in table.numeric:
        shares_of = [(row, q) for row, q in table.column(place) if q.unit == "%"]
        for pairs in parts.values():
            known = [(row, q, *pairs[id(row)]) for row, q in shares_of if id(row) in pairs]
            wrong = [each for each in known if not _is_share(*each[1:])]
            if len(known) - len(wrong) >= max(2, 2 * len(wrong)):
                for row, q, k, n in wrong:
                    cell, value = row.cells[place], 100 * k.value / n.value
                    yield Found(
                        "share", cell.line, cell.column, f"{row.label}: {cell.words}", f"{shown(value, q)}%",
                        f"{table.head[place]} is k/n in the other rows; {k.text}/{n.text} is {shown(value, q, more=1)}%.",
                        "Correct the share, or the counts if they are what is wrong.",
                    )  # fmt: skip
                break


def _parts(table: Table, at: int) -> dict[int, tuple[Quantity, Quantity]]:
    """The cells of a column that say k/n, by row."""
    found = {}
    for row in table.rows:
        cell = FRACTION.fullmatch(row.cells[at].words)
        k, n = (quantity(cell["k"]), quantity(cell["n"])) if cell else (None, None)
        if k and n and n.value > 0:
            found[id(row)] = (k, n)
    return found


def _is_share(p: Quantity, k: Quantity, n: Quantity) -> bool:
    value = 100 * k.value / n.value if n.value > 0 else float("nan")
    return (
        p.about
        or _rounds(p, value)
        or _rounds(p, 100 - value)
        or math.isclose(_cut(value, p), p.value)
    )
