"""A log whose lines were joined into one: cut again at headings, table rows and list items.

Some exports lose every newline. The marks of Markdown are still there, so most of the structure
can be found again: a run of `|---|---|` tells how many cells a row has, and `#` begins a heading.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

LONG = 300
"""Shorter lines are taken as they are."""
SEPARATOR = re.compile(r"\|(?:[ \t]{0,20}:?-{2,400}:?[ \t]{0,20}\|){1,200}")
HEADING = re.compile(r"(?<!\S)#{1,6} (?=[^\s#])")
BREAK = re.compile(
    r"(?<!\S)(?:(?P<rule>-{3,}(?!\S))|(?P<heading>#{1,6} (?=[^\s#]))"
    r"|(?P<number>\d{1,3}\. (?=[A-Z`*]))"
    r"|(?P<bold>\*\*(?=[A-Z][^*]{1,200}:\*\*|[A-Z][^*]{1,200}\*\*:)))"
)
ITEM = re.compile(r"(?<=[^\d=<>(\s]) (?=[-*] [A-Za-z`*])")
HEADING_END = re.compile(
    r" (?=\*\*|\| |- |---|`|\d{1,2}\. [A-Z`*]|#{1,6} )|(?<=[a-z)]) (?=[A-Z][a-z]{1,20} [a-z])"
)
HEADING_LIMIT = 160


@dataclass(frozen=True, slots=True)
class Line:
    """A line as a reader would have written it, and where it stands in the file."""

    number: int
    column: int
    text: str


def stripped(line: Line, mark: int) -> Line:
    """A line without its mark and the blanks around it, where it really begins."""
    text = line.text[mark:]
    lead = mark + len(text) - len(text.lstrip())
    return Line(line.number, line.column + lead, text.strip())


def cut(line: Line, limit: int) -> Iterator[Line]:
    """A line in pieces no longer than a limit, cut at blanks where there are some."""
    text, start = line.text, 0
    while len(text) - start > limit:
        end = text.rfind(" ", start + limit // 2, start + limit)
        end = start + limit if end < 0 else end
        yield Line(line.number, line.column + start, text[start:end].ljust(limit))
        start = end
    yield Line(line.number, line.column + start, text[start:])


def is_flattened(text: str) -> bool:
    """Whether a line holds several: two headings, or a table's rows."""
    if len(text) < LONG:
        return False
    headings = 0
    for headings, _ in enumerate(HEADING.finditer(text), start=1):
        if headings == 2:
            return True
    found = SEPARATOR.search(text)
    if found is None or len(found[0]) > 0.5 * len(text.strip()):
        return False
    bare = text.strip()
    if bare[0] == bare[-1] == "|" and not headings:
        # A row of its own, unless its first cells are a header: `| a | -- | -- |` is a row.
        begin = _header_start(text, 0, found.start(), found[0].count("|") - 1)
        return begin is not None and not text[:begin].strip()
    return True


def unflatten(number: int, text: str) -> Iterator[Line]:
    """The lines of a flattened one, in order; what lies between fences is one code block."""
    position = 0
    fences = [match.span() for match in re.finditer("```", text)]
    for (_, inside), (close, after) in zip(fences[::2], fences[1::2], strict=False):
        yield from _prose(number, position, text[position : inside - 3])
        yield Line(number, inside - 2, "```" + text[inside:close].partition(" ")[0])
        yield Line(number, inside + 1, text[inside:close].partition(" ")[2])
        yield Line(number, close + 1, "```")
        position = after
    yield from _prose(number, position, text[position:])


def _prose(number: int, offset: int, text: str) -> Iterator[Line]:
    """Lines outside of fences: tables by their separators, the rest at its marks."""
    position = 0
    for found in SEPARATOR.finditer(text):
        width = found[0].count("|") - 1
        if found.start() < position:
            continue
        begin = _header_start(text, position, found.start(), width)
        if begin is None:
            continue
        yield from _words(number, offset + position, text[position:begin])
        yield Line(number, offset + begin + 1, text[begin : found.start()].rstrip())
        yield Line(number, offset + found.start() + 1, found[0])
        position = found.end()
        while (end := _row_end(text, position, width)) is not None:
            start = text.index("|", position)
            yield Line(number, offset + start + 1, text[start:end])
            position = end
        # A blank line ends the table.
        yield Line(number, offset + position + 1, "")
    yield from _words(number, offset + position, text[position:])


def _header_start(text: str, low: int, end: int, width: int) -> int | None:
    """Where the header row of so many cells begins that ends before `end`."""
    place = end
    for _ in range(width + 1):
        place = text.rfind("|", low, place)
        if place < 0:
            return None
    return place


def _row_end(text: str, position: int, width: int) -> int | None:
    """Where the row ends that begins at the next bar; None if no row begins here."""
    start = position
    while start < len(text) and text[start] in " \t":
        start += 1
    if start >= len(text) or text[start] != "|":
        return None
    place = start
    for _ in range(width):
        place = text.find("|", place + 1)
        while place > 0 and text[place - 1] == "\\":
            place = text.find("|", place + 1)
        if place < 0:
            return None
    return place + 1


def _words(number: int, offset: int, text: str) -> Iterator[Line]:
    """Prose cut at headings, rules, list items and bold labels."""
    cuts = [0]
    for found in BREAK.finditer(text):
        cuts.append(found.start())
        if found.lastgroup == "heading":
            limit = min(len(text), found.end() + HEADING_LIMIT)
            end = HEADING_END.search(text, found.end() + 1, limit)
            cuts.append(end.start() if end else limit)
        elif found.lastgroup == "rule":
            cuts.append(found.end())
    cuts += [found.start() + 1 for found in ITEM.finditer(text)]
    edges = [*sorted(set(cuts)), len(text)]
    for start, stop in itertools.pairwise(edges):
        piece = text[start:stop]
        if piece.strip():
            lead = len(piece) - len(piece.lstrip())
            yield Line(number, offset + start + lead + 1, piece.strip())
