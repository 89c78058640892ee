"""Each formula against a reference: scipy's own routine, a published table, or simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from assay.core.statistics import (
    Interval,
    bootstrap_mean_interval,
    chance_to_reach,
    holm,
    mean_interval,
    newcombe_difference,
    newcombe_paired,
    paired_difference,
    ratio_interval,
    seeds_to_decide,
    seeds_to_separate,
    std_interval,
    welch_difference,
    wilson,
)

SAMPLE = [0.59, 0.61, 0.58, 0.64, 0.60]
OTHER = [0.52, 0.57, 0.55, 0.61, 0.50, 0.58, 0.49]
CONFIDENCES = (1e-6, 0.1, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1 - 1e-9)
samples = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


def limits(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_mean_interval_is_the_t_interval(confidence):
    """scipy's one-sample t-test gives the same limits."""
    expected = stats.ttest_1samp(SAMPLE, 0).confidence_interval(confidence)
    found = mean_interval(SAMPLE, confidence)
    assert limits(found) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found.estimate == pytest.approx(np.mean(SAMPLE), rel=1e-12)
    assert found.n == 5


def test_one_value_says_nothing_about_spread():
    """n = 1: the interval of a mean or a difference is infinite, that of a spread [0, inf)."""
    whole = (-math.inf, math.inf)
    assert mean_interval([0.3]) == Interval(-math.inf, math.inf, 0.3, 1)
    assert limits(welch_difference([0.3], SAMPLE)) == whole
    assert limits(paired_difference([0.3], [0.1])) == whole
    assert limits(ratio_interval([0.3], [0.1], paired=True)) == whole
    assert limits(std_interval([0.3])) == (0, math.inf)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1128.0, 0.0, -7e-20])
def test_a_constant_sample_has_an_interval_of_zero_width(value):
    """Equal values give exactly that value: no rounding of the mean, no spread of 1e-17."""
    assert mean_interval([value] * 3) == Interval(value, value, value, 3)
    assert bootstrap_mean_interval([value] * 3) == Interval(value, value, value, 3)
    assert std_interval([value] * 3) == Interval(0, 0, 0, 3)


@pytest.mark.parametrize("values", [[], [0.1, math.nan], [math.inf, 1.0], [1e200, 1.0]])
def test_no_interval_from_nothing_or_from_nan(values):
    """An empty sample or one that is not finite is refused, never skipped."""
    with pytest.raises(ValueError, match="at least one value, all finite"):
        mean_interval(values)


@pytest.mark.parametrize("confidence", [0, 1, 95, -0.1, math.nan])
def test_confidence_is_a_fraction(confidence):
    """95 instead of 0.95 is refused by every interval."""
    for compute in (mean_interval, std_interval, bootstrap_mean_interval):
        with pytest.raises(ValueError, match=r"Write 0\.95 for 95 %"):
            compute(SAMPLE, confidence)
    with pytest.raises(ValueError, match="confidence"):
        wilson(3, 8, confidence)


def test_bootstrap_repeats_and_agrees_with_t_for_many_values():
    """The same seed gives the same interval; for 200 normal values it is within 8 % of t's width.

    The relative error of a bootstrap percentile with 9,999 resamples is about 2 %.
    """
    values = np.random.default_rng(1).normal(size=200).tolist()
    first, second = (bootstrap_mean_interval(values, seed=3) for _ in range(2))
    assert first == second
    exact = mean_interval(values)
    width = exact.high - exact.low
    assert limits(first) == pytest.approx(limits(exact), abs=0.04 * width)


def test_std_interval_is_chi_square():
    """The limits are those at which the chi-square statistic has its 2.5 % tails."""
    found = std_interval(SAMPLE)
    squares = 4 * found.estimate**2
    assert stats.chi2.sf(squares / found.low**2, 4) == pytest.approx(0.025, rel=1e-9)
    assert stats.chi2.cdf(squares / found.high**2, 4) == pytest.approx(0.025, rel=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 32, 1000])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_wilson_agrees_with_scipy(n, confidence):
    """scipy's `proportion_ci(method="wilson")`, for every count."""
    for k in sorted({*range(min(n, 10) + 1), n // 2, n}):
        expected = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
        found = wilson(k, n, confidence)
        assert limits(found) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_the_source_log():
    """S2: 15 of 32 groks is 31 to 64 %."""
    found = wilson(15, 32)
    assert (round(100 * found.low), round(100 * found.high)) == (31, 64)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((6, 7, 2, 7), 0.0582, 0.8062),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((0, 10, 0, 20), -0.1611, 0.2775),
        ((0, 10, 0, 10), -0.2775, 0.2775),
        ((10, 10, 0, 20), 0.6791, 1.0),
        ((10, 10, 0, 10), 0.6075, 1.0),
    ],
)
def test_newcombe_published_examples(counts, low, high):
    """Newcombe 1998, Stat. Med. 17:873, Table II, method 10, examples (a) to (h)."""
    assert limits(newcombe_difference(*counts)) == pytest.approx((low, high), abs=5.1e-5)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((18, 12, 2, 18), 0.0562, 0.3290),
        ((53, 0, 0, 1), -0.0729, 0.0729),
        ((1, 1, 7, 12), -0.507, -0.026),
    ],
)
def test_newcombe_paired_published_examples(table, low, high):
    """Newcombe 1998, Stat. Med. 17:2635, method 10; the last from Fagerland et al. 2014."""
    digits = 5.1e-4 if table[0] == 1 else 5.1e-5
    assert limits(newcombe_paired(*table)) == pytest.approx((low, high), abs=digits)


def test_fixed_operations_survive_pooling_in_the_source_log():
    """S2: 18 of 35 against 1 of 11 is a difference (Fisher p = 0.016); 6/8 against 2/8 is not."""
    assert newcombe_difference(18, 35, 1, 11).low > 0
    assert stats.fisher_exact([[18, 17], [1, 10]]).pvalue == pytest.approx(0.016, abs=5e-4)
    assert stats.fisher_exact([[6, 2], [2, 6]]).pvalue == pytest.approx(0.13, abs=5e-3)


@given(st.tuples(*[st.integers(0, 12)] * 4).filter(lambda t: sum(t) > 0))
def test_paired_rates_swap(table):
    """b - a is the mirror image of a - b."""
    both, only_a, only_b, neither = table
    forward = newcombe_paired(both, only_a, only_b, neither)
    back = newcombe_paired(both, only_b, only_a, neither)
    assert limits(forward) == pytest.approx((-back.high, -back.low), abs=1e-12)


def test_paired_difference_is_the_paired_t_test():
    """scipy's `ttest_rel` gives the same limits."""
    expected = stats.ttest_rel(SAMPLE, OTHER[:5]).confidence_interval(0.95)
    found = paired_difference(SAMPLE, OTHER[:5])
    assert limits(found) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_welch_is_scipys():
    """scipy's `ttest_ind(equal_var=False)` gives the same limits; n is the smaller arm's."""
    expected = stats.ttest_ind(SAMPLE, OTHER, equal_var=False).confidence_interval(0.95)
    found = welch_difference(SAMPLE, OTHER)
    assert limits(found) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found.n == 5


def test_fieller_limits_are_the_ratios_just_rejected():
    """At each limit r, the paired t-test of a = r b has p = 0.05: Fieller's definition."""
    a, b = SAMPLE, OTHER[:5]
    found = ratio_interval(a, b, paired=True)
    for r in limits(found):
        p = stats.ttest_1samp([x - r * y for x, y in zip(a, b, strict=True)], 0).pvalue
        assert p == pytest.approx(0.05, rel=1e-8)
    assert found.low < found.estimate < found.high


def test_a_ratio_to_something_near_zero_is_unbounded():
    """Where the denominator cannot be told from zero, no ratio is excluded."""
    assert limits(ratio_interval(SAMPLE, [-0.1, 0.2, 0.05], paired=False)) == (-math.inf, math.inf)


def test_ratio_coverage_without_pairs():
    """4,000 samples of 6 and 9: the true ratio is inside 95 % of the time.

    Standard error 0.34 %; the band of ±1.6 % is missed by a right method with chance 3e-6.
    """
    rng = np.random.default_rng(5)
    a, b = rng.normal(3, 0.6, (4_000, 6)), rng.normal(2, 0.2, (4_000, 9))
    inside = [
        (i := ratio_interval(x.tolist(), y.tolist(), paired=False)).low <= 1.5 <= i.high
        for x, y in zip(a, b, strict=True)
    ]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.016)


def test_coverage_of_mean_and_std():
    """4,000 normal samples of 4: both intervals hold the truth 95 % of the time (±1.6 %, 3e-6)."""
    rows = np.random.default_rng(6).normal(2, 3, (4_000, 4)).tolist()
    means = [(i := mean_interval(row)).low <= 2 <= i.high for row in rows]
    spreads = [(i := std_interval(row)).low <= 3 <= i.high for row in rows]
    assert np.mean(means) == pytest.approx(0.95, abs=0.016)
    assert np.mean(spreads) == pytest.approx(0.95, abs=0.016)


@pytest.mark.parametrize("rate", [0.1, 0.47, 0.9])
def test_coverage_of_paired_rates(rate):
    """Exact coverage over all tables of 12 pairs with equal, correlated rates is above 93 %."""
    n, both = 12, rate * (0.6 + 0.4 * rate)
    shares = [both, rate - both, rate - both, 1 - 2 * rate + both]
    covered = 0.0
    for a in range(n + 1):
        for b in range(n + 1 - a):
            for c in range(n + 1 - a - b):
                table = (a, b, c, n - a - b - c)
                found = newcombe_paired(*table)
                if found.low <= 0 <= found.high:
                    covered += stats.multinomial.pmf(table, n, shares)
    assert covered > 0.93


def assert_nested(compute):
    wide = None
    for confidence in reversed(CONFIDENCES):
        narrow = compute(confidence)
        slack = 1e-9 * (1 + abs(narrow.estimate))
        if wide is not None:
            assert wide.low == -math.inf or wide.low <= narrow.low + slack
            assert wide.high == math.inf or wide.high >= narrow.high - slack
        wide = narrow


@given(samples, samples)
@settings(max_examples=60)
def test_intervals_of_means_are_nested_in_confidence(a, b):
    """Raising the confidence never narrows an interval (up to rounding)."""
    for compute in (
        lambda c: mean_interval(a, c),
        lambda c: std_interval(a, c),
        lambda c: welch_difference(a, b, c),
        lambda c: ratio_interval(a, b, c, paired=False),
    ):
        assert_nested(compute)


@given(st.tuples(*[st.integers(0, 9)] * 4).filter(lambda t: sum(t) > 0))
@settings(max_examples=60)
def test_intervals_of_rates_are_nested_in_confidence_and_in_seeds(table):
    """Raising the confidence never narrows, assuming more seeds never widens."""
    n = sum(table)
    for compute in (
        lambda c, k=None: wilson(table[0], n, c, assumed_n=k),
        lambda c, k=None: newcombe_difference(table[0], n, table[1], n, c, assumed_n=k),
        lambda c, k=None: newcombe_paired(*table, c, assumed_n=k),
    ):
        assert_nested(compute)
        found = [compute(0.95, k) for k in (n, n + 1, 2 * n, 10 * n, 1000 * n)]
        for few, many in itertools.pairwise(found):
            assert few.low <= many.low + 1e-12
            assert few.high >= many.high - 1e-12


def test_assumed_n_is_what_that_many_values_would_give():
    """A sample repeated k times has nearly its spread; assumed_n = k n keeps it exactly."""
    values = [1.0, 2.0, 4.0]
    spread = np.std(values, ddof=1)
    found = mean_interval(values, assumed_n=30)
    half = stats.t.ppf(0.975, 29) * spread / math.sqrt(30)
    assert found.high - found.estimate == pytest.approx(half, rel=1e-9)
    assert found.n == 30
    assert wilson(3, 8, assumed_n=80) == wilson(30, 80)
    assert limits(newcombe_paired(3, 2, 1, 2, assumed_n=80)) == pytest.approx(
        limits(newcombe_paired(30, 20, 10, 20)), rel=1e-12
    )


def test_holm_reference():
    """R's `p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")`, in any order; and no claims."""
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.7, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.3))
def test_holm_rejects_what_the_step_down_rule_rejects(p_values, alpha):
    """Adjusted p <= alpha where, going up from the smallest p, p <= alpha / (claims left)."""
    rejected = set()
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[index] * (len(p_values) - rank) > alpha:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(holm(p_values)) if p <= alpha} == rejected


def test_a_bar_is_not_a_test():
    """S2: an arm that groks 47 % of the time passes "at least 4 of 8" 57 % of the time."""
    assert chance_to_reach(4, 8, 0.47) == pytest.approx(0.57, abs=0.005)


def test_seeds_to_separate_has_the_power_it_promises():
    """S2: 47 % against 70 % takes about 70 seeds an arm; then Newcombe excludes 0 in 80 %.

    4,000 simulated studies; standard error 0.6 %, and 3 % for the normal approximation.
    """
    n = seeds_to_separate(0.47, 0.70)
    assert 68 <= n <= 72
    rng = np.random.default_rng(7)
    a, b = rng.binomial(n, 0.70, 4_000), rng.binomial(n, 0.47, 4_000)
    found = [newcombe_difference(int(x), n, int(y), n).low > 0 for x, y in zip(a, b, strict=True)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)
    with pytest.raises(ValueError, match="equal rates"):
        seeds_to_separate(0.5, 0.5)


@given(st.integers(2, 5_000), st.integers(2, 50))
def test_seeds_to_decide_finds_the_smallest(threshold, at_least):
    """The first n that decides, from at_least on; None beyond the cap."""
    found = seeds_to_decide(lambda n: n >= threshold, at_least=at_least, cap=4_000)
    assert found == (max(threshold, at_least) if max(threshold, at_least) <= 4_000 else None)


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3), (0, 0)])
def test_a_rate_needs_a_possible_count(successes, n):
    """Counts outside [0, n] are refused."""
    with pytest.raises(ValueError, match="0 <= successes <= n"):
        wilson(successes, n)


def test_pairs_need_equal_lengths():
    """Values that cannot be paired are refused, not cut to the shorter."""
    for compute in (paired_difference, lambda a, b: ratio_interval(a, b, paired=True)):
        with pytest.raises(ValueError, match="pairs need"):
            compute([1.0, 2.0, 3.0], [1.0, 2.0])


@pytest.mark.parametrize("factor", [1, 2, -3])
def test_ratio_of_proportional_pairs_is_exact_at_every_confidence(factor):
    """No rounding opens an interval around a ratio that all pairs agree on."""
    values = [1.7807983131809637, 0.0, 1.7807983131809637, 1.7807983131809637]
    scaled = [factor * value for value in values]
    for confidence in (0.5, 0.8, 0.85, 0.9, 0.93):
        found = ratio_interval(scaled, values, confidence, paired=True)
        assert (found.low, found.high) == (factor, factor)
