"""Means: a row or a column of a table, or a list in prose, and the mean printed for it."""

import math
import re
from collections.abc import Iterator, Sequence

from assay.core.reported.checks.common import Findings, Found, agree
from assay.core.reported.document import Block, Document
from assay.core.reported.quantities import NUMBER, START, Quantity, quantity, shown
from assay.core.reported.tables import Cell, Row, Table

MEAN = re.compile(
    r"\W*(?:mean|avg|average)\b\.?\s{0,3}(?:[±+/-]{1,3}\s{0,2}(?:std|sd|sem))?\s{0,3}"
    r"(?:\((?:n\s?=\s?\d{1,5}|\d{1,5}\s(?:folds|seeds|runs))\))?\W*",
    re.IGNORECASE,
)
"""A plain mean: "mean (excl. 3)", "weighted mean" and "average (micro)" are others."""
TOTAL = re.compile(r"\W*(?:total|sum)\W*", re.IGNORECASE)
REPEAT = re.compile(
    r"\W*(?:(?:seed|fold|run|trial|rep|repeat|split|cv|s|f)\s?[ _#=:-]?\s?\d{1,6}|\d{1,6})\W*",
    re.IGNORECASE,
)
SUMMARY = re.compile(
    r"\b(?:std|stdev|sd|sem|stderr|min|max|median|total|sum|range|best|worst|ci|mean|avg|average|overall|macro|micro)\b",
    re.IGNORECASE,
)
DEVIATION = re.compile(r"\W*(?:std|stdev|sd|st\.?\s?dev\.?|standard deviation)\W*", re.IGNORECASE)
EXCLUDED = re.compile(r"div|excl|fail|crash|outlier|nan|skip|omit|invalid", re.IGNORECASE)
MEAN_WORD = re.compile(r"mean|av(?:g|erage)", re.IGNORECASE)
LIST = rf"{NUMBER}%?(?:\s{{0,3}}(?:,|/|;|\band\b)\s{{0,3}}{NUMBER}%?){{1,40}}"
TOLD = re.compile(
    rf"{START}(?P<list>{LIST})\s{{0,2}}[)\]]?\s{{0,3}}[(,;→=:—-]{{0,2}}\s{{0,3}}(?:mean|avg|average)\b\.?\s{{0,3}}(?:of|is|=|:|→)?\s{{0,3}}(?P<mean>{NUMBER})(?:\s?±\s?(?P<std>{NUMBER}))?(?!\w)",
    re.IGNORECASE,
)
CV = re.compile(
    rf"^\s{{0,4}}(?:local\s)?CV(?:\s(?:score|mean))?\s{{0,2}}[:=]?\s{{0,2}}(?P<n>{NUMBER})(?!\w)",
    re.MULTILINE,
)
NAMED = re.compile(
    rf"\b(?:mean|avg|average)\s{{1,3}}(?:of\s{{1,3}})?[\[(]?(?P<list>{LIST})[\])]?\s{{0,3}}(?:=|→|is|:)\s{{0,3}}(?P<mean>{NUMBER})(?:\s?±\s?(?P<std>{NUMBER}))?(?!\w)",
    re.IGNORECASE,
)


def mean_rows(table: Table) -> Findings:
    """A row of means (or totals) that the rows above it do not have."""
    above: list[Row] = []
    before: list[Row] = []
    for row in table.rows:
        if MEAN.fullmatch(row.label):
            yield from _mean_row(table, above, row)
            before, above = above, []
        elif TOTAL.fullmatch(row.label):
            yield from _total_row(table, above, row)
            above = []
        elif DEVIATION.fullmatch(row.label):
            yield from _deviation_row(table, above or before, row)
        elif not SUMMARY.search(row.label):
            above.append(row)


def _columns(
    table: Table, above: Sequence[Row], row: Row
) -> Iterator[tuple[Cell, str, Quantity, list[Quantity]]]:
    """The cells of a summary that has a number for every row above it: cell, name, number, theirs."""
    for column in range(1, len(table.head)):
        cell = row.cells[column]
        values = [q for each in above if (q := each.cells[column].quantity)]
        if cell.quantity is not None and len(values) == len(above) >= 2:
            yield cell, f"{row.label}, {table.head[column]}: {cell.words}", cell.quantity, values


def _mean_row(table: Table, above: Sequence[Row], row: Row) -> Findings:
    repeats = all(REPEAT.fullmatch(each.label) for each in above)
    wrong, fits = [], 0
    for cell, printed, mean, values in _columns(table, above, row):
        if any(v.noted or EXCLUDED.search(v.remark) for v in values):
            continue
        low, high = _mean(values)
        if agree(mean, low, high):
            fits += 1
            if mean.spread is not None:
                yield from _checked(cell.line, cell.column, printed, values, mean, mean.spread)
        else:
            outside = mean.low > max(v.high for v in values) or mean.high < min(
                v.low for v in values
            )
            wrong.append((cell, printed, mean, (low + high) / 2, outside))
    for cell, printed, mean, value, outside in wrong:
        if fits >= len(wrong) or repeats or outside:
            yield _found(
                cell.line, cell.column, printed, shown(value, mean),
                f"the {len(above)} rows above have the mean {shown(value, mean, more=1)}",
            )  # fmt: skip


def _deviation_row(table: Table, above: Sequence[Row], row: Row) -> Findings:
    """A row of standard deviations that the repeats above it do not have."""
    if all(REPEAT.fullmatch(each.label) for each in above):
        for cell, printed, told, values in _columns(table, above, row):
            if not any(_near(told.value, spread, told, values) for spread in _spreads(values)):
                yield _spread(cell.line, cell.column, printed, values, told)


def _total_row(table: Table, above: Sequence[Row], row: Row) -> Findings:
    wrong, fits = [], 0
    for cell, printed, total, values in _columns(table, above, row):
        low, high = sum(v.low for v in values), sum(v.high for v in values)
        whole = all(v.whole for v in values)
        value = sum(v.value for v in values)
        if agree(total, value, value) if whole else agree(total, low, high):
            fits += 1
        else:
            wrong.append((cell, printed, total, value))
    for cell, printed, total, value in wrong:
        alone = not fits and len(wrong) == 1 and len(above) >= 3 and total.whole
        if fits >= len(wrong) or alone:
            found = _found(
                cell.line, cell.column, printed, shown(value, total),
                f"the {len(above)} rows above have the sum {shown(value, total)}",
            )  # fmt: skip
            yield found._replace(rule="total", severity="note" if alone else "error")


def mean_columns(table: Table) -> Findings:
    """A column of means that the columns of seeds or folds do not have."""
    repeats = [n for n, name in enumerate(table.head) if n and REPEAT.fullmatch(name)]
    means = [n for n, name in enumerate(table.head) if MEAN.fullmatch(name)]
    if len(repeats) < 2 or len(means) != 1:
        return
    for row in table.rows:
        values = [q for n in repeats if (q := row.cells[n].quantity)]
        cell = row.cells[means[0]]
        mean = cell.quantity
        if mean is None or len(values) != len(repeats):
            continue
        yield from _checked(
            cell.line, cell.column, f"{row.label}: {cell.words}", values, mean, mean.spread
        )


def cross_validation(document: Document) -> Findings:
    """`CV: 0.775` under a table of folds: the mean of none of its columns."""
    for blocks in document.sections:
        table: Table | None = None
        for block in blocks:
            if block.table is not None:
                table = block.table
            found = CV.search(block.clean) if block.prose and table else None
            if table is None or found is None:
                continue
            folds = [row for row in table.rows if REPEAT.fullmatch(row.label)]
            columns = [
                [q for row in folds if (q := row.cells[n].quantity)] for n in table.numeric if n
            ]
            columns = [values for values in columns if len(values) == len(folds) >= 3]
            told = quantity(found["n"])
            if told is None or not columns:
                continue
            bounds = [_mean(values) for values in columns]
            inside = any(
                min(v.low for v in c) <= told.value <= max(v.high for v in c) for c in columns
            )
            if inside and not any(
                low - told.half <= told.high and told.low <= high + told.half
                for low, high in bounds
            ):
                line, column = block.place(found.start())
                value = sum(bounds[0]) / 2
                yield _found(
                    line, column, found[0], shown(value, told), f"no column of the {len(folds)} folds above "
                    f"has this mean; the first has {shown(value, told, more=1)}",
                )._replace(severity="note")  # fmt: skip


def told_means(block: Block) -> Findings:
    """A mean in prose that the numbers beside it do not have."""
    for pattern in (TOLD, NAMED) if MEAN_WORD.search(block.text) else ():
        for found in pattern.finditer(block.clean):
            texts = re.findall(NUMBER, found["list"])
            values = [value for text in texts if (value := quantity(text))]
            mean, std = quantity(found["mean"]), quantity(found["std"] or "")
            if mean is None or len(values) < 2:
                continue
            line, column = block.place(found.start())
            printed = " ".join(found[0].split())
            yield from _checked(line, column, printed, values, mean, std.value if std else None)


def _checked(
    line: int,
    column: int,
    printed: str,
    values: Sequence[Quantity],
    mean: Quantity,
    std: float | None,
) -> Findings:
    low, high = _mean(values)
    if not agree(mean, low, high):
        value = (low + high) / 2
        yield _found(
            line,
            column,
            printed,
            shown(value, mean),
            f"the {len(values)} values have the mean {shown(value, mean, more=1)}",
        )
    elif std is not None and not any(_near(std, s, mean, values) for s in _spreads(values)):
        yield _spread(line, column, printed, values, mean)


def _spread(
    line: int, column: int, printed: str, values: Sequence[Quantity], like: Quantity
) -> Found:
    sample, population, _ = _spreads(values)
    return _found(
        line, column, printed, f"± {shown(sample, like)}",
        f"the {len(values)} values have the standard deviation {sample:.4g} (n - 1) or {population:.4g} (n)",
    )._replace(rule="spread", severity="note")  # fmt: skip


def _mean(values: Sequence[Quantity]) -> tuple[float, float]:
    return sum(v.low for v in values) / len(values), sum(v.high for v in values) / len(values)


def _spreads(values: Sequence[Quantity]) -> tuple[float, float, float]:
    """Standard deviation with n - 1 and with n, and the standard error."""
    n, mean = len(values), sum(v.value for v in values) / len(values)
    squares = sum((v.value - mean) ** 2 for v in values)
    return math.sqrt(squares / (n - 1)), math.sqrt(squares / n), math.sqrt(squares / (n - 1) / n)


def _near(std: float, spread: float, mean: Quantity, values: Sequence[Quantity]) -> bool:
    """Whether rounding of the values and of the spread may account for the difference."""
    return abs(std - spread) <= 1.001 * (mean.half + max(v.half for v in values))


def _found(line: int, column: int, printed: str, recomputed: str, says: str) -> Found:
    return Found(
        "mean", line, column, printed, recomputed,
        f"A summary must be that of its values: {says}.",
        "Correct the summary, or the value that is wrong.",
    )  # fmt: skip
