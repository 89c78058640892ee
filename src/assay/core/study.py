"""Study files: TOML to a typed, checked study.

A study asks one question. Its arms differ in one declared factor; a grid crosses them with other
settings; seeds have named roles, so that the seed of the data and the seed of the
initialisation are two things. `assay.core.plan` expands it into runs.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assay.core.config import build, digest
from assay.core.engine import Engine, Metric, Task
from assay.core.errors import ConfigError, StudyError
from assay.core.registry import find_task
from assay.core.settings import find_project

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


TABLES = ("study", "config", "grid", "arms", "claims", "reported", "environment", "collect",
          "metrics")  # fmt: skip


def load_study(path: Path) -> Study:
    """Read and check a study file.

    Raises:
        StudyError: Anything that would make its runs or verdicts meaningless, with file, table,
            key, rule, value, and the way out.
    """
    raw = _read(path)
    file = path.name
    for key in raw:
        if key not in TABLES:
            raise StudyError(f"{file}: unknown table [{key}]. Known tables: {', '.join(TABLES)}.")
    try:
        return _check(raw, path, file)
    except StudyError:
        raise
    except ConfigError as error:
        raise StudyError(str(error)) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise StudyError(
            f"There is no study file at {path}. Give the path of a .toml file, for example "
            "studies/addition/d8.toml."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read as UTF-8 text: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"{path}: is not valid TOML: {error}.") from error


def _check(raw: dict[str, Any], path: Path, file: str) -> Study:
    table = build(StudyTable, _table(raw, "study", file), where=f"{file} [study]")
    engine, task = None, None
    if table.engine is not None:
        root = find_project(path.resolve().parent)
        engine, task = find_task(table.engine, table.task, root=root, where=f"{file} [study]")
    factor = (table.factor,) if isinstance(table.factor, str) else tuple(table.factor)
    arms = _arms(_table(raw, "arms", file), table, tuple(f for f in factor if f), file)
    if table.baseline is not None and table.baseline not in arms:
        raise StudyError(
            f"{file} [study] baseline: '{table.baseline}' is not an arm. Arms: {', '.join(arms)}."
        )
    grid = _grid(raw.get("grid", {}), file)
    claims = _claims(raw.get("claims", {}), file)
    environment = _environment(raw.get("environment", {}), f"{file} [environment]")
    metrics = dict(task.metrics) if task else {}
    for name, values in raw.get("metrics", {}).items():
        metrics[name] = build(Metric, values, where=f"{file} [metrics.{name!r}]")
    study = Study(
        table=table,
        factor=tuple(f for f in factor if f),
        seeds=_seeds(table.seeds, task, file),
        config=raw.get("config", {}),
        grid=grid,
        arms=arms,
        claims=claims,
        reported=_reported(raw.get("reported", []), arms, file),
        environment=environment,
        collect=build(Collect, raw.get("collect", {}), where=f"{file} [collect]"),
        metrics=metrics,
        path=path,
        digest=digest({k: v for k, v in raw.items() if k != "reported"}),
        engine=engine,
        task=task,
    )
    _check_budget(study, file)
    return study


def _table(raw: Mapping[str, Any], name: str, file: str) -> Mapping[str, Any]:
    value = raw.get(name)
    if not isinstance(value, Mapping) or not value:
        raise StudyError(f"{file}: [{name}] is missing or empty; a study needs it.")
    return value


def _arms(
    raw: Mapping[str, Any], table: StudyTable, factor: tuple[str, ...], file: str
) -> dict[str, Arm]:
    arms: dict[str, Arm] = {}
    for name, values in raw.items():
        where = f"{file} [arms.{name}]"
        if not isinstance(values, Mapping):
            raise StudyError(f"{where}: must be a table of settings; got {values!r}.")
        if not NAME.fullmatch(name):
            raise StudyError(f"{where}: an arm's name is letters, digits, '.', '_' or '-'.")
        settings = {k: v for k, v in values.items() if k not in ("cmd", "env")}
        env = _environment(values.get("env", {}), f"{where} env")
        if any(value is None for value in env.values()):
            raise StudyError(f"{where} env: an arm declares values; write them out.")
        cmd = values.get("cmd", table.cmd)
        if cmd is not None and (not isinstance(cmd, str) or not cmd.strip()):
            raise StudyError(f"{where}: cmd must be a command line; got {cmd!r}.")
        if (cmd is None) == (table.engine is None):
            raise StudyError(
                f"{where}: an arm is computed by the study's engine or by a command, exactly one; "
                f"engine is {table.engine!r} and cmd is {cmd!r}."
            )
        _check_factor(settings, env, len(raw), factor, where)
        arms[name] = Arm(
            name=name, settings=settings, cmd=cmd, env={k: str(v) for k, v in env.items()}
        )
    seen: dict[str, str] = {}
    for name, arm in arms.items():
        twin = seen.setdefault(digest([arm.settings, arm.cmd, dict(arm.env)]), name)
        if twin != name:
            raise StudyError(
                f"{file} [arms]: '{twin}' and '{name}' do not differ. Set the factor "
                f"({', '.join(factor) or 'not declared'}) to another value in one, or remove it."
            )
    return arms


def _check_factor(
    settings: Mapping[str, Any],
    env: Mapping[str, Any],
    num_arms: int,
    factor: tuple[str, ...],
    where: str,
) -> None:
    if num_arms > 1 and not factor:
        raise StudyError(
            f"{where}: the study has {num_arms} arms but declares no factor. Name the one thing "
            'that they may differ in: [study] factor = "…".'
        )
    names = [*settings, *(f"env.{name}" for name in env)]
    for name in names:
        if num_arms > 1 and not any(under(name, f) for f in factor):
            raise StudyError(
                f"{where}: sets '{name}', which is not the factor ({', '.join(factor)}). Arms may "
                f"differ only in the factor: move '{name}' to [config], or declare "
                f"factor = {[*factor, name]!r} if the arms are meant as packages."
            )


def under(name: str, factor: str) -> bool:
    """Whether a dotted name is the factor or lies below it."""
    return name == factor or name.startswith(f"{factor}.")


def _environment(raw: Any, where: str) -> dict[str, str | None]:
    if not isinstance(raw, Mapping):
        raise StudyError(f'{where}: must be a table NAME = "value"; got {raw!r}.')
    result: dict[str, str | None] = {}
    for name, value in raw.items():
        if value is True:
            result[name] = None
        elif isinstance(value, str):
            result[name] = value
        else:
            raise StudyError(
                f"{where}: {name} must be a string, or true to pass the caller's value; "
                f"got {value!r}."
            )
    return result


def _grid(raw: Any, file: str) -> dict[str, tuple[Any, ...]]:
    grid: dict[str, tuple[Any, ...]] = {}
    for name, values in raw.items():
        where = f"{file} [grid] {name}"
        if not isinstance(values, list) or not values:
            raise StudyError(f"{where}: must be a list of values; got {values!r}.")
        if name in ("arm", "seed"):
            raise StudyError(f"{where}: 'arm' and 'seed' are dimensions already; rename it.")
        if len({digest(v) for v in values}) != len(values):
            raise StudyError(f"{where}: repeats a value: {values}. Each cell is run once.")
        grid[name] = tuple(values)
    return grid


def _claims(raw: Any, file: str) -> dict[str, Claim]:
    claims: dict[str, Claim] = {}
    for name, values in raw.items():
        where = f"{file} [claims.{name}]"
        if not isinstance(values, Mapping):
            raise StudyError(f"{where}: must be a table; got {values!r}.")
        if "name" in values:
            raise StudyError(f"{where}: a claim's name is its table's; remove 'name'.")
        claims[name] = build(Claim, {**values, "name": name}, where=where)
    return claims


def _reported(raw: Any, arms: Mapping[str, Arm], file: str) -> tuple[Reported, ...]:
    entries = []
    for number, values in enumerate(raw, start=1):
        entry = build(Reported, values, where=f"{file} [[reported]] number {number}")
        if entry.arm not in arms:
            raise StudyError(
                f"{file} [[reported]] number {number}: arm '{entry.arm}' is not in the study. "
                f"Arms: {', '.join(arms)}."
            )
        entries.append(entry)
    return tuple(entries)


def _seeds(
    raw: Mapping[str, int | str | list[int]], task: Task | None, file: str
) -> dict[str, tuple[int, ...] | str]:
    where = f"{file} [study] seeds"
    if not raw:
        raise StudyError(
            f"{where}: is empty. Name at least one role: seeds = {{ init = [1, 2, 3] }}."
        )
    seeds: dict[str, tuple[int, ...] | str] = {}
    for role, value in raw.items():
        if isinstance(value, str):
            if value == role or not isinstance(raw.get(value), int | list):
                raise StudyError(
                    f"{where}: role '{role}' is tied to '{value}', which is not a role with "
                    f"numbers. Roles: {', '.join(raw)}."
                )
            seeds[role] = value
            continue
        values = tuple(value) if isinstance(value, list) else (value,)
        if not values or len(set(values)) != len(values):
            raise StudyError(
                f"{where}: role '{role}' must list seeds, each once; got {value}. A repeated seed "
                "is the same run twice and would count as two."
            )
        if any(not 0 <= v < 2**63 for v in values):
            raise StudyError(f"{where}: role '{role}': seeds lie in [0, 2^63); got {value}.")
        seeds[role] = values
    if task is not None and set(task.seeds) != set(seeds):
        raise StudyError(
            f"{where}: task '{task.name}' reads the roles {', '.join(task.seeds)}; the study gives "
            f'{", ".join(seeds)}. A role may be tied to another: data = "init".'
        )
    return seeds


def _check_budget(study: Study, file: str) -> None:
    task = study.task
    if task is None:
        return
    for name in study.table.budget:
        if name not in task.budget:
            raise StudyError(
                f"{file} [study] budget: '{name}' is not a budget of task '{task.name}'. "
                f"Its budgets: {', '.join(task.budget) or 'none'}."
            )
