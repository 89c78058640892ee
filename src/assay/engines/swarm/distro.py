"""DisTrO/DeMo updates: what a client sends of its gradient, and what all of them make together.

Source: Peng, Quesnelle, Kingma 2024 (DeMo); the fork's rules in specs/swarm.md §2. `RULES` names the
three ways that the engine knows; they share every function here.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import torch
from torch import Tensor

from assay.engines.swarm.codec import Grid, decode, encode, encode_at, grid
from assay.engines.swarm.config import Apply, Cut, Mode, Shape
from assay.engines.swarm.matformer import HELPERS, Group, Layout, helper_places, layout


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


@dataclass(frozen=True, slots=True)
class Peer:
    """What one client sent in a round.

    Attributes:
        tier: Its tier.
        sent: Coefficients of every group.
        neurons_LN: Its helper neurons of every layer, none for most.
    """

    tier: int
    sent: Sequence[Sent]
    neurons_LN: Tensor | None = None

    @property
    def helpers(self) -> int:
        """Helper neurons of a block."""
        return 0 if self.neurons_LN is None else self.neurons_LN.shape[1]


@lru_cache(maxsize=64)
def grids(shape: Shape, tier: int, cut: Cut, helpers: int = 0) -> tuple[Grid, ...]:
    """How every group of a tier is cut into chunks."""
    found = []
    for group in layout(shape, tier, helpers).groups:
        rows, columns = cut.chunk, cut.chunk
        if group.kind.startswith("wide"):
            rows = cut.neurons
        elif group.kind.startswith("narrow"):
            columns = cut.neurons
        found.append(grid(len(group.names), *group.shape, (rows, columns), cut.top_k))
    return tuple(found)


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

    def step(
        self, gradient: Tensor, lr: float, places: Sequence[Tensor] | None = None
    ) -> list[Sent]:
        """Add a gradient to the update, and take out the coefficients that are to be sent.

        Args:
            gradient: Flat row, at `ahead`.
            lr: Learning rate of this round.
            places: Where to take them, for every group; None takes the largest.

        Returns:
            Unquantised coefficients of every group.
        """
        self.settle()
        self.delta.mul_(self.decay).add_(gradient, alpha=lr)
        stacks = [group.view(self.delta) for group in self.plan.groups]
        if places is None:
            sent = [Sent(*encode(each, cut)) for each, cut in zip(stacks, self.cuts, strict=True)]
        else:
            sent = [
                Sent(idx, encode_at(each, idx, cut))
                for each, idx, cut in zip(stacks, places, self.cuts, strict=True)
            ]
        self.own = sent
        if self.rule.at_once:
            self.settle()
        return sent

    def settle(self) -> None:
        """Forget what was sent last."""
        if self.own is not None:
            self._take_out(self.delta, self.own)
            self.own = None

    def settled(self) -> Tensor:
        """The update without what was sent last; the client itself is left as it is. A new row."""
        kept = self.delta.clone()
        if self.own is not None:
            self._take_out(kept, self.own)
        return kept

    def _take_out(self, row: Tensor, sent: Sequence[Sent]) -> None:
        for group, cut, part in zip(self.plan.groups, self.cuts, sent, strict=True):
            group.view(row).sub_(decode(part.idx, part.val, cut))


def combined(shape: Shape, tier: int, peers: Sequence[Peer], rule: Rule, cut: Cut) -> Tensor:
    """The update that a client of a tier applies, out of what all peers sent; a flat row.

    Peers are summed tier by tier in the order given, so that every receiver adds the same numbers
    in the same order: replicas stay equal bit for bit, and so do the common parts of two tiers.

    Args:
        shape: Of the full model.
        tier: The tier that the receiver stores.
        peers: What was received, in an order that all receivers share.
        rule: How they are combined.
        cut: Of the tensors.
    """
    plan, full = layout(shape, tier), layout(shape, 0)
    out = torch.zeros(plan.size)
    kinds = sorted({(peer.tier, peer.helpers) for peer in peers})
    counts = rule.combine == "element"
    for at, group in enumerate(plan.groups):
        total = group.view(out)
        uniform = group.sliced is None or len(kinds) <= 1
        senders = rule.combine == "coefficient" or (rule.combine == "legacy" and uniform)
        count = torch.zeros_like(total)
        for kind in kinds:
            same = [peer for peer in peers if (peer.tier, peer.helpers) == kind]
            for decoded, live in _parts(shape, same, full.groups[at], cut, senders=senders):
                rows, columns = (
                    min(x, y) for x, y in zip(decoded.shape[1:], group.shape, strict=True)
                )
                total[:, :rows, :columns] += decoded[:, :rows, :columns]
                if counts:
                    count[:, :rows, :columns] += live()[:, :rows, :columns]
        if counts:
            total.div_(count.clamp_(min=1))
        elif not senders and peers:
            total.div_(len(peers))
    return out


def _parts(
    shape: Shape, same: Sequence[Peer], group: Group, cut: Cut, *, senders: bool
) -> Iterator[tuple[Tensor, Callable[[], Tensor]]]:
    """What clients of one tier sent of a group: decoded sums, and how many sent something for each.

    First that of their own neurons, then, spread over the full width, that of their helpers.
    """
    tier, helpers, neurons = same[0].tier, same[0].helpers, same[0].neurons_LN
    groups, pieces = layout(shape, tier, helpers).groups, grids(shape, tier, cut, helpers)
    for at, (theirs, piece) in enumerate(zip(groups, pieces, strict=True)):
        if theirs.kind.removesuffix(HELPERS) != group.kind:
            continue
        sent = [peer.sent[at] for peer in same]
        idx = torch.cat([each.idx for each in sent], dim=1)
        val = torch.cat([each.val for each in sent], dim=1)
        decoded = decode(idx, val / _senders(idx, val) if senders else val, piece)
        if theirs.kind == group.kind or neurons is None:
            yield decoded, partial(_contributors, sent, piece)
        else:
            axis, index = helper_places(group, neurons)
            whole = decoded.new_zeros(len(group.names), *group.shape)
            live = _contributors(sent, piece)
            yield whole.scatter(axis, index, decoded), partial(whole.scatter, axis, index, live)


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
