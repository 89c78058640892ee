"""The nested model's tensors: which are sliced for a tier, and in what order they lie in memory.

A client of tier t holds the first w_t = FFN / 2^t rows of `gate` and `up` and the first w_t columns
of `down`; everything else is whole (Devvrit et al. 2023, MatFormer; specs/swarm.md §1).
"""

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from assay.engines.swarm.config import MOST_TIER, Shape

Kind = str
"""Tensors of one kind have one shape and lie together: embedding, attention, wide, narrow, norm, gate
(one number each), and the helper neurons of wide and narrow."""
HELPERS = " helpers"
FEED_FORWARD = frozenset({"wide", "narrow", "wide helpers", "narrow helpers"})
SUFFIX_LOGIT = 6.0
MULTIPLIER = 6364136223846793005
"""Of the congruential generator that draws helper neurons (specs/swarm.md §1)."""


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

    def of_kind(self, kind: Kind) -> Group:
        """The group of a kind."""
        return next(group for group in self.groups if group.kind == kind)

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
def layout(shape: Shape, tier: int, helpers: int = 0) -> Layout:
    """The tensors of a tier: same groups in the same order in every tier; helper neurons come last.

    Args:
        shape: Of the full model.
        tier: 0 is the full width.
        helpers: Neurons of the suffix that a block has besides.
    """
    width, hidden, layers = shape.width(tier), shape.hidden, range(shape.layers)
    kinds: list[tuple[Kind, tuple[str, ...], tuple[int, int], int | None]] = [
        ("embedding", ("embedding", "head"), (shape.vocab, hidden), None),
        ("attention", tuple(f"layers.{i}.{n}" for i in layers for n in ("q", "k", "v", "o")), (hidden, hidden), None),
        ("wide", tuple(f"layers.{i}.{n}" for i in layers for n in ("gate", "up")), (width, hidden), 0),
        ("narrow", tuple(f"layers.{i}.down" for i in layers), (hidden, width), 1),
        ("norm", (*(f"layers.{i}.{n}" for i in layers for n in ("norm1", "norm2")), "norm"), (1, hidden), None),
    ]  # fmt: skip
    gates = [
        *(f"layers.{i}.tier_gate.{t}" for i in layers for t in range(MOST_TIER + 1) if shape.tier_gates),
        *(f"layers.{i}.suffix_logit" for i in layers if shape.suffix_logits),
    ]  # fmt: skip
    if gates:
        kinds.append(("gate", tuple(gates), (1, 1), None))
    if helpers:
        for kind, names, (rows, columns), sliced in kinds[2:4]:
            size = (helpers, columns) if sliced == 0 else (rows, helpers)
            kinds.append((kind + HELPERS, tuple(f"{n}.helpers" for n in names), size, None))
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


@lru_cache(maxsize=64)
def chosen(shape: Shape, tier: int, helpers: int, epoch: int) -> Tensor:
    """The helper neurons of every layer in an epoch, [layers, helpers], each row in order.

    Who knows the numbers of tier, neurons and epoch knows the neurons: they are not sent. Drawn
    without replacement from those behind the tier's own by a congruential generator (specs/swarm.md
    §1), seeded with the epoch and the layer.
    """
    own, rows = shape.width(tier), []
    for layer in range(shape.layers):
        seed = hashlib.sha256(f"helpers {epoch} {layer}".encode()).digest()
        state, found = int.from_bytes(seed[:8], "little"), set[int]()
        while len(found) < helpers:
            state = (state * MULTIPLIER + 1) % 2**64
            # The high half: the low bits of such a generator repeat soon.
            found.add(own + ((state >> 32) * (shape.ffn - own) >> 32))
        rows.append(sorted(found))
    return torch.tensor(rows, dtype=torch.int64).view(shape.layers, helpers)


def helper_places(group: Group, neurons_LN: Tensor) -> tuple[int, Tensor]:
    """Axis and index with which `gather` and `scatter` reach helper neurons in a full-width stack.

    Args:
        group: Of the full model, sliced by tiers.
        neurons_LN: Neurons of every layer.
    """
    of_tensor = neurons_LN.repeat_interleave(len(group.names) // len(neurons_LN), dim=0)
    if group.sliced == 0:
        return 1, of_tensor[:, :, None].expand(-1, -1, group.shape[1])
    return 2, of_tensor[:, None, :].expand(-1, group.shape[0], -1)


def active(flat: Tensor, shape: Shape, tier: int, neurons_LN: Tensor) -> Tensor:
    """What a client with helper neurons computes with, out of a full row: a new flat row.

    Args:
        flat: Of the full model.
        shape: Sizes of it.
        tier: The client's.
        neurons_LN: Its helper neurons.
    """
    full, ours = layout(shape, 0), layout(shape, tier, neurons_LN.shape[1])
    out = flat.new_empty(ours.size)
    for group in ours.groups:
        source = full.of_kind(group.kind.removesuffix(HELPERS))
        if group.kind.endswith(HELPERS):
            axis, index = helper_places(source, neurons_LN)
            group.view(out).copy_(source.view(flat).gather(axis, index))
        else:
            group.view(out).copy_(prefix(source, source.view(flat), shape.width(tier)))
    return out


def put_helpers(flat: Tensor, shape: Shape, tier: int, neurons_LN: Tensor, row: Tensor) -> None:
    """Write the helper neurons of an active row back into a full one.

    Args:
        flat: Of the full model; written to.
        shape: Sizes of it.
        tier: The client's.
        neurons_LN: Its helper neurons.
        row: As `active` gives it.
    """
    full, ours = layout(shape, 0), layout(shape, tier, neurons_LN.shape[1])
    for group in ours.groups:
        if group.kind.endswith(HELPERS):
            source = full.of_kind(group.kind.removesuffix(HELPERS))
            axis, index = helper_places(source, neurons_LN)
            source.view(flat).scatter_(axis, index, group.view(row))


def initial(shape: Shape, generator: torch.Generator) -> Tensor:
    """The full model's parameters at the start: N(0, 0.02), gains 1; a flat row of float32."""
    full = layout(shape, 0)
    flat = torch.empty(full.size)
    for group in full.groups:
        stack = group.view(flat)
        if group.kind == "norm":
            stack.fill_(1.0)
        elif group.kind == "gate":
            stack.zero_()
            for name, gate in zip(group.names, stack, strict=True):
                gate.fill_(SUFFIX_LOGIT if name.endswith("suffix_logit") else 0.0)
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
