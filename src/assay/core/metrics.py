"""Reading metrics: rows of all ranks and attempts as one set of columns.

A resumed run is a new attempt that starts again at `start_step`. What an earlier attempt logged
from there on was computed again, so the merged view hides it; the files keep both. A line that
cannot be read is skipped and counted: at the end of a file it was torn by a kill (`torn_lines`),
anywhere else it is damage (`bad_lines`).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from assay.core.errors import StoreError
from assay.core.files import read_bytes
from assay.core.rows import MetricWriter, encode_row, metrics_name

__all__ = [
    "MetricWriter",
    "MetricsFile",
    "Row",
    "RunMetrics",
    "Series",
    "downsample",
    "encode_row",
    "metrics_files",
    "metrics_name",
    "read_metrics",
    "read_metrics_file",
]

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
_NAME = re.compile(r"metrics-(\d+)-(\d+)\.jsonl")


class Row(msgspec.Struct, frozen=True):
    """One line of a file of metrics."""

    step: int
    time: float
    values: dict[str, float | Literal["nan", "inf", "-inf"]]


class Series(NamedTuple):
    """One metric as columns of equal length, in the order in which it was logged."""

    steps: Ints
    values: Floats
    times: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsFile:
    """The rows of one rank in one attempt.

    Attributes:
        path: The file.
        rank: Which process of the run wrote it.
        attempt: In which attempt.
        rows: What could be read, in file order.
        torn_lines: 1 if the last line was cut off by a kill, else 0.
        bad_lines: Unreadable lines elsewhere: damage, since no writer leaves them.
    """

    path: Path
    rank: int
    attempt: int
    rows: list[Row]
    torn_lines: int
    bad_lines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMetrics:
    """The merged view of a run.

    Attributes:
        series: Metric name → columns; ranks one after another, then attempts.
        num_rows: Rows in the view.
        hidden_rows: Rows of earlier attempts that a later attempt computed again.
        torn_lines: Lines cut off by a kill.
        bad_lines: Damaged lines.
        problems: A sentence for each file with damage.
    """

    series: dict[str, Series]
    num_rows: int
    hidden_rows: int
    torn_lines: int
    bad_lines: int
    problems: list[str] = field(default_factory=list)


def metrics_files(folder: Path) -> list[tuple[int, int, Path]]:
    """All (rank, attempt, path) of a run directory, in that order."""
    found = []
    for path in folder.glob("metrics-*.jsonl"):
        match = _NAME.fullmatch(path.name)
        if match:
            found.append((int(match[1]), int(match[2]), path))
    return sorted(found)


def read_metrics_file(path: Path) -> MetricsFile:
    """Read one file of rows; unreadable lines are counted, never guessed at.

    Raises:
        StoreError: The file cannot be read, or its name is not that of a file of metrics.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise StoreError(
            f"A file of metrics is named metrics-<rank>-<attempt>.jsonl; got {path.name!r} in "
            f"{path.parent}. Rename it, or keep it elsewhere."
        )
    content = read_bytes(path)
    end = content.rfind(b"\n") + 1
    torn = int(end < len(content))
    decoder = msgspec.json.Decoder(Row)
    bad = 0
    try:
        rows = decoder.decode_lines(content[:end])
    except (msgspec.DecodeError, UnicodeDecodeError):
        rows = []
        for line in content[:end].split(b"\n")[:-1]:
            try:
                rows.append(decoder.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError):
                bad += 1
    return MetricsFile(
        path=path,
        rank=int(match[1]),
        attempt=int(match[2]),
        rows=rows,
        torn_lines=torn,
        bad_lines=bad,
    )


def visible_rows(
    folder: Path, starts: Mapping[int, int | None]
) -> tuple[list[tuple[MetricsFile, list[Row]]], int]:
    """Each file with the rows that no later attempt computed again, and how many were hidden.

    Raises:
        StoreError: A file belongs to an attempt whose start is unknown, so that the view would
            be a guess.
    """
    files = [read_metrics_file(path) for _, _, path in metrics_files(folder)]
    for file in files:
        if file.attempt > 1 and file.attempt not in starts:
            raise StoreError(
                f"Every attempt after the first must tell where it started, but events.jsonl in "
                f"{folder} has no 'started' for attempt {file.attempt}, which wrote "
                f"{file.path.name}. Restore events.jsonl from a copy, or move this run out of "
                "runs/ and run again."
            )
    view = []
    hidden = 0
    for file in files:
        later = [start for attempt, start in starts.items() if attempt > file.attempt]
        if any(start is None for start in later):
            kept: list[Row] = []
        elif later:
            first = min(start for start in later if start is not None)
            kept = [row for row in file.rows if row.step < first]
        else:
            kept = file.rows
        hidden += len(file.rows) - len(kept)
        view.append((file, kept))
    return view, hidden


def read_metrics(folder: Path, starts: Mapping[int, int | None] | None = None) -> RunMetrics:
    """The merged view of a run's metrics.

    Args:
        folder: The run directory.
        starts: Attempt → the step at which it resumed, None for from scratch
            (`RunState.starts`). May be left out for a run of one attempt.

    Raises:
        StoreError: A file cannot be read, or an attempt's start is unknown.
    """
    view, hidden = visible_rows(folder, starts or {})
    problems = [
        f"{file.path.name}: {file.bad_lines} damaged line(s) skipped"
        for file, _ in view
        if file.bad_lines
    ]
    return RunMetrics(
        series=columns([row for _, rows in view for row in rows]),
        num_rows=sum(len(rows) for _, rows in view),
        hidden_rows=hidden,
        torn_lines=sum(file.torn_lines for file, _ in view),
        bad_lines=sum(file.bad_lines for file, _ in view),
        problems=problems,
    )


def columns(rows: Iterable[Row]) -> dict[str, Series]:
    """Rows as one set of columns a metric."""
    by_name: dict[str, tuple[list[int], list[float | str], list[float]]] = {}
    for row in rows:
        step, time = row.step, row.time
        for name, value in row.values.items():
            column = by_name.get(name)
            if column is None:
                column = by_name[name] = ([], [], [])
            column[0].append(step)
            column[1].append(value)
            column[2].append(time)
    return {
        name: Series(
            np.array(steps, dtype=np.int64),
            np.fromiter(map(float, values), dtype=np.float64, count=len(values)),
            np.array(times, dtype=np.float64),
        )
        for name, (steps, values, times) in by_name.items()
    }


def downsample(steps: Ints, values: Floats, points: int = 512) -> tuple[Ints, Floats]:
    """At most `points` points with the same first, last, extremes and gaps as the curve.

    The curve is put in step order (stable), cut into buckets of equal length, and each bucket
    gives its smallest and largest value, and a NaN if it has one: a spike or a divergence of a
    single step stays visible.

    Args:
        steps: Steps, in any order.
        values: Values; NaN and infinities allowed.
        points: Upper limit, at least 5.

    Returns:
        Steps (ascending) and values, a subset of the given pairs.
    """
    assert points >= 5, "first, last and one bucket of three"
    if steps.size > 1 and bool(np.any(steps[1:] < steps[:-1])):
        order = np.argsort(steps, kind="stable")
        steps, values = steps[order], values[order]
    size = steps.size
    if size <= points:
        return steps, values
    missing = np.isnan(values)
    kinds = 3 if bool(missing.any()) else 2
    num_buckets = (points - 2) // kinds
    width = -(-(size - 2) // num_buckets)
    # Short last rows repeat their last index, which changes neither extreme.
    index = np.minimum(np.arange(1, 1 + num_buckets * width), size - 2).reshape(num_buckets, width)
    inside = values[index]
    gaps = missing[index]
    picks = [
        np.where(gaps, np.inf, inside).argmin(axis=1),
        np.where(gaps, -np.inf, inside).argmax(axis=1),
    ]
    if kinds == 3:
        picks.append(gaps.argmax(axis=1))
    rows = np.arange(num_buckets)
    chosen = np.concatenate([[0], *(index[rows, pick] for pick in picks), [size - 1]])
    kept = np.unique(chosen)
    return steps[kept], values[kept]
