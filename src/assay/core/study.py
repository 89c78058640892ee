"""Study files: TOML to a typed, checked study.

A study asks one question. Its arms differ in one declared factor; a grid crosses them with other
settings; seeds have named roles, so that the seed of the data and the seed of the
initialisation are two things. `assay.core.plan` expands it into runs. What can be wrong with a
file is found here, once, for whoever uses the study; only what a task's configuration refuses is
found by the plan.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from assay.core.config import build, check_plain, digest, flatten, unknown_key
from assay.core.criterion import check, same
from assay.core.definition import (
    NAME,
    PHASES,
    Arm,
    Claim,
    Collect,
    Reported,
    Study,
    StudyTable,
    analyses_of,
    at_scale,
    check_reported_scales,
    choose,
    file_at,
    reported_values,
    scaled_id,
    under,
)
from assay.core.engine import Metric, Task
from assay.core.errors import ConfigError, CriterionError, StudyError
from assay.core.registry import find_task
from assay.core.settings import find_project

__all__ = [
    "PHASES",
    "Arm",
    "Claim",
    "Collect",
    "Reported",
    "Study",
    "StudyTable",
    "choose",
    "load_scales",
    "load_study",
    "scaled_id",
    "under",
]

TABLES = ("study", "config", "grid", "arms", "claims", "reported", "environment", "collect",
          "metrics", "scales", "analyses")  # fmt: skip
GOALS = ("max", "min", "none")


def load_study(path: Path, scale: str = "") -> Study:
    """Read and check a study file, its criteria and its scales included.

    Args:
        path: The file.
        scale: At which of its scales; "" for the file as it is.

    Raises:
        StudyError: Anything that would make its runs or verdicts meaningless, with file, table,
            key, rule, value, and the way out; or no such scale.
    """
    found = load_scales(path)
    return choose(found, scale) if scale else found[""]


def load_scales(path: Path) -> dict[str, Study]:
    """A study file at every scale: "" as it is, then each `[scales.NAME]`, all checked.

    Raises:
        StudyError: As `load_study`.
    """
    raw = _read(path)
    file = path.name
    try:
        for key, value in raw.items():
            if key not in TABLES:
                known = ", ".join(TABLES)
                raise StudyError(f"{file}: unknown table [{key}]. Known tables: {known}.")
            is_list = key == "reported"
            if not isinstance(value, list if is_list else Mapping):
                shape = "[[reported]] entries" if is_list else "a table"
                raise StudyError(f"{file}: [{key}] must be {shape}; got {value!r}.")
            check_plain(value, f"{file} [{key}]", finite=not is_list)
        scales = raw.pop("scales", {})
        base = _check(raw, path, file)
        check_reported_scales(base.reported, scales, file)
        larger = {name: at_scale(raw, name, values, file) for name, values in scales.items()}
        found = {name: _check(larger[name], path, file_at(file, name)) for name in larger}
    except StudyError:
        raise
    except ConfigError as error:
        raise StudyError(str(error)) from error
    says = {name: tables["study"]["scale"] for name, tables in larger.items()}
    return {"": replace(base, scales=says)} | {
        name: replace(study, scale=name, scales=says) for name, study in found.items()
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise StudyError(
            f"There is no study file at {path}. Give the path of a .toml file, for example "
            "studies/addition/d8.toml."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(
            f"{path}: cannot be read as UTF-8 text: {error}. Save it as UTF-8."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"{path}: is not valid TOML: {error}. See https://toml.io.") from error


def _check(raw: dict[str, Any], path: Path, file: str) -> Study:
    table = build(StudyTable, _table(raw, "study", file), where=f"{file} [study]")
    engine, task = None, None
    if table.engine is not None:
        root = find_project(path.resolve().parent)
        engine, task = find_task(table.engine, table.task, root=root, where=f"{file} [study]")
    factor = tuple(filter(None, [table.factor] if isinstance(table.factor, str) else table.factor))
    arms = _arms(_table(raw, "arms", file), table, factor, file)
    if table.baseline is not None and table.baseline not in arms:
        raise StudyError(
            f"{file} [study] baseline: '{table.baseline}' is not an arm. Arms: {', '.join(arms)}."
        )
    grid = _grid(raw.get("grid", {}), file)
    _check_layers(table, raw.get("config", {}), grid, arms, file)
    _check_budget(table, task, file)
    metrics = {**(task.metrics if task else {}), **_metrics(raw.get("metrics", {}), file)}
    analyses = analyses_of(raw.get("analyses", {}), file)
    if metrics:  # Else what is measured is not known yet, and any name may be.
        found = {name: Metric(says=one.says) for one in analyses.values() for name in one.known}
        metrics = found | metrics
        for name in table.shown:
            if name not in metrics:
                what = unknown_key(name, list(metrics), what="metric")
                raise StudyError(f"{file} [study] shown: {what}")
    return Study(
        table=table,
        factor=factor,
        seeds=_seeds(table.seeds, task, file),
        config=raw.get("config", {}),
        grid=grid,
        arms=arms,
        claims=_claims(raw.get("claims", {}), arms, grid, metrics, file),
        reported=reported_values(raw.get("reported", []), arms, grid, file),
        environment=_environment(raw.get("environment", {}), f"{file} [environment]"),
        collect=build(Collect, raw.get("collect", {}), where=f"{file} [collect]"),
        metrics=metrics,
        path=path,
        # The first arm is the baseline unless one is named, so the order of arms may matter.
        digest=digest(
            {k: v for k, v in raw.items() if k != "reported"}
            | {"baseline": table.baseline or next(iter(arms))}
        ),
        engine=engine,
        task=task,
        analyses=analyses,
    )


def _table(raw: Mapping[str, Any], name: str, file: str) -> Mapping[str, Any]:
    value = raw.get(name)
    if not value:
        raise StudyError(
            f"{file}: [{name}] is missing or empty; a study needs it"
            f"{': at least one [arms.NAME]' if name == 'arms' else ''}."
        )
    assert isinstance(value, Mapping)
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
            raise StudyError(
                f"{where}: an arm's name is letters, digits, '.', '_' or '-' (at most 80)."
            )
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
        twin = seen.setdefault(digest([flatten(arm.settings), arm.cmd, dict(arm.env)]), name)
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
    names = [*flatten(settings), *(f"env.{name}" for name in env)]
    for name in names:
        if num_arms > 1 and not any(under(name, f) for f in factor):
            raise StudyError(
                f"{where}: sets '{name}', which is not the factor ({', '.join(factor)}). Arms may "
                f"differ only in the factor: move '{name}' to [config], or declare "
                f"factor = {[*factor, name]!r} if the arms are meant as packages."
            )


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


def _grid(raw: Mapping[str, Any], file: str) -> dict[str, tuple[Any, ...]]:
    grid: dict[str, tuple[Any, ...]] = {}
    for name, values in flatten(raw).items():
        where = f"{file} [grid] {name}"
        if not isinstance(values, list) or not values:
            raise StudyError(f"{where}: must be a list of values; got {values!r}.")
        if name in ("arm", "seed"):
            raise StudyError(f"{where}: 'arm' and 'seed' are dimensions already; rename it.")
        # A cell is named by its values as text, so 1 and "1" would be one cell as well.
        twice = [v for i, v in enumerate(values) if any(_alike(v, w) for w in values[:i])]
        if twice:
            raise StudyError(
                f"{where}: repeats a value: {twice[0]!r} in {values}. Each cell is run once; "
                "remove one of them."
            )
        grid[name] = tuple(values)
    return grid


def _alike(a: object, b: object) -> bool:
    return str(a) == str(b) or same(a, b)


def _check_layers(
    table: StudyTable,
    config: Mapping[str, Any],
    grid: Mapping[str, Any],
    arms: Mapping[str, Arm],
    file: str,
) -> None:
    """Refuse a setting that is given twice, of which one would silently be without effect.

    An arm may set what [config] gives as the common value; that is what arms are for.
    """
    layers = [("[study] budget", list(table.budget)), ("[grid]", list(grid))]
    others = [("[config]", list(flatten(config)))]
    others += [(f"[arms.{arm.name}]", list(flatten(arm.settings))) for arm in arms.values()]
    pairs = [(a, b) for i, a in enumerate(layers) for b in [*layers[i + 1 :], *others]]
    for (place, names), (other, there) in pairs:
        for name in names:
            if any(under(name, key) or under(key, name) for key in there):
                raise StudyError(
                    f"{file} {place} {name}: is set in {other} as well, and one of the two would "
                    "be without effect. Remove one."
                )


def _metrics(raw: Mapping[str, Any], file: str) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    for name, values in raw.items():
        where = f"{file} [metrics.{name!r}]"
        if not isinstance(values, Mapping):
            raise StudyError(f'{where}: must be a table such as {{ says = "…" }}; got {values!r}.')
        metric = build(Metric, values, where=where)
        if metric.goal not in GOALS:
            raise StudyError(
                f"{where} goal: must be one of {', '.join(GOALS)}; got {metric.goal!r}."
            )
        metrics[name] = metric
    return metrics


def _claims(
    raw: Mapping[str, Any],
    arms: Mapping[str, Arm],
    grid: Mapping[str, tuple[Any, ...]],
    metrics: Mapping[str, Metric],
    file: str,
) -> dict[str, Claim]:
    claims: dict[str, Claim] = {}
    for name, values in raw.items():
        where = f"{file} [claims.{name}]"
        if not isinstance(values, Mapping):
            raise StudyError(f"{where}: must be a table; got {values!r}.")
        if "name" in values:
            raise StudyError(f"{where}: a claim's name is its table's; remove 'name'.")
        claim = build(Claim, {**values, "name": name}, where=where)
        try:
            # Without an engine or [metrics], what will be measured is not known yet.
            check(claim.criterion, arms=list(arms), grid=grid, metrics=frozenset(metrics) or None)
        except CriterionError as error:
            raise StudyError(f"{where}: {error}") from error
        claims[name] = claim
    return claims


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


def _check_budget(table: StudyTable, task: Task | None, file: str) -> None:
    for name, value in table.budget.items():
        if task is not None and name not in task.budget:
            raise StudyError(
                f"{file} [study] budget: '{name}' is not a budget of task '{task.name}'. "
                f"Its budgets: {', '.join(task.budget) or 'none'}."
            )
        if value <= 0:
            raise StudyError(f"{file} [study] budget {name}: must be above 0; got {value}.")
