"""What another tool reports of a run, and the folders it is read from."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from assay.core.errors import DataError
from assay.core.metrics import Series


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedRun:
    """One run as another tool recorded it.

    Attributes:
        name: As that tool shows it.
        source: The folder it was read from, below the one that was given.
        status: How it ended, in that tool's words; "" if unknown.
        params: Name → value, as text.
        tags: Name → value, as text.
        metrics: Name → columns, in the order of the file.
        torn_lines: Rows cut off at the end of a file.
        bad_lines: Rows that could not be read elsewhere.
        problems: A sentence for everything that was not taken.
    """

    name: str
    source: str
    status: str = ""
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, Series]
    torn_lines: int = 0
    bad_lines: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedRuns:
    """What a folder of another tool reports.

    Attributes:
        kind: "tensorboard" or "mlruns".
        folder: The folder, as it was given.
        runs: In the order of their folders.
        problems: A sentence for everything that is no run and was left out.
    """

    kind: str
    folder: Path
    runs: list[ReportedRun]
    problems: list[str]


@dataclass(slots=True)
class Draft:
    """A run while its files are read."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    points: dict[str, list[tuple[int, float, float]]] = field(default_factory=dict)
    torn_lines: int = 0
    bad_lines: int = 0
    problems: list[str] = field(default_factory=list)

    def done(self, *, name: str, source: str, status: str = "") -> ReportedRun:
        """The run, with its points as columns."""
        return ReportedRun(
            name=plain(name),
            source=plain(source),
            status=plain(status),
            params={plain(key): plain(value) for key, value in self.params.items()},
            tags={plain(key): plain(value) for key, value in self.tags.items()},
            metrics={plain(name): _series(points) for name, points in sorted(self.points.items())},
            torn_lines=self.torn_lines,
            bad_lines=self.bad_lines,
            problems=[plain(problem) for problem in self.problems],
        )


def plain(text: str) -> str:
    """The same text where a file's name or a document holds what is no Unicode."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _series(points: list[tuple[int, float, float]]) -> Series:
    steps, values, times = zip(*points, strict=True)
    return Series(
        np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64), np.array(times)
    )


def must_be_folder(folder: Path) -> None:
    """Refuse what is no folder.

    Raises:
        DataError: It is a file or not there.
    """
    if not folder.is_dir():
        raise DataError(
            f"What is imported must be a folder; {folder} is "
            f"{'a file' if folder.exists() else 'not there'}. Give the folder that the other tool "
            "writes to."
        )


def files(folder: Path) -> Iterator[Path]:
    """Plain files below a folder, in order; a link could lead out of it and is passed over."""
    for entry in entries(folder):
        if is_folder(entry):
            yield from files(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield Path(entry.path)


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, by name; nothing if it is not there.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(
            f"{folder} must be readable, but is not: {error.strerror or error}. Check its "
            "permissions, or copy it to a folder of yours."
        ) from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    """A folder, and no link to one."""
    return entry.is_dir(follow_symlinks=False)
