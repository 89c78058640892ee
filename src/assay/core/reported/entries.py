"""What a log says, entry by entry: dates, verdicts, commands, settings, values, paths, links."""

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import msgspec

from assay.core.reported.clean import DATES, clean
from assay.core.reported.document import Block, Document
from assay.core.reported.quantities import END, START, named_quantities, quantity
from assay.core.reported.tables import Table

VERDICT = re.compile(
    r"\b(?P<word>INVALID(?:ATED)?|SUCCESS(?:FUL)?|FAIL(?:ED)?|FAILURE|PASS(?:ED)?|PARTIAL(?: SUCCESS)?|PENDING|COMPLETED?|"
    r"IN PROGRESS|RUNNING|DONE|WIP|TODO|TBD|ABANDONED|KILLED|DIVERGED|INCONCLUSIVE|REVISED|RETRACTED|WITHDRAWN|"
    r"SUPERSEDED|CONFIRMED|REFUTED|REJECTED|UNSCORED|PAUSED|NEGATIVE|ARTIFACT)\b|(?P<mark>[✅❌⭐✓✗✔])"
)
TOLD = re.compile(
    r"^\W{0,4}(?:verdict|status|outcome|result)\W{1,6}(?P<text>\S.{0,80})",
    re.IGNORECASE | re.MULTILINE,
)
PART = re.compile(
    rf"{START}(?P<k>\d[\d,]{{0,12}})\s{{0,2}}(?:/|\bof\b|\bout of\b)\s{{0,2}}(?P<n>\d[\d,]{{0,12}}){END}"
)
PAIR = re.compile(
    r"^\W{0,6}(?P<name>[A-Za-z][\w ./-]{0,40}?)[*_`]{0,3}\s?[:=]\s?[*_`]{0,3}\s?(?P<text>\S.{0,400}?)\s{0,9}$",
    re.MULTILINE,
)
ASSIGNED = re.compile(
    r"(?<![\w-])--(?P<flag>[A-Za-z][\w-]{0,60})(?:[= ](?P<value>[^\s`-][^\s`]{0,200}|-\d[^\s`]{0,40}))?"
)
CODE = re.compile(r"`(?P<text>[^`\n]{2,2000})`")
LINK = re.compile(
    r"\[(?P<text>[^\[\]\n]{0,300})\]\((?P<target>[^()\s]{1,1000})[^()\n]{0,200}\)|(?P<bare>https?://[^\s|<>)\]`]{1,1000})"
)
SUFFIXES = frozenset(
    [
        ".py",
        ".sh",
        ".json",
        ".jsonl",
        ".csv",
        ".tsv",
        ".md",
        ".txt",
        ".log",
        ".pt",
        ".pth",
        ".ckpt",
        ".safetensors",
        ".npz",
        ".npy",
        ".yaml",
        ".yml",
        ".toml",
        ".png",
        ".svg",
        ".pdf",
        ".parquet",
        ".rs",
        ".ipynb",
        ".h5",
        ".pkl",
        ".bin",
        ".onnx",
    ]
)
COMMANDS = re.compile(
    r"^(?:\$ |> )?(?P<text>(?:[A-Z_][A-Z0-9_]{1,60}=\S{1,200}\s+){0,20}(?:[\w./~-]{0,200}/)?"
    r"(?:python[\d.]*|uv|pip|torchrun|accelerate|bash|sh|make|cargo|git|srun|sbatch|docker|npm|node|curl|wget|conda|"
    r"poetry|deepspeed|find|rm|cp|julia|Rscript|go|java|\./\S{1,200}|\S{1,200} (?:start|train|run) --\S{1,60})(?:\s.{0,4000})?)$"
)


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """A number that the log reports; `of` is n where it is k of n."""

    name: str
    printed: str
    value: float
    line: int
    column: int
    unit: str = ""
    spread: float | None = None
    of: float | None = None
    source: str = "prose"


class Link(msgspec.Struct, frozen=True):
    """Where a log points to. Never followed."""

    text: str
    target: str


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What stands under one heading. It is reported, and never evidence."""

    file: str
    line: int
    column: int
    title: str
    under: tuple[str, ...]
    date: str
    verdict: str
    commands: list[str]
    settings: dict[str, str]
    values: list[Value]
    paths: list[str]
    links: list[Link]
    tables: int
    standing: str = "reported"


def entries(document: Document) -> list[Entry]:
    """One entry a heading, in the order of the file; headings with nothing under them included."""
    return [_entry(document.name, blocks) for blocks in document.sections]


def _entry(name: str, blocks: Sequence[Block]) -> Entry:
    first = blocks[0]
    heading = first if first.kind == "heading" else None
    title = " ".join(heading.text.split()) if heading else ""
    prose = [block for block in blocks if block.prose and block is not heading]
    return Entry(
        file=name,
        line=first.line,
        column=first.column,
        title=title[:300],
        under=first.path[:-1] if heading else (),
        date=_date(title, prose),
        verdict=_verdict(title, prose),
        commands=_commands(blocks),
        settings=_settings(blocks),
        values=list(_values(blocks)),
        paths=_unique(path for block in blocks for path in _paths(block.text)),
        links=list(dict.fromkeys(link for block in blocks for link in _links(block.text))),
        tables=sum(block.table is not None for block in blocks),
    )


def _date(title: str, prose: Sequence[Block]) -> str:
    found = DATES.search(title)
    for block in prose[:3] if found is None else ():
        found = found or (DATES.search(block.text) if "date" in block.text[:40].lower() else None)
    return found[0] if found else ""


def _verdict(title: str, prose: Sequence[Block]) -> str:
    """What the heading says of the outcome, else what a line "Verdict:" or "Status:" says."""
    found = VERDICT.search(title)
    if found:
        return found[0]
    for block in prose:
        told = TOLD.search(block.clean)
        if told:
            inner = VERDICT.search(told["text"].upper())
            return inner[0] if inner else " ".join(told["text"].split())[:80]
    return ""


def _commands(blocks: Sequence[Block]) -> list[str]:
    found: list[str] = []
    for block in blocks:
        if block.kind == "code":
            joined = re.sub(r"\\\n\s{0,40}", "", block.text)
            found += [line.strip() for line in joined.split("\n") if COMMANDS.match(line.strip())]
        elif block.prose and "`" in block.text:
            found += [
                code["text"].strip()
                for code in CODE.finditer(block.text)
                if " " in code["text"].strip() and COMMANDS.match(code["text"].strip())
            ]
        elif block.kind in ("text", "item"):
            found += [
                hit["text"]
                for line in block.text.split("\n")
                if (hit := COMMANDS.match(line)) and " -" in line
            ]
    return _unique(found)


def _settings(blocks: Sequence[Block]) -> dict[str, str]:
    """`name: value` items, and the flags of commands."""
    found: dict[str, str] = {}
    for block in blocks:
        if block.kind == "code" or ("--" in block.text and "`" in block.text):
            for flag in ASSIGNED.finditer(block.text):
                found.setdefault(f"--{flag['flag']}", flag["value"] or "")
        elif block.kind in ("item", "text"):
            for pair in PAIR.finditer(block.text):
                found.setdefault(pair["name"].strip(), clean(pair["text"]).strip())
    return found


def _values(blocks: Sequence[Block]) -> Iterator[Value]:
    for block in blocks:
        if block.table is not None:
            yield from _table_values(block.table)
        elif block.prose and block.kind != "heading":
            yield from _prose_values(block)


def _table_values(table: Table) -> Iterator[Value]:
    for row in table.rows:
        for at, cell in enumerate(row.cells):
            name = f"{row.label} · {table.head[at]}".strip(" ·")
            if cell.quantity is not None:
                yield Value(
                    name=name, printed=cell.words, value=cell.quantity.value, line=cell.line,
                    column=cell.column, unit=cell.quantity.unit, spread=cell.quantity.spread, source="table",
                )  # fmt: skip
                continue
            block = Block(kind="cell", text=cell.text, line=cell.line, column=cell.column)
            for value in _prose_values(block) if any(c.isdigit() for c in cell.words) else ():
                inner = f"{name}, {value.name}" if value.name else name
                yield msgspec.structs.replace(value, name=inner, source="table")


def _prose_values(block: Block) -> Iterator[Value]:
    parts = {found.start("k"): found for found in PART.finditer(block.clean)}
    ends = {found.start("n") for found in parts.values()}
    for name, number, offset in named_quantities(block.text):
        if offset in ends:
            continue
        line, column = block.place(offset)
        part = parts.get(offset)
        of = quantity(part["n"]) if part else None
        yield Value(
            name=name, printed=" ".join(part[0].split()) if part else number.text, value=number.value,
            line=line, column=column, unit=number.unit, spread=number.spread, of=of.value if of else None,
        )  # fmt: skip


def _paths(text: str) -> Iterator[str]:
    """Code that looks like a file or folder; never opened."""
    for code in CODE.finditer(text):
        for word in code["text"].split()[:200]:
            bare = word.strip("'\",;()")
            if "://" in bare or len(bare) > 300 or not re.search(r"[A-Za-z]", bare):
                continue
            if bare.endswith("/") or PurePosixPath(bare).suffix.lower() in SUFFIXES:
                yield bare


def _links(text: str) -> Iterator[Link]:
    for found in LINK.finditer(text):
        yield Link((found["text"] or "").strip("*` "), found["target"] or found["bare"])


def _unique(items: "Iterator[str] | list[str]") -> list[str]:
    return list(dict.fromkeys(items))
