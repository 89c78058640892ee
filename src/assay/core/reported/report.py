"""The report of an import: for a terminal, as Markdown, as plain data."""

import html
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from assay.core.reported.document import Document
from assay.core.reported.entries import Entry
from assay.core.reported.finding import Finding

STANDING = "reported, not evidence"
TITLE = 90


class Imported(NamedTuple):
    """A log that was read: its entries, and what its arithmetic breaks."""

    document: Document
    entries: Sequence[Entry]
    findings: Sequence[Finding]


def as_data(logs: Sequence[Imported]) -> dict[str, Any]:
    """Everything, as plain data."""
    return {
        "standing": STANDING,
        "files": [
            {
                "file": log.document.name,
                "problems": list(log.document.problems),
                "entries": msgspec.to_builtins(list(log.entries)),
                "findings": msgspec.to_builtins(list(log.findings)),
            }
            for log in logs
        ],
    }


def as_text(logs: Sequence[Imported]) -> str:
    """A summary of each file and every finding, for a terminal."""
    lines: list[str] = []
    for log in logs:
        lines += [_summary(log), *(f"  not read: {_safe(each)}" for each in log.document.problems)]
        for each in log.findings:
            lines.append(
                f"  {each.severity:5} {each.line}:{each.column}  {each.rule}: {_safe(each.says)}"
            )
            lines.append(
                f"        {_safe(each.printed)}  ->  {_safe(each.recomputed)}. {each.way_out}"
            )
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def as_markdown(logs: Sequence[Imported]) -> str:
    """A page: what each log reports, what breaks, and its entries with their lines."""
    lines = [
        "# Imported logs",
        "",
        f"Every number here is {STANDING}: no run of this project gave it.",
        "",
    ]
    for log in logs:
        lines += [f"## {_cell(log.document.name)}", "", f"{_cell(_counts(log))}.", ""]
        lines += [f"- Not read: {_cell(each)}" for each in log.document.problems]
        lines += ["### What the arithmetic breaks", ""]
        if log.findings:
            lines += [
                "| Place | | Check | Printed | Recomputed | Rule |",
                "|---|---|---|---|---|---|",
            ]
        else:
            lines.append("Nothing was found.")
        for each in log.findings:
            cells = (
                f"{each.line}:{each.column}",
                each.severity,
                each.rule,
                each.printed,
                each.recomputed,
                each.says,
            )
            lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
        lines += [
            "",
            "### Entries",
            "",
            "| Line | Date | Entry | Verdict | Values | Commands | Tables |",
            "|---|---|---|---|---|---|---|",
        ]
        for entry in log.entries:
            title = entry.title[:TITLE] + ("…" if len(entry.title) > TITLE else "")
            counts = (len(entry.values), len(entry.commands), entry.tables)
            shown = (
                f"{entry.line}:{entry.column}",
                entry.date,
                title,
                entry.verdict,
                *map(str, counts),
            )
            lines.append(f"| {' | '.join(_cell(cell) for cell in shown)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _summary(log: Imported) -> str:
    return f"{_safe(log.document.name)}: {_counts(log)}."


def _counts(log: Imported) -> str:
    values = sum(len(entry.values) for entry in log.entries)
    commands = sum(len(entry.commands) for entry in log.entries)
    errors = sum(each.severity == "error" for each in log.findings)
    notes = len(log.findings) - errors
    return (
        f"{len(log.entries)} entries, {len(log.document.tables)} tables, {commands} commands, "
        f"{values:,} values ({STANDING}); {errors} errors, {notes} notes"
    )


def _safe(text: str) -> str:
    """A text without what a terminal would obey: control and direction characters."""
    return "".join(
        char if char == " " or unicodedata.category(char)[0] != "C" else "\ufffd" for char in text
    )


def _cell(text: str) -> str:
    """A text as a cell of a table: nothing of it is markup."""
    escaped = html.escape(_safe(" ".join(text.split())), quote=False)
    for mark in ("\\", "|", "`", "*", "_", "[", "]", "~"):
        escaped = escaped.replace(mark, f"\\{mark}")
    return escaped
