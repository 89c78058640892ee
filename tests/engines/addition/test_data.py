import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.engines.addition import data
from assay.engines.addition.block import targets, tokens
from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.data import (
    BLOCK_STEPS,
    LIMIT,
    Exclusion,
    Pairs,
    Sampler,
    carry_heavy,
    digest_of,
    first_unique,
    holdout,
)
from assay.engines.addition.prompt import format_of

operand = st.integers(0, LIMIT - 1)


def spelled(a: int, b: int) -> list[int]:
    """The sequence by string formatting: the specification read literally."""
    text = f"{a:010d}"
    other = f"{b:010d}"
    total = f"{a + b:011d}"[::-1]
    return [*map(int, text), 10, *map(int, other), 11, *map(int, total), 13]


def as_float(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def some(pairs) -> Pairs:
    return Pairs(a=as_float(*(p[0] for p in pairs)), b=as_float(*(p[1] for p in pairs)))


def sequences(pairs, prompt="msd") -> list[list[int]]:
    """Inputs and the targets of the supervised rows, as whole sequences."""
    form, given_ = format_of(prompt), some(pairs)
    left = tokens(form, given_.a[None], given_.b[None])[0]
    right = targets(form, given_.a[None], given_.b[None])[0]
    assert torch.equal(
        left[:, form.prompt_length :], right[:, : left.shape[1] - form.prompt_length]
    )
    return torch.cat((left[:, : form.prompt_length], right), 1).tolist()


FAR = Exclusion(some([(0, 0)]))


def drawn(seed, *, low=1, high=10, blocks=1, excluded=FAR, batch=256, **changes):
    config = AdditionConfig(curriculum=((low, high, 1),), batch_size=batch, **changes)
    sampler = Sampler(config, seed, excluded)
    parts = [sampler.block(index) for index in range(blocks)]
    return [np.concatenate([part[side].ravel() for part in parts]) for side in (0, 1)]


@given(st.lists(st.tuples(operand, operand), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_tokens_are_the_specified_ones(pairs):
    """Digits by float64 floors equal digits by text, for all operands."""
    assert sequences(pairs) == [spelled(*pair) for pair in pairs]


@pytest.mark.parametrize("k", range(1, 11))
def test_digits_next_to_powers_of_ten(k):
    """The floors are right where a quotient is nearest to a whole number."""
    values = [10**k - 1, 10**k % LIMIT, (10**k + 1) % LIMIT, LIMIT - 1, LIMIT - 10**k]
    for a in values:
        assert sequences([(a, LIMIT - 1)]) == [spelled(a, LIMIT - 1)]


@given(operand, operand)
@settings(max_examples=50, deadline=None)
def test_other_prompts_read_literally(a, b):
    """Units first; zeros between the operands; one token for a pair of digits."""
    left, right, total = f"{a:010d}"[::-1], f"{b:010d}"[::-1], f"{a + b:011d}"[::-1]
    answer = [int(d) for d in total]
    lsd = [*map(int, left), 10, *map(int, right), 11, *answer]
    assert sequences([(a, b)], "lsd") == [[*lsd, 13]]
    zeros = [0, *map(int, left), 0, 0, *map(int, right), 0, *answer]
    assert sequences([(a, b)], "zeros") == [zeros]
    pairs = [10 + 10 * int(x) + int(y) for x, y in zip(left, right, strict=True)]
    assert sequences([(a, b)], "pairs") == [[111, *pairs, 110, *answer, 112]]


def test_holdout_follows_the_source_draw_for_draw():
    """The vectorised holdout equals the specified loop over Python integers."""
    generator = torch.Generator().manual_seed(43)
    seen, kept = set(), []
    need = 5000
    while len(kept) < need:
        chunk = max(2 * (need - len(kept)), 4096)
        a = torch.randint(0, 10**10, (chunk,), generator=generator).tolist()
        b = torch.randint(0, 10**10, (chunk,), generator=generator).tolist()
        for pair in zip(a, b, strict=True):
            key = pair[0] * 10**10 + pair[1]
            if key not in seen and len(kept) < need:
                seen.add(key)
                kept.append(pair)
    made = holdout(43, 2000, 3000)
    assert list(zip(made.val.a.tolist(), made.val.b.tolist(), strict=True)) == kept[:2000]
    assert list(zip(made.test.a.tolist(), made.test.b.tolist(), strict=True)) == kept[2000:]


def test_duplicates_are_told_apart_beyond_64_bits():
    """Pairs whose int64 keys collide are different; equal pairs keep their first place."""
    a = 9_999_999_999
    wrapped = (a * 10**10) % 2**64
    pairs = np.array([[a, 5], [3, 4], [a, 5], [3, 5], [3, 4]], dtype=np.int64)
    assert wrapped != a * 10**10
    assert first_unique(pairs).tolist() == [[a, 5], [3, 4], [3, 5]]


def test_a_pair_that_is_drawn_again_is_held_out_once(monkeypatch):
    """With operands below 60 most draws are repetitions; 3,000 of the 3,600 pairs are still met."""
    monkeypatch.setattr(data, "LIMIT", 60)
    made = holdout.__wrapped__(1, 1000, 2000)
    pairs = {
        pair
        for part in (made.val, made.test)
        for pair in zip(part.a.tolist(), part.b.tolist(), strict=True)
    }
    assert len(pairs) == 3000


def test_parts_of_a_holdout_are_disjoint():
    """No pair is in both the validation and the test part."""
    made = holdout(7, 5000, 10_000)
    val = set(zip(made.val.a.tolist(), made.val.b.tolist(), strict=True))
    test = set(zip(made.test.a.tolist(), made.test.b.tolist(), strict=True))
    assert len(val) == 5000
    assert len(test) == 10_000
    assert not val & test


def test_sampler_never_gives_an_excluded_pair():
    """With 99 of 100 one-digit pairs excluded, only the last one is drawn, and of length 1."""
    left = Exclusion(some([(a, b) for a in range(10) for b in range(10) if (a, b) != (7, 3)]))
    a, b = drawn(3, low=1, high=1, excluded=left, batch=2)
    assert (a == 7).all()
    assert (b == 3).all()


def test_exclusion_compares_pairs_not_sums_or_halves():
    """Sharing one operand with an excluded pair is no reason to be drawn again."""
    excluded = Exclusion(some([(9_999_999_999, 1), (5, 2), (5, 8)]))
    a = np.array([9_999_999_999, 5, 5, 8, 9_999_999_999], dtype=float)
    b = np.array([2, 8, 3, 5, 1], dtype=float)
    assert excluded.hits(a, b).tolist() == [1, 4]


def test_examples_depend_on_seed_and_block_alone():
    """A block can be drawn at any time, in any order; other seeds and blocks differ."""
    sampler = Sampler(AdditionConfig(batch_size=32), 5, FAR)
    late = sampler.block(3)
    again = Sampler(AdditionConfig(batch_size=32), 5, FAR).block(3)
    assert all(np.array_equal(x, y) for x, y in zip(late, again, strict=True))
    assert late[0].shape == (BLOCK_STEPS, 32)
    for other in (sampler.block(2), Sampler(AdditionConfig(batch_size=32), 6, FAR).block(3)):
        assert not np.array_equal(late[0], other[0])


def test_phases_change_within_a_block():
    """Every step of a block has the lengths of its own phase."""
    config = AdditionConfig(curriculum=((1, 1, 5), (3, 3, 9), (10, 10, 10)), batch_size=400)
    a_KB, b_KB = Sampler(config, 1, FAR).block(0)
    for rows, limit in ((slice(0, 5), 10), (slice(5, 9), 1000), (slice(9, 16), LIMIT)):
        for value in (a_KB[rows], b_KB[rows]):
            assert limit / 10 < value.max() < limit


def test_lengths_are_uniform_and_operands_uniform_below_their_power():
    """Digit lengths 1..10 equally often; the top digit of a full length uniform over 0..9.

    Chi-square with 9 degrees of freedom stays below 33.7 with probability 0.9999 for each.
    """
    for value in drawn(0, low=10, high=10, blocks=10):
        num = len(value)
        top = np.bincount((value // 10**9).astype(int), minlength=10)
        assert ((top - num / 10) ** 2 / (num / 10)).sum() < 33.7
        assert (value == np.floor(value)).all()
        assert value.min() >= 0
        assert value.max() < LIMIT
    a, _ = drawn(1, blocks=10)
    # P(a < 10) when n ~ U{1..10}: mean of min(1, 10 / 10^n).
    share = sum(10.0 ** (1 - n) for n in range(1, 11)) / 10
    error = (share * (1 - share) / len(a)) ** 0.5
    assert abs((a < 10).mean() - share) < 4 * error  # false alarm 6e-5
    a, b = drawn(2, low=2, high=3)
    assert max(a.max(), b.max()) < 1000


def carries(a, b):
    """Places whose digits sum to 9 (a carry passes) or to 10 and more (one begins), as shares."""
    digit = [np.floor(x[:, None] / 10.0 ** np.arange(10)) % 10 for x in (a, b)]
    total = digit[0] + digit[1]
    return (total == 9).mean(), (total >= 10).mean()


def test_carry_heavy_pairs_have_the_stated_shares():
    """Sum 9 at 1/2 + 1/4 * 1/10 of the places or more; uniform operands have 1/10."""
    generator = np.random.default_rng(0)
    a, b = carry_heavy(generator, np.full(20_000, 10))
    passes, begins = carries(a, b)
    # kind 3 (1/4): uniform, 1/10 pass, 45/100 begin. kind 2 (1/4): a = 0 (1/10) cannot begin,
    # there b is max(b, 9) = 9 and the sum is 9.
    assert passes == pytest.approx(0.5 + 0.25 * 0.1 + 0.25 * 0.1, abs=0.005)
    assert begins == pytest.approx(0.25 * 0.45 + 0.25 * 0.9, abs=0.005)
    assert max(a.max(), b.max()) < LIMIT
    short_a, short_b = carry_heavy(generator, np.array([1, 3] * 500))
    assert short_a[::2].max() < 10
    assert 100 < short_b[1::2].max() < 1000


def test_the_share_of_carry_heavy_pairs_is_the_configured_one():
    """Half of the examples at the start, none after the fade; still nothing excluded is drawn."""
    settings_ = {"carry_share": 0.5, "carry_fade": (16, 32), "low": 10, "batch": 2000}
    a, b = drawn(4, blocks=1, **settings_)
    assert carries(a, b)[0] == pytest.approx((0.55 + 0.1) / 2, abs=0.01)
    a, b = (x[32 * 2000 :] for x in drawn(4, blocks=3, **settings_))
    assert carries(a, b)[0] == pytest.approx(0.1, abs=0.01)


def test_digest_names_the_pairs():
    """One changed operand changes the fingerprint."""
    made = holdout(7, 10, 10)
    other = Pairs(a=made.val.a.clone(), b=made.val.b.clone())
    assert digest_of(made.val) == digest_of(other)
    other.b[3] += 1
    assert digest_of(made.val) != digest_of(other)
