"""How a pair of operands becomes tokens: the prompt formats of the public models. No torch here.

Every format is a list of input positions. Each holds either a constant token, or one that a digit
decides: a *cell* is a (position, token) pair that can occur, and keys, values and queries depend
on the cell alone.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Literal

NUM_DIGITS = 10
"""Digits of an operand; the sum has one more."""

Prompt = Literal["msd", "lsd", "zeros", "pairs"]


class Kind(IntEnum):
    """What decides the token of a position."""

    CONSTANT = 0
    A = 1
    """A digit of a."""
    B = 2
    """A digit of b."""
    SUM = 3
    """A digit of a + b."""
    PAIR = 4
    """10 times a digit of a, plus the same digit of b."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """One input position.

    Attributes:
        kind: What decides its token.
        place: Of the digit, 0 for units; unused for a constant.
        first: The token of value 0; the token of value v is `first + v`.
    """

    kind: Kind
    place: int = 0
    first: int = 0

    @property
    def count(self) -> int:
        """How many different tokens can stand here."""
        return {Kind.CONSTANT: 1, Kind.PAIR: 100}.get(self.kind, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A prompt format.

    Attributes:
        vocabulary: Number of tokens; digit d is token d.
        positions: Input positions in order; those of the last `num_rows` are supervised.
        num_rows: Supervised positions: they predict the 11 sum digits, units first, and then
            `end` where the format has one.
        end: Token after the last digit; -1 where there is none.
    """

    vocabulary: int
    positions: tuple[Position, ...]
    num_rows: int
    end: int = -1

    @property
    def first_row(self) -> int:
        """The first supervised position."""
        return len(self.positions) - self.num_rows

    @property
    def prompt_length(self) -> int:
        """Positions before the first sum digit."""
        return self.first_row + 1


def _digits(kind: Kind, places: range) -> list[Position]:
    return [Position(kind=kind, place=place) for place in places]


def _token(token: int) -> Position:
    return Position(kind=Kind.CONSTANT, first=token)


@cache
def format_of(prompt: Prompt) -> Format:
    """The positions and tokens of a prompt.

    msd: `a + b =` and the sum; operands highest digit first, 14 tokens (yinglunz). lsd: the same
    with units first. zeros: digits only, `0 a 0 0 b 0`, units first, 10 tokens (the 36-parameter
    record). pairs: one token for each pair of digits, units first, 114 tokens (sytelus, 1,644).
    """
    down, up = range(NUM_DIGITS - 1, -1, -1), range(NUM_DIGITS)
    answer = _digits(Kind.SUM, range(NUM_DIGITS + 1))
    if prompt in ("msd", "lsd"):
        order = down if prompt == "msd" else up
        plus, equals, end = 10, 11, 13
        positions = [
            *_digits(Kind.A, order),
            _token(plus),
            *_digits(Kind.B, order),
            _token(equals),
            *answer,
        ]
        return Format(vocabulary=14, positions=tuple(positions), num_rows=12, end=end)
    if prompt == "zeros":
        zero = _token(0)
        positions = [zero, *_digits(Kind.A, up), zero, zero, *_digits(Kind.B, up), zero]
        return Format(vocabulary=10, positions=(*positions, *answer[:-1]), num_rows=11)
    equals, begin, end = 110, 111, 112
    pairs = [Position(kind=Kind.PAIR, place=place, first=10) for place in up]
    return Format(
        vocabulary=114,
        positions=(_token(begin), *pairs, _token(equals), *answer),
        num_rows=12,
        end=end,
    )
