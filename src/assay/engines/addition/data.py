"""Operands, tokens, held-out pairs and the curriculum sampler. Everything is whole tensors.

A number below 10^15 is exact in float64, and so is the floor of its quotient by a power of ten,
so digits are split in float64 arithmetic, which the vector units have and int64 division has not.

Suffixes, this file: B = examples, T = positions, R = supervised rows (B * 12, example by example).
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from assay.engines.addition.config import NUM_DIGITS, SEQUENCE

PLUS, EQUALS, PAD, EOS = 10, 11, 12, 13
FIRST_ROW = 21
"""Position of `=`, the first of the supervised ones."""
NUM_ROWS = 12
"""Supervised positions: those that predict the 11 sum digits and EOS."""
LIMIT = 10**NUM_DIGITS
"""Operands are below this."""
SAMPLER_OFFSET = 1337
"""Added to the data seed for the stream of training operands, as the source does."""

_POWERS = torch.tensor([10.0**k for k in range(NUM_DIGITS + 2)], dtype=torch.float64)
# Rows of [a, b, sum] x [11 digits, units first] in the order of the 33 positions. The 11th digit
# of an operand is always 0: it stands at `+` and `=`, whose cell in the table is number 0.
_ORDER = torch.tensor(
    [*range(9, -1, -1), 10, *range(20, 10, -1), 21, *range(22, 33)], dtype=torch.int64
)
_CELL_START = 10 * torch.arange(SEQUENCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples, as the kernel reads them. A *cell* is a (position, digit) pair: 10 * T + digit.

    Attributes:
        cell_BT: Cell of every input position, example by example.
        query_R: Cell of every supervised row, counted from that of position 21.
        target_1R: Token that every supervised row must predict.
        hot_T10B: 1 where a position holds a digit (0 at `+` and `=`), else 0.
    """

    cell_BT: Tensor
    query_R: Tensor
    target_1R: Tensor
    hot_T10B: Tensor


def digits(a_B: Tensor, b_B: Tensor) -> Tensor:
    """Digits [33, B] (int64) of a and b (highest first) and of their sum (units first)."""
    value = torch.stack((a_B, b_B, a_B + b_B)).to(torch.float64)
    quotient = torch.floor(value[:, None, :] / _POWERS[:, None])
    digit = quotient[:, :-1] - 10.0 * quotient[:, 1:]
    return digit.to(torch.int64).view(SEQUENCE, -1).index_select(0, _ORDER)


class Encoder:
    """Turns operands into a `Batch`, in buffers that are kept.

    Fresh tensors of this size come from the operating system page by page, which took longer
    than the arithmetic. Not for use by two threads at once.
    """

    def __init__(self, num: int, dtype: torch.dtype = torch.float32) -> None:
        self._value = torch.empty(3, 1, num, dtype=torch.float64)
        self._quotient = torch.empty(3, NUM_DIGITS + 2, num, dtype=torch.float64)
        self._tens = torch.empty(3, NUM_DIGITS + 1, num, dtype=torch.float64)
        self._digit = torch.empty(SEQUENCE, num, dtype=torch.int32)
        self._digit_T1B = torch.empty(SEQUENCE, 1, num, dtype=torch.int32)
        self._float = torch.empty(SEQUENCE, num, dtype=dtype)
        self._float_T1B = torch.empty(SEQUENCE, 1, num, dtype=dtype)
        self._hot_T10B = torch.empty(SEQUENCE, 10, num, dtype=dtype)
        self._cell = torch.empty(num, SEQUENCE, dtype=torch.int32)
        self._query = torch.empty(num, NUM_ROWS, dtype=torch.int32)
        self._target = torch.full((num, NUM_ROWS), EOS, dtype=torch.int64)
        self._ten = torch.arange(10, dtype=dtype).view(1, 10, 1)
        self._powers = _POWERS.view(1, -1, 1)
        self._start = _CELL_START.to(torch.int32)
        self._answer = self._digit_T1B[FIRST_ROW + 1 :, 0].t()
        self._batch = Batch(
            cell_BT=self._cell.view(-1),
            query_R=self._query.view(-1),
            target_1R=self._target.view(1, -1),
            hot_T10B=self._hot_T10B,
        )

    def encode(self, a_B: Tensor, b_B: Tensor) -> Batch:
        """Encode float64 operands; the batch is valid until the next call."""
        value, quotient, digit = self._value, self._quotient, self._digit_T1B
        value[0, 0], value[1, 0] = a_B, b_B
        torch.add(a_B, b_B, out=value[2, 0])
        torch.div(value, self._powers, out=quotient).floor_()
        torch.mul(quotient[:, 1:], 10.0, out=self._tens)
        torch.sub(quotient[:, :-1], self._tens, out=self._tens)
        self._digit.view(3, NUM_DIGITS + 1, -1).copy_(self._tens)
        torch.index_select(self._digit, 0, _ORDER, out=digit[:, 0])
        torch.add(digit[:, 0].t(), self._start, out=self._cell)
        torch.sub(self._cell[:, FIRST_ROW:], 10 * FIRST_ROW, out=self._query)
        self._target[:, :-1] = self._answer
        # Compared as floats into floats: bool or integer comparison takes six times as long.
        self._float.view(3, NUM_DIGITS + 1, -1).copy_(self._tens)
        torch.index_select(self._float, 0, _ORDER, out=self._float_T1B[:, 0])
        torch.eq(self._float_T1B, self._ten, out=self._hot_T10B)
        return self._batch


def sequences(a_B: Tensor, b_B: Tensor) -> Tensor:
    """Token sequences [B, 34] of whole examples: the prompt, the sum units first, EOS."""
    token_TB = digits(a_B, b_B)
    token_TB[NUM_DIGITS] = PLUS
    token_TB[FIRST_ROW] = EQUALS
    end = torch.full((1, token_TB.shape[1]), EOS, dtype=torch.int64)
    return torch.cat((token_TB, end)).t().contiguous()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Operand pairs as int64 tensors of one length."""

    a: Tensor
    b: Tensor

    def __len__(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdout:
    """Pairs that a seed never trains on."""

    val: Pairs
    test: Pairs


@lru_cache(maxsize=64)
def holdout(seed: int, val_size: int, test_size: int) -> Holdout:
    """Held-out pairs of a seed, drawn exactly as the source draws them.

    Chunks of max(2 * missing, 4096) values for a, then for b; a pair that came before is left
    out. Pairs are compared as pairs: the key a * 10^10 + b of the source fits no int64.
    """
    generator = torch.Generator().manual_seed(seed)
    need = val_size + test_size
    kept: NDArray[np.int64] = np.empty((0, 2), dtype=np.int64)
    while len(kept) < need:
        chunk = max(2 * (need - len(kept)), 4096)
        a = torch.randint(0, LIMIT, (chunk,), generator=generator)
        b = torch.randint(0, LIMIT, (chunk,), generator=generator)
        kept = first_unique(np.concatenate((kept, torch.stack((a, b), 1).numpy())))[:need]
    pairs = torch.from_numpy(kept)
    val, test = pairs[:val_size], pairs[val_size:]
    return Holdout(
        val=Pairs(a=val[:, 0].clone(), b=val[:, 1].clone()),
        test=Pairs(a=test[:, 0].clone(), b=test[:, 1].clone()),
    )


def first_unique(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of [N, 2] without repetitions, in order of first appearance."""
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))  # stable: ties keep their order
    ordered = pairs[order]
    new = np.ones(len(pairs), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    chosen: NDArray[np.int64] = pairs[np.sort(order[new])]
    return chosen


def digest_of(*parts: Pairs) -> str:
    """SHA-256 of operand pairs: the identity of a generated data set."""
    sha = hashlib.sha256()
    for pairs in parts:
        sha.update(torch.stack((pairs.a, pairs.b), 1).contiguous().numpy().tobytes())
    return sha.hexdigest()


class Exclusion:
    """Pairs that must not be drawn. A sorted search on `a` alone; the rare hits are compared whole."""

    def __init__(self, *parts: Pairs) -> None:
        a = torch.cat([part.a for part in parts])
        b = torch.cat([part.b for part in parts])
        order = torch.argsort(a)
        self._a, self._b = a[order].numpy(), b[order].numpy()
        self._sorted = torch.from_numpy(self._a).to(torch.float64)

    def hits(self, a_B: Tensor, b_B: Tensor) -> list[int]:
        """Places in the batch that hold an excluded pair."""
        place = torch.searchsorted(self._sorted, a_B).clamp_(max=self._sorted.shape[0] - 1)
        near = self._sorted.index_select(0, place).eq_(a_B)
        if not near.any():
            return []
        return [
            i for i in near.nonzero().view(-1).tolist() if self._holds(int(a_B[i]), int(b_B[i]))
        ]

    def _holds(self, a: int, b: int) -> bool:
        low, high = np.searchsorted(self._a, a, "left"), np.searchsorted(self._a, a, "right")
        return bool((self._b[low:high] == b).any())


class Sampler:
    """Training operands of one run: its own generator, nothing shared with other runs."""

    def __init__(self, seed: int, excluded: Exclusion) -> None:
        self.generator = torch.Generator().manual_seed(seed + SAMPLER_OFFSET)
        self._excluded = excluded

    def draw(self, num: int, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Operands a, b (float64, whole numbers) with `low` to `high` digits.

        The lowest n digits of a uniform 10-digit number are uniform below 10^n, so there is one
        draw for all lengths. Excluded pairs are drawn again, length included.
        """
        a, b = self._draw(num, low, high)
        hits = self._excluded.hits(a, b)
        while hits:
            again_a, again_b = self._draw(len(hits), low, high)
            a[hits], b[hits] = again_a, again_b
            still = self._excluded.hits(again_a, again_b)
            hits = [hits[i] for i in still]
        return a, b

    def _draw(self, num: int, low: int, high: int) -> tuple[Tensor, Tensor]:
        length = torch.randint(low, high + 1, (num,), generator=self.generator)
        value = torch.randint(0, LIMIT, (2, num), generator=self.generator).to(torch.float64)
        power = _POWERS.index_select(0, length)
        value -= torch.floor(value / power).mul_(power)
        return value[0], value[1]


def description(config: Any, data_seed: int) -> dict[str, str]:
    """Fingerprint of everything that a run reads: the generated sets by their digests."""
    own = holdout(data_seed, config.val_size, config.test_size)
    tests = [holdout(seed, config.val_size, config.test_size).test for seed in config.test_seeds]
    seeds = ", ".join(map(str, config.test_seeds))
    return {
        "operands": f"generated: operands v1, stream seed {data_seed + SAMPLER_OFFSET}",
        f"holdout {data_seed}": digest_of(own.val, own.test),
        f"test sets {seeds}": digest_of(*tests),
    }
