"""Executes a study: locks what is missing, starts its cohorts, and watches them.

What is done is read again from the run directories once the lock is held, so that two `assay run`
of one study never compute one run twice.
"""

import fcntl
import os
import select
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

from assay.core.environment import clean_environment
from assay.core.errors import StoreError
from assay.core.files import write_error
from assay.core.launch.job import Job, JobRun, Message
from assay.core.launch.local import LocalWorker
from assay.core.plan import PlannedRun
from assay.core.run import (
    EndRecord,
    RunState,
    append_event,
    attempt_name,
    create_run,
    new_record,
    read_run,
    write_end,
)
from assay.core.rundir import now
from assay.core.settings import Settings
from assay.core.study import Study
from assay.core.survey import Pending, survey

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_S = 0.2


class Observer(Protocol):
    """Watches an execution: the display of the command line, or a test."""

    def started(self, states: Sequence[RunState]) -> None:
        """A cohort's worker has started."""

    def progress(self, message: Message) -> None:
        """A run tells how far it is."""

    def finished(self, state: RunState) -> None:
        """A run's attempt has ended, with its state."""

    def tick(self) -> None:
        """Called several times a second."""


@dataclass(slots=True)
class Execution:
    """What an execution did.

    Attributes:
        finished: State of every run whose attempt ended here.
        elsewhere: Runs that another process computes now.
        interrupted: Whether the user asked to stop.
    """

    finished: list[RunState] = field(default_factory=list)
    elsewhere: list[PlannedRun] = field(default_factory=list)
    interrupted: bool = False


@dataclass(slots=True)
class _Active:
    worker: LocalWorker
    folders: list[Path]
    locks: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """Computes pending cohorts of one study on this machine.

    Attributes:
        study: The study.
        settings: Where things are.
        observer: Told what happens.
        phase: Phase that fresh runs are recorded with.
        jobs: Cohorts at a time.
        device: Where to compute.
        again: Whether a further generation of done runs is wanted.
        invalid: Ids of invalidated runs.
    """

    study: Study
    settings: Settings
    observer: Observer
    phase: str
    jobs: int
    device: str = "cpu"
    again: bool = False
    invalid: frozenset[str] = frozenset()

    def execute(self, cohorts: Sequence[Sequence[Pending]]) -> Execution:
        """Compute cohorts until all are done or the user stops.

        Ctrl-C, SIGTERM and SIGHUP ask every worker for a checkpoint and an end; a second one
        kills them. Either way `assay run` goes on from there.
        """
        result = Execution()
        queue = [list(cohort) for cohort in cohorts]
        active: list[_Active] = []
        jobs = max(1, min(self.jobs, len(queue)))
        threads = max(1, (os.cpu_count() or 1) // jobs)

        def stop() -> None:
            for running in active:
                running.worker.kill() if result.interrupted else running.worker.stop()
            result.interrupted = True

        with _on_signals(stop):
            while active or (queue and not result.interrupted):
                while queue and len(active) < jobs and not result.interrupted:
                    started = self._start(queue.pop(0), threads, result)
                    if started is not None:
                        active.append(started)
                        self.observer.started([read_run(f) for f in started.folders])
                self._watch(active)
                for ended in [a for a in active if a.worker.process.poll() is not None]:
                    active.remove(ended)
                    result.finished += self._finish(ended)
                self.observer.tick()
        return result

    def _start(self, cohort: Sequence[Pending], threads: int, result: Execution) -> _Active | None:
        mine: list[Pending] = []
        locks: list[int] = []
        for run in cohort:
            lock = _lock(self.settings.runs_dir, run.planned)
            if lock is None:
                result.elsewhere.append(run.planned)
                continue
            # Another process may have finished it since the plan was made.
            fresh = survey(
                [run.planned],
                self.settings.runs_dir,
                phase=self.phase,
                invalid=self.invalid,
                again=self.again,
            )
            if [
                p
                for p in fresh.pending
                if (p.start_step, p.attempt) == (run.start_step, run.attempt)
            ]:
                mine.append(fresh.pending[0])
                locks.append(lock)
            else:
                os.close(lock)
                result.elsewhere.append(run.planned)
        if not mine:
            return None
        folders = [run.folder or self._create(run) for run in mine]
        worker = LocalWorker(
            self._job(mine, folders, threads),
            self._environment(mine[0].planned),
            stdout=_shared_output(folders, [run.attempt for run in mine]),
            locks=locks,
        )
        return _Active(worker=worker, folders=folders, locks=locks)

    def _create(self, run: Pending) -> Path:
        planned = run.planned
        record = new_record(
            study=planned.study,
            arm=planned.arm,
            identity=planned.identity,
            cell=dict(planned.cell),
            cell_label=planned.cell_label,
            seeds=dict(planned.seeds),
            seed_label=planned.seed_label,
            engine=self.study.table.engine,
            task=self.study.task.name if self.study.task else None,
            config=dict(planned.config),
            cmd=list(planned.cmd) if planned.cmd else None,
            generation=run.generation,
            phase=self.phase,
            budget={k: float(v) for k, v in planned.budget.items()},
        )
        return create_run(self.settings.runs_dir, record)

    def _environment(self, planned: PlannedRun) -> dict[str, str]:
        """A clean environment, and where the project is for programs that use `assay.init`."""
        settings = self.settings
        clean = clean_environment(settings.environment, planned.env)
        clean |= {"ASSAY_ROOT": str(settings.root), "ASSAY_CACHE": str(settings.cache_dir)}
        return clean | ({"ASSAY_DATA": str(settings.data_dir)} if settings.data_dir else {})

    def _job(self, runs: Sequence[Pending], folders: Sequence[Path], threads: int) -> Job:
        settings = self.settings
        return Job(
            root=str(settings.root),
            runs=[
                JobRun(folder=str(folder), attempt=run.attempt)
                for run, folder in zip(runs, folders, strict=True)
            ],
            environment=dict(runs[0].planned.env),
            device=self.device,
            threads=threads,
            data_dir=str(settings.data_dir) if settings.data_dir else None,
            cache_dir=str(settings.cache_dir),
            collect=asdict(self.study.collect),
        )

    def _watch(self, active: Sequence[_Active]) -> None:
        """Wait a moment for messages and pass them on."""
        pipes = [a.worker.pipe for a in active]
        select.select(pipes, [], [], POLL_S)
        for running in active:
            for message in running.worker.messages():
                self.observer.progress(message)

    def _finish(self, ended: _Active) -> list[RunState]:
        for message in ended.worker.messages():
            self.observer.progress(message)
        code = ended.worker.close()
        for lock in ended.locks:
            os.close(lock)
        states = []
        for folder, job_run in zip(ended.folders, ended.worker.job.runs, strict=True):
            if not (folder / attempt_name("end.json", job_run.attempt)).exists():
                _record_death(folder, job_run.attempt, code)
            state = read_run(folder)
            states.append(state)
            self.observer.finished(state)
        return states


def _record_death(folder: Path, attempt: int, code: int) -> None:
    """A worker ended without saying how. Killed: the run stays open and goes on next time."""
    if code < 0:
        name = signal.Signals(-code).name
        append_event(
            folder, attempt, "killed", f"the worker was killed by {name}; `assay run` goes on"
        )
        return
    output = (folder / attempt_name("stdout.log", attempt)).read_text("utf-8", "replace")
    error = f"the worker ended with exit code {code}; its last output:\n{output[-4000:]}"
    end = EndRecord(
        status="failed", attempt=attempt, ended_at=now(), duration_s=0.0, error=error,
        summary={}, spent={}, rows=0, files={},
    )  # fmt: skip
    write_end(folder, end)


def _lock(runs_dir: Path, run: PlannedRun) -> int | None:
    """Lock a planned run; None if somebody else holds it. The lock dies with its last holder."""
    folder = runs_dir / run.study / ".locks"
    path = folder / f"{run.identity[:24]}-{run.arm}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise write_error(path, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError as error:
        os.close(lock)
        raise StoreError(
            f"{path} cannot be locked: {error.strerror}. Without a lock two `assay run` would "
            "compute one run twice: keep runs/ on a file system with locks."
        ) from error
    return lock


def _shared_output(folders: Sequence[Path], attempts: Sequence[int]) -> Path:
    """One output file for the cohort's process, linked into the directory of every run."""
    paths = [
        folder / attempt_name("stdout.log", attempt)
        for folder, attempt in zip(folders, attempts, strict=True)
    ]
    try:
        paths[0].touch()
        for path in paths[1:]:
            path.hardlink_to(paths[0])
    except OSError as error:
        raise write_error(paths[0], error) from error
    return paths[0]


@contextmanager
def _on_signals(stop: Callable[[], None]) -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:
        stop()

    before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
