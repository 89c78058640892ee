"""Computing a criterion: three-valued comparisons of intervals, Kleene's logic, quantifiers.

Where one of several estimates would be enough (`any`, `or`, a "no" to `every`), the chance of a
false answer adds up over them. So `every` is yes when each part is yes at the claim's own
confidence (an intersection-union test needs no correction: Berger 1982), but no only when a part
is no with alpha divided by the number of parts (Bonferroni); for `any` the other way round.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from assay.core.criterion import Criterion, Evidence, check, same
from assay.core.estimates import (
    MEASURES,
    WHOLE_LINE,
    Estimate,
    Recorder,
    View,
    arithmetic,
    steps_along,
)
from assay.core.grammar import (
    Arithmetic,
    Comparison,
    Logic,
    Measure,
    Negation,
    Node,
    Number,
    Quantifier,
)
from assay.core.statistics import Interval

Answer = Literal["yes", "no", "open"]
_ZERO = Estimate(Interval(0.0, 0.0, 0.0, 0), "", statistical=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a criterion says about evidence.

    Attributes:
        answer: "yes", "no" or "open".
        estimate: Of the decisive comparison; NaN when there is none.
        low: Lower limit of its interval.
        high: Upper limit.
        n: Runs or pairs of runs behind it.
        how: The method of its interval.
        at: Where the decisive comparison stands, such as "depth=8"; empty without quantifiers.
        reasons: Failed, missing and non-finite runs that bear on the answer.
        is_statistical: False when only exact values were read.
    """

    answer: Answer
    estimate: float
    low: float
    high: float
    n: int
    how: str
    at: str
    reasons: tuple[str, ...]
    is_statistical: bool


@dataclass(frozen=True, slots=True)
class Truth:
    """An answer, and the comparison that decides it.

    `score` is how far its estimate is from the threshold, positive towards yes; NaN without one.
    """

    answer: Answer
    shown: Estimate
    score: float
    statistical: bool
    reasons: tuple[str, ...]
    at: tuple[str, ...] = ()


def evaluate(
    criterion: Criterion,
    evidence: Evidence | Recorder,
    *,
    confidence: float = 0.95,
    assumed_n: int | None = None,
) -> Outcome:
    """Answer a criterion from evidence.

    Raising the confidence may turn yes or no into open, never the reverse and never yes into no.

    Args:
        criterion: What `parse` returned.
        evidence: The runs; a `Recorder` also remembers which of them were used.
        confidence: Of every interval, in (0, 1).
        assumed_n: Answer as if the same estimates and spreads came from so many seeds per arm.

    Raises:
        CriterionError: The criterion does not fit the evidence's arms, grid or metrics.
        ValueError: A confidence outside (0, 1).
    """
    runs = evidence if isinstance(evidence, Recorder) else Recorder(evidence)
    seen = runs.evidence
    check(criterion, arms=seen.arms, grid=seen.grid, metrics=seen.metrics)
    found = _Evaluator(runs, confidence, assumed_n).truth(criterion.tree, {}, 1)
    interval = found.shown.interval
    return Outcome(
        answer=found.answer,
        estimate=interval.estimate,
        low=interval.low,
        high=interval.high,
        n=interval.n,
        how=found.shown.how,
        at=", ".join(found.at),
        reasons=tuple(dict.fromkeys(found.reasons)),
        is_statistical=criterion.is_statistical,
    )


class _Evaluator:
    """One pass over a tree. `share` is the integer by which alpha is divided at this place."""

    def __init__(self, runs: Recorder, confidence: float, assumed_n: int | None) -> None:
        self.runs = runs
        self.alpha = 1 - confidence
        self.assumed_n = assumed_n
        self.known: dict[tuple[object, ...], Truth | Estimate] = {}

    def truth(self, node: Node, bound: Mapping[str, Any], share: int) -> Truth:
        found = self._cached(self._truth, node, bound, share)
        assert isinstance(found, Truth)
        return found

    def number(self, node: Node, bound: Mapping[str, Any], share: int) -> Estimate:
        found = self._cached(self._number, node, bound, share)
        assert isinstance(found, Estimate)
        return found

    def _cached(
        self,
        compute: Callable[[Node, Mapping[str, Any], int], Truth | Estimate],
        node: Node,
        bound: Mapping[str, Any],
        share: int,
    ) -> Truth | Estimate:
        # Without this, nested `any` and `every` would be evaluated 2^depth times.
        key = (id(node), share, *((k, repr(v)) for k, v in bound.items()))
        if key not in self.known:
            self.known[key] = compute(node, bound, share)
        return self.known[key]

    def _number(self, node: Node, bound: Mapping[str, Any], share: int) -> Estimate:
        match node:
            case Number(value=value):
                return Estimate(Interval(value, value, value, 0), "", statistical=False)
            case Measure():
                return MEASURES[node.function](self.view(node, bound, share), node)
            case Arithmetic(operator=symbol, left=left, right=right):
                a, b = self.number(left, bound, share), self.number(right, bound, share)
                return arithmetic(symbol, a, b)
            case Quantifier():
                return self.extreme(node, bound, share)
        raise AssertionError(f"parse() makes no number of {node}")

    def _truth(self, node: Node, bound: Mapping[str, Any], share: int) -> Truth:
        match node:
            case Comparison(operators=operators, operands=operands):

                def chain(share: int) -> list[Truth]:
                    parts = [self.number(operand, bound, share) for operand in operands]
                    return [compare(*p) for p in zip(operators, parts[:-1], parts[1:], strict=True)]

                estimated = sum(self.number(o, bound, share).statistical for o in operands)
                # A chain around one estimate has one interval, which needs no correction.
                return all_of(chain, share, among=max(estimated - 1, 1))
            case Measure():
                view_of = self.view

                def steps(share: int) -> list[Truth]:
                    found = steps_along(view_of(node, bound, share), node)
                    return [compare(">", step, _ZERO) for step in found]

                return all_of(steps, share)
            case Logic(operator=word, parts=parts):
                combine = all_of if word == "and" else any_of
                return combine(lambda s: [self.truth(p, bound, s) for p in parts], share)
            case Negation(part=part):
                return flip(self.truth(part, bound, share))
            case Quantifier(function=function, dim=dim, part=part):
                combine = all_of if function == "every" else any_of
                return combine(
                    lambda s: [
                        _located(self.truth(part, {**bound, dim: member}, s), dim, member)
                        for member in self.members(dim)
                    ],
                    share,
                )
        raise AssertionError(f"parse() makes no truth of {node}")

    def members(self, dim: str) -> Sequence[Any]:
        evidence = self.runs.evidence
        if dim in ("arm", "seed"):
            return evidence.arms if dim == "arm" else evidence.seeds
        return evidence.grid[dim]

    def view(self, node: Measure, bound: Mapping[str, Any], share: int) -> View:
        """What a function sees: the cell in the study's own values and key order."""
        fixed = dict(node.cell)
        cell = {}
        for key, values in self.runs.evidence.grid.items():
            wanted = fixed.get(key, bound.get(key, values[0]))
            cell[key] = next((v for v in values if same(v, wanted)), wanted)
        return View(
            runs=self.runs,
            confidence=1 - self.alpha / share,
            assumed_n=self.assumed_n,
            cell=cell,
            arm=bound.get("arm"),
            seed=bound.get("seed"),
        )

    def extreme(self, node: Quantifier, bound: Mapping[str, Any], share: int) -> Estimate:
        """`min` or `max` of estimates: the limit that one of them alone could move is corrected."""

        def parts(share: int) -> list[Estimate]:
            return [self.number(node.part, {**bound, node.dim: m}, share) for m in members]

        members = self.members(node.dim)
        plain = parts(share)
        among = sum(p.statistical for p in plain)
        strict = parts(share * among) if among > 1 else plain
        reasons = tuple(reason for p in plain for reason in p.reasons)
        if any(math.isnan(p.interval.estimate) for p in plain):
            n = min(p.interval.n for p in plain)
            return Estimate(Interval(*WHOLE_LINE, math.nan, n), "", reasons, statistical=among > 0)
        pick = min if node.function == "min" else max
        low = pick(p.interval.low for p in (plain if pick is min else strict))
        high = pick(p.interval.high for p in (strict if pick is min else plain))
        index = pick(range(len(plain)), key=lambda i: plain[i].interval.estimate)
        chosen = plain[index]
        interval = Interval(low, high, chosen.interval.estimate, chosen.interval.n)
        how = f"{chosen.how} at {node.dim}={members[index]}"
        return Estimate(interval, how, reasons, statistical=among > 0)


def _located(truth: Truth, dim: str, member: object) -> Truth:
    return replace(truth, at=(f"{dim}={member}", *truth.at))


def compare(symbol: str, a: Estimate, b: Estimate) -> Truth:
    """Compare two intervals: yes if all pairs of their points satisfy it, no if none does."""
    x, y = a.interval, b.interval
    if symbol in (">", ">="):
        x, y = y, x
    distance = y.estimate - x.estimate
    if symbol in ("<", ">"):
        yes, no = x.high < y.low, x.low >= y.high
    elif symbol in ("<=", ">="):
        yes, no = x.high <= y.low, x.low > y.high
    else:
        yes, no = x.low == x.high == y.low == y.high, x.high < y.low or y.high < x.low
        distance = -abs(distance)
        if symbol == "!=":
            yes, no, distance = no, yes, -distance
    shown = arithmetic("-", a, b)
    if a.interval.n == 0 or b.interval.n == 0:
        # Against a constant the quantity itself is what a reader wants to see.
        shown = a if a.interval.n > 0 or not b.how else b
    answer: Answer = "yes" if yes else "no" if no else "open"
    reasons = a.reasons + b.reasons
    return Truth(answer, shown, distance, a.statistical or b.statistical, reasons)


def flip(truth: Truth) -> Truth:
    """`not`."""
    opposite: dict[Answer, Answer] = {"yes": "no", "no": "yes", "open": "open"}
    return replace(truth, answer=opposite[truth.answer], score=-truth.score)


def all_of(
    parts_at: Callable[[int], list[Truth]], share: int, *, among: int | None = None
) -> Truth:
    """Kleene's conjunction; see the module's docstring for the two confidences.

    Args:
        parts_at: The parts, with alpha divided by the given integer.
        share: The divisor at this place.
        among: How many estimates could each cause a false "no"; None: the statistical parts.
    """
    plain = parts_at(share)
    among = sum(part.statistical for part in plain) if among is None else among
    strict = parts_at(share * among) if among > 1 else plain
    answer: Answer
    if all(part.answer == "yes" for part in plain):
        answer, pool = "yes", plain
    elif violated := [part for part in strict if part.answer == "no"]:
        answer, pool = "no", violated
    else:
        answer = "open"
        pool = [p for p in plain if p.answer == "open"] or [p for p in strict if p.answer == "open"]
    decisive = min(pool, key=lambda p: -math.inf if math.isnan(p.score) else p.score)
    shown = decisive.shown
    if among > 1 and pool is not plain and any(decisive is part for part in strict):
        shown = replace(shown, how=f"{shown.how}; alpha/{among}, as one of {among} would do")
    reasons = tuple(reason for part in pool for reason in part.reasons)
    return Truth(
        answer, shown, decisive.score, any(p.statistical for p in plain), reasons, decisive.at
    )


def any_of(parts_at: Callable[[int], list[Truth]], share: int) -> Truth:
    """Kleene's disjunction: not all of the parts are not so."""
    return flip(all_of(lambda s: [flip(part) for part in parts_at(s)], share))
