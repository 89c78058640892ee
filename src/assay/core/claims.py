"""Verdicts: claims judged together, from evidence, by the rule of docs/verdicts.md."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar

from assay.core.criterion import Criterion, Evidence, parse
from assay.core.errors import CriterionError
from assay.core.estimates import Recorder
from assay.core.evaluation import Outcome, evaluate
from assay.core.statistics import MAX_SEEDS, holm, seeds_to_decide

T = TypeVar("T")
Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "INVALID", "UNTESTED"]

SMALLEST_P = 1e-12
"""p-values are not told apart below this."""


class Claim(Protocol):
    """A sentence with the rule by which it is judged, both stated before the runs."""

    @property
    def name(self) -> str:
        """Its key in the study file."""

    @property
    def says(self) -> str:
        """The sentence."""

    @property
    def criterion(self) -> str:
        """The rule, in the criterion language."""

    @property
    def min_seeds(self) -> int:
        """Runs that each arm and cell it uses must have."""

    @property
    def phase(self) -> str:
        """Which runs may support it: "debug", "pilot" or "frozen"."""

    @property
    def confidence(self) -> float:
        """Of its intervals; 1 - confidence is the chance of a false verdict that it accepts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A claim's verdict and all that it rests on. Plain values only: None for NaN and infinity.

    Attributes:
        name: The claim's key.
        verdict: PASS, FAIL, INCONCLUSIVE, INVALID or UNTESTED.
        sentence: What the claim says.
        why: One sentence: what led to the verdict.
        criterion: The rule.
        confidence: Of the interval.
        estimate: Of the decisive comparison.
        low: Lower limit of its interval; None when unbounded.
        high: Upper limit; None when unbounded.
        n: Runs or pairs of runs behind it.
        how: Its method, such as "paired t over 5 seeds".
        p_value: The smallest alpha at which the criterion is decided; None for exact claims and
            where no verdict was computed.
        p_adjusted: After Holm over the study's statistical claims.
        seeds_needed: For INCONCLUSIVE: seeds per arm that would decide it, with estimates and
            spreads as they are; None when no number up to 100,000 would, or none can be given.
        reasons: Findings, and failed, missing or non-finite runs.
    """

    name: str
    verdict: Verdict
    sentence: str
    why: str
    criterion: str
    confidence: float
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    how: str = ""
    p_value: float | None = None
    p_adjusted: float | None = None
    seeds_needed: int | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Case:
    """One claim on its way to a verdict. `outcome` is None when INVALID or UNTESTED stands."""

    claim: Claim
    criterion: Criterion
    runs: Recorder
    outcome: Outcome | None
    stands: Judgement | None

    @property
    def alpha(self) -> float:
        return 1 - self.claim.confidence

    def answer(self, alpha: float, *, assumed_n: int | None = None) -> str:
        return evaluate(self.criterion, self.runs, confidence=1 - alpha, assumed_n=assumed_n).answer


def judge(
    claims: Sequence[Claim],
    evidence: Evidence | Mapping[str, Evidence],
    *,
    blocked: Mapping[str, Sequence[str]] | None = None,
) -> list[Judgement]:
    """Judge all claims of a study together.

    The Holm family is every claim whose criterion estimates something, also those that cannot be
    judged yet (with p = 1): a verdict does not become easier by leaving a claim untested.

    Args:
        claims: All claims of the study, in its order.
        evidence: The runs, or for each phase the runs that may support a claim of that phase.
        blocked: Claim name → findings that forbid a verdict ("confounded: …").

    Raises:
        CriterionError: A criterion that does not fit the study, with the claim's name.
    """
    cases = [_open_case(claim, evidence, (blocked or {}).get(claim.name, ())) for claim in claims]
    family = [case for case in cases if case.criterion.is_statistical]
    p_values = [_p_value(case) for case in family]
    adjusted = holm(p_values)
    judgements = []
    for case in cases:
        if case.stands is not None:
            judgements.append(case.stands)
        elif case.criterion.is_statistical:
            index = next(i for i, other in enumerate(family) if other is case)
            settled = sum(p <= case.alpha for i, p in enumerate(adjusted) if i != index)
            judgements.append(
                _decide(case, p_values[index], adjusted[index], remaining=len(family) - settled)
            )
        else:
            judgements.append(_decide(case, None, None, remaining=1))
    return judgements


def _open_case(
    claim: Claim, evidence: Evidence | Mapping[str, Evidence], findings: Sequence[str]
) -> _Case:
    criterion = _named(claim, lambda: parse(claim.criterion))
    if isinstance(evidence, Mapping):
        if claim.phase not in evidence:
            raise KeyError(f"no evidence for phase {claim.phase!r} of claim {claim.name!r}")
        evidence = evidence[claim.phase]
    runs = Recorder(evidence)
    outcome = _named(claim, lambda: evaluate(criterion, runs, confidence=claim.confidence))
    if findings:
        why = f"No verdict: {'; '.join(findings)}."
        stands = _judgement(claim, "INVALID", why, reasons=tuple(findings))
        return _Case(claim, criterion, runs, None, stands)
    if short := _too_few(claim, runs):
        return _Case(claim, criterion, runs, None, _judgement(claim, "UNTESTED", short))
    return _Case(claim, criterion, runs, outcome, None)


def _named(claim: Claim, do: Callable[[], T]) -> T:
    try:
        return do()
    except CriterionError as error:
        raise CriterionError(f"claims.{claim.name}: {error}") from error


def _too_few(claim: Claim, runs: Recorder) -> str | None:
    """Which arms and cells that the criterion uses have fewer runs than the claim asks for."""
    samples = list(runs.seen.values())
    least = max(claim.min_seeds, 1)
    short = [s for s in samples if s.runs < least]
    if not short:
        return None
    if all(s.runs == 0 for s in samples):
        return f"No runs in phase {claim.phase!r} or later that it could be judged from."
    listed = "; ".join(f"{s.where} has {s.runs}" for s in short[:5])
    more = f"; and {len(short) - 5} more" if len(short) > 5 else ""
    return f"At least {least} seeds are needed: {listed}{more}."


def _p_value(case: _Case) -> float:
    """The smallest alpha at which the criterion is decided, by bisection: intervals are nested.

    1 for a claim that cannot be judged, or that no alpha decides.
    """
    if case.outcome is None or case.answer(1 - 1e-9) == "open":
        return 1.0
    if case.answer(SMALLEST_P) != "open":
        return SMALLEST_P
    low, high = SMALLEST_P, 1 - 1e-9
    middle = case.alpha  # First, so that p <= alpha exactly where the claim alone is decided.
    while high / low > 1 + 1e-4:
        if case.answer(middle) == "open":
            low = middle
        else:
            high = middle
        middle = math.sqrt(low * high)
    return high


def _decide(
    case: _Case, p_value: float | None, p_adjusted: float | None, *, remaining: int
) -> Judgement:
    """A verdict for a claim that has its runs.

    Args:
        case: The claim.
        p_value: Its own p-value; None for an exact claim.
        p_adjusted: After Holm.
        remaining: By how much alpha is divided for this claim in Holm's sequence.
    """
    outcome = case.outcome
    assert outcome is not None
    decided = outcome.answer != "open" and (p_adjusted is None or p_adjusted <= case.alpha)
    verdict: Verdict = "INCONCLUSIVE"
    needed: int | None = None
    if decided:
        verdict = "PASS" if outcome.answer == "yes" else "FAIL"
        verb = "satisfy" if verdict == "PASS" else "violate"
        what = f"At {100 * case.claim.confidence:g} % confidence, the estimates"
        why = f"{'The exact values' if p_value is None else what} {verb} the criterion."
    elif p_value is None:
        why = f"The exact values do not decide it: {'; '.join(outcome.reasons)}."
    else:
        bounded = math.isfinite(outcome.high - outcome.low)
        state = "straddles the threshold" if bounded else "is unbounded, so it decides nothing"
        why = f"The {100 * case.claim.confidence:g} % interval {state}"
        if outcome.answer != "open":
            why = (
                f"It would be decided alone (p = {p_value:.3g}), but not after Holm's correction "
                f"over the study's statistical claims (p = {p_adjusted:.3g})"
            )
        needed, advice = _seeds(case, case.alpha / remaining)
        why = f"{why}. {advice}"
    return replace(
        _judgement(case.claim, verdict, why, outcome=outcome),
        p_value=p_value,
        p_adjusted=p_adjusted,
        seeds_needed=needed,
    )


def _seeds(case: _Case, alpha: float) -> tuple[int | None, str]:
    """How many seeds per arm would decide a claim at alpha, and the sentence that says so."""
    needed = seeds_to_decide(lambda n: case.answer(alpha, assumed_n=n) != "open")
    holm_note = f" at Holm's alpha of {alpha:.3g}" if alpha < 0.999 * case.alpha else ""
    if needed is not None:
        return needed, (
            f"{needed:,} seeds per arm would decide it{holm_note} if estimates and spreads stayed "
            "as they are."
        )
    most = evaluate(case.criterion, case.runs, confidence=1 - alpha, assumed_n=MAX_SEEDS)
    if not math.isfinite(most.high - most.low):
        return None, f"How many seeds would decide it cannot be told: {'; '.join(most.reasons)}."
    return None, (
        f"More than {MAX_SEEDS:,} seeds per arm would be needed{holm_note} if estimates and "
        "spreads stayed as they are: they lie at the threshold."
    )


def _judgement(
    claim: Claim,
    verdict: Verdict,
    why: str,
    *,
    outcome: Outcome | None = None,
    reasons: tuple[str, ...] = (),
) -> Judgement:
    """A judgement without p-values; an outcome fills in the numbers."""
    bare = Judgement(
        name=claim.name,
        verdict=verdict,
        sentence=claim.says,
        why=why,
        criterion=claim.criterion,
        confidence=claim.confidence,
        reasons=reasons,
    )
    if outcome is None:
        return bare
    return replace(
        bare,
        estimate=_finite(outcome.estimate),
        low=_finite(outcome.low),
        high=_finite(outcome.high),
        n=outcome.n,
        how=outcome.how + (f" at {outcome.at}" if outcome.at else ""),
        reasons=outcome.reasons,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
