"""From runs to intervals: the functions of the criterion language, and interval arithmetic.

A run that failed or whose value is not finite never satisfies anything. `rate` and `rate_diff`
count it as a miss; every other function then has the whole line as its interval, so that any
comparison with it stays open, and says which run is to blame.
"""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from assay.core import statistics
from assay.core.criterion import Evidence
from assay.core.grammar import Measure
from assay.core.statistics import HUGE, Interval

WHOLE_LINE = (-math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number of the criterion language.

    Attributes:
        interval: Where it lies; a single point for constants and exact values.
        how: The method, for display; empty for constants.
        reasons: What is missing or wrong with the runs behind it.
        statistical: True when it was estimated from seeds; False for constants and exact values.
    """

    interval: Interval
    how: str
    reasons: tuple[str, ...] = ()
    statistical: bool = True


class Recorder:
    """Evidence that remembers which runs were asked for, and asks for each only once."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.seen: dict[tuple[str, str, str], Sample] = {}

    def sample(self, metric: str, arm: str, cell: Mapping[str, Any]) -> "Sample":
        """The runs of one arm in one cell."""
        key = (metric, arm, cell_name(cell))
        if key not in self.seen:
            found = dict(self.evidence.values(metric, arm, cell))
            self.seen[key] = _sort_out(metric, arm, key[2], found, self.evidence.seeds)
        return self.seen[key]


def cell_name(cell: Mapping[str, Any]) -> str:
    """A cell as text: `alpha=1.0, depth=8`; empty without a grid."""
    return ", ".join(f"{key}={value!r}" for key, value in cell.items())


@dataclass(frozen=True, slots=True)
class View:
    """What one evaluation of a function sees.

    Attributes:
        runs: The evidence.
        confidence: Of each interval.
        assumed_n: Seeds per arm to assume, with estimate and spread as they are; None: as it is.
        cell: The value of every grid key.
        arm: The arm bound by a quantifier, for calls that name none.
        seed: The seed bound by a quantifier.
    """

    runs: Recorder
    confidence: float
    assumed_n: int | None
    cell: Mapping[str, Any]
    arm: str | None = None
    seed: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """The runs of one arm in one cell.

    Attributes:
        where: Arm and cell, for messages.
        values: Seed → finite value, in the order of the planned seeds.
        bad: Seeds whose run failed, has no value, or has one that is not finite.
        problems: What is wrong with the bad ones, or that there are no runs.
        notes: Which planned seeds have not been run.
    """

    where: str
    values: Mapping[str, float]
    bad: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Problems and notes."""
        return self.problems + self.notes

    @property
    def runs(self) -> int:
        """How many runs have ended, failed ones included."""
        return len(self.values) + len(self.bad)


def _sort_out(
    metric: str,
    arm: str,
    cell: str,
    found: Mapping[str, float | None],
    planned: tuple[str, ...],
) -> Sample:
    place = f"arm {arm!r}" + (f" at {cell}" if cell else "")
    order = [s for s in planned if s in found] + [s for s in found if s not in planned]
    finite = {s: float(v) for s in order if (v := found[s]) is not None and abs(v) <= HUGE}
    absent = [s for s in order if found[s] is None]
    wild = [f"{s}: {found[s]}" for s in order if found[s] is not None and s not in finite]
    problems = [] if found else [f"{place}: no runs with {metric!r}"]
    if absent:
        problems.append(
            f"{place}: {len(absent)} of {len(found)} runs failed or have no {metric!r} "
            f"(seed {', '.join(absent)})"
        )
    if wild:
        problems.append(
            f"{place}: {metric!r} is not finite in {len(wild)} of {len(found)} runs "
            f"(seed {', '.join(wild)})"
        )
    pending = [s for s in planned if s not in found] if found else []
    note = f"{place}: {len(pending)} of {len(planned)} seeds not run (seed {', '.join(pending)})"
    bad = tuple(s for s in order if s not in finite)
    return Sample(place, finite, bad, tuple(problems), (note,) if pending else ())


def _sample(view: View, metric: str, arm: str, cell: Mapping[str, Any] | None = None) -> Sample:
    return view.runs.sample(metric, arm, view.cell if cell is None else cell)


def _unknown(*samples: Sample, extra: tuple[str, ...] = (), statistical: bool = True) -> Estimate:
    reasons = tuple(r for s in samples for r in s.reasons) + extra
    n = min((len(s.values) for s in samples), default=0)
    return Estimate(Interval(*WHOLE_LINE, math.nan, n), "", reasons, statistical=statistical)


def _named_arm(view: View, node: Measure) -> str:
    arm = node.arms[0] if node.arms else view.arm
    assert arm is not None, "check() lets no call without an arm pass"
    return arm


def _of_one_arm(compute: Callable[..., Interval], how: str) -> Callable[[View, Measure], Estimate]:
    def function(view: View, node: Measure) -> Estimate:
        sample = _sample(view, node.metric, _named_arm(view, node))
        if sample.problems:
            return _unknown(sample)
        interval = compute(list(sample.values.values()), view.confidence, assumed_n=view.assumed_n)
        return Estimate(interval, how, _lone(interval, sample) + sample.notes)

    return function


def _lone(interval: Interval, *samples: Sample) -> tuple[str, ...]:
    """The reason for an interval without limits, when a single run is the cause."""
    if interval.n == 1 and not math.isfinite(interval.high - interval.low):
        return (f"{samples[0].where}: one run says nothing about the spread between seeds",)
    return ()


def _passes(node: Measure) -> Callable[[float], bool]:
    ((key, threshold),) = node.options
    compare = {
        "at_least": operator.ge,
        "at_most": operator.le,
        "above": operator.gt,
        "below": operator.lt,
    }[key]
    return lambda value: bool(compare(value, threshold))


def _hits(sample: Sample, node: Measure) -> dict[str, bool]:
    """Seed → success; a failed run or a value that is not finite is a miss."""
    passes = _passes(node)
    return {s: passes(v) for s, v in sample.values.items()} | dict.fromkeys(sample.bad, False)


def _rate(view: View, node: Measure) -> Estimate:
    sample = _sample(view, node.metric, _named_arm(view, node))
    hits = _hits(sample, node)
    if not hits:
        return _unknown(sample)
    interval = statistics.wilson(
        sum(hits.values()), len(hits), view.confidence, assumed_n=view.assumed_n
    )
    return Estimate(interval, f"Wilson, {sum(hits.values())} of {len(hits)}", sample.reasons)


def _rate_diff(view: View, node: Measure) -> Estimate:
    a, b = (_sample(view, node.metric, arm) for arm in node.arms)
    hits_a, hits_b = _hits(a, node), _hits(b, node)
    if not hits_a or not hits_b:
        return _unknown(a, b)
    seeds = [s for s in hits_a if s in hits_b]
    reasons = a.reasons + b.reasons
    counts = (
        f"{sum(hits_a.values())} of {len(hits_a)} against {sum(hits_b.values())} of {len(hits_b)}"
    )
    if len(seeds) < 2:
        interval = statistics.newcombe_difference(
            sum(hits_a.values()),
            len(hits_a),
            sum(hits_b.values()),
            len(hits_b),
            view.confidence,
            assumed_n=view.assumed_n,
        )
        return Estimate(interval, f"Newcombe, {counts}", reasons)
    table = [(hits_a[s], hits_b[s]) for s in seeds]
    interval = statistics.newcombe_paired(
        table.count((True, True)),
        table.count((True, False)),
        table.count((False, True)),
        table.count((False, False)),
        view.confidence,
        assumed_n=view.assumed_n,
    )
    how = f"paired Newcombe over {len(seeds)} seeds, {counts}"
    return Estimate(interval, how, reasons + _left_out(seeds, hits_a, hits_b))


def _left_out(seeds: list[str], *arms: Mapping[str, object]) -> tuple[str, ...]:
    alone = sorted({s for arm in arms for s in arm} - set(seeds))
    if not alone:
        return ()
    return (
        f"{len(alone)} seeds are in one arm only and left out of the pairs ({', '.join(alone)})",
    )


def _difference(view: View, a: Sample, b: Sample) -> Estimate:
    if a.problems or b.problems:
        return _unknown(a, b)
    seeds = [s for s in a.values if s in b.values]
    if len(seeds) >= 2:
        interval = statistics.paired_difference(
            [a.values[s] for s in seeds],
            [b.values[s] for s in seeds],
            view.confidence,
            assumed_n=view.assumed_n,
        )
        how = f"paired t over {len(seeds)} seeds"
        return Estimate(interval, how, a.notes + b.notes + _left_out(seeds, a.values, b.values))
    interval = statistics.welch_difference(
        list(a.values.values()),
        list(b.values.values()),
        view.confidence,
        assumed_n=view.assumed_n,
    )
    how = f"Welch, unpaired: {len(a.values)} and {len(b.values)} runs"
    return Estimate(interval, how, _lone(interval, a, b) + a.notes + b.notes)


def _diff(view: View, node: Measure) -> Estimate:
    a, b = (_sample(view, node.metric, arm) for arm in node.arms)
    return _difference(view, a, b)


def _ratio(view: View, node: Measure) -> Estimate:
    a, b = (_sample(view, node.metric, arm) for arm in node.arms)
    if a.problems or b.problems:
        return _unknown(a, b)
    seeds = [s for s in a.values if s in b.values]
    paired = len(seeds) >= 2
    of_a = [a.values[s] for s in seeds] if paired else list(a.values.values())
    of_b = [b.values[s] for s in seeds] if paired else list(b.values.values())
    interval = statistics.ratio_interval(
        of_a, of_b, view.confidence, paired=paired, assumed_n=view.assumed_n
    )
    left_out = _left_out(seeds, a.values, b.values) if paired else ()
    reasons = _lone(interval, a, b) + a.notes + b.notes + left_out
    if interval.n > 1 and not math.isfinite(interval.high):
        reasons += (f"{b.where}: its mean cannot be told from zero, so a ratio to it is unbounded",)
    how = f"Fieller, paired over {len(seeds)} seeds" if paired else "Fieller, unpaired"
    return Estimate(interval, how, reasons)


def _wins(view: View, node: Measure) -> Estimate:
    a, b = (_sample(view, node.metric, arm) for arm in node.arms)
    seeds = [s for s in a.values if s in b.values]
    if a.problems or b.problems:
        return _unknown(a, b)
    if not seeds:
        return _unknown(a, b, extra=(f"{a.where} and {b.where} share no seed",))
    won = sum(a.values[s] > b.values[s] for s in seeds)
    interval = statistics.wilson(won, len(seeds), view.confidence, assumed_n=view.assumed_n)
    how = f"Wilson, {won} of {len(seeds)} pairs"
    return Estimate(interval, how, a.notes + b.notes + _left_out(seeds, a.values, b.values))


def _value(view: View, node: Measure) -> Estimate:
    sample = _sample(view, node.metric, _named_arm(view, node))
    if view.seed is not None:
        if view.seed not in sample.values:
            state = "failed or is not finite" if view.seed in sample.bad else "was not run"
            reason = f"{sample.where}: seed {view.seed} {state}"
            return Estimate(Interval(*WHOLE_LINE, math.nan, 0), "", (reason,), statistical=False)
        return _exact(sample.values[view.seed], 1, "exact")
    if sample.problems:
        return _unknown(sample, statistical=False)
    distinct = set(sample.values.values())
    if len(distinct) > 1:
        reason = (
            f"{sample.where}: {node.metric!r} differs between seeds ({min(distinct):g} to "
            f"{max(distinct):g}), so it has no exact value; use mean(…)"
        )
        return _unknown(sample, extra=(reason,), statistical=False)
    found = _exact(distinct.pop(), len(sample.values), "exact, equal in all runs")
    return replace(found, reasons=sample.notes)


def _exact(value: float, n: int, how: str) -> Estimate:
    return Estimate(Interval(value, value, value, n), how, statistical=False)


def _count(view: View, node: Measure) -> Estimate:
    sample = _sample(view, node.metric, _named_arm(view, node))
    hits = sum(_hits(sample, node).values()) if node.options else len(sample.values)
    found = _exact(float(hits), len(sample.values), "exact count")
    return replace(found, reasons=sample.reasons)


def steps_along(view: View, node: Measure) -> list[Estimate]:
    """For `monotone`: the differences between neighbours, signed so that > 0 is as claimed."""
    arm, dim = _named_arm(view, node), str(node.dim)
    grid = view.runs.evidence.grid
    # In the grid's own key order, so that a cell has one name however it is reached.
    along = [{k: v if k == dim else view.cell[k] for k in grid} for v in grid[dim]]
    samples = [_sample(view, node.metric, arm, cell) for cell in along]
    if dict(node.options)["direction"] == "down":
        samples.reverse()
    return [_difference(view, samples[i + 1], samples[i]) for i in range(len(samples) - 1)]


MEASURES: Mapping[str, Callable[[View, Measure], Estimate]] = {
    "mean": _of_one_arm(statistics.mean_interval, "t"),
    "std": _of_one_arm(statistics.std_interval, "chi-square"),
    "rate": _rate,
    "rate_diff": _rate_diff,
    "diff": _diff,
    "ratio": _ratio,
    "wins": _wins,
    "value": _value,
    "count": _count,
}
"""The functions of runs that give a number; `monotone` gives a truth (`steps_along`)."""


def arithmetic(symbol: str, a: Estimate, b: Estimate) -> Estimate:
    """Interval arithmetic: all results of the operation over the two intervals.

    For two estimated operands this is conservative whatever their dependence: the half-widths
    add, where those of independent estimates would add in squares. A quotient by an interval
    that contains zero, and a result that is not finite, is the whole line.
    """
    x, y = a.interval, b.interval
    n = min((k for k in (x.n, y.n) if k > 0), default=0)
    how = " and ".join(dict.fromkeys(h for h in (a.how, b.how) if h))
    reasons = a.reasons + b.reasons
    if symbol == "/" and y.low <= 0 <= y.high:
        reasons += ("a quotient has zero among the possible values of its denominator",)
        low, high, estimate = -math.inf, math.inf, math.nan
        if y.estimate != 0:
            estimate = x.estimate / y.estimate
    else:
        apply = _OPERATIONS[symbol]
        ends = [apply(p, q) for p in (x.low, x.high) for q in (y.low, y.high)]
        estimate = apply(x.estimate, y.estimate)
        low, high = min(ends), max(ends)
        if (
            any(map(math.isnan, ends))
            or math.isinf(estimate)
            or low == math.inf
            or high == -math.inf
        ):
            low, high = WHOLE_LINE
    statistical = a.statistical or b.statistical
    return Estimate(Interval(low, high, estimate, n), how, reasons, statistical=statistical)


_OPERATIONS: Mapping[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
