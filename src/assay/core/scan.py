"""Finding the run directories, telling cheaply which of them changed, and reading those."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeAlias

from assay.core.read import LoadedRun, load_run

POOL_FROM = 400
MAX_PROCESSES = 16
Loaded: TypeAlias = tuple[str, LoadedRun | str]


def signatures(
    runs_dir: Path, study: str | None, known: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Path inside `runs/` and a cheap sign of change, for every run directory.

    A completed run is immutable but for files added or removed, which its folder's own time
    tells; any other is told by the number, sizes and times of its files.
    """
    levels = [(str(runs_dir), "")] if study is None else [(str(runs_dir / study), f"{study}/")]
    for _ in range(3 if study is None else 2):
        levels = [
            (f"{folder}/{e.name}", f"{name}{e.name}/")
            for folder, name in levels
            for e in _folders(folder)
        ]
    for folder, name in levels:
        for entry in _folders(folder):
            path = f"{name}{entry.name}"
            try:
                sealed = f"sealed-{entry.stat().st_mtime_ns}"
                yield path, sealed if known.get(path) == sealed else _open_signature(entry)
            except FileNotFoundError:
                continue  # Removed meanwhile.


def _open_signature(folder: os.DirEntry[str]) -> str:
    with os.scandir(folder.path) as entries:
        found = [e.stat() for e in entries if e.is_file()]
    size = sum(file.st_size for file in found)
    latest = max((file.st_mtime_ns for file in found), default=0)
    return f"open-{folder.stat().st_mtime_ns}-{len(found)}-{size}-{latest}"


def _folders(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return [e for e in entries if e.name[0] != "." and e.is_dir()]
    except FileNotFoundError:
        return []


def load(runs_dir: Path, paths: Sequence[str]) -> Iterator[Loaded]:
    """Read run directories, many of them in several processes; in the order of `paths`."""
    folders = [runs_dir / path for path in paths]
    if len(paths) < POOL_FROM:
        yield from zip(paths, map(load_run, folders), strict=True)
        return
    processes = min(os.cpu_count() or 1, MAX_PROCESSES)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from zip(paths, pool.map(load_run, folders, chunksize=32), strict=True)
