"""Sentences about a table: by how much one row beats another, and which is the best."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from assay.core.reported.checks.common import Findings, Found, agree, direction
from assay.core.reported.document import Block, Document
from assay.core.reported.quantities import END, NUMBER, Quantity, quantity, shown
from assay.core.reported.tables import MEAN_WORDS, Row, Table, key

BEATS = re.compile(
    r"(?P<who>[A-Z][^.;:!?\n]{0,80}?)\s(?:beats?|improves?|outperforms?|exceeds?|surpass(?:es)?|gains?)\s"
    r"(?:(?:over|on|upon)\s)?(?P<whom>[^.;:!?\n]{1,60}?)\s+by\s+(?P<rest>[~≈+\-−\d](?:[^.;!?\n]|\.(?=\d)){0,120})"
)
RANGE = re.compile(
    rf"\s{{0,2}}(?P<a>{NUMBER})\s?%?\s?(?:to|–|—|…|\.\.\.?|-(?=\d))\s?(?P<b>{NUMBER})"
)
GAIN = re.compile(rf"(?P<d>[+\-−](?:\d{{1,6}})?\.?\d{{1,9}})\s(?P<name>[A-Za-z][\w-]{{0,30}}){END}")
BEST = re.compile(
    r"\bbest\s(?:single\s|overall\s)?(?:config(?:uration)?|run|result|model|setting|variant|setup|combination|checkpoint)\b(?:[^.!?\n]|\.(?=\d)){0,200}",
    re.IGNORECASE,
)
NAMED = re.compile(
    rf"(?<![\w-])(?P<name>[A-Za-zα-ωΑ-Ω][\w -]{{0,30}}?)\s?[=:]\s?(?P<n>{NUMBER}){END}"
)
MARKED = re.compile(r"\bbest\b|🏆|🥇", re.IGNORECASE)


@dataclass(frozen=True)
class _Under:
    """The tables of a section, and the sentences of it."""

    tables: list[tuple[Block, Table]]
    text: list[Block]


def _sections(document: Document) -> Iterator[_Under]:
    for blocks in document.sections:
        found = [(block, block.table) for block in blocks if block.table is not None]
        if found:
            yield _Under(found, [block for block in blocks if block.prose])


def gains(document: Document) -> Findings:
    """`X beats Y by +a to +b`, `by +0.25 Gamma`: not what the section's table gives."""
    for under in _sections(document):
        for block in under.text:
            for found in BEATS.finditer(block.clean):
                for _, table in reversed(under.tables):
                    upper, lower = _rows(table, found["who"]), _rows(table, found["whom"])
                    lower = [row for row in lower if row not in upper]
                    if upper and len(lower) == 1:
                        yield from _gain(block, found, table, upper, lower[0])
                        break


def _rows(table: Table, words: str) -> list[Row]:
    """The rows that a name means: all its letters begin the label, or the label is in the name."""
    name = key(words)
    exact = [row for row in table.rows if key(row.label) and key(row.label) == name]
    if exact:
        return exact
    last = key(words.split()[-1]) if words.split() else ""
    starts = [
        row
        for row in table.rows
        if len(name) >= 2 and (key(row.label).startswith(name) or _first(row.label, words, last))
    ]
    return starts or [
        row for row in table.rows if len(key(row.label)) >= 2 and name.endswith(key(row.label))
    ]


def _first(label: str, words: str, last: str) -> bool:
    """Whether a name and a label begin with the same word, and one says nothing more."""
    first = re.findall(r"[^\W_]+", label.lower())[:1]
    mine = re.findall(r"[^\W_]+", words.lower())
    return bool(first and mine) and len(first[0]) >= 3 and (mine[0] == first[0] or last == first[0])


def _gain(
    block: Block, found: "re.Match[str]", table: Table, upper: Sequence[Row], lower: Row
) -> Findings:
    rest = found["rest"]
    told = RANGE.match(rest)
    columns = [n for n in table.numeric if _mentions(rest, table.head[n])] or table.numeric
    if told and "%" not in rest[: told.end() + 1]:
        a, b = quantity(told["a"]), quantity(told["b"])
        bounds = [bound for row in upper for n in columns if (bound := _step(row, lower, n))]
        if a and b and len(bounds) >= 2 and a.value < b.value:
            yield from _range(block, found, (a, b), bounds)
        return
    for gain in GAIN.finditer(rest):
        column = next((n for n in table.numeric if key(table.head[n]) == key(gain["name"])), None)
        value = quantity(gain["d"])
        steps = [] if column is None else [s for row in upper if (s := _step(row, lower, column))]
        if value and steps and not any(agree(value, *step) for step in steps):
            line, col = block.place(found.start())
            truth = " or ".join(f"{sum(step) / 2:+.4g}" for step in steps)
            yield _found(block, line, col, gain[0], truth, f"the table gives {truth}", "error")


def _mentions(text: str, name: str) -> bool:
    """Whether a sentence names the last word of a column."""
    words = re.findall(r"[^\W_]+", MEAN_WORDS.sub("", name).lower())
    return bool(words) and words[-1] in re.findall(r"[^\W_]+", text.lower())


def _step(row: Row, lower: Row, column: int) -> tuple[float, float] | None:
    a, b = lower.cells[column].quantity, row.cells[column].quantity
    return None if a is None or b is None else (b.low - a.high, b.high - a.low)


def _range(
    block: Block,
    found: "re.Match[str]",
    told: tuple[Quantity, Quantity],
    bounds: Sequence[tuple[float, float]],
) -> Findings:
    least, most = min(bounds), max(bounds)
    if agree(told[0], *least) and agree(told[1], *most):
        return
    line, column = block.place(found.start())
    truth = f"{sum(least) / 2:+.2f} to {sum(most) / 2:+.2f}"
    printed = f"{told[0].text} to {told[1].text}"
    yield _found(
        block, line, column, printed, truth, f"the values of the table differ by {truth}", "note"
    )


def _found(
    block: Block, line: int, column: int, printed: str, recomputed: str, why: str, severity: str
) -> Found:
    return Found(
        "gain", line, column, printed, recomputed,
        f"A gain must be that of the table above it: {why}, printed {printed}.",
        "Correct the sentence, or give the values that it was drawn from.",
        "error" if severity == "error" else "note",
    )  # fmt: skip


def best_of_section(document: Document) -> Findings:
    """A best configuration whose value is better than all rows of the section: no row shows it."""
    for under in _sections(document):
        for block in under.text:
            for sentence in BEST.finditer(block.clean):
                missing = [
                    f"{found['name'].split()[-1]} {found['n']}"
                    for found in NAMED.finditer(sentence[0])
                    if _beyond(under, found["name"], found["n"])
                ]
                if missing:
                    line, column = block.place(sentence.start())
                    yield Found(
                        "best", line, column, ", ".join(missing), "in no row",
                        f"What is called the best must be in a table; {', '.join(missing)} is beyond "
                        "every row of this section.",
                        "Add the run that it came from to the table.", "note",
                    )  # fmt: skip


def _beyond(under: _Under, name: str, printed: str) -> bool:
    """Whether a value lies outside of all columns of its name, of which there is one."""
    value = quantity(printed)
    columns = [
        values
        for _, table in under.tables
        for n, head in enumerate(table.keys)
        if head == key(name.split()[-1]) and len(values := [q for _, q in table.column(n)]) >= 2
    ]
    return bool(value and columns) and all(
        value is not None
        and (value.low > max(v.high for v in column) or value.high < min(v.low for v in column))
        for column in columns
    )


def marked_best(table: Table) -> Findings:
    """A row or value marked as best that another one of its column beats."""
    for row in table.rows:
        values = [
            (n, value, direction(table.head[n]))
            for n in table.numeric
            if (value := row.cells[n].quantity)
        ]
        marked = [each for each in values if each[1].best]
        if not marked and MARKED.search(row.label) and not MARKED.search(" ".join(table.head)):
            marked = values
        known = [(n, value, sign) for n, value, sign in marked if sign]
        beaten = [hit for each in known if (hit := _better(table, row, *each))]
        if known and len(beaten) == len(known):
            n, value, other, better = beaten[0]
            cell = row.cells[n]
            yield Found(
                "best", cell.line, cell.column, f"{row.label}: {value.text}", f"{other.label}: {better.text}",
                f"The best {table.head[n]} must be the best of its column; {other.label} has {better.text}.",
                "Mark the other row, or say by what this one is best.",
            )  # fmt: skip


def _better(
    table: Table, row: Row, at_: int, value: Quantity, sign: int
) -> tuple[int, Quantity, Row, Quantity] | None:
    better = [
        (other, theirs)
        for other, theirs in table.column(at_)
        if other is not row
        and theirs.unit == value.unit
        and sign * (theirs.value - value.value) > value.half + theirs.half
    ]
    if not better:
        return None
    other, theirs = max(better, key=lambda each: sign * each[1].value)
    return at_, value, other, theirs


def best_and_last(table: Table) -> Findings:
    """A best value of a run that its own last value beats."""
    names = {key(name): n for n, name in enumerate(table.head)}
    for name, best in names.items():
        rest = name.removeprefix("best")
        last = next((names[w + rest] for w in ("final", "last", "end") if w + rest in names), None)
        sign = direction(table.head[best])
        if rest == name or last is None or not sign:
            continue
        for row in table.rows:
            top, end = row.cells[best].quantity, row.cells[last].quantity
            if (
                top
                and end
                and top.unit == end.unit
                and sign * (end.value - top.value) > top.half + end.half
            ):
                cell = row.cells[best]
                yield Found(
                    "best", cell.line, cell.column, f"{row.label}: {table.head[best]} {top.text}",
                    f"{table.head[last]} {shown(end.value, end)}",
                    "The best value of a run is at least as good as its last one; here the last is better.",
                    "Look up both values.",
                )  # fmt: skip


def unequal_budgets(table: Table) -> Findings:
    """Rows compared with a baseline that were trained for other numbers of steps, nearly equal."""
    at_ = next((n for n, k in enumerate(table.keys) if re.fullmatch(r"(?:training|train|num|total|optimizer)?(?:steps|iters|iterations|updates)", k)), None)  # fmt: skip
    if at_ is None or not any("baseline" in row.label.lower() for row in table.rows):
        return
    values = [(row, value) for row, value in table.column(at_) if value.value > 0]
    if len(values) < 2 or len(values) < len(table.rows):
        return
    least, most = (f(values, key=lambda each: each[1].value) for f in (min, max))
    if 1.02 < most[1].value / least[1].value <= 2:
        cell = least[0].cells[at_]
        yield Found(
            "budget", cell.line, cell.column, f"{table.head[at_]}: {least[1].text} to {most[1].text}",
            f"{100 * (most[1].value / least[1].value - 1):.0f} % more",
            f"Rows that are compared must have one budget; {least[0].label} had {least[1].text}, "
            f"{most[0].label} {most[1].text}.",
            "Compare at equal steps, or say why the difference does not matter.", "note",
        )  # fmt: skip
