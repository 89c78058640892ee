"""Tables: rows that may be ragged, cells that may hold several lines, columns made of blanks."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from assay.core.reported.clean import clean
from assay.core.reported.flattened import Line
from assay.core.reported.quantities import Quantity, cell_quantity

MAX_CELLS = 200
"""Cells of a row beyond that are not read."""
GAP = re.compile(r"[ \t]{2,}|\t")
RULER = re.compile(r"[\s|:+=_─━—–-]+")
MEAN_WORDS = re.compile(r"\b(?:mean|avg|average)\b\.?", re.IGNORECASE)


@dataclass(frozen=True)
class Cell:
    """A cell, and where it stands."""

    text: str
    line: int
    column: int

    @cached_property
    def quantity(self) -> Quantity | None:
        """The number that it consists of."""
        return cell_quantity(self.text)

    @cached_property
    def words(self) -> str:
        """Its text without marks."""
        return " ".join(clean(self.text).split())


@dataclass(frozen=True)
class Row:
    """One row, with as many cells as the table has columns."""

    cells: Sequence[Cell]

    @cached_property
    def label(self) -> str:
        """What the row is about: its cells up to the first that holds no number."""
        at = next((i for i, c in enumerate(self.cells) if c.quantity is None and c.words), 0)
        leading = self.cells[: at + 1] if at <= 2 else self.cells[:1]
        return " ".join(cell.words for cell in leading).strip()

    @property
    def line(self) -> int:
        """Its line in the file."""
        return self.cells[0].line


@dataclass(frozen=True)
class Table:
    """A table: names of its columns, and rows."""

    head: Sequence[str]
    rows: Sequence[Row]
    line: int

    def column(self, at: int) -> list[tuple[Row, Quantity]]:
        """The rows that have a number in a column, with it."""
        return [(row, value) for row in self.rows if (value := row.cells[at].quantity) is not None]

    @cached_property
    def numeric(self) -> list[int]:
        """The columns in which most cells are numbers; never the one that names the rows."""
        names = 0 if all(row.cells[0].quantity is None for row in self.rows) else -1
        return [
            at
            for at in range(len(self.head))
            if at != names and 2 * len(self.column(at)) >= len(self.rows)
        ]

    @cached_property
    def keys(self) -> list[str]:
        """The names of the columns as they are compared."""
        return [key(MEAN_WORDS.sub("", name)) for name in self.head]


def key(text: str) -> str:
    """A name without case, spaces and marks, so that two spellings of it meet."""
    return "".join(char for char in text.casefold() if char.isalnum() or char in "+Δ%")


def pipe_table(lines: Sequence[Line]) -> Table | None:
    """A table of bars; None if nothing but rules or a single row is there."""
    kept = [line for line in lines if not RULER.fullmatch(line.text)]
    if len(kept) < 2:
        return None
    head = [cell.words for cell in _split(kept[0])]
    rows = [_padded(_split(line), len(head), line) for line in kept[1:]]
    return Table(head, rows, kept[0].number)


def _split(line: Line) -> list[Cell]:
    r"""The cells between bars; `\|` is no bar."""
    text = line.text
    start = len(text) - len(text.lstrip("> \t"))
    if text[start : start + 1] == "|":
        start += 1
    end = len(text.rstrip())
    if end > start and text[end - 1] == "|" and text[end - 2] != "\\":
        end -= 1
    cells: list[Cell] = []
    for piece in re.split(r"(?<!\\)\|", text[start:end], maxsplit=MAX_CELLS)[:MAX_CELLS]:
        lead = len(piece) - len(piece.lstrip())
        cells.append(Cell(piece.strip(), line.number, line.column + start + lead))
        start += len(piece) + 1
    return cells


def _padded(cells: list[Cell], width: int, line: Line) -> Row:
    missing = width - len(cells)
    return Row((cells + [Cell("", line.number, line.column)] * missing)[:width])


def space_tables(
    lines: Sequence[Line], *, loose: bool
) -> Iterator[tuple[Table | None, list[Line]]]:
    """The tables made of blanks in a piece of text, and what lies between them.

    Args:
        lines: Of one paragraph or one block of output.
        loose: Whether single blanks may part columns: in a program's output they do.
    """
    plain: list[Line] = []
    position = 0
    cut = [_spaced(line, loose=loose) for line in lines]
    while position < len(lines):
        end = _table_end(cut, position)
        if end - position < (2 if loose else 3) or not _is_table(cut[position:end]):
            # All of it at once: looking again from its second line would not be linear.
            end = max(end, position + 1)
            plain += lines[position:end]
            position = end
            continue
        if plain:
            yield None, plain
            plain = []
        piece = list(lines[position:end])
        head, *rows = (cells for cells in cut[position:end] if cells)
        table = Table(
            [cell.words for cell in head],
            [_padded(cells, len(head), piece[0]) for cells in rows],
            piece[0].number,
        )
        yield table, piece
        position = end
    if plain:
        yield None, plain


def _spaced(line: Line, *, loose: bool) -> list[Cell]:
    """A line's cells between gaps; a ruler has none."""
    if RULER.fullmatch(line.text):
        return []
    wide = _cells(line, GAP)
    narrow = _cells(line, re.compile(r"[ \t]+")) if loose and len(wide) < 2 else wide
    return narrow[:MAX_CELLS]


def _cells(line: Line, gap: re.Pattern[str]) -> list[Cell]:
    cells, start = [], 0
    text = line.text.rstrip()
    for found in gap.finditer(text):
        if piece := text[start : found.start()].strip():
            cells.append(Cell(piece, line.number, line.column + start))
        start = found.end()
    if text[start:]:
        cells.append(Cell(text[start:], line.number, line.column + start))
    return cells


def _table_end(cut: Sequence[list[Cell]], start: int) -> int:
    """Where the rows end that have as many cells as the first one, rulers passed over."""
    width, end = len(cut[start]), start + 1
    if width < 2:
        return start
    while end < len(cut) and len(cut[end]) in (0, width):
        end += 1
    return end


def _is_table(rows: Sequence[list[Cell]]) -> bool:
    """Whether a head without numbers stands over rows that consist of numbers, mostly."""
    head, *body = (row for row in rows if row)
    cells = [cell for row in body for cell in row[1:]]
    numbers = sum(cell.quantity is not None for cell in cells)
    return bool(body) and 2 * numbers >= len(cells) and all(c.quantity is None for c in head[1:])
