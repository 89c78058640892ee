"""One client: a replica of its tier, its optimizer, and one gradient a round."""

import hashlib

import torch
from torch import Tensor

from assay.engines.swarm.config import SwarmConfig
from assay.engines.swarm.distill import Targets, beta_at, distillation_loss, mixed, targets
from assay.engines.swarm.distro import RULES, Distro, Sent, grids
from assay.engines.swarm.matformer import layout
from assay.engines.swarm.model import Scaling, cross_entropy, logits, loss


class Client:
    """A replica of one tier.

    Attributes:
        tier: Its size.
        theta: Its parameters, a flat row.
        gradient: Of the last round, a flat row.
        train_loss: Of the last round, in nats, where the gradient was taken.
        given: What a full client sends to the small ones of its last round, if they are taught.
    """

    def __init__(self, config: SwarmConfig, tier: int, theta: Tensor) -> None:
        """Begin with given parameters of the tier."""
        self.config, self.tier = config, tier
        self.plan = layout(config.shape, tier)
        self.theta = theta.clone()
        self.gradient = torch.zeros_like(theta)
        self.train_loss = float("nan")
        self.given: Targets | None = None
        self.distro: Distro | None = None
        self.adamw: torch.optim.AdamW | None = None
        if config.mode == "local-adamw":
            self.adamw = torch.optim.AdamW(
                [self.theta], lr=config.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay
            )
        else:
            cuts = grids(config.shape, tier, config.chunk, config.top_k)
            self.distro = Distro(self.plan, cuts, RULES[config.mode], config.decay)

    def train(self, text_BT: Tensor, step: int, teacher: Targets | None = None) -> list[Sent]:
        """One round: a gradient, and the coefficients to send (none where nothing is exchanged)."""
        config = self.config
        lr = config.lr_at(step)
        if self.distro is None:
            return self._local(text_BT, lr, step)
        at = self.distro.ahead(self.theta, config.lr_at(step - 1))
        self._backward(at, text_BT, step, teacher)
        if config.weight_decay:
            self.theta.mul_(1 - lr * config.weight_decay)
        return self.distro.step(self.gradient, lr)

    def beta(self, step: int) -> float:
        """The weight of the teacher in a round."""
        config = self.config
        return beta_at(step, config.distill_start, config.distill_warmup, config.distill_beta)

    def held_out_loss(self, text_BT: Tensor, step: int) -> float:
        """Mean cross-entropy in nats of every predicted token."""
        scaling = self.scaling(step)
        with torch.no_grad():
            views = self.plan.views(self.theta)
            parts = [
                float(loss(views, self.config.shape, part, scaling)) * len(part)
                for part in text_BT.split(16)
            ]
        return sum(parts) / len(text_BT)

    def scaling(self, step: int) -> Scaling:
        """The factors of this tier's feed-forward blocks in a round."""
        config = self.config
        full, active = config.shape.ffn, config.shape.width(self.tier)
        core = config.shape.width(config.gate_tier)
        return Scaling(
            mlp=(full / active) ** config.width_power,
            residual=(active / full) ** config.residual_power,
            norm=(active / full) ** config.norm_power,
            core=core,
            suffix=config.suffix_factor(step) if active > core else 1.0,
        )

    def digest(self) -> str:
        """The sha256 of the parameters."""
        return hashlib.sha256(self.theta.numpy().tobytes()).hexdigest()

    def _backward(
        self, at: Tensor, text_BT: Tensor, step: int, teacher: Targets | None = None
    ) -> None:
        """The gradient at some parameters, clipped if the configuration says so."""
        # One gradient row for all tensors: autograd writes into its views.
        self.gradient.zero_()
        leaves = {
            name: view.detach().requires_grad_() for name, view in self.plan.views(at).items()
        }
        for leaf, grad in zip(
            leaves.values(), self.plan.views(self.gradient).values(), strict=True
        ):
            leaf.grad = grad
        scores = logits(leaves, self.config.shape, text_BT[:, :-1], self.scaling(step))
        value = cross_entropy(scores, text_BT)
        self.train_loss = float(value.detach())
        if self.config.distill_beta and self.tier == 0:
            self.given = targets(scores, self.config.distill_k, self.config.distill_temperature)
        if teacher is not None:
            divergence = distillation_loss(scores, teacher)
            value = mixed(value, divergence, self.beta(step), add=self.config.distill == "add")
        value.backward()
        if self.config.clip:
            norm = float(self.gradient.norm())
            if norm > self.config.clip:
                self.gradient.mul_(self.config.clip / norm)

    def _local(self, text_BT: Tensor, lr: float, step: int) -> list[Sent]:
        self._backward(self.theta, text_BT, step)
        if self.adamw is not None:
            self.adamw.param_groups[0]["lr"] = lr
            self.theta.grad = self.gradient
            self.adamw.step()
            self.theta.grad = None
        return []
