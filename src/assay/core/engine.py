"""The two protocols between the lab and an engine: `Engine` and `RunContext`.

An engine declares tasks. A task has a configuration dataclass, the metrics that it reports, and
one function that trains a *cohort*: runs that differ only in their seeds or in the fields that
the task declares as `stackable`, computed together in one process. All that a task may do to
the outside world goes through the `RunContext` of each run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What a logged name means.

    Attributes:
        says: One sentence: what is measured, on what, in which unit.
        version: Raised when the definition changes; claims are pinned to a version.
        goal: Which direction is better: "max", "min" or "none".
        low: Smallest possible value, if there is one (a rate has 0).
        high: Largest possible value, if there is one (a rate has 1).
        chance: What the same guess every time gives, such as the share of the most frequent
            class: a number, or the name of the metric under which a run logs it.
    """

    says: str
    version: int = 1
    goal: str = "none"
    low: float | None = None
    high: float | None = None
    chance: float | str | None = None


class RunContext(Protocol):
    """One run, as its engine sees it."""

    seeds: Mapping[str, int]
    """Named seed roles of this run, for example {"init": 43, "data": 0}."""
    device: str
    """Where to compute: "cpu" or a torch device string."""
    threads: int
    """How many CPU threads this process may use."""
    data_dir: Path | None
    """Folder of local data sets (`ASSAY_DATA`), if there is one."""

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Record metric values at a step. Returns when they would survive SIGKILL."""

    def summary(self, values: Mapping[str, float]) -> None:
        """Record final values of the run (test metrics, counts). Later calls overwrite."""

    def save(self, name: str, content: bytes) -> str:
        """Store an artifact under a file name; returns its sha256.

        Never overwrites: a second `save` of one name keeps the old content addressable and
        makes the new one current.
        """

    def save_checkpoint(self, step: int, content: bytes) -> None:
        """Replace, atomically, the state from which this run can go on.

        `step` is the first that the resumed run logs: rows from there on, of the attempt that ended,
        no longer count.
        """

    def load_checkpoint(self) -> tuple[int, bytes] | None:
        """The step and state of the last checkpoint, or None for a fresh run."""

    def event(self, kind: str, message: str, **details: Any) -> None:
        """Record something that a reader of the log should know (a fallback, a warning)."""

    def spent(self, **budget: float) -> None:
        """Record what was really spent, e.g. `steps=12000`; compared between arms."""

    def progress(self, step: int, total: int, shown: Mapping[str, float]) -> None:
        """Tell the live display how far this run is and which values to show. Not recorded."""

    def should_stop(self) -> bool:
        """True once the user asked to stop: save a checkpoint and return."""


CohortFunction = Callable[[Sequence[Any], Sequence[RunContext]], None]
Fingerprint = Callable[[Any, Mapping[str, int], Path | None], dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One kind of experiment of an engine.

    Attributes:
        name: As written in a study's `task`.
        config: Frozen dataclass; a study's `[config]`, `[grid]` and arms are checked against it.
        seeds: The seed roles that the task reads; a study must give each.
        metrics: Every name that the task logs, with its meaning.
        run: `run(configs, contexts)` trains one cohort, one entry a run. Raising fails all runs
            of the cohort.
        stackable: Fields of the config that may differ inside one cohort (besides seeds).
        budget: Fields of the config that say how much is spent (steps, epochs); a study's
            `budget` sets these and only these.
        check: `check(configs, data_dir)` raises for what can be known before the first run starts
            and needs more than one configuration, or the disk: data that is not there. It gets the
            configuration of every planned run, equal ones once, in the process of `assay run`.
        fingerprint: `fingerprint(config, seeds, data_dir)`: data sets that a run will read, name →
            sha256 or generator description. Called in the child process before training, and by
            `assay freeze`.
        environment: Facts about this engine's build that belong to the provenance of a run,
            such as library versions and compiled extensions.
        max_threads: How many CPU threads one process can use; None for any number. A cohort of a
            task that cannot use all cores is divided among processes, which changes no result.
    """

    name: str
    config: type[Any]
    seeds: tuple[str, ...]
    metrics: Mapping[str, Metric]
    run: CohortFunction
    stackable: frozenset[str] = frozenset()
    budget: tuple[str, ...] = ()
    check: Callable[[Sequence[Any], Path | None], None] = lambda configs, data_dir: None
    fingerprint: Fingerprint = lambda config, seeds, data_dir: {}
    environment: Callable[[], dict[str, str]] = dict
    max_threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A set of tasks, registered as an entry point `assay.engines`.

    Importing the module that holds an `Engine` must be cheap: no torch at import, since
    `assay run --dry-run` validates configurations with it. Import torch inside `Task.run`.
    """

    name: str
    tasks: Mapping[str, Task]
    packages: tuple[str, ...] = field(default=())
    """Distributions whose versions decide the result, e.g. ("torch", "numpy")."""
