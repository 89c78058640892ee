"""One client: a replica of its tier, its optimizer, and one gradient a round."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from assay.engines.swarm.config import SwarmConfig
from assay.engines.swarm.distill import Targets, beta_at, distillation_loss, mixed, targets
from assay.engines.swarm.distro import RULES, Distro, Sent
from assay.engines.swarm.exchange import cuts, neurons, read, write
from assay.engines.swarm.matformer import (
    FEED_FORWARD,
    HELPERS,
    active,
    layout,
    put_helpers,
    slice_tier,
)
from assay.engines.swarm.model import Scaling, cross_entropy, logits, loss


@dataclass(frozen=True, slots=True)
class Order:
    """What a client is to do in a round.

    Attributes:
        step: Round, from 1.
        text_BT: Its sequences.
        teacher: The full client's most likely tokens of the same sequences, if it is to learn from them.
        leader: Number and payload of the member whose coefficients it is to send, if not its own.
    """

    step: int
    text_BT: Tensor
    teacher: Targets | None = None
    leader: tuple[int, bytes] | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """What a client did in a round.

    Attributes:
        payload: Empty if nothing is exchanged.
        loss: In nats, where the gradient was taken.
        given: To those that it teaches.
    """

    payload: bytes
    loss: float
    given: Targets | None = None


class Client:
    """A replica of one tier.

    Attributes:
        number: In the run.
        tier: Its size.
        stored: The tier of `theta`: 0 for a client with helper neurons, else its own.
        theta: Its parameters, a flat row.
        gradient: Of the last round, a flat row of what it computes with.
    """

    def __init__(self, config: SwarmConfig, number: int, theta: Tensor) -> None:
        """Begin with given parameters of the tier that it stores."""
        self.config, self.number = config, number
        self.tier, self.stored = config.tiers[number], config.stored(number)
        self.plan = layout(config.shape, self.tier, config.helpers(number))
        self.theta = theta.clone()
        self.gradient = torch.zeros(self.plan.size)
        self.distro: Distro | None = None
        self.adamw: torch.optim.AdamW | None = None
        # What helper neurons of other turns have not sent, where they lie in the full model.
        self.resting = torch.zeros_like(theta) if config.helpers(number) else None
        # The turn whose helper neurons the end of the update holds.
        self.turn = 0
        if config.mode == "local-adamw":
            self.adamw = torch.optim.AdamW(
                [self.theta], lr=config.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay
            )
        else:
            rule = RULES[config.mode]
            silent = frozenset() if config.shares_prefix(number) else FEED_FORWARD
            self.distro = Distro(self.plan, cuts(config, number), rule, config.decay, silent)

    @classmethod
    def empty(cls, config: SwarmConfig, number: int) -> "Client":
        """A client whose parameters are still to be restored."""
        size = layout(config.shape, config.stored(number)).size
        return cls(config, number, torch.zeros(size))

    def part(self, stored: int) -> Tensor:
        """Its parameters as a client that stores a narrower tier, or the same, needs them; a copy."""
        return slice_tier(self.theta, self.config.shape, stored, source=self.stored)

    def train(self, order: Order) -> Trained:
        """One round: a gradient, and the payload to send."""
        config, step = self.config, order.step
        lr = config.lr_at(step)
        if self.distro is None:
            return self._local(order, lr)
        turn = neurons(config, self.number, step)
        if turn is not None:
            self._turn(step)
        row = self.theta if turn is None else active(self.theta, config.shape, self.tier, turn)
        trained = self._backward(self.distro.ahead(row, config.lr_at(step - 1)), order)
        if config.weight_decay:
            self.theta.mul_(1 - lr * config.weight_decay)
        sent = self.distro.step(self.gradient, lr, self._places(order))
        return Trained(write(config, self.number, step, sent), *trained)

    def held_out_loss(self, text_BT: Tensor, step: int) -> float:
        """Mean cross-entropy in nats of every predicted token, of its own tier."""
        scaling, shape = scaling_of(self.config, self.tier, step), self.config.shape
        with torch.no_grad():
            views = layout(shape, self.tier).views(self.part(self.tier))
            parts = [
                float(loss(views, shape, part, scaling)) * len(part) for part in text_BT.split(16)
            ]
        return sum(parts) / len(text_BT)

    def first_layer(self) -> dict[str, np.ndarray]:
        """The last raw gradient of the first layer's feed-forward block."""
        views = self.plan.views(self.gradient)
        return {name: views[f"layers.0.{name}"].numpy() for name in ("gate", "up", "down")}

    def digest(self) -> str:
        """Sum and exclusive or of all words of the parameters: equal replicas have one digest.

        Not a cryptographic hash: it is taken in every round, at the speed of memory, and guards against
        faults, not against a liar.
        """
        words = self.theta.numpy().view(np.uint32)
        total = int(np.add.reduce(words, dtype=np.uint64))
        return f"{total:016x}{int(np.bitwise_xor.reduce(words)):08x}"

    def unsent(self) -> dict[str, np.ndarray]:
        """What a client keeps on its disk: the part of its update that it has not sent."""
        if self.distro is None:
            return {}
        kept = {"delta": self.distro.settled().numpy()}
        if self.resting is not None:
            kept |= {"resting": self.resting.numpy().copy(), "turn": np.array([self.turn])}
        return kept

    def state(self) -> dict[str, np.ndarray]:
        """All that its next round depends on."""
        found = {"theta": self.theta.numpy()}
        if self.distro is not None:
            found["delta"] = self.distro.delta.numpy()
            for at, part in enumerate(self.distro.own or ()):
                found[f"own.{at}.idx"], found[f"own.{at}.val"] = part.idx.numpy(), part.val.numpy()
        if self.resting is not None:
            found |= {"resting": self.resting.numpy(), "turn": np.array([self.turn])}
        if self.adamw is not None and self.adamw.state:
            state = self.adamw.state[self.theta]
            for name in ("step", "exp_avg", "exp_avg_sq"):
                found[f"adamw.{name}"] = state[name].numpy()
        return found

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` or `unsent` gave.

        Raises:
            ValueError: It is that of a client of other sizes, or holds what is no number; nothing was
                taken over.
        """
        rows = {"theta": self.theta, "resting": self.resting}
        if self.distro is not None:
            rows["delta"] = self.distro.delta
        for name, row in rows.items():
            if name in state and (row is None or not _fits(state[name], row)):
                raise ValueError(
                    f"{name} must be {None if row is None else row.numel()} finite numbers"
                )
        if self.distro is not None and "own.0.idx" in state:
            self.distro.own = [
                Sent(_tensor(state[f"own.{at}.idx"]), _tensor(state[f"own.{at}.val"]))
                for at in range(len(self.plan.groups))
            ]
        for name, row in rows.items():
            if row is not None and name in state:
                row.copy_(_tensor(state[name]))
        if "turn" in state:
            self.turn = int(state["turn"][0])
        if self.adamw is not None and "adamw.step" in state:
            self.adamw.state[self.theta] = {
                name: _tensor(state[f"adamw.{name}"]) for name in ("step", "exp_avg", "exp_avg_sq")
            }

    def _turn(self, step: int) -> None:
        """Where other helper neurons have their turn: change what is unsent of them."""
        distro, resting, config = self.distro, self.resting, self.config
        turn = (step - 1) // config.helper_interval
        if turn == self.turn or distro is None or resting is None:
            return
        before = neurons(config, self.number, 1 + self.turn * config.helper_interval)
        now = neurons(config, self.number, step)
        if before is None or now is None:
            return
        self.turn = turn
        distro.settle()
        put_helpers(resting, config.shape, self.tier, before, distro.delta)
        fresh = layout(config.shape, self.tier, now.shape[1])
        row = active(resting, config.shape, self.tier, now)
        for group in fresh.groups:
            if group.kind.endswith(HELPERS):
                group.view(distro.delta).copy_(group.view(row))

    def _places(self, order: Order) -> list[Tensor] | None:
        """Where the leader's coefficients lie in this client's chunks."""
        if order.leader is None:
            return None
        number, data = order.leader
        peer = read(self.config, number, order.step, data)
        found = []
        for sent, theirs, ours in zip(
            peer.sent, cuts(self.config, number), cuts(self.config, self.number), strict=True
        ):
            grid = sent.idx.view(theirs.count, theirs.rows // theirs.a, -1, theirs.k)
            part = grid[:, : ours.rows // ours.a, : ours.columns // ours.b]
            found.append(part.reshape(-1, ours.k))
        return found

    def _backward(self, at: Tensor, order: Order) -> tuple[float, Targets | None]:
        """The gradient at some parameters, clipped if so configured; the loss, and what is taught."""
        config, given = self.config, None
        # One gradient row for all tensors: autograd writes into its views.
        self.gradient.zero_()
        leaves = {
            name: view.detach().requires_grad_() for name, view in self.plan.views(at).items()
        }
        for leaf, grad in zip(
            leaves.values(), self.plan.views(self.gradient).values(), strict=True
        ):
            leaf.grad = grad
        weights = _with_helpers(leaves)
        scaling = scaling_of(config, self.tier, order.step, config.helpers(self.number))
        scores = logits(weights, config.shape, order.text_BT[:, :-1], scaling)
        value = cross_entropy(scores, order.text_BT)
        told = float(value.detach())
        if config.distill_beta and self.tier == 0:
            given = targets(scores, config.distill_k, config.distill_temperature)
        if order.teacher is not None:
            divergence = distillation_loss(scores, order.teacher)
            value = mixed(value, divergence, beta(config, order.step), add=config.distill == "add")
        value.backward()
        if config.clip:
            norm = float(self.gradient.norm())
            if norm > config.clip:
                self.gradient.mul_(config.clip / norm)
        return told, given

    def _local(self, order: Order, lr: float) -> Trained:
        told, _ = self._backward(self.theta, order)
        if self.adamw is not None:
            self.adamw.param_groups[0]["lr"] = lr
            self.theta.grad = self.gradient
            self.adamw.step()
            self.theta.grad = None
        return Trained(b"", told)


def scaling_of(config: SwarmConfig, tier: int, step: int, helpers: int = 0) -> Scaling:
    """The factors of a tier's feed-forward blocks in a round, with so many helper neurons."""
    full, width = config.shape.ffn, config.shape.width(tier) + helpers
    core = config.shape.width(config.gate_tier)
    gated = tier < config.gate_tier or (tier == config.gate_tier and helpers > 0)
    return Scaling(
        mlp=(full / width) ** config.width_power,
        residual=(width / full) ** config.residual_power,
        norm=(width / full) ** config.norm_power,
        core=core if gated else width,
        suffix=config.suffix_factor(step) if gated else 1.0,
        tier=tier,
    )


def beta(config: SwarmConfig, step: int) -> float:
    """The weight of the teacher in a round."""
    return beta_at(step, config.distill_start, config.distill_warmup, config.distill_beta)


def _with_helpers(leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Feed-forward tensors with their helper neurons behind their own."""
    found = {name: each for name, each in leaves.items() if not name.endswith(".helpers")}
    for name, extra in leaves.items():
        if name.endswith(".helpers"):
            own = name.removesuffix(".helpers")
            found[own] = torch.cat([found[own], extra], dim=1 if own.endswith("down") else 0)
    return found


def _fits(array: np.ndarray, row: Tensor) -> bool:
    return array.dtype == np.float32 and array.shape == row.shape and bool(np.isfinite(array).all())


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))
