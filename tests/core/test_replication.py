"""Reported against measured: one more run of ours, to the digits that are written."""

import pytest
from scipy import stats

from assay.core.replication import replicate
from assay.core.study import Reported

OURS = [0.50, 0.55, 0.60, 0.65, 0.70]
FATES = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.001, 1.0]


def answer(value, ours, **more):
    return replicate(Reported(metric="m", arm="a", value=value, source="s", **more), ours)


@pytest.mark.parametrize(
    ("value", "ours", "more", "expected"),
    [
        (0.60, OURS, {}, "agrees"),
        (0.81, OURS, {}, "agrees"),
        (0.85, OURS, {}, "differs"),
        (0.99967, FATES, {}, "agrees"),
        (1.6, FATES, {}, "differs"),
        (456, [456.0, 456.0], {}, "agrees"),
        (777, [763.0, 763.0, 763.0], {}, "differs"),
        (0.33, [1 / 3] * 3, {}, "agrees"),
        (0.34, [1 / 3] * 3, {}, "differs"),
        (0.33, [1 / 3], {}, "agrees"),
        (0.4, [1 / 3], {}, "not comparable"),
        (0.4, [], {}, "not comparable"),
        (0.60, OURS, {"not_comparable": "20,000 of its 50,000 steps"}, "not comparable"),
        (0.68, OURS, {"n": 5}, "agrees"),
        (0.75, OURS, {"n": 5}, "differs"),
        (0.70, OURS, {"n": 5, "std": 0.05}, "agrees"),
        (0.74, OURS, {"n": 5, "std": 0.05}, "differs"),
    ],
)
def test_answers(value, ours, more, expected):
    """Inside what ours could have been, outside, or nothing to compare with."""
    assert answer(value, ours, **more).answer == expected


def test_limits_are_those_of_the_prediction_interval():
    """mean ± t s √(1 + 1/n)."""
    found = answer(0.6, OURS)
    half = stats.t.ppf(0.975, 4) * 0.079056941504209 * (1 + 1 / 5) ** 0.5
    assert (found.low, found.high) == pytest.approx((0.6 - half, 0.6 + half))
    assert found.n == 5


def test_limits_are_those_of_welch():
    """At the limit Welch's test, as scipy computes it, has p = 0.05."""
    found = answer(0.7, OURS, n=5, std=0.05)
    welch = stats.ttest_ind_from_stats(
        0.6, 0.079056941504209, 5, found.high, 0.05, 5, equal_var=False
    )
    assert welch.pvalue == pytest.approx(0.05)
    assert found.high - 0.6 == pytest.approx(0.6 - found.low)


def test_rounding_is_allowed_for():
    """A value at the limit agrees if the digits that were cut off could bring it inside."""
    limit = answer(0.6, OURS).high
    assert answer(round(limit + 0.004, 2), OURS).answer == "agrees"
    assert answer(round(limit + 0.02, 2), OURS).answer == "differs"


def test_limits_end_where_the_metric_ends():
    """A share has no value below 0 or above 1, so none is expected there."""
    entry = Reported(metric="m", arm="a", value=0.4, source="s")
    found = replicate(entry, [0.0, 0.0, 1.0, 0.1], bounds=(0.0, 1.0))
    assert (found.low, found.high, found.answer) == (0.0, 1.0, "agrees")
