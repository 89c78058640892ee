"""What a study is, once its file is read and checked: study, scales, arms, claims, reported values.

`assay.core.study` reads the file.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from assay.core.config import build, flatten, merge, unknown_key
from assay.core.engine import Engine, Metric, Task
from assay.core.errors import ConfigError, StudyError

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
    scale: str | None = None
    """The scale of the study's file at which it is comparable: a name, "" for the base; None for any."""
    not_comparable: str = ""
    """Why no run of ours could have given it: another scale, another definition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """A versioned function of stored artifacts that gives further metrics of a run."""

    function: str
    """`module:NAME`, importable from the project folder or installed."""
    version: int
    """Raised whenever the function changes. Claims and tables read this version and no other."""
    says: str
    """One sentence: what it computes, and what changed with this version."""
    metrics: tuple[str, ...]
    """Names of the metrics that it gives, exactly."""
    artifacts: tuple[str, ...] = ()
    """File names that it needs; a run that lacks one is told and has no value. Empty: all."""

    def __post_init__(self) -> None:
        _check_sentence("says", self.says)
        module, colon, name = self.function.partition(":")
        if not (colon and module and name.isidentifier()):
            raise ConfigError(f"function must be module:NAME; got {self.function!r}.")
        if self.version < 1:
            raise ConfigError(f"version must be 1 or more; got {self.version}.")
        if not self.metrics or any("@" in name or not name.strip() for name in self.metrics):
            raise ConfigError(
                f"metrics must name what the function gives, without '@'; got {self.metrics!r}."
            )

    @property
    def known(self) -> list[str]:
        """Its metrics, plain (of this version) and of every version up to it: `name@1` and so on."""
        versions = range(1, self.version + 1)
        return [*self.metrics, *(f"{name}@{n}" for name in self.metrics for n in versions)]


def analyses_of(raw: Mapping[str, Any], file: str) -> dict[str, Analysis]:
    """The `[analyses.NAME]` tables of a study file.

    Raises:
        ConfigError: A table that is none, or breaks a rule of `Analysis`.
    """
    for name, values in raw.items():
        if not NAME.fullmatch(name) or not isinstance(values, Mapping):
            raise ConfigError(
                f"{file} [analyses.{name}]: must be a table with a name of letters, digits, '.', "
                f"'_' or '-'; got {values!r}."
            )
    return {
        name: build(Analysis, values, where=f"{file} [analyses.{name}]")
        for name, values in raw.items()
    }


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
class Scale:
    """A `[scales.NAME]` table: what is larger (or smaller) than in the study, and nothing else."""

    says: str
    """The scale in words; verdicts are told with it."""
    seeds: dict[str, int | str | list[int]] | None = None
    """Instead of those of `[study]`."""
    budget: dict[str, float | int] = field(default_factory=dict)
    """Merged into that of `[study]`."""
    config: dict[str, Any] = field(default_factory=dict)
    """Merged into `[config]`."""
    grid: dict[str, Any] | None = None
    """Instead of `[grid]`."""

    def __post_init__(self) -> None:
        _check_sentence("says", self.says)


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
    scale: str | None = None
    shown: list[str] = field(default_factory=list)
    """Metrics of the results in tables and log; by default what claims are about, and what has a
    direction."""

    def __post_init__(self) -> None:
        if self.scale is not None:
            _check_sentence("scale", self.scale)
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
        scale: Name of the scale that it is read at; "" for the file as it is.
        scales: All scales of the file: name → sentence.
        analyses: Versioned functions of stored artifacts.
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
    scale: str = ""
    scales: Mapping[str, str] = field(default_factory=dict)
    analyses: Mapping[str, Analysis] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The study's name."""
        return self.table.id

    @property
    def baseline(self) -> str:
        """The arm that others are compared with: the declared one, else the first."""
        return self.table.baseline or next(iter(self.arms))

    @property
    def file(self) -> str:
        """The file, and the scale in it, for messages."""
        return file_at(self.path.name, self.scale)

    @property
    def at_scale(self) -> str:
        """At which scale its verdicts are reached; "" where the file knows no scales."""
        if self.scale:
            return f"scale {self.scale}: {self.table.scale}"
        if self.table.scale is None and not self.scales:
            return ""
        return f"scale: {self.table.scale or 'the base of its file'}"


def file_at(file: str, scale: str) -> str:
    """A study file at one of its scales, for messages."""
    return f"{file} [scales.{scale}]" if scale else file


def scaled_id(study: str, scale: str) -> str:
    """The id of a study at a scale: it is a study of its own."""
    return f"{study}.{scale}" if scale else study


def choose(found: Mapping[str, Study], scale: str) -> Study:
    """One of the scales of a file (`load_scales`); an empty name, as of an unset variable, is none.

    Raises:
        StudyError: It has no such scale; told with those that it has.
    """
    if not scale or scale not in found:
        listed = ", ".join(name for name in found if name)
        raise StudyError(
            f"{found[''].file}: there is no scale '{scale}'. "
            + (f"Scales: {listed}." if listed else "The file has no [scales.NAME] table.")
        )
    return found[scale]


def reported_values(
    raw: list[Any], arms: Mapping[str, Arm], grid: Mapping[str, Any], file: str
) -> tuple[Reported, ...]:
    """The `[[reported]]` entries of a study file, checked against its arms and grid.

    Raises:
        StudyError: An entry of an arm or grid value that the study does not have.
    """
    entries = []
    for number, values in enumerate(raw, start=1):
        where = f"{file} [[reported]] number {number}"
        if not isinstance(values, Mapping):
            raise StudyError(f"{where}: must be a table; got {values!r}.")
        entry = build(Reported, values, where=where)
        if entry.arm not in arms:
            raise StudyError(
                f"{where}: arm '{entry.arm}' is not in the study. Arms: {', '.join(arms)}."
            )
        for key in flatten(entry.at):
            if key not in grid:
                raise StudyError(
                    f"{where} at: '{key}' is not in [grid]. "
                    f"Grid: {', '.join(grid) or 'the study has none'}."
                )
        entries.append(entry)
    return tuple(entries)


def check_reported_scales(reported: Sequence[Reported], scales: Collection[str], file: str) -> None:
    """Refuse a reported value of a scale that the file does not have.

    Raises:
        StudyError: Such a value, with the scales that there are.
    """
    for number, entry in enumerate(reported, start=1):
        if entry.scale and entry.scale not in scales:
            raise StudyError(
                f"{file} [[reported]] number {number}: there is no scale '{entry.scale}'. Scales: "
                f'{", ".join(scales) or "none"}; scale = "" is the file as it is.'
            )


def at_scale(raw: Mapping[str, Any], name: str, values: Any, file: str) -> dict[str, Any]:
    """The tables of a checked study file, with those of a scale laid over them.

    Raises:
        ConfigError: The scale holds another thing than a scale may, or changes nothing.
    """
    where = file_at(file, name)
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: a scale's name is letters, digits, '.', '_' or '-' (at most 80)."
        )
    if not isinstance(values, Mapping):
        raise ConfigError(f'{where}: must be a table such as {{ says = "…" }}; got {values!r}.')
    known = [f.name for f in fields(Scale)]
    for key in values:
        if key not in known:
            raise ConfigError(
                f"{where}: {unknown_key(key, known)} A scale holds {', '.join(known)}; all else is "
                "the same at every scale, or it is another study, in a file of its own."
            )
    scale = build(Scale, values, where=where)
    table, config, grid = raw["study"], raw.get("config", {}), raw.get("grid", {})
    changed: dict[str, Any] = {
        "seeds": table.get("seeds", {}) if scale.seeds is None else scale.seeds,
        "budget": merge(table.get("budget", {}), scale.budget),
        "config": merge(config, scale.config),
        "grid": grid if scale.grid is None else scale.grid,
    }
    same = {"seeds": table.get("seeds", {}), "budget": merge(table.get("budget", {})),
            "config": merge(config), "grid": grid}  # fmt: skip
    if changed == same:
        raise ConfigError(
            f"{where}: changes nothing: its runs would be the study's own, under another name. "
            "Give it other seeds, budget, config or grid, or remove it."
        )
    larger = {"id": scaled_id(table["id"], name), "scale": scale.says}
    larger |= {key: changed[key] for key in ("seeds", "budget")}
    tables = {"study": {**table, **larger}, "config": changed["config"], "grid": changed["grid"]}
    return {**raw, **tables}


def _check_sentence(key: str, text: str) -> None:
    if not text.strip() or "\n" in text.strip():
        raise ConfigError(f"{key} must be a sentence, on one line; got {text!r}.")


def under(name: str, factor: str) -> bool:
    """Whether a dotted name is the factor or lies below it."""
    return name == factor or name.startswith(f"{factor}.")
