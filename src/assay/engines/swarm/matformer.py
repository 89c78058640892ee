"""The nested model's tensors: which are sliced for a tier, and in what order they lie in memory.

A client of tier t holds the first w_t = FFN / 2^t rows of `gate` and `up` and the first w_t columns
of `down`; everything else is whole (Devvrit et al. 2023, MatFormer; specs/swarm.md §1).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from assay.engines.swarm.config import Shape

Kind = str
"""Tensors of one kind have one shape and lie together: embedding, attention, wide, narrow, norm."""


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors of equal shape, stacked: `count` of them as [count, rows, columns].

    Attributes:
        kind: What they are.
        names: Their names in the order of the stack.
        shape: Rows and columns of one; a vector is one row.
        start: Where the stack begins in the flat row of all parameters.
        sliced: Which axis a tier slices: 0 rows, 1 columns, None neither.
    """

    kind: Kind
    names: tuple[str, ...]
    shape: tuple[int, int]
    start: int
    sliced: int | None

    @property
    def size(self) -> int:
        """Numbers of the whole stack."""
        return len(self.names) * self.shape[0] * self.shape[1]

    def view(self, flat: Tensor) -> Tensor:
        """The stack [count, rows, columns] in a flat row of parameters; shares its memory."""
        return flat[self.start : self.start + self.size].view(len(self.names), *self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """All tensors of one tier, in one flat row."""

    groups: tuple[Group, ...]
    tier: int

    @property
    def size(self) -> int:
        """Parameters of the tier."""
        last = self.groups[-1]
        return last.start + last.size

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Name → tensor of every parameter; a norm's gain is a vector. Shares the row's memory."""
        found = {}
        for group in self.groups:
            for name, tensor in zip(group.names, group.view(flat), strict=True):
                found[name] = tensor[0] if group.kind == "norm" else tensor
        return found


@lru_cache(maxsize=64)
def layout(shape: Shape, tier: int) -> Layout:
    """The tensors of a tier: same groups in the same order in every tier.

    Args:
        shape: Of the full model.
        tier: 0 is the full width.
    """
    width, hidden, layers = shape.width(tier), shape.hidden, range(shape.layers)
    kinds: list[tuple[Kind, tuple[str, ...], tuple[int, int], int | None]] = [
        ("embedding", ("embedding", "head"), (shape.vocab, hidden), None),
        ("attention", tuple(f"layers.{i}.{n}" for i in layers for n in ("q", "k", "v", "o")), (hidden, hidden), None),
        ("wide", tuple(f"layers.{i}.{n}" for i in layers for n in ("gate", "up")), (width, hidden), 0),
        ("narrow", tuple(f"layers.{i}.down" for i in layers), (hidden, width), 1),
        ("norm", (*(f"layers.{i}.{n}" for i in layers for n in ("norm1", "norm2")), "norm"), (1, hidden), None),
    ]  # fmt: skip
    groups, start = [], 0
    for kind, names, size, sliced in kinds:
        groups.append(Group(kind, names, size, start, sliced))
        start += groups[-1].size
    return Layout(tuple(groups), tier)


def prefix(group: Group, stack: Tensor, width: int) -> Tensor:
    """The part of a full-width stack [count, rows, columns] that a narrower tier holds."""
    if group.sliced is None:
        return stack
    return stack[:, :width] if group.sliced == 0 else stack[:, :, :width]


def slice_tier(flat: Tensor, shape: Shape, tier: int, *, source: int = 0) -> Tensor:
    """The parameters of a tier, out of those of a wider one; a new flat row.

    Args:
        flat: Parameters of tier `source`.
        shape: Of the full model.
        tier: At least `source`.
        source: The tier that `flat` holds.
    """
    if tier < source:
        raise ValueError(f"A slice must not be wider than its source; tier {tier} of tier {source}")
    wide, narrow = layout(shape, source), layout(shape, tier)
    out = flat.new_empty(narrow.size)
    for theirs, ours in zip(wide.groups, narrow.groups, strict=True):
        ours.view(out).copy_(prefix(theirs, theirs.view(flat), shape.width(tier)))
    return out


def initial(shape: Shape, generator: torch.Generator) -> Tensor:
    """The full model's parameters at the start: N(0, 0.02), gains 1; a flat row of float32."""
    full = layout(shape, 0)
    flat = torch.empty(full.size)
    for group in full.groups:
        stack = group.view(flat)
        if group.kind == "norm":
            stack.fill_(1.0)
        else:
            stack.normal_(0.0, 0.02, generator=generator)
    return flat


def parameters(shape: Shape, tier: int = 0) -> int:
    """How many parameters a tier has."""
    return layout(shape, tier).size


def tier_of(shape: Shape, width: int) -> int:
    """The tier of a feed-forward width: log2(full / width).

    Raises:
        ValueError: The width is no full width halved some times.
    """
    tier = round(math.log2(shape.ffn / width)) if width > 0 else -1
    if tier < 0 or shape.ffn != width * 2**tier:
        raise ValueError(f"A tier's width must be {shape.ffn} halved some times; got {width}")
    return tier
