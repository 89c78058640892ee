"""What a launcher hands to a worker: one cohort, as plain data; and what the worker tells."""

from typing import Any

import msgspec


class JobRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a cohort: its directory, and which attempt this is."""

    folder: str
    attempt: int


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One cohort.

    Attributes:
        root: Project folder; the worker's current folder.
        runs: The cohort's runs; all of one engine and task, or a single one with a command.
        environment: Declared variables; None means passed through from the caller.
        device: Where to compute.
        threads: CPU threads of this process.
        data_dir: Local data sets.
        cache_dir: Holds the key that hides undeclared environment values.
        collect: Where a program leaves its numbers (fields of `assay.core.study.Collect`).
        out_dir: Folder inside the run's that a program writes to; None for an ad-hoc command,
            whose files are taken from the current folder.
    """

    root: str
    runs: list[JobRun]
    environment: dict[str, str | None] = {}
    device: str = "cpu"
    threads: int = 1
    data_dir: str | None = None
    cache_dir: str
    collect: dict[str, Any] = {}
    out_dir: str | None = "out"


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One line from a worker: how far a run is (`step` of `total`), and values to show."""

    run: str
    step: int
    total: int
    shown: dict[str, float | str] = {}
