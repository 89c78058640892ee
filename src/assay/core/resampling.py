"""What a criterion would say of other seeds: the A/A check and power, by dealing pilot runs anew.

*A/A check*: the values of the baseline's runs are dealt to every arm, so that no arm differs from
it, and the criterion is judged. One that passes often cannot say no. *Power*: every arm is dealt
values of its own runs, with as many seeds as are planned or more; how often the criterion passes is
the chance that the study will show an effect as large as its pilot's.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from assay.core.config import digest
from assay.core.criterion import Criterion, Evidence, parse
from assay.core.estimates import Recorder
from assay.core.evaluation import evaluate
from assay.core.evidence import Selection, StudyEvidence
from assay.core.grammar import Measure
from assay.core.plan import cells
from assay.core.study import Claim, Study

DEALS = 200
POWER_DEALS = 100
LARGEST_PASS_RATE = 0.10
ENOUGH_POWER = 0.80
MOST_SEEDS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfComparison:
    """How often a claim passes when all arms are the baseline; `deals` is 0 if not computable."""

    claim: str
    passes: int
    deals: int

    @property
    def rate(self) -> float:
        """Share of deals that passed."""
        return self.passes / self.deals if self.deals else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """How often a claim would pass if the truth is what the pilot saw.

    Attributes:
        claim: The claim's key.
        seeds: Seeds an arm that are planned.
        power: Share of deals that pass with them.
        enough: The smallest number of seeds, by doubling, with 80 % of deals passing; None if
            1,024 are not enough.
    """

    claim: str
    seeds: int
    power: float
    enough: int | None


@dataclass(frozen=True, slots=True)
class _Dealt:
    """Evidence in which values are drawn with replacement from real runs.

    Attributes:
        real: The runs.
        deal: Number of the deal: decides the draws, by a generator of their own.
        source: From whose runs each arm is dealt; its own where it is not named.
        seeds: Labels of the seeds that are dealt.
    """

    real: StudyEvidence
    deal: int
    source: Mapping[str, str]
    seeds: tuple[str, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        return self.real.arms

    @property
    def grid(self) -> Mapping[str, tuple[Any, ...]]:
        return self.real.grid

    @property
    def metrics(self) -> frozenset[str]:
        return self.real.metrics

    def values(self, metric: str, arm: str, cell: Mapping[str, Any]) -> Mapping[str, float | None]:
        source = self.source.get(arm)
        pool = list(self.real.values(metric, source or arm, cell).values())
        if not pool:
            return {}
        # Not drawn by metric: all metrics of a dealt run come from one real run. By arm only where
        # arms are dealt one arm's runs: otherwise a seed stays the same seed in all arms.
        place = int(digest([self.deal, arm if source else "", dict(cell)])[:15], 16)
        drawn = np.random.default_rng(place).integers(0, len(pool), size=len(self.seeds))
        return {seed: pool[i] for seed, i in zip(self.seeds, drawn, strict=True)}


def compare_with_itself(
    study: Study, selection: Selection, *, deals: int = DEALS
) -> list[SelfComparison]:
    """Judge every claim that compares arms with the baseline dealt to all of them.

    A bare bar on another arm, such as `count("acc", "new", at_least=0.99) >= 4`, is a comparison
    too: it is read as a sign that the arm is better than the baseline.
    """
    real = StudyEvidence(study, selection)
    source = dict.fromkeys(real.arms, study.baseline)
    results = []
    for name, claim in study.claims.items():
        criterion = parse(claim.criterion)
        if not _compares(criterion, study):
            continue
        first = _Dealt(real, 0, source, real.seeds)
        enough = len(real.seeds) >= claim.min_seeds and _can_be_dealt(first, criterion)
        wanted = deals if enough else 0
        answers = list(_answers(claim, real, source, real.seeds, wanted, claim.confidence))
        results.append(SelfComparison(claim=name, passes=answers.count("yes"), deals=len(answers)))
    return results


def _compares(criterion: Criterion, study: Study) -> bool:
    measures = [n for n in criterion.nodes() if isinstance(n, Measure)]
    if criterion.is_statistical and len({arm for m in measures for arm in m.arms}) > 1:
        return True
    return any(
        m.function == "count" and m.options and set(m.arms) - {study.baseline} for m in measures
    )


def power_of(study: Study, selection: Selection) -> list[Power]:
    """Power of every claim that compares arms, at the alpha of Holm's first step.

    Claims whose arms lack pilot runs (two or more, with values) are left out.
    """
    real = StudyEvidence(study, selection)
    parsed = {name: parse(claim.criterion) for name, claim in study.claims.items()}
    family = sum(criterion.is_statistical for criterion in parsed.values())
    results = []
    for name, criterion in parsed.items():
        claim = study.claims[name]
        compares = criterion.is_statistical and _compares(criterion, study)
        if not compares or not _can_be_dealt(_Dealt(real, 0, {}, real.seeds), criterion):
            continue
        confidence = 1 - (1 - claim.confidence) / family

        def share(seeds: int, claim: Claim = claim, confidence: float = confidence) -> float:
            labels = tuple(str(i) for i in range(seeds))
            answers = list(_answers(claim, real, {}, labels, POWER_DEALS, confidence))
            return answers.count("yes") / len(answers)

        planned = len(real.seeds)
        power = share(planned)
        results.append(
            Power(claim=name, seeds=planned, power=power, enough=_enough(planned, power, share))
        )
    return results


def _enough(planned: int, power: float, share: Callable[[int], float]) -> int | None:
    """Seeds for 80 % power: by doubling, then by halving the gap to within a tenth."""
    low = high = planned
    while power < ENOUGH_POWER:
        if high * 2 > MOST_SEEDS:
            return None
        low, high = high, high * 2
        power = share(high)
    # At a gap of 1 there is no middle.
    while high - low > max(1, high // 10) and high > planned:
        middle = (low + high) // 2
        low, high = (low, middle) if share(middle) >= ENOUGH_POWER else (middle, high)
    return high


def _answers(
    claim: Claim,
    real: StudyEvidence,
    source: Mapping[str, str],
    seeds: tuple[str, ...],
    deals: int,
    confidence: float,
) -> Iterator[str]:
    """The answers to a claim's criterion over so many deals."""
    criterion = parse(claim.criterion)
    for deal in range(deals):
        dealt: Evidence = _Dealt(real, deal, source, seeds)
        yield evaluate(criterion, Recorder(dealt), confidence=confidence).answer


def _can_be_dealt(first: _Dealt, criterion: Criterion) -> bool:
    """Whether every value that the criterion reads can be drawn from two runs or more."""
    seen = Recorder(first)
    evaluate(criterion, seen, confidence=0.95)
    return all(
        len(first.real.values(metric, first.source.get(arm, arm), cell)) > 1
        for metric, arm, _ in seen.seen
        for cell in cells(first.grid)
    )
