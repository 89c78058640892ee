import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.engines.addition import data
from assay.engines.addition.data import (
    EOS,
    LIMIT,
    Encoder,
    Exclusion,
    Pairs,
    Sampler,
    digest_of,
    digits,
    first_unique,
    holdout,
    sequences,
)

operand = st.integers(0, LIMIT - 1)


def spelled(a: int, b: int) -> list[int]:
    """The sequence by string formatting: the specification read literally."""
    text = f"{a:010d}"
    other = f"{b:010d}"
    total = f"{a + b:011d}"[::-1]
    return [*map(int, text), 10, *map(int, other), 11, *map(int, total), 13]


def as_float(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(st.lists(st.tuples(operand, operand), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_sequences_are_the_specified_ones(pairs):
    """Digits by float64 floors equal digits by text, for all operands."""
    a, b = as_float(*(p[0] for p in pairs)), as_float(*(p[1] for p in pairs))
    assert sequences(a, b).tolist() == [spelled(*pair) for pair in pairs]


@pytest.mark.parametrize("k", range(1, 11))
def test_digits_next_to_powers_of_ten(k):
    """The floors are right where a quotient is nearest to a whole number."""
    values = [10**k - 1, 10**k % LIMIT, (10**k + 1) % LIMIT, LIMIT - 1, LIMIT - 10**k]
    for a in values:
        assert sequences(as_float(a), as_float(LIMIT - 1)).tolist() == [spelled(a, LIMIT - 1)]


@given(st.lists(st.tuples(operand, operand), min_size=4, max_size=4))
@settings(max_examples=50, deadline=None)
def test_encoder_says_what_sequences_say(pairs):
    """Cells, queries, targets and one-hot digits all follow from the token sequence."""
    a, b = as_float(*(p[0] for p in pairs)), as_float(*(p[1] for p in pairs))
    encoder = Encoder(4)
    encoder.encode(b, a)  # buffers are used before
    batch = encoder.encode(a, b)
    token = sequences(a, b)
    digit = token[:, :33].clone()
    digit[:, [10, 21]] = 0
    cell = digit + 10 * torch.arange(33)
    assert torch.equal(batch.cell_BT.long().view(4, 33), cell)
    assert torch.equal(batch.query_R.long().view(4, 12), cell[:, 21:] - 210)
    assert torch.equal(batch.target_1R.view(4, 12), token[:, 22:])
    assert (batch.target_1R.view(4, 12)[:, -1] == EOS).all()
    one_hot = torch.nn.functional.one_hot(digit, 10).permute(1, 2, 0).float()
    assert torch.equal(batch.hot_T10B, one_hot)


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
    pairs = [(a, b) for a in range(10) for b in range(10) if (a, b) != (7, 3)]
    left = Exclusion(
        Pairs(a=torch.tensor([p[0] for p in pairs]), b=torch.tensor([p[1] for p in pairs]))
    )
    a, b = Sampler(3, left).draw(20, 1, 1)
    assert (a == 7).all()
    assert (b == 3).all()


def test_exclusion_compares_pairs_not_sums_or_halves():
    """Sharing one operand with an excluded pair is no reason to be drawn again."""
    excluded = Exclusion(Pairs(a=torch.tensor([9_999_999_999, 5, 5]), b=torch.tensor([1, 2, 8])))
    a, b = as_float(9_999_999_999, 5, 5, 8, 9_999_999_999), as_float(2, 8, 3, 5, 1)
    assert excluded.hits(a, b) == [1, 4]


def test_lengths_are_uniform_and_operands_uniform_below_their_power():
    """Digit lengths 1..10 equally often; the top digit of a full length uniform over 0..9.

    Chi-square with 9 degrees of freedom stays below 33.7 with probability 0.9999 for each.
    """
    far = Exclusion(Pairs(a=torch.tensor([0]), b=torch.tensor([0])))
    num = 40_000
    a, b = Sampler(0, far).draw(num, 10, 10)
    for value in (a, b):
        top = torch.bincount((value // 10**9).long(), minlength=10).double()
        assert float(((top - num / 10) ** 2 / (num / 10)).sum()) < 33.7
        assert float(value.min()) >= 0
        assert float(value.max()) < LIMIT
    a, _ = Sampler(1, far).draw(num, 1, 10)
    # P(a < 10) when n ~ U{1..10}: mean of min(1, 10 / 10^n).
    share = sum(10.0 ** (1 - n) for n in range(1, 11)) / 10
    error = (share * (1 - share) / num) ** 0.5
    assert abs(float((a < 10).double().mean()) - share) < 4 * error  # false alarm 6e-5
    a, b = Sampler(2, far).draw(num, 2, 3)
    assert float(a.max()) < 1000
    assert float(b.max()) < 1000


def test_digest_names_the_pairs():
    """One changed operand changes the fingerprint."""
    made = holdout(7, 10, 10)
    other = Pairs(a=made.val.a.clone(), b=made.val.b.clone())
    assert digest_of(made.val) == digest_of(other)
    other.b[3] += 1
    assert digest_of(made.val) != digest_of(other)


def test_digits_of_int64_operands():
    """Held-out pairs are int64, drawn ones float64: both are split alike."""
    a, b = torch.tensor([1234567890]), torch.tensor([9876543210])
    assert torch.equal(digits(a, b), digits(a.double(), b.double()))
