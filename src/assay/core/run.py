"""A live run: everything that a program or an engine may write into its run directory.

`RunWriter` is the `RunContext` that an engine sees. What is on disk, and how it is read back, is
`assay.core.rundir`; its names are re-exported here, since whoever writes runs also reads them.
"""

import hashlib
import importlib
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from assay.core.artifacts import MANIFEST_NAME, ArtifactStore
from assay.core.errors import CheckpointError, StoreError, TamperedError
from assay.core.files import (
    explicit,
    numbers,
    read_bytes,
    remove_unfinished,
    sha256_of,
    to_json,
    write_atomic,
    write_error,
)
from assay.core.rows import MetricWriter, encode_row
from assay.core.rundir import (
    STATUSES,
    EndRecord,
    Event,
    RunRecord,
    RunState,
    append_event,
    attempt_name,
    create_run,
    new_id,
    new_record,
    next_attempt,
    now,
    read_end,
    read_events,
    read_record,
    read_run,
    run_folder,
    start_steps,
    write_end,
)

__all__ = [
    "EndRecord", "Event", "RunRecord", "RunState", "RunWriter", "append_event", "attempt_name",
    "checkpoint_step", "create_run", "new_id", "new_record", "next_attempt", "read_checkpoint",
    "read_end", "read_events", "read_record", "read_run", "run_folder", "start_steps",
    "verify_run", "verify_seal", "write_checkpoint", "write_end",
]  # fmt: skip

CHECKPOINT_NAME = "checkpoint"
_SEALED = re.compile(
    r"run\.json|events\.jsonl|(?:provenance|env|end)(?:-\d+)?\.json|diff(?:-\d+)?\.patch|"
    r"metrics-\d+-\d+\.jsonl|metrics\.parquet"
)
"""Files whose digests the end of an attempt records; the output log may still grow."""


class RunWriter:
    """One attempt of one run; implements `assay.core.engine.RunContext`.

    The metrics file is opened by the first `log`, so a process that only records events may
    stand beside the one that logs. Two processes that both log need two ranks.
    """

    def __init__(
        self,
        folder: Path,
        *,
        attempt: int,
        rank: int = 0,
        device: str = "cpu",
        threads: int = 1,
        data_dir: Path | None = None,
        on_progress: Callable[[bytes], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> None:
        """Open an attempt of an existing run and record that it started, if nobody has yet.

        Args:
            folder: The run directory.
            attempt: Number of this attempt, from 1 (`next_attempt`).
            rank: Which of the run's processes this is.
            device: Where to compute.
            threads: CPU threads to use.
            data_dir: Folder of local data sets.
            on_progress: Takes one line of JSON for the live display.
            stop: True once the user asked to stop.

        Raises:
            StoreError: The run cannot be read or written.
        """
        self.folder = folder
        self.record = read_record(folder)
        self.attempt = attempt
        self.rank = rank
        self.seeds: Mapping[str, int] = self.record.seeds
        self.device = device
        self.threads = threads
        self.data_dir = data_dir
        self.artifacts = ArtifactStore(folder)
        self._on_progress = on_progress
        self._stop = stop
        self._metrics: MetricWriter | None = None
        self._finished = False
        self._started = time.monotonic()
        starts = start_steps(read_events(folder)[0])
        header = checkpoint_step(folder)
        self._unread_checkpoint = starts.get(attempt, header)
        if attempt not in starts:
            remove_unfinished(folder, self.artifacts.folder)
            self.event(
                "started",
                "from scratch" if header is None else f"from the checkpoint at step {header}",
                start_step=header,
                pid=os.getpid(),
                host=socket.gethostname(),
            )

    def log(self, values: Mapping[str, Any], *, step: int) -> None:
        """Record metric values at a step. Returns when they would survive SIGKILL."""
        if self._metrics is None:
            self._open_metrics(values, step)
        assert self._metrics is not None
        self._metrics.log(values, step=step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record final values of the run; later calls overwrite. Survives SIGKILL."""
        self._record_numbers("summary", values)

    def spent(self, **budget: float) -> None:
        """Record what was really spent; later calls overwrite. Survives SIGKILL."""
        self._record_numbers("spent", budget)

    def save(self, name: str, content: bytes) -> str:
        """Store an artifact; returns its sha256."""
        self._must_be_open()
        return self.artifacts.save(name, content)

    def save_file(self, name: str, source: Path) -> str:
        """Store a copy of a file as an artifact; returns its sha256."""
        self._must_be_open()
        return self.artifacts.save_file(name, source)

    def save_checkpoint(self, step: int, content: bytes) -> None:
        """Replace, atomically, the state from which this run can go on.

        `step` is the first step that a resumed attempt will log: earlier rows are kept, later
        ones are computed again.
        """
        self._must_be_open()
        # Rows first: a checkpoint that outlives the rows before it would leave a hole.
        if self._metrics is not None:
            self._metrics.sync()
        write_checkpoint(self.folder, step, content)

    def load_checkpoint(self) -> tuple[int, bytes] | None:
        """The step and state of the last checkpoint, or None for a fresh run.

        Raises:
            TamperedError: It is not what was written.
        """
        self._must_be_open()
        loaded = read_checkpoint(self.folder)
        self._unread_checkpoint = None
        return loaded

    def event(self, kind: str, message: str, **details: Any) -> None:
        """Record something that a reader of the log should know."""
        self._must_be_open()
        append_event(self.folder, self.attempt, kind, message, **details)

    def progress(self, step: int, total: int, shown: Mapping[str, float]) -> None:
        """Tell the live display how far this run is. Not recorded."""
        if self._on_progress is not None:
            line = {"run": self.record.id, "step": step, "total": total, "shown": dict(shown)}
            self._on_progress(to_json(line) + b"\n")

    def should_stop(self) -> bool:
        """True once the user asked to stop."""
        return self._stop is not None and self._stop()

    def close(self) -> None:
        """Sync and close the metrics without ending the attempt; whoever owns the run ends it."""
        if self._metrics is not None:
            self._metrics.close()
        self._finished = True

    def finish(self, status: str, error: str | None = None) -> EndRecord:
        """Seal the metrics and write how this attempt ended, with the digests of all it rests on.

        Args:
            status: "completed", "failed" or "interrupted".
            error: Traceback of a failure.

        Raises:
            StoreError: The attempt has ended already, or the directory cannot be written.
        """
        assert status in STATUSES, status
        self._must_be_open()
        if self._metrics is not None:
            self._metrics.close()
        # polars takes 150 ms to load, which `import assay` must not pay.
        seal = importlib.import_module("assay.core.seal")
        sealed = seal.seal(self.folder, start_steps(read_events(self.folder)[0]))
        if status != "completed":
            # `end.json` is sealed by nothing, so the events tell what counts of it as well.
            append_event(self.folder, self.attempt, "ended", "", status=status)
        events, _ = read_events(self.folder)
        end = EndRecord(
            status=status,
            attempt=self.attempt,
            ended_at=now(),
            duration_s=time.monotonic() - self._started,
            error=error,
            summary=_last_numbers(events, self.attempt, "summary"),
            spent=_last_numbers(events, self.attempt, "spent"),
            rows=sealed.num_rows,
            files=_digests(self.folder, self.attempt),
        )
        write_end(self.folder, end)
        self._finished = True
        if status == "completed":
            (self.folder / CHECKPOINT_NAME).unlink(missing_ok=True)
        return end

    def _open_metrics(self, values: Mapping[str, Any], step: int) -> None:
        self._must_be_open()
        # A row that cannot be logged must leave no empty file behind.
        encode_row(values, step=step, now=0.0)
        if self._unread_checkpoint is not None and self.rank == 0:
            self.event(
                "from-scratch",
                f"the checkpoint at step {self._unread_checkpoint} was not loaded",
                start_step=None,
            )
            self._unread_checkpoint = None
        self._metrics = MetricWriter(self.folder, rank=self.rank, attempt=self.attempt)

    def _record_numbers(self, kind: str, values: Mapping[str, Any]) -> None:
        self._must_be_open()
        row = orjson.loads(encode_row(values, step=0, now=0.0))
        append_event(self.folder, self.attempt, kind, "", **row["values"])

    def _must_be_open(self) -> None:
        if self._finished:
            raise StoreError(
                f"Run {self.record.id} has ended, so nothing more can be recorded in "
                f"{self.folder}. Record before finish(), or start a new run."
            )


def write_checkpoint(folder: Path, step: int, content: bytes) -> None:
    """Replace the checkpoint of a run, atomically.

    Raises:
        StoreError: The folder cannot be written; the checkpoint before it is intact.
    """
    if isinstance(step, bool) or not isinstance(step, int):
        raise CheckpointError(
            f"A checkpoint's step must be a whole number; got {step!r}. Give the first step that "
            "a resumed attempt will log."
        )
    sha256 = hashlib.sha256(content).hexdigest()
    header = to_json({"step": step, "sha256": sha256, "bytes": len(content)})
    write_atomic(folder / CHECKPOINT_NAME, header + b"\n" + content)


def read_checkpoint(folder: Path) -> tuple[int, bytes] | None:
    """The step and content of a run's checkpoint, checked; None if there is none.

    Raises:
        TamperedError: The content does not match the header.
    """
    path = folder / CHECKPOINT_NAME
    if not path.exists():
        return None
    head, _, content = read_bytes(path).partition(b"\n")
    header = _checkpoint_header(path, head)
    found = hashlib.sha256(content).hexdigest()
    if len(content) != header["bytes"] or found != header["sha256"]:
        raise TamperedError(
            f"{path} must hold {header['bytes']} bytes with digest {str(header['sha256'])[:12]}…, "
            f"but holds {len(content)} with {found[:12]}…: it was cut or changed after it was "
            "saved. Delete it to start this run from scratch, or restore it from a copy."
        )
    return header["step"], content


def checkpoint_step(folder: Path) -> int | None:
    """The step of a run's checkpoint, from its header alone; None if there is none.

    Raises:
        TamperedError: The header is not what was written.
    """
    path = folder / CHECKPOINT_NAME
    try:
        with path.open("rb") as file:
            head = file.readline(1000)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise write_error(path, error) from error
    step: int = _checkpoint_header(path, head)["step"]
    return step


def _checkpoint_header(path: Path, line: bytes) -> dict[str, Any]:
    try:
        header = orjson.loads(line)
        if isinstance(header, dict) and isinstance(header["step"], int):
            return {"step": header["step"], "sha256": header["sha256"], "bytes": header["bytes"]}
    except (orjson.JSONDecodeError, KeyError):
        pass
    raise TamperedError(
        f"{path} must begin with a line of JSON that tells step, sha256 and bytes, but begins "
        f"with {line[:60]!r}: it was changed after it was saved. Delete it to start this run "
        "from scratch, or restore it from a copy."
    )


def verify_run(state: RunState) -> None:
    """Recompute the digests of all that the last attempt sealed, and of the artifacts.

    Raises:
        StoreError: A sealed file is missing.
        TamperedError: A sealed file was changed.
    """
    if state.end is not None:
        verify_seal(state, state.end)
    ArtifactStore(state.path).verify()


def verify_seal(state: RunState, end: EndRecord) -> None:
    """Recompute the digests of what the last attempt sealed, and compare its end with its events.

    Raises:
        StoreError: A file cannot be read.
        TamperedError: A file was changed, added or removed after the run ended.
    """
    own = attempt_name("end.json", end.attempt)
    there, sealed = set(_sealed_names(state.path, own)), end.files.keys()
    for names, what in ((sealed - there, "lacks"), (there - sealed, "has also")):
        if names:
            raise TamperedError(
                f"{state.path} must hold the files that {own} seals, but {what} "
                f"{', '.join(sorted(names))}: it was changed after the run ended, or was recorded "
                f"before Assay sealed them. {_RESTORE}"
            )
    for name, recorded in end.files.items():
        found = sha256_of(state.path / name)
        if found != recorded:
            raise TamperedError(
                f"{state.path / name} must have the digest sealed in {own}, {recorded[:12]}…, but "
                f"has {found[:12]}…: it was changed after the run ended. {_RESTORE}"
            )
    said = [e for e in state.events if (e.attempt, e.kind) == (end.attempt, "ended")]
    told: dict[str, Any] = {
        "status": said[-1].details.get("status") if said else "completed",
        "summary": _last_numbers(state.events, end.attempt, "summary"),
        "spent": _last_numbers(state.events, end.attempt, "spent"),
    }
    for key, value in told.items():
        if explicit(value) != explicit(getattr(end, key)):
            raise TamperedError(
                f"{state.path / own} must tell the {key} that events.jsonl tells, but the two "
                f"differ: one of them was changed after the run ended. {_RESTORE}"
            )


_RESTORE = "Restore it from a copy, or move the run out of runs/ and run again."


def _sealed_names(folder: Path, own_end: str) -> list[str]:
    names = {path.name for path in folder.iterdir() if _SEALED.fullmatch(path.name)} - {own_end}
    manifest = f"artifacts/{MANIFEST_NAME}"
    return sorted(names) + ([manifest] if (folder / manifest).exists() else [])


def _digests(folder: Path, attempt: int) -> dict[str, str]:
    names = _sealed_names(folder, attempt_name("end.json", attempt))
    return {name: sha256_of(folder / name) for name in names}


def _last_numbers(events: list[Event], attempt: int, kind: str) -> dict[str, float]:
    merged: dict[str, float] = {}
    for event in events:
        if event.attempt == attempt and event.kind == kind:
            merged.update(numbers(event.details))
    return merged
