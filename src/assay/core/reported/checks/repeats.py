"""The same thing told twice: one row in two tables, one value or one link in two rows."""

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations

from assay.core.reported.checks.common import Findings, Found
from assay.core.reported.document import Document
from assay.core.reported.quantities import Quantity
from assay.core.reported.tables import Cell, Row, Table, key

LINK = re.compile(r"https?://[^\s|<>)\]]{1,2000}")
ONE = re.compile(r"(?:[A-Za-z][\w .:/-]{0,40}?[ :=]\s{0,3})?(?P<n>[+\-−]?\d{1,9}\.\d{2,12})")
MANY = 400
"""Rows of a table beyond which nothing is said of equal values: there are many by chance."""
BY_CHANCE = 0.05


def rows_told_twice(document: Document) -> Findings:
    """A row of two tables that agrees in two columns with three digits, and differs in another."""
    seen: dict[tuple[str, str, str], list[tuple[int, Row, dict[str, Cell]]]] = defaultdict(list)
    for number, table in enumerate(document.tables):
        for row in table.rows:
            cells = {
                name: row.cells[at]
                for at, name in enumerate(table.keys)
                if name and row.cells[at].quantity is not None
            }
            told: set[int] = set()
            for name, cell in cells.items():
                value = cell.quantity
                if value is None or value.digits < 3:
                    continue
                place = (_subject(row.label), name, value.text)
                for other, earlier, theirs in seen[place]:
                    if other != number and id(earlier) not in told:
                        told.add(id(earlier))
                        yield from _differences(row, cells, earlier, theirs)
                if len(seen[place]) < 20:
                    seen[place].append((number, row, cells))


def _subject(label: str) -> str:
    return key(label).replace("+", "")


def _differences(
    row: Row, cells: dict[str, Cell], earlier: Row, theirs: dict[str, Cell]
) -> Findings:
    same, other = [], []
    for name in cells.keys() & theirs.keys():
        a, b = theirs[name].quantity, cells[name].quantity
        if a and b:
            if a.agrees(b):
                same.append(min(a.digits, b.digits))
            else:
                other.append((name, a, b))
    if len([d for d in same if d >= 3]) < 2 or len(other) > len(same):
        return
    for name, a, b in sorted(other, key=lambda each: each[0]):
        cell = cells[name]
        yield Found(
            "told-twice", cell.line, cell.column, f"{row.label}, {name}: {b.text}",
            f"{a.text} (line {earlier.line}, column {theirs[name].column})",
            f"The same row was told before with the same values but for this one: {a.text}, now {b.text}.",
            "Say which one holds, and why they differ.",
        )  # fmt: skip


def values_told_twice(table: Table) -> Findings:
    """A measured value that stands in two rows, where chance makes that unlikely."""
    if not 3 <= len(table.rows) <= MANY:
        return
    for at, name in enumerate(table.head):
        cells = [
            (row, row.cells[at], value) for row in table.rows if (value := _one(row.cells[at]))
        ]
        if len(cells) < 4 or len(cells) < len(table.rows) - 2 or any(v.unit for *_, v in cells):
            continue
        values = sorted(value.value for *_, value in cells)
        # Without the outermost, one failed run does not make the range wide.
        spread = values[-2] - values[1]
        pairs = len(values) * (len(values) - 1) / 2
        twice = [(a, b) for a, b in combinations(cells, 2) if a[2].value == b[2].value]
        if len(twice) != 1 or spread <= 0:
            continue
        (first, _, value), (second, cell, _) = twice[0]
        chance = pairs * 2 * value.half / spread
        if chance > BY_CHANCE or value.digits < 4 or key(first.label) == key(second.label):
            continue
        yield Found(
            "value-twice", cell.line, cell.column, f"{second.label}, {name}: {cell.words}",
            f"also in line {first.line}: {first.label}",
            f"Two rows have the same {name} to {value.digits} digits, {value.text}; "
            f"that happens by chance in about {100 * chance:.1g} % of such tables.",
            "Look up both values: one may have been copied.", "note",
        )  # fmt: skip


def _one(cell: Cell) -> Quantity | None:
    """The one number of a cell, with decimals; a name may stand before it."""
    if cell.quantity is not None:
        return None if cell.quantity.whole else cell.quantity
    found = ONE.fullmatch(cell.words)
    return None if found is None else _parsed(found["n"])


def _parsed(text: str) -> Quantity:
    body = text.replace("−", "-")
    return Quantity(float(body), 0.5 * 10.0 ** -len(body.partition(".")[2]), text)


def links(table: Table) -> Findings:
    """A row that links the page of another row's run; one page linked by two rows."""
    targets: dict[str, list[tuple[Row, Cell]]] = defaultdict(list)
    for row, cell, link in _links(table):
        if all(row is not other for other, _ in targets[link]):
            targets[link].append((row, cell))
    names = {
        row.cells[at].words.strip("` "): row
        for row in table.rows
        for at in range(min(3, len(row.cells)))
        if re.fullmatch(r"[\w.-]{12,200}", row.cells[at].words.strip("` "))
        and any(char.isdigit() for char in row.cells[at].words)
    }
    alone = sum(len(rows) == 1 for rows in targets.values())
    for link, rows in targets.items():
        owner = names.get(link.rstrip("/").rpartition("/")[2])
        for row, cell in rows:
            if owner is not None and owner is not row:
                yield _linked(row, cell, link, owner, "error", "is the page of another row's run")
        if owner is None and len(rows) == 2 and alone >= 3 and "/" in link[8:].rstrip("/"):
            yield _linked(
                *rows[1],
                link,
                rows[0][0],
                "note",
                "is also that of another row, where all other rows have their own",
            )


def _links(table: Table) -> Iterator[tuple[Row, Cell, str]]:
    for row in table.rows:
        for cell in row.cells:
            for found in LINK.finditer(cell.text):
                yield row, cell, found[0]


def _linked(row: Row, cell: Cell, link: str, owner: Row, severity: str, why: str) -> Found:
    return Found(
        "link", cell.line, cell.column, link[-100:], f"row of line {owner.line}: {owner.label}"[:160],
        f"Each row must link its own run; the page that {row.label[:80]} links {why}.",
        "Link the run that the row is about.", "error" if severity == "error" else "note",
    )  # fmt: skip
