"""What a study is, once its file is read and checked: study, arms, claims, reported values.

`assay.core.study` reads the file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assay.core.engine import Engine, Metric, Task
from assay.core.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
PHASES = ("debug", "pilot", "frozen")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One setting of the factor.

    Attributes:
        name: As in `[arms.NAME]`.
        settings: Configuration fields that this arm sets; all lie under the factor.
        cmd: Command template of this arm, if it runs a program.
        env: Environment variables that this arm declares.
    """

    name: str
    settings: Mapping[str, Any]
    cmd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A sentence and the criterion that decides it, stated before the runs it is judged on."""

    name: str = ""
    says: str
    """The sentence, in words."""
    criterion: str
    """An expression of the criterion language (docs/verdicts.md)."""
    min_seeds: int = 3
    """Fewer complete seeds in an arm that the criterion uses: UNTESTED."""
    phase: str = "frozen"
    """The lowest phase whose runs may support it."""
    confidence: float = 0.95
    """Of every interval; 1 minus this is the study's family-wise error rate (Holm)."""

    def __post_init__(self) -> None:
        if self.min_seeds < 1:
            raise ConfigError(f"min_seeds must be at least 1; got {self.min_seeds}.")
        if self.phase not in PHASES:
            raise ConfigError(f"phase must be one of {', '.join(PHASES)}; got {self.phase!r}.")
        if not 0.5 <= self.confidence < 1:
            raise ConfigError(
                f"confidence must be in [0.5, 1); got {self.confidence}. It is a fraction: 0.95."
            )
        if not self.says.strip():
            raise ConfigError("says must be a sentence; it is empty.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """A value copied from a document, with its place. Never evidence."""

    metric: str
    arm: str
    value: float
    source: str
    line: int | None = None
    at: dict[str, Any] = field(default_factory=dict)
    std: float | None = None
    n: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collect:
    """Where a program leaves its numbers.

    In a study the paths are below the run's own output folder (`{out}` in a command, `$ASSAY_OUT`
    in its environment); for an ad-hoc command below the current folder, of which only files
    written during the run are taken.
    """

    csv: str | None = None
    """File of metrics with a header; a column step, iteration or epoch is the step."""
    summary: str | None = None
    """JSON file of final values; nested names are joined with dots."""
    tensorboard: str | None = None
    """Folder of TensorBoard event files."""
    stdout: str | None = None
    """Regular expression with named groups, tried on each line of the output."""
    rename: dict[str, str] = field(default_factory=dict)
    """Name as found = name in the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTable:
    """The `[study]` table as written."""

    id: str
    question: str
    engine: str | None = None
    task: str | None = None
    cmd: str | None = None
    factor: str | list[str] = ""
    baseline: str | None = None
    seeds: dict[str, int | str | list[int]]
    budget: dict[str, float | int] = field(default_factory=dict)
    phase: str = "pilot"

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.id):
            raise ConfigError(
                f"id must be letters, digits, '.', '_' or '-' (at most 80); got {self.id!r}."
            )
        if self.id == "scratch":
            raise ConfigError(
                "id must not be 'scratch', where runs without a study are kept. Choose another."
            )
        if self.phase not in PHASES[:2]:
            raise ConfigError(
                f"phase must be debug or pilot; got {self.phase!r}. A study becomes frozen by "
                "`assay freeze`, not by its file."
            )
        if self.engine is None and self.task is not None:
            raise ConfigError(f'task is {self.task!r} but no engine is given. Add engine = "…".')


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A checked study.

    Attributes:
        table: The `[study]` table.
        factor: Names of what arms may differ in.
        seeds: Role → values; a tied role is the name of another role.
        config: Shared settings as written.
        grid: Setting → its values, crossed with the arms.
        environment: Declared variables; None means passed through from the caller.
        metrics: Known metric names with their definitions (from the task, or `[metrics]`).
        path: The file.
        digest: Identity of everything that decides runs and verdicts.
    """

    table: StudyTable
    factor: tuple[str, ...]
    seeds: Mapping[str, tuple[int, ...] | str]
    config: Mapping[str, Any]
    grid: Mapping[str, tuple[Any, ...]]
    arms: Mapping[str, Arm]
    claims: Mapping[str, Claim]
    reported: tuple[Reported, ...]
    environment: Mapping[str, str | None]
    collect: Collect
    metrics: Mapping[str, Metric]
    path: Path
    digest: str
    engine: Engine | None = None
    task: Task | None = None

    @property
    def id(self) -> str:
        """The study's name."""
        return self.table.id

    @property
    def baseline(self) -> str:
        """The arm that others are compared with: the declared one, else the first."""
        return self.table.baseline or next(iter(self.arms))


def under(name: str, factor: str) -> bool:
    """Whether a dotted name is the factor or lies below it."""
    return name == factor or name.startswith(f"{factor}.")
