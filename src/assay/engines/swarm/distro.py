"""DisTrO/DeMo updates: what a client sends of its gradient, and what all of them make together.

Source: Peng, Quesnelle, Kingma 2024 (DeMo); the fork's rules in specs/swarm.md §2. `RULES` names the
three ways that the engine knows; they share every function here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from assay.engines.swarm.codec import Grid, decode, encode, grid
from assay.engines.swarm.config import Apply, Mode, Shape
from assay.engines.swarm.matformer import Layout, layout


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
        return torch.add(theta, self.delta.sign(), alpha=-lr_before)

    def step(self, gradient: Tensor, lr: float) -> list[Sent]:
        """Add a gradient to the update, and take out the coefficients that are to be sent.

        Args:
            gradient: Flat row, at `ahead`.
            lr: Learning rate of this round.

        Returns:
            Unquantised coefficients of every group.
        """
        if self.own is not None:
            self._forget(self.own)
        self.delta.mul_(self.decay).add_(gradient, alpha=lr)
        self.own = [
            Sent(*encode(group.view(self.delta), cut))
            for group, cut in zip(self.plan.groups, self.cuts, strict=True)
        ]
        sent = self.own
        if self.rule.at_once:
            self._forget(sent)
            self.own = None
        return sent

    def _forget(self, sent: Sequence[Sent]) -> None:
        for group, cut, part in zip(self.plan.groups, self.cuts, sent, strict=True):
            group.view(self.delta).sub_(decode(part.idx, part.val, cut))


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
    out = torch.zeros(plan.size)
    tiers = sorted({theirs for theirs, _ in peers})
    for at, group in enumerate(plan.groups):
        total = group.view(out)
        uniform = group.sliced is None or len(tiers) <= 1
        senders = rule.combine == "coefficient" or (rule.combine == "legacy" and uniform)
        count = torch.zeros(group.shape) if rule.combine == "element" else None
        for theirs in tiers:
            sent = [each[at] for other, each in peers if other == theirs]
            piece = grids(shape, theirs, *cut)[at]
            idx = torch.cat([each.idx for each in sent], dim=1)
            val = torch.cat([each.val for each in sent], dim=1)
            if senders:
                val = val / _senders(idx, val)
            decoded = decode(idx, val, piece)
            rows, columns = (min(x, y) for x, y in zip(decoded.shape[1:], group.shape, strict=True))
            total[:, :rows, :columns] += decoded[:, :rows, :columns]
            if count is not None:
                count = count.expand_as(total).contiguous() if count.dim() == 2 else count
                count[:, :rows, :columns] += _contributors(sent, piece)[:, :rows, :columns]
        if count is not None:
            total.div_(count.clamp_(min=1))
        elif not senders and peers:
            total.div_(len(peers))
    return out


def _senders(idx_GK: Tensor, val_GK: Tensor) -> Tensor:
    """How many peers sent each coefficient; at least 1."""
    same = idx_GK[:, :, None] == idx_GK[:, None, :]
    return same.sum(dim=2).to(val_GK.dtype)


def _contributors(sent: Sequence[Sent], cut: Grid) -> Tensor:
    """How many peers sent something for the chunk of each element, [count, rows, columns]."""
    live = torch.stack([(each.val != 0).any(dim=1) for each in sent]).sum(dim=0)
    height, width = cut.rows // cut.a, cut.columns // cut.b
    tiles = live.view(cut.count, height, 1, width, 1).float()
    return tiles.expand(-1, -1, cut.a, -1, cut.b).reshape(cut.count, cut.rows, cut.columns)


def applied(update: Tensor, apply: Apply) -> Tensor:
    """The direction of the step: signs of an update, or the update itself."""
    return update.sign() if apply == "sign" else update
