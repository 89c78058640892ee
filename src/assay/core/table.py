"""Tables: mean ± std [n] per arm and cell, intervals, and deltas to the baseline."""

import csv
import io
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from assay.core.criterion import parse
from assay.core.evidence import Selection, StudyEvidence, no_collection
from assay.core.files import explicit
from assay.core.grammar import Measure
from assay.core.plan import cell_label, cells
from assay.core.statistics import (
    HUGE,
    Interval,
    mean_interval,
    moments,
    paired_difference,
    ratio_interval,
    welch_difference,
)
from assay.core.study import Study

CONFIDENCE = 0.95
Place: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """Difference to the baseline: in the unit of the metric, and in per cent of the baseline.

    `n` counts seed pairs when `paired`; limits are None without an interval (n < 2; per cent: also
    where the baseline cannot be told from zero).
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    paired: bool
    percent: float | None = None
    percent_low: float | None = None
    percent_high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One metric of one arm in one cell of the grid.

    Attributes:
        seeds: Seed label → final value, for completed runs that have one.
        run_ids: Seed label → run id, also of runs without a value.
        failed: Number of runs that failed; never dropped from sight.
        no_value: Number of completed runs that have no such value.
        missing: Number of planned runs that have not ended, or of which none counts.
        invalid: How many of the missing were invalidated.
        mean: Of the finite values; None without any.
        std: Sample standard deviation (n - 1); None for n < 2.
        low: Lower limit of the 95 % t interval of the mean; None for n < 2.
        high: Upper limit.
        non_finite: How many values are NaN, infinite or above 1e100 (left out of mean and std,
            and shown).
        delta: Against the baseline arm; None for the baseline itself.
    """

    arm: str
    cell: dict[str, Any]
    metric: str
    seeds: dict[str, float]
    run_ids: dict[str, str]
    failed: int
    no_value: int
    missing: int
    invalid: int
    mean: float | None
    std: float | None
    low: float | None
    high: float | None
    non_finite: int
    delta: Delta | None

    @property
    def n(self) -> int:
        """Number of finite values."""
        return len(self.seeds) - self.non_finite

    @property
    def stderr(self) -> float | None:
        """Standard error of the mean over seeds; None for n < 2."""
        return None if self.std is None else self.std / math.sqrt(self.n)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All cells of a study for some metrics, in the order arm, cell, metric.

    Attributes:
        study: Id.
        baseline: The arm that deltas are taken to.
        metrics: Names.
        rows: The cells.
        notes: What a reader must know about runs that are not, or not fully, in it.
    """

    study: str
    baseline: str
    metrics: tuple[str, ...]
    rows: tuple[Cell, ...]
    notes: tuple[str, ...]


@no_collection()
def build_table(study: Study, selection: Selection, metrics: Sequence[str]) -> Table:
    """Aggregate the runs that count.

    Args:
        study: The study.
        selection: Its runs.
        metrics: Names; one that no run has gives cells without values.
    """
    evidence = StudyEvidence(study, selection)
    every = [(cell_label(cell), cell) for cell in cells(study.grid)]
    base = {
        (label, metric): _finite(evidence.values(metric, study.baseline, cell))
        for label, cell in every
        for metric in metrics
    }
    struck = _struck(selection)
    rows = [
        _row(
            evidence,
            arm,
            cell,
            metric,
            struck,
            None if arm == study.baseline else base[label, metric],
        )
        for arm in study.arms
        for label, cell in every
        for metric in metrics
    ]
    return Table(
        study=study.id,
        baseline=study.baseline,
        metrics=tuple(metrics),
        rows=tuple(rows),
        notes=tuple(selection_notes(selection)),
    )


def known_metrics(study: Study, selection: Selection) -> list[str]:
    """Metrics that runs have, those with a definition and a direction first.

    Also those of invalidated runs: their values are struck, not forgotten.
    """
    logged: set[str] = set()
    for run in (*selection.counting.values(), *(run for run, _ in selection.invalid)):
        logged.update(selection.values.get(run.id, ()))

    def rank(name: str) -> tuple[int, str]:
        known = study.metrics.get(name)
        return (2 if known is None else 1 if known.goal == "none" else 0, name)

    return sorted(logged, key=rank)


def default_metrics(study: Study, selection: Selection) -> list[str]:
    """What a table shows unasked, of what was measured.

    The study's own choice (`shown`); else what its claims are about, then metrics with a direction,
    test before val.
    """
    logged = known_metrics(study, selection)
    if study.table.shown:
        return [m for m in study.table.shown if m in logged]
    order = {"test": 0, "val": 1, "eval": 1, "train": 2}
    directed = [m for m in logged if m in study.metrics and study.metrics[m].goal != "none"]
    chosen = sorted(directed or logged[:6], key=lambda m: (order.get(m.partition("/")[0], 3), m))
    claimed = [
        node.metric
        for claim in study.claims.values()
        for node in parse(claim.criterion).nodes()
        if isinstance(node, Measure) and node.metric in logged
    ]
    return list(dict.fromkeys([*claimed, *chosen]))


def selection_notes(selection: Selection) -> list[str]:
    """What the reader of a table must know about runs that are not, or not fully, in it."""
    notes = []
    failed = [r for r in selection.counting.values() if r.status == "failed"]
    running = [r for r in selection.counting.values() if r.status in ("open", "interrupted")]
    if failed:
        notes.append(f"{len(failed)} run(s) failed and stay in every count.")
    struck = {run.key for run, _ in selection.invalid}
    unfinished = sum(run.key not in struck for run in selection.missing)
    if unfinished:
        notes.append(
            f"{unfinished} of {len(selection.planned)} planned runs have not ended"
            + (f" ({len(running)} started)." if running else ".")
        )
    notes += [
        f"{run.path}: invalidated {event.at[:10]}: {event.body['because']}"
        for run, event in selection.invalid
    ]
    retried = sum(r.status != "failed" and bool(r.failures) for r in selection.counting.values())
    if retried:
        notes.append(f"{retried} run(s) failed in an earlier attempt and were tried again.")
    if selection.broken:
        listed = ", ".join(path for path, _ in selection.broken)
        notes.append(
            f"{len(selection.broken)} broken run directory(ies), not counted: {listed} "
            f"(`assay ls` says why)."
        )
    if selection.superseded:
        notes.append(f"{len(selection.superseded)} earlier run(s) were run again; not counted.")
    if selection.stale:
        notes.append(
            f"{len(selection.stale)} run(s) have another configuration than the study file now "
            "asks for; not counted."
        )
    return notes


def _struck(selection: Selection) -> frozenset[Place]:
    """Places whose only runs were invalidated; by what was computed, as labels may change."""
    invalid = {(run.arm, run.cell_label, run.identity) for run, _ in selection.invalid}
    return frozenset(
        p.key
        for p in selection.planned
        if invalid
        and (p.arm, p.cell_label, p.identity) in invalid
        and p.key not in selection.counting
    )


def _row(
    evidence: StudyEvidence,
    arm: str,
    cell: dict[str, Any],
    metric: str,
    struck: Container[Place],
    baseline: dict[str, float] | None,
) -> Cell:
    found = evidence.values(metric, arm, cell)
    seeds = {seed: value for seed, value in found.items() if value is not None}
    label = cell_label(cell)
    finite = _finite(found)
    sample = list(finite.values())
    low, high = _limits(mean_interval(sample, CONFIDENCE)) if sample else (None, None)
    mean, std, _ = moments(sample) if sample else (None, None, 0)
    runs = {s: evidence.selection.counting[(arm, label, s)] for s in found}
    failed = sum(run.status == "failed" for run in runs.values())
    absent = [seed for seed in evidence.seeds if seed not in found]
    return Cell(
        arm=arm,
        cell=cell,
        metric=metric,
        seeds=seeds,
        run_ids={seed: run.id for seed, run in runs.items()},
        failed=failed,
        no_value=len(found) - len(seeds) - failed,
        missing=len(absent),
        invalid=sum((arm, label, seed) in struck for seed in absent),
        mean=mean,
        std=std if len(sample) > 1 else None,
        low=low,
        high=high,
        non_finite=len(seeds) - len(finite),
        delta=None if baseline is None else difference(finite, baseline),
    )


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    # Half of what the statistics take, so that differences fit as well. False for NaN.
    return {s: v for s, v in values.items() if v is not None and abs(v) <= HUGE / 2}


def _limits(interval: Interval) -> tuple[float | None, float | None]:
    """Limits of an interval; None where nothing bounds it."""
    low, high = interval.low, interval.high
    return (low if math.isfinite(low) else None, high if math.isfinite(high) else None)


def difference(values: Mapping[str, float], baseline: Mapping[str, float]) -> Delta | None:
    """Paired by seed where both have seeds in common; else the difference of means."""
    if not values or not baseline:
        return None
    common = [seed for seed in values if seed in baseline]
    ours, theirs = list(values.values()), list(baseline.values())
    if common:
        ours, theirs = [values[s] for s in common], [baseline[s] for s in common]
        interval = paired_difference(ours, theirs)
    else:
        interval = welch_difference(ours, theirs)
    low, high = _limits(interval)
    ratio = ratio_interval(ours, theirs, CONFIDENCE, paired=bool(common))
    percent = [_percent(r) for r in (ratio.estimate, *_limits(ratio))]
    return Delta(mean=interval.estimate, low=low, high=high, n=interval.n, paired=bool(common),
                 percent=percent[0], percent_low=percent[1], percent_high=percent[2])  # fmt: skip


def _percent(ratio: float | None) -> float | None:
    return None if ratio is None or not math.isfinite(ratio) else 100 * (ratio - 1)


def to_json(table: Table) -> dict[str, Any]:
    """Plain data, every seed with its run id; NaN and infinities as "nan", "inf", "-inf"."""
    rows = [asdict(row) | {"n": row.n, "stderr": row.stderr} for row in table.rows]
    plain: dict[str, Any] = explicit(asdict(table) | {"rows": rows, "confidence": CONFIDENCE})
    return plain


def to_csv(table: Table) -> str:
    """One line a seed: the tidy form that other tools read. Without a value: failed or none."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    keys = list(table.rows[0].cell) if table.rows else []
    writer.writerow(["study", "arm", *keys, "metric", "seed", "value", "run"])
    for row in table.rows:
        place = [table.study, row.arm, *(row.cell[k] for k in keys), row.metric]
        for seed, run_id in row.run_ids.items():
            value = repr(row.seeds[seed]) if seed in row.seeds else ""
            writer.writerow([*place, seed, value, run_id])
    return buffer.getvalue()
