"""From a study to its runs: arms × grid × seeds, each with its resolved configuration.

A run's *identity* is the digest of everything that decides what it computes, except the code:
two plans with one identity ask for the same run. What the code was is in its provenance, and the
contract compares it.
"""

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from assay.core.config import build, digest, flatten, to_plain, unknown_key
from assay.core.errors import ConfigError, StudyError
from assay.core.study import Arm, Study

PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One arm × cell × seed, before it is executed.

    Attributes:
        study: The study's id.
        arm: Arm name.
        cell: Grid setting → value.
        cell_label: The cell in words; "all" without a grid.
        seeds: Role → seed, ties resolved.
        seed_label: The seeds that vary, e.g. "42" or "init=42,data=1"; runs pair by it.
        config: Resolved configuration, every field, plain values.
        typed_config: The same as the task's dataclass; None for a command.
        cmd: The command line, split; None for an engine.
        env: Declared variables; None means passed through.
        budget: Declared budget.
        identity: Digest of what is to be computed.
        cohort: Digest of what may be computed together with it.
    """

    study: str
    arm: str
    cell: Mapping[str, Any]
    cell_label: str
    seeds: Mapping[str, int]
    seed_label: str
    config: Mapping[str, Any]
    typed_config: Any
    cmd: tuple[str, ...] | None
    env: Mapping[str, str | None]
    budget: Mapping[str, float]
    identity: str
    cohort: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Arm, cell and seed: its place in the study."""
        return (self.arm, self.cell_label, self.seed_label)


def expand(study: Study) -> list[PlannedRun]:
    """All runs of a study, arms first, then cells, then seeds, in the order of the file.

    Raises:
        StudyError: A configuration that the task refuses, or an unknown placeholder in a command.
    """
    runs = [
        _plan(study, arm, cell, seeds)
        for arm in study.arms.values()
        for cell in cells(study.grid)
        for seeds in _seed_combinations(study)
    ]
    return runs


def cells(grid: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Every combination of the grid's values; one empty cell without a grid."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def cell_label(cell: Mapping[str, Any]) -> str:
    """A cell in words: `alpha=0.25,depth=4`, or `all`."""
    return ",".join(f"{name}={value}" for name, value in cell.items()) or "all"


def seed_labels(study: Study) -> tuple[str, ...]:
    """The labels by which runs of different arms are paired."""
    return tuple(_seed_label(study, seeds) for seeds in _seed_combinations(study))


def _seed_combinations(study: Study) -> Iterator[dict[str, int]]:
    free = {role: v for role, v in study.seeds.items() if not isinstance(v, str)}
    for values in itertools.product(*free.values()):
        chosen = dict(zip(free, values, strict=True))
        yield {
            role: chosen[value] if isinstance(value, str) else chosen[role]
            for role, value in study.seeds.items()
        }


def _seed_label(study: Study, seeds: Mapping[str, int]) -> str:
    varied = [r for r, v in study.seeds.items() if not isinstance(v, str) and len(v) > 1]
    if not varied:
        varied = [r for r, v in study.seeds.items() if not isinstance(v, str)][:1]
    if len(varied) == 1:
        return str(seeds[varied[0]])
    return ",".join(f"{role}={seeds[role]}" for role in varied)


def _plan(study: Study, arm: Arm, cell: Mapping[str, Any], seeds: Mapping[str, int]) -> PlannedRun:
    where = f"{study.path.name}, arm '{arm.name}'"
    values = _merge(study.config, cell, arm.settings, study.table.budget)
    if arm.cmd is not None:
        resolved, typed = values, None
        cmd = _command(arm.cmd, values, seeds, where)
    else:
        assert study.task is not None
        cmd = None
        try:
            typed = build(study.task.config, values, where=where)
        except StudyError:
            raise
        except ConfigError as error:
            raise StudyError(str(error)) from error
        resolved = to_plain(typed)
    env = {**study.environment, **arm.env}
    stackable = study.task.stackable if study.task else frozenset()
    shared = {k: v for k, v in resolved.items() if k not in stackable}
    what = {
        "engine": study.table.engine,
        "task": study.task.name if study.task else None,
        "config": resolved,
        "cmd": cmd,
        "env": env,
        "seeds": dict(seeds),
    }
    # A command is one process a run; only an engine can stack.
    together = {**what, "config": shared, "seeds": dict(seeds) if cmd else None}
    return PlannedRun(
        study=study.id,
        arm=arm.name,
        cell=cell,
        cell_label=cell_label(cell),
        seeds=seeds,
        seed_label=_seed_label(study, seeds),
        config=resolved,
        typed_config=typed,
        cmd=cmd,
        env=env,
        budget=study.table.budget,
        identity=digest(what),
        cohort=digest(together),
    )


def _merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers win; a dotted key sets a value inside a nested table."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            target = merged
            *parents, last = name.split(".")
            for parent in parents:
                inner = target.get(parent)
                target[parent] = dict(inner) if isinstance(inner, Mapping) else {}
                target = target[parent]
            if isinstance(value, Mapping) and isinstance(target.get(last), Mapping):
                value = _merge(target[last], value)
            target[last] = value
    return merged


def _command(
    template: str, config: Mapping[str, Any], seeds: Mapping[str, int], where: str
) -> tuple[str, ...]:
    """Split a command line, then fill `{name}` and `{seed.role}` into its words."""
    known = {**flatten(config), **{f"seed.{role}": seed for role, seed in seeds.items()}}

    def fill(match: re.Match[str]) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        name = match[1]
        if name not in known:
            raise StudyError(f"{where}: cmd: {{{name}}}: {unknown_key(name, sorted(known))}")
        return str(known[name])

    try:
        words = shlex.split(template)
    except ValueError as error:
        raise StudyError(
            f"{where}: cmd cannot be split into words: {error}: {template!r}"
        ) from error
    return tuple(PLACEHOLDER.sub(fill, word) for word in words)
