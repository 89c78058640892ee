"""Columns of deltas: against two columns of the same row, or against a baseline.

No check guesses what a column means. An explanation (which columns, which sign, difference or per
cent) must hold for most rows; then those rows are wrong for which it does not.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations

from assay.core.reported.checks.common import Findings, Found, agree, ratio
from assay.core.reported.document import Document
from assay.core.reported.quantities import Quantity, quantity, shown
from assay.core.reported.tables import Row, Table, key

HEAD = re.compile(
    r"Δ|δ|\bdelta\b|\bdiff\b|difference|\bchange\b|\bgain\b|improvement|\bvs\.?\b|versus|relative|speed-?up|[+\-±]/[-−]|\brel\b",
    re.IGNORECASE,
)
MOST = 0.75
ALL_TABLES = 5
REMARK = re.compile(
    r"\s?(?P<d>[+\-−](?:\d[\d,]{0,12})?(?:\.\d{1,12})?)\s?(?P<unit>%|)\s?[A-Za-z ]{0,20}"
)
NO_DELTA = frozenset({"", "-", "--", "—", "–", "n/a", "baseline", "ref", "reference", "(baseline)"})
MAX_COLUMNS = 12

Bounds = tuple[float, float]
Rule = Callable[[Quantity, Quantity], Bounds]


def _difference(a: Quantity, b: Quantity) -> Bounds:
    return b.low - a.high, b.high - a.low


def _percent(a: Quantity, b: Quantity) -> Bounds:
    low, high = ratio(b, a)
    return 100 * (low - 1), 100 * (high - 1)


def _hundred(a: Quantity, b: Quantity) -> Bounds:
    low, high = _difference(a, b)
    return 100 * low, 100 * high


ROW_RULES: dict[str, Rule] = {
    "{b} - {a}": _difference, "{b} / {a} - 1, in per cent": _percent,
    "100 x ({b} - {a})": _hundred, "{b} / {a}": lambda a, b: ratio(b, a),
}  # fmt: skip


@dataclass(frozen=True)
class _Pair:
    """A value and the delta printed for it."""

    row: Row
    value: Quantity
    delta: Quantity
    column: tuple[Quantity, ...]


def row_deltas(table: Table) -> Findings:
    """A delta column that is the difference of two others, but for some rows."""
    for at in table.numeric:
        if not HEAD.search(table.head[at]):
            continue
        others = [n for n in table.numeric if n != at and not HEAD.search(table.head[n])]
        rows = [row for row, _ in table.column(at)]
        best: tuple[int, int, str, list[tuple[Row, float]]] = (0, 0, "", [])
        for first, second in permutations(others[:MAX_COLUMNS], 2):
            for name, rule in ROW_RULES.items():
                fits, wrong = _fits(rows, (first, second, at), rule)
                if fits > best[0]:
                    label = name.format(a=table.head[first], b=table.head[second])
                    best = (fits, fits + len(wrong), label, wrong)
        fits, known, label, wrong = best
        plain = len(others) == 2 and len(wrong) == 1
        if fits >= 2 and wrong and (plain or fits >= MOST * known):
            for row, value in wrong:
                delta = row.cells[at].quantity
                if delta:
                    yield _wrong_row(table, row, at, delta, value, label, fits)


def _fits(
    rows: Sequence[Row], columns: tuple[int, int, int], rule: Rule
) -> tuple[int, list[tuple[Row, float]]]:
    """How many rows a rule explains, and what it gives for the others."""
    first, second, at = columns
    fits, wrong = 0, []
    for row in rows:
        a, b, delta = (row.cells[n].quantity for n in (first, second, at))
        if a is None or b is None or delta is None:
            continue
        low, high = rule(a, b)
        # "+2.3%" beside values without % is not their difference.
        units = delta.unit != "%" or rule is not _difference or b.unit == "%"
        if units and (agree(delta, low, high) or agree(delta, -high, -low)):
            fits += 1
        else:
            exact = rule(replace(a, half=0.0), replace(b, half=0.0))
            wrong.append((row, exact[0]))
    return fits, wrong


def _wrong_row(
    table: Table, row: Row, at: int, delta: Quantity, value: float, label: str, fits: int
) -> Found:
    cell = row.cells[at]
    unit = " %" if "per cent" in label else ""
    says = f"{table.head[at]} is {label} in {fits} other rows of this table; here that gives {value:+.4g}{unit}, printed {cell.words}."
    if delta.unit == "%" and abs(100 * value - delta.value) <= 2 * delta.half:
        says = f"{says[:-1]}: the difference times 100, which is neither per cent nor the unit of the values."
    return Found(
        "delta", cell.line, cell.column, f"{row.label}: {cell.words}", f"{value:+.4g}{unit}", says,
        "Correct the delta or the values, or say how this row was computed.",
    )  # fmt: skip


def baseline_deltas(document: Document) -> Findings:
    """Deltas against a baseline, where one row implies another baseline than the rest."""
    pooled: dict[tuple[str, str], list[_Pair]] = defaultdict(list)
    for table in document.tables:
        for name, pairs in _pairs(table):
            found = _outliers(pairs, least=3)
            if found is None:
                pooled[key(name[0]), key(name[1])] += pairs
            else:
                yield from _reported(pairs, *found, name[1])
    for pairs in pooled.values():
        found = _outliers(pairs, least=ALL_TABLES)
        if found is not None:
            yield from _reported(pairs, *found, "")


def _pairs(table: Table) -> list[tuple[tuple[str, str], list[_Pair]]]:
    """Value and delta of the rows, for every column of deltas and the value column best before it."""
    found = []
    columns = [n for n in range(len(table.head)) if len(table.column(n)) >= 1]
    for at in columns:
        if HEAD.search(table.head[at]):
            before = [n for n in columns if n < at and not HEAD.search(table.head[n])]
            near = [n for n in before if key(table.head[n]) in key(table.head[at])] or before[-1:]
            found += [
                ((table.head[value], table.head[at]), _beside(table, value, at))
                for value in near[-1:]
            ]
        inside = [
            _Pair(row, value, delta, tuple(v for _, v in table.column(at)))
            for row, value in table.column(at)
            if (hit := REMARK.fullmatch(value.remark))
            and (delta := quantity(hit["d"], hit["unit"]))
        ]
        if inside:
            found.append(((table.head[at], table.head[at]), inside))
    return found


def _beside(table: Table, value: int, at: int) -> list[_Pair]:
    """The pairs of two columns; the one row that has a value and no delta is the baseline."""
    column = tuple(v for _, v in table.column(value))
    pairs = [
        _Pair(row, v, d, column)
        for row in table.rows
        if (v := row.cells[value].quantity) and (d := row.cells[at].quantity)
    ]
    bases = [(row, v) for row, v in table.column(value) if row.cells[at].words.lower() in NO_DELTA]
    zero = Quantity(0.0, 0.0, "0", pairs[0].delta.unit) if pairs else None
    return pairs + [_Pair(row, v, zero, column) for row, v in bases if zero and len(bases) == 1]


def _outliers(pairs: Sequence[_Pair], least: int) -> tuple[float, list[int]] | None:
    """The baseline that most pairs imply, and the pairs that imply another; None if none does."""
    best: tuple[int, float, list[int]] = (0, 0.0, [])
    for mode in (partial(_shifted, sign=-1), partial(_shifted, sign=1), _scaled):
        bounds = [mode(pair) for pair in pairs]
        known = [bound for bound in bounds if bound is not None]
        if len(known) < least:
            continue
        count, point = _stabbed(known)
        if count > best[0]:
            wrong = [
                n for n, bound in enumerate(bounds)
                if bound is not None and not bound[0] - 1e-9 <= point <= bound[1] + 1e-9
            ]  # fmt: skip
            best = (count, point, wrong)
    count, point, wrong = best
    if count < least or count < MOST * len(pairs):
        return None
    return point, wrong


def _shifted(pair: _Pair, sign: int) -> Bounds | None:
    """The baseline if the delta is value - baseline (-1) or baseline - value (1)."""
    if pair.delta.unit == "%" and pair.value.unit != "%":
        return None
    slack = pair.value.half + pair.delta.half
    point = pair.value.value + sign * pair.delta.value
    return point - slack, point + slack


def _scaled(pair: _Pair) -> Bounds | None:
    if pair.delta.unit != "%" or pair.delta.low <= -100:
        return None
    ends = [
        v / (1 + d / 100)
        for v in (pair.value.low, pair.value.high)
        for d in (pair.delta.low, pair.delta.high)
    ]
    return min(ends), max(ends)


def _stabbed(bounds: Sequence[Bounds]) -> tuple[int, float]:
    """The largest number of intervals with a common point, and that point."""
    edges = sorted([(low, 0) for low, _ in bounds] + [(high, 1) for _, high in bounds])
    depth, best, start = 0, 0, 0
    for at, (_, closes) in enumerate(edges):
        depth += -1 if closes else 1
        if depth > best:
            best, start = depth, at
    end = next(place for place, closes in edges[start:] if closes)
    return best, (edges[start][0] + end) / 2


def _reported(pairs: Sequence[_Pair], base: float, wrong: Sequence[int], name: str) -> Findings:
    for n in wrong:
        row, value, delta = pairs[n].row, pairs[n].value, pairs[n].delta
        scaled = delta.unit == "%" and value.unit != "%" and delta.value > -100
        implied = value.value / (1 + delta.value / 100) if scaled else value.value - delta.value
        if any(v.half <= value.half and v.low <= implied <= v.high for v in pairs[n].column):
            continue  # A table of several groups, each with a baseline of its own.
        cell = next((c for c in row.cells if c.quantity == delta), row.cells[0])
        exact = shown(value.value - base, delta)
        yield Found(
            "delta", cell.line, cell.column, f"{row.label}: {value.text}, {delta.text}{delta.unit}",
            f"{exact}" if delta.unit != "%" else f"{100 * (value.value / base - 1):+.3g} %",
            f"{len(pairs) - len(wrong)} of {len(pairs)} rows imply the baseline {shown(base, value, more=1)}"
            f"{f' ({name})' if name else ''}; {value.text} with {delta.text}{delta.unit} implies "
            f"{shown(implied, value)}.",
            "Correct the delta or the value, or name the other baseline.",
        )  # fmt: skip
