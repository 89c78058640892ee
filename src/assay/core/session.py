"""`assay.init`: a run from inside a program, with or without `assay run` around it.

Started by `assay run`, a program joins the run that was made for it; the runner ends that run,
since it sees the exit code and the output. Started by hand, it gets a run of its own in phase
"debug", with the same provenance, and ends it itself: completed, failed (an exception got out) or
interrupted (the program ended without `finish`).
"""

import atexit
import concurrent.futures.thread  # noqa: F401 - cannot be imported at exit, where polars needs it
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from assay.core.config import digest, flatten, to_plain
from assay.core.environment import salt_of
from assay.core.errors import ConfigError, StoreError
from assay.core.files import to_json, write_atomic
from assay.core.joined import record_environment
from assay.core.provenance import capture
from assay.core.run import RunWriter, attempt_name, create_run, new_record
from assay.core.settings import Settings
from assay.core.vcs import diff_patch


class Run:
    """A run that this program records. Use it as a context manager, or call `finish`.

    Attributes:
        path: The run directory.
        id: The run's id.
        seeds: Seed role → seed.
        config: Resolved configuration, plain values.
        joined: True if `assay run` started this program and will end the run.
    """

    def __init__(self, writer: RunWriter, *, joined: bool) -> None:
        """Use `assay.init` instead."""
        self._writer = writer
        self._pid = os.getpid()
        self._next_step = 0
        self._open = True
        self.joined = joined
        self.path = writer.folder
        self.id = writer.record.id
        self.seeds: Mapping[str, int] = writer.record.seeds
        self.config: Mapping[str, Any] = writer.record.config
        atexit.register(self._at_exit)

    def log(self, values: Mapping[str, Any], *, step: int | None = None) -> None:
        """Record metric values. When this returns, they survive SIGKILL.

        Args:
            values: Names (`split/quantity_unit`) and numbers; NaN and infinities are kept.
            step: Number of optimizer steps done; by default one more than the last.

        Raises:
            MetricError: A name, the step or a value cannot be logged.
            StoreError: The row could not be written whole; the rows before it are intact.
        """
        if step is None:
            step = self._next_step
        self._writer.log(values, step=step)
        self._next_step = step + 1

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record final values of the run; later calls overwrite."""
        self._writer.summary(values)

    def save(self, name: str, content: bytes | Path) -> str:
        """Store an artifact: bytes, or a copy of the file at a path. Returns its sha256."""
        if isinstance(content, Path):
            return self._writer.save_file(name, content)
        if not isinstance(content, bytes | bytearray | memoryview):
            raise StoreError(
                f"An artifact's content must be bytes or a Path; {name!r} got a "
                f"{type(content).__name__}. For text write text.encode(), for a file Path(...)."
            )
        return self._writer.save(name, bytes(content))

    def save_checkpoint(self, step: int, content: bytes) -> None:
        """Replace, atomically, the state from which this run can go on."""
        self._writer.save_checkpoint(step, content)

    def load_checkpoint(self) -> tuple[int, bytes] | None:
        """The step and state of the last checkpoint, or None for a fresh run."""
        return self._writer.load_checkpoint()

    def event(self, kind: str, message: str, **details: Any) -> None:
        """Record something that a reader of the log should know."""
        self._writer.event(kind, message, **details)

    def spent(self, **budget: float) -> None:
        """Record what was really spent, e.g. `steps=12000`; compared between arms."""
        self._writer.spent(**budget)

    def finish(self, status: str = "completed", error: str | None = None) -> None:
        """End the run. Calling it again does nothing.

        Args:
            status: "completed", "failed" or "interrupted".
            error: What went wrong, for a failure.
        """
        if not self._open:
            return
        if status not in ("completed", "failed", "interrupted"):
            raise ConfigError(
                f"A run ends as 'completed', 'failed' or 'interrupted'; got {status!r}. "
                'Call finish() for a completed run, finish("failed", "why") for a failed one.'
            )
        self._open = False
        atexit.unregister(self._at_exit)
        if self in _OPEN_RUNS:
            _OPEN_RUNS.remove(self)
        if self.joined:
            if status != "completed":
                self._writer.event(f"program-{status}", error or status)
            self._writer.close()
        else:
            self._writer.finish(status, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
        elif isinstance(error, KeyboardInterrupt):
            self.finish("interrupted")
        elif isinstance(error, SystemExit) and error.code in (None, 0):
            self.finish()
        else:
            self.finish("failed", "".join(traceback.format_exception(kind, error, trace)))

    def _at_exit(self) -> None:
        # A forked child inherits the handler, but the run is its parent's to end.
        if os.getpid() != self._pid:
            return
        error = getattr(sys, "last_value", None)
        uncaught = error is not None and not hasattr(sys, "ps1")
        if uncaught and not isinstance(error, KeyboardInterrupt):
            self.finish("failed", "".join(traceback.format_exception(error)))
        else:
            self.finish("interrupted")


_OPEN_RUNS: list[Run] = []


def init(
    study: str = "scratch",
    arm: str | None = None,
    config: Any = None,
    seeds: Mapping[str, int] | None = None,
    *,
    rank: int = 0,
) -> Run:
    """Begin to record a run; under `assay run`, join the run that it made.

    Args:
        study: Groups runs; ignored when joining.
        arm: Name of the variant; the program's name by default. Ignored when joining.
        config: Settings of this run: a table of plain values or a dataclass. When joining, the
            study's stand; what differs from them is told in the log.
        seeds: Seed role → seed; ignored when joining.
        rank: Which of the run's processes this is, when several log.

    Raises:
        ConfigError: `config` or `seeds` is not plain data.
        ProvenanceError: What is running cannot be established.
        StoreError: The run directory cannot be written.
    """
    settings = Settings.from_environment()
    if settings.run_dir is not None:
        folder, attempt = settings.run_dir, settings.attempt
    else:
        folder, attempt = _fresh_run(settings, study, arm, config, seeds), 1
    writer = RunWriter(folder, attempt=attempt, rank=rank, data_dir=settings.data_dir)
    if settings.run_dir is not None and rank == 0:
        record_environment(writer, settings)
    if settings.run_dir is not None and config is not None:
        _tell_undeclared(writer, flatten(_plain_config(config)))
    run = Run(writer, joined=settings.run_dir is not None)
    _OPEN_RUNS.append(run)
    return run


def _tell_undeclared(writer: RunWriter, given: Mapping[str, Any]) -> None:
    """Record settings that the program has and the study does not declare, or declares otherwise."""
    declared = flatten(writer.record.config)
    strange = {k: v for k, v in given.items() if k not in declared or declared[k] != v}
    if strange:
        listed = ", ".join(f"{name} = {value}" for name, value in strange.items())
        writer.event("undeclared-config", f"the program has settings of its own: {listed}")


def log(values: Mapping[str, Any], *, step: int | None = None) -> None:
    """`Run.log` of the run that was begun last."""
    _latest().log(values, step=step)


def finish() -> None:
    """`Run.finish` of the run that was begun last."""
    _latest().finish()


def _latest() -> Run:
    if not _OPEN_RUNS:
        raise StoreError(
            "There is no open run to record into: assay.log() and assay.finish() need one. "
            "Call run = assay.init() first."
        )
    return _OPEN_RUNS[-1]


def _command_line() -> list[str]:
    """What was typed; the interpreter as it is found from here, should the folder have changed."""
    program, *rest = sys.orig_argv
    moved = "/" in program and not Path(program).exists()
    return [sys.executable if moved else program, *rest]


def _fresh_run(
    settings: Settings,
    study: str,
    arm: str | None,
    config: Any,
    seeds: Mapping[str, int] | None,
) -> Path:
    # The contract compares realised provenance, so a run without it is not begun.
    provenance = capture(
        root=settings.root,
        argv=_command_line(),
        env=settings.environment,
        salt=salt_of(settings.cache_dir),
        cwd=Path.cwd(),
    )
    script = Path(sys.argv[0]).stem if sys.argv and sys.argv[0] else ""
    arm = arm or (script if script not in ("", "-c", "-") else "main")
    values = _plain_config(config)
    roles = _checked_seeds(seeds)
    asked = {"arm": arm, "cmd": provenance["argv"], "config": values, "seeds": roles}
    record = new_record(
        study=study,
        arm=arm,
        identity=digest(asked),
        config=values,
        seeds=roles,
        seed_label=_seed_label(roles),
        cmd=provenance["argv"],
    )
    folder = create_run(settings.runs_dir, record)
    environment = provenance.pop("environment")
    write_atomic(folder / attempt_name("provenance.json", 1), to_json(provenance))
    write_atomic(folder / attempt_name("env.json", 1), to_json(environment))
    if provenance["code"].get("dirty"):
        patch = diff_patch(settings.root, settings.environment)
        write_atomic(folder / attempt_name("diff.patch", 1), patch)
    return folder


def _plain_config(config: Any) -> dict[str, Any]:
    try:
        if is_dataclass(config) and not isinstance(config, type):
            return to_plain(config)
        values = dict(config or {})
        digest(values)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"init(config=...) must be a table of plain values (text, finite numbers, true or "
            f"false, lists, tables) or a dataclass of these; {error}. The value is "
            f"{str(config)[:200]!r}. Convert paths and arrays to text or lists first."
        ) from error
    return values


def _seed_label(roles: Mapping[str, int]) -> str:
    """As a study labels its seeds: the number alone if there is one role."""
    if len(roles) == 1:
        return str(next(iter(roles.values())))
    return ",".join(f"{role}={seed}" for role, seed in roles.items())


def _checked_seeds(seeds: Mapping[str, int] | None) -> dict[str, int]:
    roles = dict(seeds or {})
    for role, seed in roles.items():
        if not isinstance(role, str) or isinstance(seed, bool) or not isinstance(seed, int):
            raise ConfigError(
                f"init(seeds=...) must be seed roles with whole numbers; got {role!r}: {seed!r}. "
                'Write seeds={"init": 43, "data": 0}.'
            )
    return roles
