"""Audits: what the runs themselves show to be wrong with a number, whatever the arms differ in.

The contract asks whether arms may be compared; an audit asks whether a metric means what it says.
Each check is one function of the same evidence and yields findings that name the metrics
concerned: a claim that reads one of them under a blocking finding is INVALID. The defects are
those of the five source logs (specification of the lab, §1).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np

from assay.core.audited import Audited, arms_of, runs_of
from assay.core.findings import Finding, joined
from assay.core.read import IndexedRun, MetricRow
from assay.core.render import number

EXPLODED = 100.0
"""A gradient norm above this many medians of its own curve is an explosion."""
NEAR_CHANCE = 1e-6
"""Relative distance at which a value is the level of chance: the same guess every time."""
MIN_POINTS = 3
MIN_SEEDS = 3
"""Two seeds may give one value by accident, as of a share of a few examples."""


Check = Callable[[Audited], Iterator[Finding]]


def audit(seen: Audited) -> list[Finding]:
    """All findings of all checks, blocking ones first."""
    findings = [finding for check in CHECKS.values() for finding in check(seen)]
    return sorted(findings, key=lambda f: (not f.blocks, f.kind, f.metrics, f.arms))


def leaked_environment(seen: Audited) -> Iterator[Finding]:
    """A variable that the study gives to some arms was there in another (S0)."""
    declared = {arm: dict(settings.env) for arm, settings in seen.study.arms.items()}
    for name in sorted({name for env in declared.values() for name in env}):
        owners = [arm for arm, env in declared.items() if name in env]
        leaked = sorted(
            {
                run.arm
                for run in seen.runs
                if name not in declared.get(run.arm, {}) and _has(seen.facts.get(run.id, {}), name)
            }
        )
        if leaked:
            yield Finding(
                kind="leaked-environment",
                arms=(*owners, *leaked),
                keys=(f"env.{name}",),
                message=f"Leaked environment: {name} is declared for {joined(owners)} only, but was "
                f"set in {joined(leaked)} too, so the arms may have run alike; unset it where the "
                "program is started, and run again.",
                blocks=True,
            )


def _has(facts: Mapping[str, Any], name: str) -> bool:
    return facts.get(f"env.{name}") is not None


def always_perfect(seen: Audited) -> Iterator[Finding]:
    """A metric at its best possible value from the first step on, in all runs (S0's agreement)."""
    for metric, rows in seen.rows.items():
        meaning = seen.meaning(metric)
        best = meaning.high if meaning.goal == "max" else meaning.low
        if meaning.goal == "none" or best is None or len(rows) < 2:
            continue
        curves = all(
            row.num_points >= MIN_POINTS and row.low == row.high == row.value == best
            for _, row in rows
        )
        if curves:
            yield Finding(
                kind="always-perfect",
                arms=arms_of(rows),
                keys=(metric,),
                metrics=(metric,),
                message=f"Always perfect: {metric} is {number(best)}, the best possible value, at "
                f"every step of all {len(rows)} runs, also before anything was learnt; see that "
                "what it compares is really two things.",
                blocks=True,
            )


def constant_across_seeds(seen: Audited) -> Iterator[Finding]:
    """Every seed of an arm gives one value to the last bit: its spread of zero is no estimate.

    Only where a claim estimates from that spread: rates count successes and have intervals of
    their own, exact values claim none, and a count of parameters is meant to be constant.
    """
    claimed = {m.metric for m in seen.measures if m.function in SPREAD}
    for metric, rows in seen.rows.items():
        if metric not in claimed:
            continue
        places: dict[tuple[str, str], list[float]] = {}
        for run, row in rows:
            if row.value is not None and math.isfinite(row.value):
                places.setdefault((run.arm, run.cell_label), []).append(row.value)
        varies: dict[str, set[bool]] = {}
        for (arm, _), values in places.items():
            if len(values) >= MIN_SEEDS:
                varies.setdefault(arm, set()).add(len(set(values)) > 1)
        for wanted, functions in (({False}, SPREAD), ({False, True}, UNPAIRED)):
            arms = sorted(arm for arm, found in varies.items() if found == wanted)
            if arms:
                yield _constant(metric, arms, functions)


def _constant(metric: str, arms: list[str], functions: tuple[str, ...]) -> Finding:
    where = "" if functions == SPREAD else "in one of its cells "
    return Finding(
        kind="constant-metric",
        arms=tuple(arms),
        keys=(metric,),
        metrics=(metric,),
        functions=functions,
        message=f"Constant metric: every seed of {joined(arms)} {where}gives the same {metric} to the last "
        "bit, so its spread of zero says nothing of other seeds; claim a rate or an exact value, or see "
        "that the metric is computed from the run.",
        blocks=True,
    )


def identical_arms(seen: Audited) -> Iterator[Finding]:
    """Two arms of a claim give the same values to the last bit, seed by seed (S0's agreement of 1.0).

    Their settings differ, or the contract would have said so; but nothing that is claimed depends on
    what differs: a simulated fault that only costs time, or a setting that never reaches the metric.
    """
    claimed = {m.metric for m in seen.measures if m.function in SPREAD}
    for metric in sorted(claimed & seen.rows.keys()):
        values: dict[str, dict[tuple[str, str], float | None]] = {}
        for run, row in seen.rows[metric]:
            values.setdefault(run.arm, {})[run.cell_label, run.seed_label] = row.value
        alike = [
            (a, b)
            for a, b in combinations(sorted(values), 2)
            if values[a] == values[b] and len(set(values[a].values())) >= MIN_SEEDS
        ]
        if alike:
            arms = tuple(sorted({arm for pair in alike for arm in pair}))
            yield Finding(
                kind="identical-arms",
                arms=arms,
                keys=(metric,),
                metrics=(metric,),
                message=f"Identical arms: {joined(arms)} give the same {metric} to the last bit at every "
                "seed, so what they differ in does not reach it; a claim that one is no worse than "
                "another says nothing here.",
                blocks=False,
            )


SPREAD = ("mean", "std", "diff", "ratio", "monotone")
"""Functions whose intervals come from the spread over seeds."""
UNPAIRED = ("mean", "std", "monotone")
"""Those that read the spread of one arm alone."""


def non_finite(seen: Audited) -> Iterator[Finding]:
    """NaN or infinity on the way: a run that went on with it computed something else."""
    for metric, rows in seen.rows.items():
        bad = [(run, row) for run, row in rows if row.non_finite]
        if bad:
            yield Finding(
                kind="non-finite",
                arms=arms_of(bad),
                keys=(metric,),
                metrics=(metric,),
                message=f"Not finite: {metric} was NaN or infinite at some step in {runs_of(bad)}; "
                "such values enter no mean, and what was trained after them is not what was meant.",
                blocks=False,
            )


def exploded(seen: Audited) -> Iterator[Finding]:
    """A gradient norm far above its own median (S3: 947)."""
    for metric, rows in seen.rows.items():
        if "grad_norm" not in metric:
            continue
        high = []
        for run, row in rows:
            curve = seen.curve(run, metric)
            values = curve[1][np.isfinite(curve[1])] if curve is not None else np.empty(0)
            if values.size >= MIN_POINTS and values.max() > EXPLODED * np.median(values) > 0:
                high.append((run, row))
        if high:
            peak = max(row.high or 0.0 for _, row in high)
            yield Finding(
                kind="exploded",
                arms=arms_of(high),
                keys=(metric,),
                metrics=(metric,),
                message=f"Explosion: {metric} rose to {number(peak)}, more than {EXPLODED:g} times "
                f"its median, in {runs_of(high)}; look at the curve before comparing these runs.",
                blocks=False,
            )


def unequal_steps(seen: Audited) -> Iterator[Finding]:
    """Arms whose series end at different steps at one seed (S1: 53 to 65)."""
    for metric, rows in seen.rows.items():
        ends: dict[tuple[str, str], dict[str, int]] = {}
        for run, row in rows:
            if row.last_step is not None and row.source == "last":
                ends.setdefault((run.cell_label, run.seed_label), {})[run.arm] = row.last_step
        apart = {place: last for place, last in ends.items() if len(set(last.values())) > 1}
        if apart:
            (_, seed), last = min(apart.items())
            listed = ", ".join(f"{step} in {arm}" for arm, step in sorted(last.items()))
            yield Finding(
                kind="unequal-steps",
                arms=tuple(sorted({arm for last in apart.values() for arm in last})),
                keys=(metric,),
                metrics=(metric,),
                message=f"Unequal steps: the last {metric} is from step {listed} (seed {seed}; "
                f"{len(apart)} of {len(ends)} places), so the arms are compared at different "
                "lengths; give them the same budget, or record a summary at a common step.",
                blocks=True,
            )


def chosen_on_reported_split(seen: Audited) -> Iterator[Finding]:
    """The reported value is the best of the curve that it was chosen on (best epoch on the split)."""
    claimed = {measure.metric for measure in seen.measures}
    for metric, rows in seen.rows.items():
        source = _curve_of(metric, seen)
        named = "best" in metric.rpartition("/")[2] and metric not in claimed
        if source is None or named:  # A name that says so misleads only where a claim rests on it.
            continue
        goal = seen.meaning(source).goal
        chosen = [_is_best(seen, run, row, source, goal) for run, row in rows]
        # At the last step the best value and the final one are the same: no choice is seen.
        if len(rows) > 1 and None not in chosen and any(chosen):
            yield Finding(
                kind="chosen-on-split",
                arms=arms_of(rows),
                keys=(metric,),
                metrics=(metric,),
                message=f"Chosen on the reported split: {metric} is the best value that {source} "
                f"ever had, in all {len(rows)} runs, so it is biased upwards by the choice; report "
                "the last value, or choose on one split and report another.",
                blocks=True,
            )


def _curve_of(metric: str, seen: Audited) -> str | None:
    """The series that a summary may be the best of: its own, or its name without "best"."""
    split, _, name = metric.rpartition("/")
    for candidate in (metric, f"{split}/{name.removeprefix('best_')}".lstrip("/")):
        rows = seen.rows.get(candidate, [])
        if rows and all(row.num_points >= MIN_POINTS for _, row in rows):
            return candidate
    return None


def _is_best(seen: Audited, run: IndexedRun, row: MetricRow, source: str, goal: str) -> bool | None:
    """Whether a summary is its curve's best and not its last value; None if it is not the best."""
    curve = seen.curve(run, source)
    if curve is None or row.source != "summary" or row.value is None or goal == "none":
        return None
    values = curve[1][np.isfinite(curve[1])]
    if not values.size:
        return None
    best = float(values.max() if goal == "max" else values.min())
    return bool(values[-1] != best) if row.value == best else None


def at_chance(seen: Audited) -> Iterator[Finding]:
    """A metric at the level of a constant guess in all arms (S3's majority class)."""
    for metric, rows in seen.rows.items():
        level = seen.meaning(metric).chance
        if level is None:
            continue
        levels = [_level(seen, run, level) for run, _ in rows]
        if len(rows) > 1 and all(
            c is not None
            and row.value is not None
            and math.isclose(row.value, c, rel_tol=NEAR_CHANCE)
            for (_, row), c in zip(rows, levels, strict=True)
        ):
            yield Finding(
                kind="at-chance",
                arms=arms_of(rows),
                keys=(metric,),
                metrics=(metric,),
                message=f"At chance: {metric} is {number(levels[0])} in all {len(rows)} runs, what "
                "the same guess every time gives, so the arms are compared in nothing; train "
                "longer, or see that the predictions depend on the input.",
                blocks=True,
            )


def _level(seen: Audited, run: IndexedRun, level: float | str) -> float | None:
    """The level of chance: a number, or what the run logged under that name."""
    if not isinstance(level, str):
        return level
    row = seen.selection.values.get(run.id, {}).get(level)
    return None if row is None else row.value


def overlapping_splits(seen: Audited) -> Iterator[Finding]:
    """Training and test data that are the same, or that share examples by the run's own count."""
    same: dict[str, tuple[str, str]] = {}
    for run in seen.runs:
        splits = {key: value for key, value in _data(seen.facts.get(run.id, {})).items() if value}
        train = {key: value for key, value in splits.items() if "train" in key}
        test = {key: value for key, value in splits.items() if "test" in key or "val" in key}
        for a, value in train.items():
            for b in (b for b, other in test.items() if other == value):
                same[run.arm] = (a, b)
    for arm, (a, b) in sorted(same.items()):
        yield _overlap((arm,), (a, b), f"{a} and {b} of {arm} have the same fingerprint")
    for metric, rows in seen.rows.items():
        shared = [(run, row) for run, row in rows if "overlap" in metric and (row.value or 0) > 0]
        if shared and metric.startswith("data/"):
            most = max(row.value or 0.0 for _, row in shared)
            yield _overlap(
                arms_of(shared), (metric,), f"{metric} is up to {number(most)} in {runs_of(shared)}"
            )


def _overlap(arms: tuple[str, ...], keys: tuple[str, ...], what: str) -> Finding:
    return Finding(
        kind="overlapping-splits",
        arms=arms,
        keys=keys,
        message=f"Train/test overlap: {what}, so what is reported was trained on; make the splits "
        "disjoint and run again.",
        blocks=True,
    )


def two_values(seen: Audited) -> Iterator[Finding]:
    """One run computed twice that gave two results (S4: 0.125 and 0.120 for one quantity)."""
    others: dict[str, list[IndexedRun]] = {}
    for run in seen.index.runs():
        if run.status == "completed" and run.results_sha256 is not None:
            others.setdefault(run.identity, []).append(run)
    apart = [
        (run, other)
        for run in seen.runs
        for other in others.get(run.identity, [])
        if other.id != run.id
        and (other.code, other.seeds, other.engine) == (run.code, run.seeds, run.engine)
        and other.results_sha256 != run.results_sha256
        and not run.code.endswith("+")
        # On other data another result is no wonder.
        and _data(seen.facts.get(run.id, {})) == _data(seen.index.facts(other.id))
    ]
    if apart:
        run, other = min(apart, key=lambda pair: (pair[0].id, pair[1].id))
        yield Finding(
            kind="two-values",
            arms=tuple(sorted({run.arm for run, _ in apart})),
            keys=("results",),
            message=f"Two values for one quantity: {run.id} and {other.id} (study {other.study}) "
            f"computed the same configuration, seeds, data and code, and differ ({len(apart)} such "
            "pair(s)); the program draws from something that is not seeded.",
            blocks=False,
        )


def _data(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprints of what was read."""
    return {key: value for key, value in facts.items() if key.startswith("data.")}


CHECKS: Mapping[str, Check] = {
    "leaked-environment": leaked_environment,
    "always-perfect": always_perfect,
    "constant-metric": constant_across_seeds,
    "identical-arms": identical_arms,
    "non-finite": non_finite,
    "exploded": exploded,
    "unequal-steps": unequal_steps,
    "chosen-on-split": chosen_on_reported_split,
    "at-chance": at_chance,
    "overlapping-splits": overlapping_splits,
    "two-values": two_values,
}
