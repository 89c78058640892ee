"""Where an adder is wrong: all 1,024 carry classes, and a search for counterexamples.

A carry class says which of the ten places produce a carry: bit k of its number is place k. Random
pairs meet the long chains almost never (ten carries in a row: once in 2,000); here every class has
as many pairs as any other.

Suffixes, this file: N = pairs, K = places.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from assay.engines.addition.backend import Backend
from assay.engines.addition.data import LIMIT, Operands, Pairs
from assay.engines.addition.model import Parameters
from assay.engines.addition.prompt import NUM_DIGITS

CLASSES = 1 << NUM_DIGITS
SEARCH_ROUNDS, SEARCH_WIDTH = 3, 200
_POWERS = 10.0 ** np.arange(NUM_DIGITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """What was found.

    Attributes:
        pairs: Pairs tried, the search included.
        errors_by_class: Wrong pairs of each carry class, of `pairs_per_class` tried.
        pairs_per_class: Pairs of each class.
        counterexamples: Wrong pairs (a, b), first those of the classes, then those of the search.
    """

    pairs: int
    errors_by_class: tuple[int, ...]
    pairs_per_class: int
    counterexamples: tuple[tuple[int, int], ...]

    @property
    def broken_classes(self) -> int:
        """Carry classes with a counterexample."""
        return sum(errors > 0 for errors in self.errors_by_class)


def sample_class(
    generator: np.random.Generator, classes: NDArray[np.int64]
) -> tuple[Operands, Operands]:
    """One pair of each given carry class, digits uniform among those that give its carries."""
    carry = np.zeros(len(classes), dtype=np.int64)
    a, b = np.zeros(len(classes)), np.zeros(len(classes))
    for place in range(NUM_DIGITS):
        wanted = (classes >> place) & 1
        # All hundred digit pairs, and which of them give the wanted carry here.
        first, second = np.divmod(np.arange(100), 10)
        allowed = ((first + second + carry[:, None]) >= 10) == wanted[:, None]
        chosen = np.where(allowed, generator.random(allowed.shape), -1.0).argmax(1)
        a += first[chosen] * _POWERS[place]
        b += second[chosen] * _POWERS[place]
        carry = wanted
    return a, b


def carry_class(a: Operands, b: Operands) -> NDArray[np.int64]:
    """The carry class of each pair."""
    digits_a, digits_b = (np.floor(x[:, None] / _POWERS) % 10 for x in (a, b))
    carry = np.zeros(len(a), dtype=np.int64)
    found = np.zeros(len(a), dtype=np.int64)
    for place in range(NUM_DIGITS):
        carry = (digits_a[:, place] + digits_b[:, place] + carry >= 10).astype(np.int64)
        found |= carry << place
    return found


def chain_below(carries: int, place: int) -> int:
    """Length of the carry chain that arrives at a place: carries in a row just below it."""
    length = 0
    while place - 1 - length >= 0 and (carries >> (place - 1 - length)) & 1:
        length += 1
    return length


def attack(
    parameters: Parameters, backend: Backend, *, pairs_per_class: int = 100, seed: int = 0
) -> Attack:
    """Try every carry class, then search around what was found, and among extremes."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    classes = np.repeat(np.arange(CLASSES), pairs_per_class)
    a, b = sample_class(generator, classes)
    wrong = _is_wrong(parameters, backend, a, b)
    errors = np.bincount(classes[wrong], minlength=CLASSES)
    found = dict.fromkeys(_as_pairs(a[wrong], b[wrong]))
    tried = len(a)
    front = list(found)[:SEARCH_WIDTH]
    extremes = _extremes(generator)
    for round_ in range(SEARCH_ROUNDS):
        near = [_neighbours(front)] if front else []
        candidates = np.concatenate(
            [*near, extremes] if round_ == 0 else near or [np.empty((0, 2))]
        )
        if not len(candidates):
            break
        a, b = candidates.T.copy()
        wrong = _is_wrong(parameters, backend, a, b)
        tried += len(a)
        new = [pair for pair in _as_pairs(a[wrong], b[wrong]) if pair not in found]
        found |= dict.fromkeys(new)
        front = new[:SEARCH_WIDTH]
    return Attack(
        pairs=tried,
        errors_by_class=tuple(errors.tolist()),
        pairs_per_class=pairs_per_class,
        counterexamples=tuple(found),
    )


def _is_wrong(
    parameters: Parameters, backend: Backend, a: Operands, b: Operands
) -> NDArray[np.bool_]:
    pairs = Pairs(a=torch.from_numpy(a), b=torch.from_numpy(b))
    return (backend.judge(parameters, 0, pairs).wrong_N != 0).numpy()


def _as_pairs(a: Operands, b: Operands) -> list[tuple[int, int]]:
    return [(int(x), int(y)) for x, y in zip(a, b, strict=True)]


def _neighbours(pairs: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    """Every pair with one digit of one operand moved up or down by one."""
    base = np.array(pairs, dtype=np.float64)
    steps = np.concatenate((_POWERS, -_POWERS))
    moved = [base + np.array([step, 0.0]) for step in steps]
    moved += [base + np.array([0.0, step]) for step in steps]
    made = np.concatenate(moved)
    return made[((made >= 0) & (made < LIMIT)).all(1)]


def _extremes(generator: np.random.Generator) -> NDArray[np.float64]:
    """All pairs of repeated digits, and pairs made of 0, 1, 4, 5 and 9 of lengths that differ."""
    repeated = sorted({int(str(digit) * n) for digit in range(10) for n in range(1, 11)})
    grid = np.array([(a, b) for a in repeated for b in repeated], dtype=np.float64)
    digits = np.array([0, 0, 1, 4, 5, 9, 9, 9])
    drawn = digits[generator.integers(0, len(digits), size=(2, 20_000, NUM_DIGITS))]
    length = generator.integers(1, NUM_DIGITS + 1, size=(2, 20_000, 1))
    made = (drawn * _POWERS * (np.arange(NUM_DIGITS) < length)).sum(-1).T
    return np.concatenate((grid, made))
