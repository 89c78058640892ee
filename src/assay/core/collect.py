"""Collectors: numbers that any program leaves behind, taken into its run.

Four places: a CSV of metrics, a JSON summary, TensorBoard event files, and lines of standard
output that match a regular expression. What cannot be taken is told as an event of the run, never
dropped in silence.
"""

import csv
import importlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from assay.core.definition import Collect
from assay.core.errors import ConfigError, DataError

STEP_COLUMNS = ("step", "global_step", "iteration", "iter", "epoch")
LINE_LIMIT = 2000
"""Longest line of output, in characters, that a pattern is tried on: a pattern that backtracks
takes time quadratic or worse in the length of the line."""


@dataclass(frozen=True, slots=True)
class _Source:
    """A file or folder, and its name for messages, which must not hold paths of this machine."""

    path: Path
    name: str


class Writer(Protocol):
    """What a collector needs of a run."""

    def log(self, values: Mapping[str, Any], *, step: int) -> None:
        """Record metric values at a step."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record final values."""

    def event(self, kind: str, message: str, **details: Any) -> None:
        """Record something that a reader should know."""


def collect(folder: Path, spec: Collect, writer: Writer, *, stdout: Path | None = None) -> int:
    """Take what a program left behind into its run.

    Args:
        folder: Where the program ran; the spec's names are relative to it.
        spec: Where to look.
        writer: The run.
        stdout: The file that holds the program's output; `stdout.log` in `folder` by default.

    Returns:
        Rows logged.

    Raises:
        DataError: A file that the spec names is missing or cannot be read.
        ConfigError: The pattern is no regular expression with named groups, or TensorBoard files
            are asked for and the library is not installed.
    """
    rows = 0
    if spec.csv is not None:
        source = _existing(folder, folder / spec.csv, "csv")
        rows += _collect_csv(source, spec.rename, writer)
    if spec.summary is not None:
        source = _existing(folder, folder / spec.summary, "summary")
        _collect_summary(source, spec.rename, writer)
    if spec.tensorboard is not None:
        source = _existing(folder, folder / spec.tensorboard, "tensorboard")
        rows += _collect_tensorboard(source, spec.rename, writer)
    if spec.stdout is not None:
        source = _existing(folder, stdout or folder / "stdout.log", "stdout")
        rows += _collect_stdout(source, compile_pattern(spec.stdout), spec.rename, writer)
    return rows


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The regular expression of a stdout collector, checked.

    Raises:
        ConfigError: It cannot be read, or has no named group that could be a metric.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"collect.stdout must be a regular expression; {pattern!r} is not: {error}. "
            r"For example: step (?P<step>\d+) loss (?P<train_loss>[\d.]+)"
        ) from error
    if not set(compiled.groupindex) - {"step"}:
        raise ConfigError(
            f"collect.stdout must name its values with groups (?P<name>...); {pattern!r} names "
            r"none. For example: step (?P<step>\d+) loss (?P<train_loss>[\d.]+)"
        )
    return compiled


def _collect_csv(source: _Source, rename: Mapping[str, str], writer: Writer) -> int:
    refused: dict[str, str] = {}
    rows = 0
    with source.path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader, [])]
        if not any(header):
            raise DataError(
                f"collect.csv must have a header of column names in its first line; {source.name} "
                "has none. Write one, for example: step,train_loss"
            )
        repeated = sorted({name for name in header if name and header.count(name) > 1})
        if repeated:
            raise DataError(
                f"collect.csv must name each column once; {source.name} repeats "
                f"{', '.join(repeated)}. Rename the columns in the program."
            )
        step_name = next((name for name in STEP_COLUMNS if name in header), None)
        number = -1
        try:
            for number, row in enumerate(filter(None, reader)):
                cells = dict(zip(header, row, strict=False))
                step = number if step_name is None else _as_step(cells.pop(step_name, ""))
                if step is None:
                    refused[step_name or ""] = f"row {number + 1} has no whole number as its step"
                    continue
                values = _numbers(cells, rename, refused)
                if len(row) > len(header):
                    refused["(beyond the header)"] = f"row {number + 1} has {len(row)} cells"
                if values:
                    writer.log(values, step=step)
                    rows += 1
        except csv.Error as error:
            raise DataError(
                f"collect.csv: {source.name} cannot be read after row {number + 1}: {error}. "
                "Write it with Python's csv module, or give another file."
            ) from error
    _tell_refused(source.name, refused, writer)
    return rows


def _numbers(
    cells: Mapping[str, str], rename: Mapping[str, str], refused: dict[str, str]
) -> dict[str, float]:
    """The numeric cells under their names; what is no number is noted with its first value."""
    values = {}
    for name, text in cells.items():
        # An empty cell is a metric that was not measured at this step.
        if not name or not text or not text.strip():
            continue
        value = _as_number(text)
        if value is None:
            refused.setdefault(name, f"{text.strip()[:80]!r} is no number")
        else:
            values[rename.get(name, name)] = value
    return values


def _collect_summary(source: _Source, rename: Mapping[str, str], writer: Writer) -> None:
    try:
        content = source.path.read_bytes()
        # json.dump writes NaN and Infinity as bare words, which orjson does not read.
        text = re.sub(rb'("(?:[^"\\]|\\.)*")|(-?)\b(NaN|Infinity)\b', _quote_word, content)
        table = orjson.loads(text)
    except (OSError, orjson.JSONDecodeError) as error:
        # The text of an OSError names the whole path.
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"collect.summary must be a JSON file; {source.name} cannot be read: {why}. Check "
            "that the program wrote all of it."
        ) from error
    if not isinstance(table, dict):
        raise DataError(
            f"collect.summary must hold a table of names and numbers; {source.name} holds a "
            f'{type(table).__name__}. Write {{"name": value}}.'
        )
    refused: dict[str, str] = {}
    values = {}
    for name, value in _leaves(table, ""):
        number = value
        if isinstance(value, str):
            number = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}.get(value)
        if isinstance(number, bool) or not isinstance(number, int | float):
            refused[name] = f"{str(value)[:80]!r} is no number"
        else:
            values[rename.get(name, name)] = number
    writer.summary(values)
    _tell_refused(source.name, refused, writer)


def _quote_word(match: re.Match[bytes]) -> bytes:
    return match[1] or b'"' + match[2] + match[3] + b'"'


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{prefix}.{index}" if prefix else str(index))
    else:
        yield prefix, value


def _collect_tensorboard(source: _Source, rename: Mapping[str, str], writer: Writer) -> int:
    folder = source.path
    try:
        loader = importlib.import_module("tensorboard.backend.event_processing.event_file_loader")
        tensors = importlib.import_module("tensorboard.util.tensor_util")
    except ImportError as error:
        raise ConfigError(
            f"collect.tensorboard = {source.name!r} needs the library tensorboard, which cannot "
            f"be imported ({error}). Install it with: pip install 'assay[tensorboard]'"
        ) from error
    files = sorted(folder.rglob("*tfevents*")) if folder.is_dir() else [folder]
    if not files:
        raise DataError(
            f"collect.tensorboard must name a folder with event files (*tfevents*); {source.name} "
            "has none. Give the folder that the program's SummaryWriter writes to."
        )
    refused: dict[str, str] = {}
    rows = 0
    for path in files:
        for event in loader.EventFileLoader(str(path)).Load():
            values = {}
            for value in event.summary.value:
                array = tensors.make_ndarray(value.tensor) if value.HasField("tensor") else None
                if array is not None and array.size == 1 and array.dtype.kind in "fiu":
                    values[rename.get(value.tag, value.tag)] = array.reshape(()).item()
                else:
                    refused.setdefault(value.tag, "no scalar")
            if values:
                writer.log(values, step=event.step)
                rows += 1
    _tell_refused(source.name, refused, writer)
    return rows


def _collect_stdout(
    source: _Source, pattern: re.Pattern[str], rename: Mapping[str, str], writer: Writer
) -> int:
    refused: dict[str, str] = {}
    rows = 0
    long_lines = 0
    with source.path.open(encoding="utf-8", errors="replace") as file:
        # A progress bar overwrites its line with \r, which universal newlines split as well.
        for line in file:
            if len(line) > LINE_LIMIT:
                long_lines += 1
                continue
            match = pattern.search(line)
            if match is None:
                continue
            cells = {name: text or "" for name, text in match.groupdict().items()}
            step = _as_step(cells.pop("step")) if "step" in cells else rows
            values = _numbers(cells, rename, refused)
            if step is None:
                refused["step"] = f"{match['step']!r} is no whole number"
            elif values:
                writer.log(values, step=step)
                rows += 1
    if long_lines:
        writer.event(
            "collect",
            f"{source.name}: {long_lines} line(s) longer than {LINE_LIMIT} characters were not "
            "searched",
            lines=long_lines,
        )
    if rows == 0:
        writer.event("collect", f"{source.name}: no line matches {pattern.pattern!r}")
    _tell_refused(source.name, refused, writer)
    return rows


def _existing(folder: Path, path: Path, key: str) -> _Source:
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
    if not path.exists():
        raise DataError(
            f"collect.{key} must name something that the program left behind; {name} is not there, "
            "in the folder that it wrote to. Check the name and that the program wrote it, or "
            "remove the key."
        )
    return _Source(path, name)


def _tell_refused(source: str, refused: Mapping[str, str], writer: Writer) -> None:
    if refused:
        listed = "; ".join(f"{name}: {why}" for name, why in refused.items())
        writer.event("collect", f"{source}: not taken as numbers: {listed}", columns=[*refused])


def _as_number(text: str) -> float | int | None:
    text = text.strip()
    # Python reads "1_000" as a number; a program that prints it means a word.
    if "_" in text:
        return None
    try:
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        return None


def _as_step(text: str) -> int | None:
    value = _as_number(text)
    if value is None or not math.isfinite(value) or value != int(value) or abs(value) >= 2**63:
        return None
    return int(value)
