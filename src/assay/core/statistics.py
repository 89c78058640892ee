"""Intervals and tests: pure functions of numbers, each with its source.

Every interval is two-sided. `assumed_n` asks "what if the same estimate and the same spread had
come from this many seeds?"; it is how the number of seeds that would decide a claim is found,
by the same formulas that judge it. Intervals are nested: a higher confidence never gives a
narrower one, and (with `assumed_n`) more seeds never a wider one.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

MAX_SEEDS = 100_000
"""Where the search for the number of seeds that would decide gives up."""

HUGE = 1e100
"""A value beyond this counts as not finite: squares of it would overflow."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A range for an unknown quantity.

    Attributes:
        low: Lower limit; -inf when nothing bounds it.
        high: Upper limit; +inf when nothing bounds it.
        estimate: The point estimate; NaN when there is none.
        n: Independent observations behind it (runs, or pairs of runs); 0 for a constant.
    """

    low: float
    high: float
    estimate: float
    n: int


def _tail(confidence: float) -> float:
    """The probability left out on each side.

    Raises:
        ValueError: A confidence outside (0, 1), such as 95 for 95 %.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1); got {confidence}. Write 0.95 for 95 %.")
    return (1 - confidence) / 2


def _z(confidence: float) -> float:
    return float(-special.ndtri(_tail(confidence)))


def _t(confidence: float, freedom: float) -> float:
    return float(-special.stdtrit(freedom, _tail(confidence)))


def moments(values: Sequence[float]) -> tuple[float, float, int]:
    """Mean, standard deviation (n - 1) and n; equal values have a spread of exactly 0."""
    n = len(values)
    low, high, total = (min(values), max(values), sum(values)) if n else (0.0, 0.0, math.nan)
    # A NaN may hide from min and max, not from the sum.
    if not (low >= -HUGE and high <= HUGE and total == total):
        raise ValueError(f"a sample needs at least one value, all finite; got {list(values)}")
    if low == high:
        return float(low), 0.0, n
    mean = math.fsum(values) / n
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)), n


def _t_interval(
    estimate: float, error: float, freedom: float, n: int, confidence: float
) -> Interval:
    half = _t(confidence, freedom) * error if error > 0 else 0.0
    return Interval(estimate - half, estimate + half, estimate, n)


def mean_interval(
    values: Sequence[float], confidence: float = 0.95, *, assumed_n: int | None = None
) -> Interval:
    """Student's t interval for a mean (Student 1908).

    One value tells nothing about spread: its interval is infinite. Two or more values that are
    all equal give an interval of zero width. That is what the formula says, and it is right for
    quantities that do not depend on the seed (a parameter count). For a measured metric it is
    suspicious, which a wider interval would only hide.

    Raises:
        ValueError: No values, a value that is not finite, or a confidence outside (0, 1).
    """
    mean, spread, n = moments(values)
    if n == 1:
        _tail(confidence)
        return Interval(-math.inf, math.inf, mean, 1)
    n = assumed_n or n
    return _t_interval(mean, spread / math.sqrt(n), n - 1, n, confidence)


def bootstrap_mean_interval(
    values: Sequence[float], confidence: float = 0.95, *, seed: int = 0, resamples: int = 9_999
) -> Interval:
    """Bias-corrected and accelerated bootstrap interval for a mean (Efron 1987), by scipy.

    An alternative for skewed metrics with some twenty seeds or more; below that it is too narrow
    and the t interval is the better one. The same seed gives the same interval.

    Raises:
        ValueError: As `mean_interval`.
    """
    mean, spread, n = moments(values)
    if n == 1 or spread == 0:
        return mean_interval(values, confidence)
    _tail(confidence)
    # It takes half a second to load, and nearly every command imports this module.
    stats = importlib.import_module("scipy.stats")
    found = stats.bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high), mean, n)


def std_interval(
    values: Sequence[float], confidence: float = 0.95, *, assumed_n: int | None = None
) -> Interval:
    """Chi-square interval for a standard deviation of normal values.

    Sensitive to the normality that it assumes, unlike the interval for a mean. One value gives
    [0, inf) and no estimate.

    Raises:
        ValueError: As `mean_interval`.
    """
    _, spread, n = moments(values)
    tail = _tail(confidence)
    if n == 1:
        return Interval(0.0, math.inf, math.nan, 1)
    n = assumed_n or n
    sum_of_squares = (n - 1) * spread**2
    low = math.sqrt(sum_of_squares / float(special.chdtri(n - 1, tail)))
    high = math.sqrt(sum_of_squares / float(special.chdtri(n - 1, 1 - tail)))
    return Interval(min(low, spread), max(high, spread), spread, n)


def wilson(
    successes: float, n: int, confidence: float = 0.95, *, assumed_n: int | None = None
) -> Interval:
    """Score interval for a rate (Wilson 1927): right for few runs, never outside [0, 1].

    Raises:
        ValueError: n < 1, or successes outside [0, n].
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a rate needs 0 <= successes <= n and n >= 1; got {successes} of {n}")
    rate, z = successes / n, _z(confidence)
    n = assumed_n or n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # The exact limits at the ends, which rounding would miss by 1e-17.
    low = 0.0 if rate == 0 else min(centre - half, rate)
    high = 1.0 if rate == 1 else max(centre + half, rate)
    return Interval(low, high, rate, n)


def newcombe_difference(
    successes_a: float,
    n_a: int,
    successes_b: float,
    n_b: int,
    confidence: float = 0.95,
    *,
    assumed_n: int | None = None,
) -> Interval:
    """Difference of two independent rates, a - b (Newcombe 1998, Stat. Med. 17:873, method 10).

    The limits are put together from the two Wilson intervals ("hybrid score").

    Raises:
        ValueError: As `wilson`.
    """
    a = wilson(successes_a, n_a, confidence, assumed_n=assumed_n)
    b = wilson(successes_b, n_b, confidence, assumed_n=assumed_n)
    return _square_and_add(a, b, correlation=0.0)


def newcombe_paired(
    both: float,
    only_a: float,
    only_b: float,
    neither: float,
    confidence: float = 0.95,
    *,
    assumed_n: int | None = None,
) -> Interval:
    """Difference of two rates on the same seeds, a - b.

    Newcombe 1998 (Stat. Med. 17:2635), method 10: as for independent rates, with the correlation
    phi of the pairs, which a continuity correction shrinks when it is positive.

    Args:
        both: Seeds where a and b succeed.
        only_a: Seeds where only a succeeds.
        only_b: Seeds where only b succeeds.
        neither: Seeds where both miss.
        confidence: Of the two-sided interval.
        assumed_n: Pairs to assume, with the same four shares.

    Raises:
        ValueError: No pair, or a negative count.
    """
    n = round(both + only_a + only_b + neither)
    a = wilson(both + only_a, n, confidence, assumed_n=assumed_n)
    b = wilson(both + only_b, n, confidence, assumed_n=assumed_n)
    scale = (assumed_n or n) / n
    both, only_a, only_b, neither = (scale * k for k in (both, only_a, only_b, neither))
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    product = both * neither - only_a * only_b
    if product > 0:
        product = max(product - a.n / 2, 0.0)
    return _square_and_add(a, b, correlation=product / math.sqrt(margins) if margins > 0 else 0.0)


def _square_and_add(a: Interval, b: Interval, *, correlation: float) -> Interval:
    """Newcombe's hybrid: the distances of estimate and limits, added as correlated errors."""

    def length(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * correlation * x * y + y * y, 0.0))

    difference = a.estimate - b.estimate
    below = length(a.estimate - a.low, b.high - b.estimate)
    above = length(a.high - a.estimate, b.estimate - b.low)
    return Interval(difference - below, difference + above, difference, min(a.n, b.n))


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    confidence: float = 0.95,
    *,
    assumed_n: int | None = None,
) -> Interval:
    """Mean of a - b over the same seeds: the t interval of the differences.

    What the seed does to both arms cancels, which is why arms should share seeds.

    Raises:
        ValueError: Unequal lengths, or as `mean_interval`.
    """
    if len(a) != len(b):
        raise ValueError(f"pairs need as many values of a as of b; got {len(a)} and {len(b)}")
    difference = [x - y for x, y in zip(a, b, strict=True)]
    return mean_interval(difference, confidence, assumed_n=assumed_n)


def welch_difference(
    a: Sequence[float],
    b: Sequence[float],
    confidence: float = 0.95,
    *,
    assumed_n: int | None = None,
) -> Interval:
    """Mean of a minus mean of b for independent runs with unequal spread (Welch 1947).

    n is that of the smaller arm. With a single run in either arm the interval is infinite.

    Raises:
        ValueError: As `mean_interval`.
    """
    (mean_a, spread_a, n_a), (mean_b, spread_b, n_b) = moments(a), moments(b)
    if min(n_a, n_b) == 1:
        return Interval(-math.inf, math.inf, mean_a - mean_b, 1)
    n_a, n_b = assumed_n or n_a, assumed_n or n_b
    error, freedom = _satterthwaite(spread_a**2 / n_a, n_a, spread_b**2 / n_b, n_b)
    return _t_interval(mean_a - mean_b, error, freedom, min(n_a, n_b), confidence)


def _satterthwaite(var_a: float, n_a: int, var_b: float, n_b: int) -> tuple[float, float]:
    """Standard error of a difference of means and its degrees of freedom."""
    total = var_a + var_b
    if total == 0:
        return 0.0, float(n_a + n_b - 2)
    share_a, share_b = var_a / total, var_b / total
    return math.sqrt(total), 1 / (share_a**2 / (n_a - 1) + share_b**2 / (n_b - 1))


def ratio_interval(
    a: Sequence[float],
    b: Sequence[float],
    confidence: float = 0.95,
    *,
    paired: bool,
    assumed_n: int | None = None,
) -> Interval:
    """Ratio of the means, a / b, by Fieller's theorem (Fieller 1954).

    Chosen over a t interval of logarithms because it needs no positive values and is about the
    ratio of the means that a table shows. Unpaired, the degrees of freedom are Satterthwaite's
    at the estimated ratio. Where the mean of b cannot be told from zero at this confidence, the
    set of possible ratios is unbounded and the interval is the whole line.

    Raises:
        ValueError: As `paired_difference`.
    """
    (mean_a, spread_a, n_a), (mean_b, spread_b, n_b) = moments(a), moments(b)
    if paired and n_a != n_b:
        raise ValueError(f"pairs need as many values of a as of b; got {n_a} and {n_b}")
    ratio = mean_a / mean_b if abs(mean_b) > 1 / HUGE else math.nan
    unbounded = Interval(-math.inf, math.inf, ratio, min(n_a, n_b))
    if math.isnan(ratio) or min(n_a, n_b) == 1:
        return unbounded
    products = (
        [(x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=False)] if paired else [0.0]
    )
    covariance = math.fsum(products) / (n_a - 1)
    apart = moments([x - ratio * y for x, y in zip(a, b, strict=True)])[1] if paired else 0.0
    n_a, n_b = assumed_n or n_a, assumed_n or n_b
    var_a, var_b, covariance = spread_a**2 / n_a, spread_b**2 / n_b, covariance / n_a
    var_apart = apart**2 / n_a if paired else var_a + ratio**2 * var_b  # of a - ratio b
    freedom = n_a - 1.0
    if not paired:
        _, freedom = _satterthwaite(var_a, n_a, ratio * ratio * var_b, n_b)
    t2 = _t(confidence, freedom) ** 2
    # Roots in r of (mean_a - r mean_b)^2 = t^2 (var_a - 2 r covariance + r^2 var_b).
    lead = mean_b**2 - t2 * var_b
    if not lead > 0:
        return unbounded
    # The discriminant from the spread of a - ratio b: proportional pairs leave exactly none.
    area = t2 * (mean_b**2 * var_apart - t2 * max(var_a * var_b - covariance**2, 0.0))
    middle, root = (mean_a * mean_b - t2 * covariance) / lead, math.sqrt(max(area, 0.0)) / lead
    low, high = (middle - root, middle + root) if var_apart > 0 else (ratio, ratio)
    return Interval(min(low, ratio), max(high, ratio), ratio, min(n_a, n_b))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given (Holm 1979).

    Deciding where the adjusted p <= alpha keeps the chance of *any* false decision among them at
    or below alpha, whatever their dependence.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def chance_to_reach(successes: int, n: int, rate: float) -> float:
    """How often an arm with a true rate shows at least so many successes in n runs."""
    return 1.0 if successes <= 0 else float(special.bdtrc(successes - 1, n, rate))


def seeds_to_separate(
    rate_a: float, rate_b: float, *, confidence: float = 0.95, power: float = 0.8
) -> int:
    """Seeds per arm so that two true rates are told apart with the given probability.

    Normal approximation with the pooled rate under no difference (Fleiss 1981, §3.2). This plans
    a study; `seeds_to_decide` says what would decide data that are already there. Equal rates,
    which no number of seeds separates, raise ValueError.
    """
    if rate_a == rate_b:
        raise ValueError(f"equal rates cannot be separated; got {rate_a} twice")
    pooled = (rate_a + rate_b) / 2
    apart = math.sqrt(rate_a * (1 - rate_a) + rate_b * (1 - rate_b)) * float(special.ndtri(power))
    needed = _z(confidence) * math.sqrt(2 * pooled * (1 - pooled)) + apart
    return math.ceil((needed / (rate_a - rate_b)) ** 2)


def seeds_to_decide(
    decided: Callable[[int], bool], *, at_least: int = 2, cap: int = MAX_SEEDS
) -> int | None:
    """The smallest n in [at_least, cap] for which `decided(n)`, or None.

    `decided` must stay true for larger n, as it does for intervals with `assumed_n`.
    """
    low, high = at_least - 1, at_least
    while not decided(high):
        if high >= cap:
            return None
        low, high = high, min(2 * high, cap)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high
