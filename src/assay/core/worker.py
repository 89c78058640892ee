"""The child process that computes one cohort: establishes provenance, then calls the engine.

Started by a launcher with a `Job` on standard input and the number of an open pipe for messages
as its argument. An ad-hoc command is computed by the same code inside `assay run`.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import msgspec

from assay.core.config import build
from assay.core.engine import Engine
from assay.core.environment import salt_of
from assay.core.errors import AssayError
from assay.core.files import to_json, write_atomic
from assay.core.launch.job import Job
from assay.core.program import run_program
from assay.core.provenance import capture
from assay.core.registry import find_task
from assay.core.run import RunRecord, RunWriter, attempt_name, read_record
from assay.core.settings import Settings
from assay.core.study import Collect
from assay.core.vcs import diff_patch


@dataclass(slots=True)
class Stop:
    """How often the user asked to stop, by which signal, and whether the engine has noticed."""

    asked: int = 0
    number: int = signal.SIGTERM
    seen: bool = False

    def __call__(self) -> bool:
        """For `RunContext.should_stop`."""
        self.seen = self.seen or self.asked > 0
        return self.asked > 0

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        self.asked += 1
        self.number = number


def main() -> None:
    """Entry point of `python -m assay.core.worker PIPE LOCK…`."""
    stop = Stop()
    signal.signal(signal.SIGTERM, stop.ask)
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    pipe, *locks = map(int, sys.argv[1:])

    def send(line: bytes) -> None:
        # Without a reader the runner is gone; its locks are ours now, and the work goes on.
        with contextlib.suppress(BrokenPipeError):
            os.write(pipe, line)

    compute(job, Settings.from_environment(start=Path(job.root)), send, stop, locks)


def compute(
    job: Job,
    settings: Settings,
    send: Callable[[bytes], None] | None,
    stop: Stop,
    locks: Sequence[int] = (),
) -> list[str]:
    """Compute a cohort and record how each run ended; returns their statuses.

    What goes wrong in the engine, in the program or before they start fails the runs: a mistake
    of ours or of the engine with its traceback, a user's with its paragraph. It is not raised.

    Args:
        job: What to compute.
        settings: Where things are, and the environment that programs get.
        send: Takes progress lines.
        stop: The user's wish to stop.
        locks: Open lock files of the runs, for the program to keep open.

    Raises:
        StoreError: A run directory cannot be read or written.
    """
    began = time.monotonic()
    records = [read_record(Path(run.folder)) for run in job.runs]
    writers = [
        RunWriter(
            Path(run.folder),
            attempt=run.attempt,
            rank=0 if record.cmd is None else COLLECTOR_RANK,
            device=job.device,
            threads=job.threads,
            data_dir=Path(job.data_dir) if job.data_dir else None,
            on_progress=send,
            stop=stop,
        )
        for run, record in zip(job.runs, records, strict=True)
    ]
    error: str | None
    try:
        if records[0].cmd is not None:
            error = _program(job, records[0], writers[0], settings, stop, locks)
            # A program that was asked to stop ends as it likes; it may not have come to its end.
            error = None if stop.seen else error
        else:
            error = _engine(job, records, writers, settings)
    except Exception as mistake:
        # Around a program, an error of the lab's own says all; in an engine, the place matters.
        plain = records[0].cmd is not None and isinstance(mistake, AssayError)
        error = str(mistake) if plain else traceback.format_exc()
        # The output lies on the same disk as the run, which may be full.
        with contextlib.suppress(OSError):
            sys.stderr.write("" if plain else error)
    # A task that saw the wish to stop has returned early; one that did not is complete.
    status = "failed" if error else "interrupted" if stop.seen else "completed"
    share_s = (time.monotonic() - began) / len(writers)
    for writer in writers:
        writer.spent(process_s=share_s)
        writer.finish(status, error=error)
    return [status] * len(writers)


COLLECTOR_RANK = 1
"""A program may log its own rows as rank 0 (`assay.init`); what is collected is another rank."""


def _engine(
    job: Job, records: Sequence[RunRecord], writers: Sequence[RunWriter], settings: Settings
) -> str | None:
    assert records[0].engine is not None
    engine, task = find_task(
        records[0].engine, records[0].task, root=Path(job.root), where=records[0].study
    )
    # An engine can take a class of the user's by name; the project's files shadow nothing.
    sys.path.append(job.root)
    configs = [build(task.config, r.config, where=f"run {r.id}") for r in records]
    shared = _capture(job, settings, list(sys.orig_argv[:4]), engine)
    shared["engine"] = {"name": engine.name, "task": task.name, **task.environment()}
    for record, writer, config in zip(records, writers, configs, strict=True):
        data = task.fingerprint(config, record.seeds, settings.data_dir)
        _record_provenance(writer, {**shared, "data": data}, settings)
    task.run(configs, writers)
    return None


def _program(
    job: Job,
    record: RunRecord,
    writer: RunWriter,
    settings: Settings,
    stop: Stop,
    locks: Sequence[int],
) -> str | None:
    assert record.cmd is not None
    out = None
    if job.out_dir is not None:
        out = writer.folder / job.out_dir
        out.mkdir(exist_ok=True)
    # The command keeps its {out} here: the folder is another one in every run, and means nothing.
    _record_provenance(writer, _capture(job, settings, record.cmd, None), settings)
    return run_program(
        record.cmd,
        writer,
        out,
        Collect(**job.collect),
        settings.environment,
        stop,
        echo=job.out_dir is None,
        keep_open=locks,
    )


def _capture(
    job: Job, settings: Settings, argv: Sequence[str], engine: Engine | None
) -> dict[str, Any]:
    provenance = capture(
        root=Path(job.root),
        argv=argv,
        env=settings.environment,
        declared=job.environment,
        packages=engine.packages if engine else (),
        source=_sources(engine, Path(job.root)),
        salt=salt_of(Path(job.cache_dir)),
        cwd=Path.cwd(),
    )
    return {**provenance, "device": job.device, "threads": job.threads}


def _sources(engine: Engine | None, root: Path) -> list[Path]:
    """What computes: the lab, the engine's package, and all that it imported from the project."""
    if engine is None:
        return []
    names = {"assay", *(task.run.__module__.partition(".")[0] for task in engine.tasks.values())}
    files = [_file_of(sys.modules[name]) for name in sorted(names)]
    sources = [f.parent if f.name == "__init__.py" else f for f in files if f is not None]
    loaded = {_file_of(module) for module in list(sys.modules.values())}
    for file in sorted(f for f in loaded if f is not None and f.is_relative_to(root)):
        if "site-packages" not in file.parts and not any(file.is_relative_to(s) for s in sources):
            sources.append(file)
    return sources


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file) if file else None


def _record_provenance(
    writer: RunWriter, provenance: Mapping[str, Any], settings: Settings
) -> None:
    """Write provenance before anything is computed: without it a run does not start."""
    folder, attempt = writer.folder, writer.attempt
    rest = {k: v for k, v in provenance.items() if k != "environment"}
    write_atomic(folder / attempt_name("provenance.json", attempt), to_json(rest))
    write_atomic(folder / attempt_name("env.json", attempt), to_json(provenance["environment"]))
    if provenance["code"].get("dirty"):
        patch = diff_patch(settings.root, settings.environment)
        write_atomic(folder / attempt_name("diff.patch", attempt), patch)


if __name__ == "__main__":
    try:
        main()
    except AssayError as mistake:
        sys.stderr.write(f"error: {mistake}\n")
        sys.exit(mistake.exit_code)
