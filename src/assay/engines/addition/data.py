"""Held-out pairs and the curriculum sampler. Everything is whole arrays.

Suffixes, this file: K = steps of a block, B = examples.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from assay.engines.addition.config import AdditionConfig, carry_share_at, phase_at
from assay.engines.addition.prompt import NUM_DIGITS

LIMIT = 10**NUM_DIGITS
"""Operands are below this."""
SAMPLER_OFFSET = 1337
"""Added to the data seed for the stream of training operands, as the source does."""
BLOCK_STEPS = 16
"""Steps whose examples are drawn together."""

_POWERS = 10.0 ** np.arange(NUM_DIGITS + 1)
_BITS = 22

Operands = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Operand pairs as float64 tensors of one length: whole numbers, exact below 2^53."""

    a: Tensor
    b: Tensor

    def __len__(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdout:
    """Pairs that a seed never trains on."""

    val: Pairs
    test: Pairs


@lru_cache(maxsize=256)
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
    pairs = torch.from_numpy(kept).to(torch.float64).t().contiguous()
    return Holdout(
        val=Pairs(a=pairs[0, :val_size], b=pairs[1, :val_size]),
        test=Pairs(a=pairs[0, val_size:], b=pairs[1, val_size:]),
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
        whole = torch.stack((pairs.a, pairs.b), 1).to(torch.int64)
        sha.update(whole.contiguous().numpy().tobytes())
    return sha.hexdigest()


class Exclusion:
    """Pairs that must not be drawn.

    A bit for the low bits of each excluded `a` turns nearly all candidates away; only the rest is
    searched for, and compared whole.
    """

    def __init__(self, *parts: Pairs) -> None:
        a = torch.cat([part.a for part in parts]).numpy()
        b = torch.cat([part.b for part in parts]).numpy()
        order = np.lexsort((b, a))
        self._a, self._b = a[order], b[order]
        self._seen = np.zeros(1 << _BITS, dtype=bool)
        self._seen[_low_bits(a)] = True

    def hits(self, a: Operands, b: Operands) -> NDArray[np.int64]:
        """Places in the flat arrays that hold an excluded pair."""
        near = np.flatnonzero(self._seen[_low_bits(a)])
        low = np.searchsorted(self._a, a[near], "left")
        high = np.searchsorted(self._a, a[near], "right")
        found = [
            place
            for place, start, end in zip(near, low, high, strict=True)
            if start < end and (self._b[start:end] == b[place]).any()
        ]
        return np.array(found, dtype=np.int64)


def _low_bits(a: Operands) -> NDArray[np.int64]:
    bits: NDArray[np.int64] = a.astype(np.int64) & ((1 << _BITS) - 1)
    return bits


class Sampler:
    """Training operands of one run, by blocks of steps.

    A block has a generator of its own (Philox, keyed by seed, counted by block: Salmon et al. 2011),
    so that the examples of a step depend on the seed and the step alone: nothing has to be saved,
    and runs share nothing.
    """

    def __init__(self, config: AdditionConfig, seed: int, excluded: Exclusion) -> None:
        self._config, self._key, self._excluded = config, seed + SAMPLER_OFFSET, excluded

    def block(self, index: int) -> tuple[Operands, Operands]:
        """Operands a and b, each [K, B], of steps K * index to K * index + K - 1."""
        generator = np.random.Generator(np.random.Philox(key=self._key, counter=[0, index, 0, 0]))
        first = index * BLOCK_STEPS
        steps = np.repeat(np.arange(first, first + BLOCK_STEPS), self._config.batch_size)
        a, b = self._draw(generator, steps)
        hits = self._excluded.hits(a, b)
        while len(hits):  # drawn again, length included
            a[hits], b[hits] = self._draw(generator, steps[hits])
            hits = hits[self._excluded.hits(a[hits], b[hits])]
        return a.reshape(BLOCK_STEPS, -1), b.reshape(BLOCK_STEPS, -1)

    def _draw(
        self, generator: np.random.Generator, steps: NDArray[np.int64]
    ) -> tuple[Operands, Operands]:
        """Operands for the given steps (ascending).

        The lowest n digits of a uniform 10-digit number are uniform below 10^n, so there is one
        draw for all lengths.
        """
        starts = np.flatnonzero(np.diff(steps, prepend=-1))
        repeats = np.diff(starts, append=len(steps))
        low, high = np.array([phase_at(self._config, int(step)) for step in steps[starts]]).T
        spread = np.repeat(high - low + 1, repeats)
        length = np.repeat(low, repeats) + (generator.random(len(steps)) * spread).astype(np.int64)
        value = generator.integers(0, LIMIT, size=(2, len(steps))).astype(np.float64)
        power = _POWERS[length]
        value -= np.floor(value / power) * power
        a, b = value
        if self._config.carry_share:
            share = [carry_share_at(self._config, int(step)) for step in steps[starts]]
            if max(share) > 0:
                heavy = generator.random(len(steps)) < np.repeat(share, repeats)
                a[heavy], b[heavy] = carry_heavy(generator, length[heavy])
        return a, b


def carry_heavy(
    generator: np.random.Generator, length: NDArray[np.int64]
) -> tuple[Operands, Operands]:
    """Pairs whose sums have long carry chains.

    Digits of a are uniform. At each place, independently: with probability 1/2 the digits of a
    and b sum to 9, so that a carry from below goes on; 1/4 they sum to 10 or more where a's digit
    allows it, so that one begins; 1/4 b's digit is uniform. Uniform operands pass a carry on at
    one place in ten.

    Args:
        generator: Of the run.
        length: Digits of each pair, 1 to 10.
    """
    size = (len(length), NUM_DIGITS)
    a = generator.integers(0, 10, size=size, dtype=np.uint8)
    kind = generator.integers(0, 4, size=size, dtype=np.uint8)
    b = generator.integers(0, 10, size=size, dtype=np.uint8)
    begins = np.maximum(b, np.uint8(10) - np.maximum(a, np.uint8(1)))
    b = np.where(kind < 2, np.uint8(9) - a, np.where(kind == 2, begins, b))
    inside = np.arange(NUM_DIGITS) < length[:, None]
    powers = _POWERS[:NUM_DIGITS] * inside
    return (a * powers).sum(1), (b * powers).sum(1)


def description(config: AdditionConfig, data_seed: int) -> dict[str, str]:
    """Fingerprint of everything that a run reads: the generated sets by their digests."""
    own = holdout(data_seed, config.val_size, config.test_size)
    tests = [holdout(seed, config.val_size, config.test_size).test for seed in config.test_seeds]
    seeds = ", ".join(map(str, config.test_seeds))
    return {
        "operands": f"generated: operands v2, Philox key {data_seed + SAMPLER_OFFSET}",
        f"holdout {data_seed}": digest_of(own.val, own.test),
        f"test sets {seeds}": digest_of(*tests),
    }
