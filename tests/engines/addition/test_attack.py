"""Every carry class is met, and what is wrong is found."""

import numpy as np
import pytest
import torch

from assay.engines.addition.attack import CLASSES, attack, carry_class, chain_below, sample_class
from assay.engines.addition.backend import Judgement
from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.model import Parameters


class Oracle:
    """Adds right, but for the pairs that `is_wrong` names."""

    what = "oracle"

    def __init__(self, is_wrong):
        self.is_wrong = is_wrong
        self.asked = 0

    def judge(self, parameters, index, pairs):
        self.asked += len(pairs)
        wrong = self.is_wrong(pairs.a.numpy(), pairs.b.numpy())
        return Judgement(wrong_N=torch.from_numpy(wrong.astype(np.int32)), loss_sum_nats=0.0)


NOBODY = Parameters.zeros(AdditionConfig(), 1)


def by_hand(a, b):
    carry, made = 0, 0
    for place in range(10):
        carry = int(a // 10**place % 10 + b // 10**place % 10 + carry >= 10)
        made |= carry << place
    return made


def test_samples_are_of_their_class():
    """All 1,024, by long addition in integers; operands have ten digits at most."""
    classes = np.repeat(np.arange(CLASSES), 3)
    a, b = sample_class(np.random.default_rng(0), classes)
    assert [by_hand(int(x), int(y)) for x, y in zip(a, b, strict=True)] == classes.tolist()
    assert carry_class(a, b).tolist() == classes.tolist()
    assert min(a.min(), b.min()) >= 0
    assert max(a.max(), b.max()) < 10**10


def test_digits_are_uniform_among_those_allowed():
    """Of class 0 the units have 55 allowed pairs, each equally often.

    Chi-square with 54 degrees of freedom stays below 110 with probability 0.99999.
    """
    a, b = sample_class(np.random.default_rng(1), np.zeros(22_000, dtype=np.int64))
    counts = np.bincount((a % 10 * 10 + b % 10).astype(int), minlength=100)
    allowed = counts[counts > 0]
    assert len(allowed) == 55
    assert ((allowed - 400) ** 2 / 400).sum() < 110


@pytest.mark.parametrize(
    ("carries", "place", "length"),
    [(0b0111, 3, 3), (0b0101, 3, 1), (0, 4, 0), (0b0111, 0, 0), (0b0110, 3, 2)],
)
def test_chains_are_counted_below_a_place(carries, place, length):
    """Carries in a row just below."""
    assert chain_below(carries, place) == length


def test_a_right_adder_has_no_counterexample():
    """Nothing is found, and all classes were asked."""
    oracle = Oracle(lambda a, b: np.zeros(len(a), dtype=bool))
    found = attack(NOBODY, oracle, pairs_per_class=5)
    assert found.counterexamples == ()
    assert found.broken_classes == 0
    assert found.pairs == oracle.asked >= 5 * CLASSES


def test_one_wrong_class_is_found_and_named():
    """An adder that fails on ten carries in a row only: random pairs would hardly show it."""
    found = attack(NOBODY, Oracle(lambda a, b: carry_class(a, b) == CLASSES - 1), pairs_per_class=5)
    assert found.broken_classes == 1
    assert found.errors_by_class[CLASSES - 1] == 5
    assert len(found.counterexamples) > 5, "the search goes on around what was found"
    assert all(by_hand(*pair) == CLASSES - 1 for pair in found.counterexamples)


def test_the_search_finds_what_no_class_sample_shows():
    """Wrong only where an operand is all 9s: the extremes have it."""

    def nines(a, b):
        return (a == 9_999_999_999) | (b == 9_999_999_999)

    found = attack(NOBODY, Oracle(nines), pairs_per_class=1)
    assert sum(found.errors_by_class) == 0
    assert found.counterexamples


def test_an_attack_is_repeatable():
    """The same seed, the same pairs; another seed, others."""

    def some(a, b):
        return (a + b) % 97 == 0

    first, again = (attack(NOBODY, Oracle(some), pairs_per_class=2) for _ in range(2))
    assert first == again
    assert attack(NOBODY, Oracle(some), pairs_per_class=2, seed=1) != first
