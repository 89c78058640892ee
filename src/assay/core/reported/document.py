"""A Markdown file as blocks: headings, paragraphs, list items, code and tables, each with its line.

This is no renderer: nothing of the file is executed, followed or looked up. Any bytes can be read.
Bytes that are no UTF-8 are replaced and counted; time and memory grow linearly with the file, and
what lies behind `MAX_BYTES` is not read and said to be missing.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from assay.core.errors import StoreError
from assay.core.reported.clean import HTML_TABLE, clean, drawn, without_hidden
from assay.core.reported.flattened import Line, cut, is_flattened, stripped, unflatten
from assay.core.reported.tables import Table, pipe_table, space_tables

MAX_BYTES = 32 * 2**20
MAX_BLOCK = 4000
"""Characters read together: a sentence that is checked is shorter than that."""
MARKS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"))
FENCE = re.compile(r"[ \t>]{0,12}(?P<mark>`{3,100}|~{3,100})(?P<lang>[^`\n]{0,80})")
HEADING = re.compile(r" {0,3}(?P<level>#{1,6})[ \t]+(?P<text>\S.{0,1000}?)[ \t]*#{0,6}[ \t]*$")
UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*$")
ITEM = re.compile(r"[ \t>]{0,40}(?:[-*+•]|\d{1,9}[.)])[ \t]+(?=\S)")
SEPARATOR = re.compile(
    r"[ \t>]{0,12}\|?[ \t]*:?-{1,400}:?[ \t]*(?:[|+][ \t]*:?-{1,400}:?[ \t]*){0,300}[|+]?[ \t]*$"
)
BOX = re.compile(r"[ \t>]{0,12}\+(?:[-=]{1,400}\+){1,300}[ \t]*$")
SEPARATED = re.compile(rf"{BOX.pattern}|(?=[^\n]*\|){SEPARATOR.pattern}")
RULE = re.compile(r"[ \t]{0,3}(?:(?:-[ \t]?){3,100}|(?:\*[ \t]?){3,100}|(?:_[ \t]?){3,100})$")
SPACED = re.compile(r"\S(?:[ \t]{2,}|\t)\S")
OUTPUT = frozenset({"", "text", "txt", "console", "output", "log", "plain", "plaintext", "none"})


@dataclass(frozen=True, kw_only=True)
class Block:
    """A piece of a log.

    Attributes:
        kind: "heading", "text", "item", "code", "output", "table" or "cell".
        text: As written, without the marks that make it this kind.
        line: Line of the file, counted from 1.
        column: Column in that line, counted from 1; tells places apart in a one-line file.
        path: Headings above it, outermost first.
        section: Number of the heading above it.
        level: Of a heading, 1 to 6.
        language: Of code.
        table: Of a table.
    """

    kind: str
    text: str
    line: int
    column: int = 1
    path: tuple[str, ...] = ()
    section: int = 0
    level: int = 0
    language: str = ""
    table: Table | None = None

    @cached_property
    def clean(self) -> str:
        """The text without marks, of the same length."""
        return clean(self.text)

    @property
    def prose(self) -> bool:
        """Whether sentences may stand in it."""
        return self.kind in ("text", "item", "output", "heading")

    def cells(self) -> Iterator["Block"]:
        """The cells of a table that say more than a number, each as a piece of text."""
        for row in self.table.rows if self.table else ():
            for cell in row.cells:
                if "(" in cell.text or "/" in cell.text or len(cell.text) > 12:
                    yield Block(
                        kind="cell",
                        text=cell.text,
                        line=cell.line,
                        column=cell.column,
                        path=self.path,
                        section=self.section,
                    )

    def place(self, offset: int) -> tuple[int, int]:
        """Line and column of a character of the text."""
        lines = self.text.count("\n", 0, offset)
        if not lines:
            return self.line, self.column + offset
        return self.line + lines, offset - self.text.rfind("\n", 0, offset)


@dataclass(frozen=True, kw_only=True)
class Document:
    """A log that was read.

    Attributes:
        name: As the reader knows the file.
        blocks: Its pieces in order.
        problems: What could not be read, each a sentence.
        whole: Whether all of the file was read.
    """

    name: str
    blocks: Sequence[Block]
    problems: tuple[str, ...] = ()
    whole: bool = True

    @cached_property
    def tables(self) -> list[Table]:
        """All tables in order."""
        return [block.table for block in self.blocks if block.table is not None]

    @cached_property
    def sections(self) -> list[list[Block]]:
        """The blocks under each heading, the heading first."""
        found: dict[int, list[Block]] = {}
        for block in self.blocks:
            found.setdefault(block.section, []).append(block)
        return list(found.values())


def read_log(path: Path, name: str = "") -> Document:
    """Read a Markdown file.

    Args:
        path: A regular file.
        name: How it is called in reports; its path as given if left out.

    Raises:
        StoreError: There is no such file, or it cannot be read.
    """
    try:
        if not path.is_file():
            raise StoreError(
                f"A log to import must be a file; {str(path)!r} is none. Give the path of a "
                "Markdown or text file."
            )
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"A log to import must be a readable file; {str(path)!r} is not: {error}. Give the "
            "path of a Markdown or text file."
        ) from error
    problems: list[str] = []
    if whole := len(data) <= MAX_BYTES:
        text = decode(data, problems)
    else:
        problems.append(
            f"only the first {MAX_BYTES // 2**20} MiB were read: split the file to audit the rest"
        )
        text = decode(data[:MAX_BYTES].rpartition(b"\n")[0] or data[:MAX_BYTES], problems)
    return parse(text, name or str(path), tuple(problems), whole=whole)


def decode(data: bytes, problems: list[str]) -> str:
    """Bytes as text, whatever they are; adds to `problems` what had to be replaced."""
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        text = data.decode(encoding, errors="replace")
        count = text.count("\ufffd")
        problems.append(f"not {encoding.upper()}: {count} place(s) were replaced by \ufffd")
        return text


def parse(
    text: str, name: str = "log", problems: tuple[str, ...] = (), *, whole: bool = True
) -> Document:
    """A text as blocks.

    Args:
        text: Markdown.
        name: How the file is called in reports.
        problems: What could not be read.
        whole: Whether this is all of the file.
    """
    text = drawn(text.replace("\r\n", "\n").replace("\r", "\n"))
    if count := len(HTML_TABLE.findall(text)):
        problems += (f"{count} HTML table(s): what they hold is read as text, not as a table",)
    builder = _Builder()
    for line in _lines(without_hidden(text)):
        builder.add(line)
    builder.close()
    return Document(name=name, blocks=builder.blocks, problems=problems, whole=whole)


def _lines(text: str) -> Iterator[Line]:
    for number, line in enumerate(text.split("\n"), start=1):
        if is_flattened(line):
            yield from unflatten(number, line)
        else:
            yield Line(number, 1, line)


@dataclass
class _Builder:
    """Lines become blocks, one after the other; nothing is looked at twice."""

    blocks: list[Block] = field(default_factory=list)
    _path: list[tuple[int, str]] = field(default_factory=list)
    _section: int = 0
    _open: list[Line] = field(default_factory=list)
    _kind: str = "text"
    _fence: str = ""
    _language: str = ""

    def add(self, line: Line) -> None:
        """Take the next line."""
        fence = FENCE.match(line.text)
        if self._fence:
            if fence and fence["mark"].startswith(self._fence) and not fence["lang"].strip():
                self._close_code()
            else:
                self._open.append(line)
            return
        if fence:
            self.close()
            self._fence, self._language = fence["mark"], fence["lang"].strip().lower()
        else:
            self._outside(line)

    def _outside(self, line: Line) -> None:
        if self._kind == "table":
            if "|" in line.text or BOX.match(line.text):
                self._open.append(line)
                return
            self.close()
        heading = HEADING.match(line.text) if line.text.lstrip().startswith("#") else None
        if heading:
            self.close()
            inner = Line(line.number, line.column + heading.start("text"), heading["text"])
            self._heading(inner, len(heading["level"]))
        elif not line.text.strip():
            self.close()
        elif "|" in line.text and self._starts_table(line):
            return
        elif BOX.match(line.text):
            self.close()
            self._kind, self._open = "table", [line]
        elif UNDERLINE.match(line.text) and self._is_title():
            title = self._open.pop()
            self.close()
            self._heading(stripped(title, 0), 1 if "=" in line.text else 2)
        elif RULE.match(line.text) and self._kind != "spaced":
            self.close()
        elif item := ITEM.match(line.text):
            self.close()
            self._kind, self._open = "item", [stripped(line, item.end())]
        else:
            self._text(line)

    def _is_title(self) -> bool:
        """Whether the open line is underlined: a paragraph of one line, no row of a table."""
        return (
            len(self._open) == 1
            and self._kind == "text"
            and not SPACED.search(self._open[0].text.strip())
        )

    def _text(self, line: Line) -> None:
        self._open.append(line)
        if sum(len(each.text) for each in self._open[-8:]) > MAX_BLOCK or len(self._open) > 400:
            self.close()

    def _starts_table(self, line: Line) -> bool:
        """Whether this is a separator under a header, or a row between bars."""
        if SEPARATOR.match(line.text) and self._open and "|" in self._open[-1].text:
            header = self._open.pop()
            self.close()
            self._kind, self._open = "table", [header, line]
            return True
        bare = line.text.strip()
        if len(bare) > 2 and bare[0] == bare[-1] == "|" and bare.count("|") > 2:
            self.close()
            self._kind, self._open = "table", [line]
            return True
        return False

    def _heading(self, line: Line, level: int) -> None:
        self._path = [(n, title) for n, title in self._path if n < level]
        self._path.append((level, " ".join(clean(line.text).split())))
        self._section += 1
        self._put("heading", line.text, line, level=level)

    def _put(
        self, kind: str, text: str, line: Line, *, level: int = 0, table: Table | None = None
    ) -> None:
        self.blocks.append(
            Block(
                kind=kind,
                text=text,
                line=line.number,
                column=line.column,
                path=tuple(title for _, title in self._path),
                section=self._section,
                level=level,
                language=self._language if kind in ("code", "output") else "",
                table=table,
            )
        )

    def close(self) -> None:
        """End what is open."""
        if self._fence:
            self._close_code()
        lines, kind = self._open, self._kind
        self._open, self._kind = [], "text"
        if not lines:
            return
        if kind == "table":
            table = pipe_table(lines)
            if table is not None:
                self._put("table", "\n".join(line.text for line in lines), lines[0], table=table)
            else:
                self._pieces("text", lines)
        elif kind == "text" and len(lines) > 1:
            self._spaced(lines, "text")
        else:
            self._pieces(kind, lines)

    def _close_code(self) -> None:
        lines, language = self._open, self._language
        self._open, self._fence = [], ""
        if language in OUTPUT and any(SEPARATED.match(line.text) for line in lines):
            for line in lines:
                self._outside(line)
            self.close()
        elif language in OUTPUT and not any(_is_command(line.text) for line in lines[:3]):
            self._spaced(lines, "output")
        elif lines:
            self._put("code", "\n".join(line.text for line in lines), lines[0])
        self._language = ""

    def _spaced(self, lines: list[Line], kind: str) -> None:
        """Text that may hold tables made of blanks."""
        for table, piece in space_tables(lines, loose=kind == "output"):
            if table is not None:
                self._put("table", "\n".join(line.text for line in piece), piece[0], table=table)
            else:
                self._pieces(kind, piece)

    def _pieces(self, kind: str, lines: list[Line]) -> None:
        """Lines as one block, or several if they are long; a flattened line is a block itself."""
        piece: list[Line] = []
        size = 0
        for line in lines:
            apart = bool(piece) and (line.number != piece[-1].number + 1 or line.column != 1)
            if piece and (apart or size + len(line.text) > MAX_BLOCK or kind == "output"):
                self._put(kind, "\n".join(each.text for each in piece), piece[0])
                piece, size = [], 0
            for part in cut(line, MAX_BLOCK):
                if len(part.text) >= MAX_BLOCK:
                    self._put(kind, part.text, part)
                elif part.text.strip() or piece:
                    piece.append(part)
                    size += len(part.text)
        if piece:
            self._put(kind, "\n".join(each.text for each in piece), piece[0])


def _is_command(text: str) -> bool:
    bare = text.strip()
    first = bare.partition(" ")[0]
    return bare.startswith(("$ ", "> ", "% ", "#!")) or first in SHELL or " --" in bare


SHELL = frozenset(
    [
        "python",
        "python3",
        "uv",
        "pip",
        "torchrun",
        "accelerate",
        "bash",
        "sh",
        "make",
        "cargo",
        "git",
        "cd",
        "export",
        "srun",
        "sbatch",
        "docker",
        "npm",
        "node",
        "./run.sh",
        "curl",
        "wget",
        "conda",
        "poetry",
        "deepspeed",
        "CUDA_VISIBLE_DEVICES=0",
    ]
)
