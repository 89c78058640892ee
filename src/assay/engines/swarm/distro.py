"""DisTrO/DeMo updates: what a client sends of its gradient, and what all of them make together.

Source: Peng, Quesnelle, Kingma 2024 (DeMo); the fork's rules in specs/swarm.md §2. `RULES` names the
three ways that the engine knows; they share every function here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from assay.engines.swarm import fused
from assay.engines.swarm.codec import Grid, decode, encode, grid
from assay.engines.swarm.config import Apply, Mode, Shape
from assay.engines.swarm.fused import Part, Way
from assay.engines.swarm.matformer import Group, Layout, layout


@dataclass(frozen=True, slots=True)
class Rule:
    """How updates are made and applied.

    Attributes:
        lookahead: Whether the gradient is taken where the untransmitted update leads to.
        delay: Rounds from sending to applying.
        at_once: Whether a client forgets what it sent in the same round (else in the next).
        zeros: Whether all-zero chunks are sent; in one bit they are then read as +1.
        combine: "element": decode each peer, mean over those that sent something for the element;
            "coefficient": mean over the senders of a coefficient, then decode; "legacy":
            "coefficient" where all shapes are equal, else decoded, padded and divided by all.
    """

    lookahead: bool
    delay: int
    at_once: bool
    zeros: bool
    combine: Literal["element", "coefficient", "legacy"]


RULES: dict[Mode, Rule] = {
    "assay": Rule(lookahead=True, delay=2, at_once=False, zeros=False, combine="element"),
    "reference": Rule(lookahead=False, delay=0, at_once=True, zeros=True, combine="coefficient"),
    "legacy": Rule(lookahead=True, delay=2, at_once=False, zeros=True, combine="legacy"),
}


@dataclass(frozen=True, slots=True)
class Sent:
    """Coefficients of one group: places and values, each [chunks, k]; value 0 was not sent."""

    idx: Tensor
    val: Tensor


@lru_cache(maxsize=64)
def grids(shape: Shape, tier: int, chunk: int, top_k: int) -> tuple[Grid, ...]:
    """How every group of a tier is cut into chunks."""
    return tuple(
        grid(len(group.names), *group.shape, chunk, top_k) for group in layout(shape, tier).groups
    )


class Distro:
    """One client's optimizer: its untransmitted update, in one flat row.

    Attributes:
        delta: What was not transmitted yet.
        own: What the client sent last, unquantised, and has not yet forgotten.
    """

    def __init__(self, plan: Layout, cuts: Sequence[Grid], rule: Rule, decay: float) -> None:
        """For one tier."""
        self.plan, self.cuts, self.rule, self.decay = plan, tuple(cuts), rule, decay
        self.delta = torch.zeros(plan.size)
        self.own: list[Sent] | None = None

    def ahead(self, theta: Tensor, lr_before: float) -> Tensor:
        """Where the gradient is taken: theta itself, or a step along the untransmitted update."""
        if not self.rule.lookahead or lr_before == 0:
            return theta
        if fused.computes(theta, self.delta):
            return fused.signed_step(theta, self.delta, lr_before)
        return torch.add(theta, self.delta.sign(), alpha=-lr_before)

    def step(self, gradient: Tensor, lr: float) -> list[Sent]:
        """Add a gradient to the update, and take out the coefficients that are to be sent.

        Args:
            gradient: Flat row, at `ahead`.
            lr: Learning rate of this round.

        Returns:
            Unquantised coefficients of every group.
        """
        own: Sequence[Sent | None] = self.own or [None] * len(self.cuts)
        sent = [
            self._advance(group.view(self.delta), group.view(gradient), lr, cut, mine)
            for group, cut, mine in zip(self.plan.groups, self.cuts, own, strict=True)
        ]
        self.own = None if self.rule.at_once else sent
        return sent

    def _advance(
        self, delta: Tensor, gradient: Tensor, lr: float, cut: Grid, own: Sent | None
    ) -> Sent:
        """The same for one stack: forget, decay, add, choose."""
        at_once = self.rule.at_once
        if fused.computes(delta, gradient, cuts=(cut,)):
            pair = None if own is None else (own.idx, own.val)
            kept = fused.step(delta, gradient, pair, cut, decay=self.decay, lr=lr, at_once=at_once)
            return Sent(*kept)
        if own is not None:
            delta.sub_(decode(own.idx, own.val, cut))
        delta.mul_(self.decay).add_(gradient, alpha=lr)
        sent = Sent(*encode(delta, cut))
        if at_once:
            delta.sub_(decode(sent.idx, sent.val, cut))
        return sent


def combined(
    shape: Shape,
    tier: int,
    peers: Sequence[tuple[int, Sequence[Sent]]],
    rule: Rule,
    cut: tuple[int, int],
) -> Tensor:
    """The update that a client of a tier applies, out of what all peers sent; a flat row.

    Peers are summed tier by tier in the order given, so that every receiver adds the same numbers
    in the same order: replicas stay equal bit for bit, and so do the common parts of two tiers.

    Args:
        shape: Of the full model.
        tier: The receiver's.
        peers: Tier and received coefficients of each, in an order that all receivers share.
        rule: How they are combined.
        cut: Largest side of a chunk, and coefficients a chunk.
    """
    plan = layout(shape, tier)
    out = torch.empty(plan.size)
    for at, group in enumerate(plan.groups):
        parts = _parts(at, shape, peers, cut)
        _combine(parts, _way(rule, group, parts), [group.view(out)])
    return out


def apply_combined(
    thetas: Sequence[Tensor],
    shape: Shape,
    tier: int,
    peers: Sequence[tuple[int, Sequence[Sent]]],
    rule: Rule,
    cut: tuple[int, int],
    apply: Apply,
    lr: float,
) -> None:
    """Step along the update that clients of a tier get out of what all peers sent, in place.

    The update itself is not kept, so that memory is read and written once.

    Args:
        thetas: Parameters of the clients, flat rows.
        shape: Of the full model.
        tier: The receivers'.
        peers: As for `combined`.
        rule: How they are combined.
        cut: Largest side of a chunk, and coefficients a chunk.
        apply: Along the signs of the update, or the update itself.
        lr: Learning rate of the round.
    """
    for at, group in enumerate(layout(shape, tier).groups):
        parts = _parts(at, shape, peers, cut)
        way = replace(_way(rule, group, parts), sign=apply == "sign", lr=lr)
        _combine(parts, way, [group.view(theta) for theta in thetas])


def _parts(
    at: int, shape: Shape, peers: Sequence[tuple[int, Sequence[Sent]]], cut: tuple[int, int]
) -> list[Part]:
    """What all peers sent for a group, tier by tier."""
    parts = []
    for tier in sorted({theirs for theirs, _ in peers}):
        sent = [each[at] for theirs, each in peers if theirs == tier]
        idx = torch.cat([each.idx for each in sent], dim=1)
        val = torch.cat([each.val for each in sent], dim=1)
        parts.append(Part(idx, val, grids(shape, tier, *cut)[at], len(sent)))
    return parts


def _way(rule: Rule, group: Group, parts: Sequence[Part]) -> Way:
    """How a rule combines a group."""
    if rule.combine == "element":
        return Way(elements=True)
    if rule.combine == "coefficient" or group.sliced is None or len(parts) <= 1:
        return Way(mean=True)
    return Way(over=sum(part.peers for part in parts))


def _combine(parts: Sequence[Part], way: Way, stacks: Sequence[Tensor]) -> None:
    """As `fused.combine`, with or without it."""
    vals = [part.val for part in parts]
    if fused.computes(*vals, *stacks, cuts=[part.cut for part in parts]):
        fused.combine(parts, way, stacks)
        return
    total = torch.zeros(stacks[0].shape)
    count = torch.zeros(stacks[0].shape)
    for part in parts:
        val = part.val / _senders(part.idx, part.val) if way.mean else part.val
        decoded = decode(part.idx, val, part.cut)
        rows, columns = (min(x, y) for x, y in zip(decoded.shape[1:], total.shape[1:], strict=True))
        total[:, :rows, :columns] += decoded[:, :rows, :columns]
        if way.elements:
            count[:, :rows, :columns] += _contributors(part)[:, :rows, :columns]
    total.div_(count.clamp_(min=1) if way.elements else way.over)
    if way.sign:
        total.sign_()
    for stack in stacks:
        if way.lr is None:
            stack.copy_(total)
        else:
            stack.sub_(total, alpha=way.lr)


def _senders(idx_GK: Tensor, val_GK: Tensor) -> Tensor:
    """How many peers sent each coefficient; at least 1."""
    same = idx_GK[:, :, None] == idx_GK[:, None, :]
    return same.sum(dim=2).to(val_GK.dtype)


def _contributors(part: Part) -> Tensor:
    """How many peers sent something for the chunk of each element, [count, rows, columns]."""
    cut = part.cut
    live = (part.val.view(cut.chunks, part.peers, -1) != 0).any(dim=2).sum(dim=1)
    height, width = cut.rows // cut.a, cut.columns // cut.b
    tiles = live.view(cut.count, height, 1, width, 1).float()
    return tiles.expand(-1, -1, cut.a, -1, cut.b).reshape(cut.count, cut.rows, cut.columns)
