"""Changes told in prose: `0.627 → 0.650 (+2.3%)`, `7.97 (1.6% better)`, `0.056 vs 0.030, ~2x`."""

import re
from collections.abc import Sequence

from assay.core.reported.checks.common import Findings, Found, agree, ratio, whole
from assay.core.reported.document import Block
from assay.core.reported.quantities import END, NUMBER, START, Quantity, quantity

WORSE = "better|worse|lower|higher|reduction|improvement|increase|decrease|drop|gain|fewer|smaller|larger|faster|slower|less|more|relative|rel|absolute|abs|change"
MEASURED = r"(?:ms|s|sec|min|h|GB|MB|kB|KB|GiB|MiB|FLOPs?|nats|bits|bpb)\b"
"""Units of what is measured: whole numbers with one of them are no settings."""
SETTING = re.compile(
    r"(?:\b(?:width|depth|steps?|epochs?|layers?|batch(?:\s?size)?|lr|rate|size|dim|d|k|n|m|heads?|seeds?|temp(?:erature)?|dropout|"
    r"alpha|beta|gamma|lambda|decay|wd|momentum|weights?|threshold|ratio|scale|eps|sigma|tau|rank|bits?|workers?|clients?|"
    r"tokens?|params?|parameters|chunk|blend|scaling|version|from\s(?:step|epoch|layer))|[αβγλστημ])\s{0,3}[=:]?\s{0,3}(?:from\s)?$",
    re.IGNORECASE,
)
"""Before `a → b (…)`: a and b are settings, and what follows is their effect."""
JOINED = re.compile(r"→|to|vs")
PRINTED = (
    rf"(?P<about>[~≈])?\s?(?P<d>{NUMBER})\s?(?P<unit>%|pp\b|pts?\b|points?\b|[x×](?!\w)|)"
    rf"(?P<word>(?:\s(?:{WORSE})\b\.?){{0,2}})"
)
CHANGE = re.compile(
    rf"{START}(?P<a>{NUMBER})\s?(?P<ua>%|{MEASURED}|)\s{{0,4}}(?P<join>→|\bto\b|\bvs\b\.?)\s{{0,8}}(?P<b>{NUMBER})\s?(?P<ub>%|{MEASURED}|)"
    rf"\s{{0,6}}[(\[,]\s{{0,4}}{PRINTED}\s{{0,2}}(?:[)\]]|$)"
)
TIMES = re.compile(
    rf"{START}(?P<a>{NUMBER})\s?(?P<ua>%|{MEASURED}|)\s(?:vs\.?|versus)\s{{1,3}}(?P<b>{NUMBER})\s?(?P<ub>%|{MEASURED}|)\s{{0,2}}[,;(]\s{{0,2}}"
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
    for found in CHANGE.finditer(text) if JOINED.search(text) else ():
        a, b, d = (quantity(found[name]) for name in ("a", "b", "d"))
        if (
            not _is_setting(text, found, a, b)
            and a
            and b
            and d
            and (d.signed or found["unit"] or found["word"])
        ):
            yield from _change(block, found, (a, b, d), percent=found["ub"] == "%")
    for found in TIMES.finditer(text) if "vs" in text or "versus" in text else ():
        a, b, d = (quantity(found[name]) for name in ("a", "b", "d"))
        if not _is_setting(text, found, a, b) and a and b and d and d.value > 0:
            slack = 0.25 * d.value if found["about"] else 0.0
            bounds = [ratio(a, b), ratio(b, a)]
            if not any(agree(d, low - slack, high + slack) for low, high in bounds):
                value = max(a.value, b.value) / min(a.value, b.value)
                yield _found(
                    block, found, f"{value:.3g}x", f"{a.text} and {b.text} differ {value:.3g}-fold"
                )


def _is_setting(text: str, found: "re.Match[str]", a: Quantity | None, b: Quantity | None) -> bool:
    """Whether two numbers may be settings: named so, or whole numbers without a unit."""
    unit = found["ua"] or found["ub"]
    bare = bool(a and b and a.whole and b.whole and not unit)
    return bare or bool(SETTING.search(text[max(0, found.start() - 24) : found.start()]))


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
    line, column = block.place(found.start())
    return Found(
        "change", line, column, whole(block, found), recomputed,
        f"A change must follow from its two numbers: {says}.",
        "Correct the change, or the number that is wrong.",
    )  # fmt: skip
