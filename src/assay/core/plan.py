"""From a study to its runs: arms × grid × seeds, each with its resolved configuration.

A run's *identity* is the digest of everything that decides what it computes, except the code:
two plans with one identity ask for the same run. What the code was is in its provenance, and the
contract compares it.
"""

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from assay.core.config import (
    build,
    canonical,
    digest,
    digest_text,
    flatten,
    merge,
    to_plain,
    unknown_key,
)
from assay.core.errors import ConfigError, StudyError
from assay.core.study import Arm, Study

PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


class PlannedRun(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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
        StudyError: A configuration that the task refuses, an unknown placeholder in a command, or
            two runs that ask for the same computation.
    """
    combinations = [
        (seeds, _seed_label(study, seeds), canonical(seeds)) for seeds in _seed_combinations(study)
    ]
    runs = [
        run
        for arm in study.arms.values()
        for cell in cells(study.grid)
        for run in _plan_cell(study, arm, cell, combinations)
    ]
    _check_different(study, runs)
    return runs


def _check_different(study: Study, runs: Sequence[PlannedRun]) -> None:
    """Refuse two places of a study that ask for one computation: it would count as two."""
    seen: dict[str, PlannedRun] = {}
    for run in runs:
        twin = seen.setdefault(run.identity, run)
        if twin is not run:
            a, b = (f"arm '{r.arm}', cell {r.cell_label}, seed {r.seed_label}" for r in (twin, run))
            raise StudyError(
                f"{study.file}: two runs ask for the same computation: {a}; and {b}. What "
                "sets them apart is a default, or does not reach the configuration or command; "
                "give it another value, or remove one."
            )


def cells(grid: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Every combination of the grid's values; one empty cell without a grid."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def cell_label(cell: Mapping[str, Any]) -> str:
    """A cell in words: `alpha=0.25,depth=4`, or `all`.

    By name, so that it does not change when the grid is written in another order.
    """
    return ",".join(f"{name}={cell[name]}" for name in sorted(cell)) or "all"


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
    return ",".join(f"{role}={seeds[role]}" for role in sorted(varied))


def _plan_cell(
    study: Study,
    arm: Arm,
    cell: Mapping[str, Any],
    combinations: Sequence[tuple[Mapping[str, int], str, str]],
) -> Iterator[PlannedRun]:
    """The runs of one arm in one cell; all but seeds and command is resolved once.

    Seeds come with their label and their canonical text.
    """
    where = f"{study.file}, arm '{arm.name}'"
    values = merge(study.config, cell, arm.settings, study.table.budget)
    resolved, typed = _resolve(study, arm, values, where)
    env = {**study.environment, **arm.env}
    stackable = study.task.stackable if study.task else frozenset()
    what = {
        "engine": study.table.engine,
        "task": study.task.name if study.task else None,
        "config": resolved,
        "env": env,
    }
    common = digest(what)
    together = digest(what | {"config": {k: v for k, v in resolved.items() if k not in stackable}})
    label = cell_label(cell)
    for seeds, seed_label, seed_text in combinations:
        cmd = _command(arm.cmd, values, seeds, where) if arm.cmd is not None else None
        identity = digest_text(f"{common}\n{seed_text}\n{canonical(cmd) if cmd else ''}")
        yield PlannedRun(
            study=study.id,
            arm=arm.name,
            cell=cell,
            cell_label=label,
            seeds=seeds,
            seed_label=seed_label,
            config=resolved,
            typed_config=typed,
            cmd=cmd,
            env=env,
            budget=study.table.budget,
            identity=identity,
            # A command is one process a run; only an engine can stack.
            cohort=identity if cmd else together,
        )


def _resolve(
    study: Study, arm: Arm, values: dict[str, Any], where: str
) -> tuple[dict[str, Any], Any]:
    """The whole configuration, plain and as the task's dataclass (None for a command)."""
    if arm.cmd is not None:
        return values, None
    assert study.task is not None
    try:
        typed = build(study.task.config, values, where=where)
    except StudyError:
        raise
    except ConfigError as error:
        raise StudyError(str(error)) from error
    return to_plain(typed), typed


def _command(
    template: str, config: Mapping[str, Any], seeds: Mapping[str, int], where: str
) -> tuple[str, ...]:
    """Split a command line, then fill `{name}` and `{seed.role}` into its words; `{out}` stays."""
    known = {**flatten(config), **{f"seed.{role}": seed for role, seed in seeds.items()}}

    def fill(match: re.Match[str]) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        name = match[1]
        if name == "out" and name not in known:
            return match[0]  # The run's output folder, which the worker knows.
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
