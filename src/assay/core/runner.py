"""Executes a study: locks what is missing, starts its cohorts, and watches them.

What is done is read again from the run directories once the lock is held, so that two `assay run`
of one study never compute one run twice.
"""

import fcntl
import os
import resource
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
from assay.core.program import signal_name
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
OPEN_FILES = 65_536
ENDED_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that say nothing about the run; any other, such as SIGSEGV, is a failure of it."""


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
    asked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """Computes pending cohorts of one study on this machine.

    Attributes:
        study: The study.
        settings: Where things are.
        observer: Told what happens.
        phase: Phase that fresh runs are recorded with.
        jobs: Cohorts at a time.
        threads: CPU threads of a cohort. It follows from the plan and not from what is left of
            it: a resumed arm must not differ from the others in its threads.
        device: Where to compute.
        again: Whether a further generation of done runs is wanted.
        invalid: Ids of invalidated runs.
    """

    study: Study
    settings: Settings
    observer: Observer
    phase: str
    jobs: int
    threads: int = 1
    device: str = "cpu"
    again: bool = False
    invalid: frozenset[str] = frozenset()

    def execute(self, cohorts: Sequence[Sequence[Pending]]) -> Execution:
        """Compute cohorts until all are done or the user stops.

        Ctrl-C, SIGTERM and SIGHUP ask every worker for a checkpoint and an end; a second one
        kills them. Either way `assay run` goes on from there.

        Raises:
            ProvenanceError: A variable that the study passes on is not set; nothing has started.
            StoreError: A run directory cannot be written; all workers have been stopped.
            LaunchError: A worker cannot be started; all others have been stopped.
        """
        for cohort in cohorts:
            self._environment(cohort[0].planned)
        _allow_open_files()
        result = Execution()
        queue = [list(cohort) for cohort in cohorts]
        active: list[_Active] = []

        def stop() -> None:
            if result.interrupted:
                for running in active:
                    running.worker.kill()
            result.interrupted = True

        with _on_signals(stop):
            try:
                while active or (queue and not result.interrupted):
                    self._fill(queue, active, result)
                    if result.interrupted:
                        _ask_to_stop(active)
                    self._watch(active)
                    for ended in [a for a in active if a.worker.process.poll() is not None]:
                        active.remove(ended)
                        result.finished += self._finish(ended)
                    self.observer.tick()
            except BaseException:
                # Nobody would watch the other workers: they save their state and end as well.
                _ask_to_stop(active)
                for running in active:
                    running.worker.close()
                    _release(running.locks)
                raise
        return result

    def _fill(self, queue: list[list[Pending]], active: list[_Active], result: Execution) -> None:
        """Start cohorts while there is room."""
        while queue and len(active) < max(1, self.jobs) and not result.interrupted:
            started = self._start(queue.pop(0), result)
            if started is None:
                continue
            active.append(started)
            self.observer.started([read_run(folder) for folder in started.folders])

    def _start(self, cohort: Sequence[Pending], result: Execution) -> _Active | None:
        mine, locks = self._claim(cohort, result)
        if not mine:
            return None
        try:
            folders = [run.folder or self._create(run) for run in mine]
            worker = LocalWorker(
                self._job(mine, folders),
                self._environment(mine[0].planned),
                stdout=_shared_output(folders, [run.attempt for run in mine]),
                locks=locks,
            )
        except BaseException:
            _release(locks)
            raise
        return _Active(worker=worker, folders=folders, locks=locks)

    def _claim(
        self, cohort: Sequence[Pending], result: Execution
    ) -> tuple[list[Pending], list[int]]:
        """Lock the runs of a cohort that nobody else computes or has computed meanwhile."""
        locked: list[tuple[Pending, int]] = []
        for run in cohort:
            lock = _lock(self.settings.runs_dir, run.planned)
            if lock is None:
                result.elsewhere.append(run.planned)
            else:
                locked.append((run, lock))
        # Read again now that nobody else can write: another process may have been faster.
        fresh = survey(
            [run.planned for run, _ in locked],
            self.settings.runs_dir,
            phase=self.phase,
            invalid=self.invalid,
            again=self.again,
        )
        now_pending = {run.planned.key: run for run in fresh.pending}
        mine: list[Pending] = []
        locks: list[int] = []
        for run, lock in locked:
            found = now_pending.get(run.planned.key)
            if found is not None and _same_try(found, run):
                mine.append(found)
                locks.append(lock)
            else:
                os.close(lock)
                result.elsewhere.append(run.planned)
        return mine, locks

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

    def _job(self, runs: Sequence[Pending], folders: Sequence[Path]) -> Job:
        settings = self.settings
        return Job(
            root=str(settings.root),
            runs=[
                JobRun(folder=str(folder), attempt=run.attempt)
                for run, folder in zip(runs, folders, strict=True)
            ],
            environment=dict(runs[0].planned.env),
            device=self.device,
            threads=self.threads,
            data_dir=str(settings.data_dir) if settings.data_dir else None,
            cache_dir=str(settings.cache_dir),
            collect=asdict(self.study.collect),
        )

    def _watch(self, active: Sequence[_Active]) -> None:
        """Wait a moment for messages and pass them on."""
        # poll, since select ends at file 1024 and each run of a cohort holds a lock.
        ready = select.poll()
        for running in active:
            ready.register(running.worker.pipe, select.POLLIN)
        ready.poll(POLL_S * 1000)
        for running in active:
            for message in running.worker.messages():
                self.observer.progress(message)

    def _finish(self, ended: _Active) -> list[RunState]:
        for message in ended.worker.messages():
            self.observer.progress(message)
        code = ended.worker.close()
        states = []
        try:
            for folder, job_run in zip(ended.folders, ended.worker.job.runs, strict=True):
                if not (folder / attempt_name("end.json", job_run.attempt)).exists():
                    _record_death(folder, job_run.attempt, code)
                states.append(read_run(folder))
        finally:
            # Not earlier: whoever locks the run next must find how this attempt ended.
            _release(ended.locks)
        for state in states:
            self.observer.finished(state)
        return states


def _ask_to_stop(active: Sequence[_Active]) -> None:
    for running in active:
        if not running.asked:
            running.worker.stop()
            running.asked = True


def _same_try(found: Pending, planned: Pending) -> bool:
    """Whether what is to be computed is still what was planned."""
    return all(
        getattr(found, name) == getattr(planned, name)
        for name in ("generation", "attempt", "start_step")
    )


def _record_death(folder: Path, attempt: int, code: int) -> None:
    """A worker ended without saying how. Killed: the run stays open and goes on next time."""
    if -code in ENDED_FROM_OUTSIDE:
        name = signal_name(-code)
        append_event(
            folder, attempt, "killed", f"the worker was killed by {name}; `assay run` goes on"
        )
        return
    how = f"exit code {code}" if code >= 0 else signal_name(-code)
    output = (folder / attempt_name("stdout.log", attempt)).read_text("utf-8", "replace")
    error = f"The worker ended with {how}.\nIts last output:\n{output[-4000:]}"
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


def _release(locks: Sequence[int]) -> None:
    for lock in locks:
        os.close(lock)


def _allow_open_files() -> None:
    """Every running run holds a lock file: take what the system gives without asking."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextmanager
def _on_signals(stop: Callable[[], None]) -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:
        stop()

    # What the caller ignores stays ignored: `nohup assay run` outlives its terminal.
    heeded = [n for n in STOP_SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
