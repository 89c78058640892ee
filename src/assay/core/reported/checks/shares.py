"""k of n and the share beside it: `122 / 128 (95.5%)`, `0.1933 (80,670 errors / 100,000)`."""

import math
import re

from assay.core.reported.checks.common import Findings, Found, agree, at
from assay.core.reported.document import Block
from assay.core.reported.quantities import END, NUMBER, START, Quantity, quantity, shown

WORDS = r"(?:\s+[A-Za-z][A-Za-z_-]{0,20}){0,3}"
OF = r"\s{0,4}(?:/|\bof\b|\bout of\b)\s{0,4}(?:the\s)?"
PAIR = rf"(?P<k>{NUMBER}){WORDS}{OF}(?P<n>{NUMBER}){END}"
AFTER = re.compile(
    rf"{START}{PAIR}{WORDS}\s{{0,6}}(?:[(\[=:→]|,\s(?:i\.e\.|or))\s{{0,4}}[~≈]?\s?(?P<p>{NUMBER})\s?(?P<unit>%)(?=\s{{0,4}}(?:[)\],;.|]|$)|\s[a-z]{{3,12}}ed\b)"
)
BEFORE = re.compile(
    rf"{START}(?P<p>{NUMBER})\s?(?P<unit>%|)\s{{0,8}}(?:[A-Za-z]{{1,12}}\s{{1,4}})?[(\[]\s{{0,4}}{PAIR}{WORDS}\s{{0,4}}[)\],;]"
)
PART = re.compile(
    rf"{START}(?P<k>{NUMBER})\s{{0,4}}[(\[]\s{{0,2}}(?P<p>{NUMBER})\s?(?P<unit>%)\sof\s(?P<n>{NUMBER}){END}"
)
COUNTED = re.compile(
    rf"{START}(?P<k>\d{{1,6}})\s(?:out of|of)\s(?P<n>\d{{1,6}})\s"
    r"(?P<what>seeds|runs|models|tasks|folds|trials|heads|cases|arms|configs|clients|checks)\b"
)


def shares(block: Block) -> Findings:
    """A share that is not k/n, nor 1 - k/n; more counted than there are."""
    if "/" not in block.text and "of" not in block.text:
        return
    seen: set[int] = set()
    for pattern in (AFTER, BEFORE, PART):
        for found in pattern.finditer(block.clean):
            k, n, p = (quantity(found[name]) for name in ("k", "n", "p"))
            if k and n and p and n.value > 0 and found.start("n") not in seen:
                seen.add(found.start("n"))
                yield from _share(block, found, k, n, p)
    for found in COUNTED.finditer(block.clean):
        if int(found["k"]) > int(found["n"]):
            line, column = at(block, found.start())
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
    printed = " ".join(found[0].split())
    if _rounds(p, point) or _rounds(p, scale - point):
        return
    line, column = at(block, found.start())
    better = f"{shown(point, p)}{found['unit']}"
    division = f"{k.text}/{n.text} is {shown(point, p, more=1)}{found['unit']}"
    wrong = Found(
        "share", line, column, printed, better, f"{division}, printed as {p.text}{found['unit']}.",
        "Correct the share, or the counts if they are what is wrong.",
    )  # fmt: skip
    cut = math.isclose(_cut(point, p), p.value) or math.isclose(_cut(scale - point, p), p.value)
    if cut or agree(p, low, high):
        why = (
            "cut off, not rounded" if cut else "only an unprinted digit of the count could give it"
        )
        wrong = wrong._replace(severity="note", says=f"{wrong.says[:-1]}: {why}.")
    yield wrong


def _rounds(p: Quantity, value: float) -> bool:
    return agree(p, value, value)


def _cut(value: float, p: Quantity) -> float:
    """A value without the digits that are not printed."""
    step = 2 * p.half
    return math.floor(value / step + 1e-9) * step
