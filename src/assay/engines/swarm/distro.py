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

from assay.engines.swarm import fused
from assay.engines.swarm.codec import Grid, decode, encode, encode_at, grid
from assay.engines.swarm.config import Cut, Mode, Shape
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
    def kind(self) -> tuple[int, int]:
        """Tier, and helper neurons of a block: clients of one kind send the same shapes."""
        return self.tier, 0 if self.neurons_LN is None else self.neurons_LN.shape[1]


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

    def __init__(
        self,
        plan: Layout,
        cuts: Sequence[Grid],
        rule: Rule,
        decay: float,
        silent: frozenset[str] = frozenset(),
    ) -> None:
        """For one tier; nothing is sent of the silent kinds of tensors."""
        self.plan, self.cuts, self.rule, self.decay = plan, tuple(cuts), rule, decay
        self.silent = silent
        self.delta = torch.zeros(plan.size)
        self.own: list[Sent] | None = None

    def ahead(self, theta: Tensor, lr_before: float) -> Tensor:
        """Where the gradient is taken: theta itself, or a step along the untransmitted update."""
        if not self.rule.lookahead or lr_before == 0:
            return theta
        if fused.computes(theta, self.delta):
            return fused.signed_step(theta, self.delta, lr_before)
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
        own: Sequence[Sent | None] = self.own or [None] * len(self.cuts)
        where: Sequence[Tensor | None] = places or [None] * len(self.cuts)
        sent = [
            self._keep(group.view(self.delta), group.view(gradient), lr, cut)
            if group.kind in self.silent
            else self._advance(group.view(self.delta), group.view(gradient), lr, cut, mine, at)
            for group, cut, mine, at in zip(self.plan.groups, self.cuts, own, where, strict=True)
        ]
        self.own = None if self.rule.at_once else sent
        return sent

    def _keep(self, delta: Tensor, gradient: Tensor, lr: float, cut: Grid) -> Sent:
        """The same for one stack of which nothing is sent."""
        delta.mul_(self.decay).add_(gradient, alpha=lr)
        idx = torch.arange(cut.k).repeat(cut.chunks, 1)
        return Sent(idx, torch.zeros(cut.chunks, cut.k))

    def _advance(
        self,
        delta: Tensor,
        gradient: Tensor,
        lr: float,
        cut: Grid,
        own: Sent | None,
        at: Tensor | None,
    ) -> Sent:
        """The same for one stack: forget, decay, add, choose (or take what is at given places)."""
        at_once = self.rule.at_once
        if at is None and fused.computes(delta, gradient, cuts=(cut,)):
            pair = None if own is None else (own.idx, own.val)
            kept = fused.step(delta, gradient, pair, cut, decay=self.decay, lr=lr, at_once=at_once)
            return Sent(*kept)
        if own is not None:
            delta.sub_(decode(own.idx, own.val, cut))
        delta.mul_(self.decay).add_(gradient, alpha=lr)
        sent = Sent(*encode(delta, cut)) if at is None else Sent(at, encode_at(delta, at, cut))
        if at_once:
            delta.sub_(decode(sent.idx, sent.val, cut))
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
