"""Estimators that learn from a layer's neighbour or from the labels at each layer."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from assay.core.errors import ConfigError
from assay.engines.credit.estimators.base import Estimator, Setting
from assay.engines.credit.estimators.mlp import Learner, Mlp, mean_square
from assay.engines.credit.firewall import Derivative, View
from assay.engines.credit.net import Trajectory
from assay.engines.credit.optim import Optimizer


class SyntheticGradient(Estimator):
    """DNI (Jaderberg et al. 2017): each layer's credit learned from the next layer's, one block back.

    Declares that it differentiates one block in reverse; the last block's target is exact.
    """

    derivatives: ClassVar[frozenset[Derivative]] = frozenset({"block-vjp"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.learner = Learner(setting, setting.shape.width)
        self.times = [i / setting.shape.depth for i in range(setting.shape.depth)]

    def fit_step(self, trajectory: Trajectory, view: View) -> dict[str, Tensor]:
        """One update toward the next layer's credit, through its block."""
        self.learner.observe(trajectory)
        credit = torch.cat([self.credit(trajectory, view), trajectory.last_SBD.unsqueeze(1)], 1)
        aims = [
            view.block_vjp(i, trajectory.h_SLBD[:, i], credit[:, i + 1])
            for i in range(view.shape.depth)
        ]
        aim = torch.stack(aims, 1).flatten(1, 2) / self.learner.unit
        inputs = self.learner.inputs(trajectory.h_SLBD[:, :-1], self.times, trajectory)
        size_S = mean_square(aim).clamp_min(1e-30)

        def loss(mlp: Mlp) -> Tensor:
            return mean_square(mlp(inputs)[0] - aim) / size_S

        return {"fit": self.learner.learn(loss, self.pace)}

    def credit(self, trajectory: Trajectory, view: View) -> Tensor:
        """The net's output."""
        h = trajectory.h_SLBD[:, :-1]
        out, _ = self.learner.mlp(self.learner.inputs(h, self.times, trajectory))
        return (out * self.learner.unit).view_as(h)

    def state(self) -> dict[str, Tensor]:
        """The net."""
        return self.learner.state()


class LocalLoss(Estimator):
    """A linear classifier at each layer, whose loss is that layer's (Nøkland & Eidnes 2019, "pred")."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        shape = setting.shape
        if shape.loss != "cross-entropy":
            raise ConfigError("method local-loss needs labels; this task has none. Choose another.")
        size = (shape.depth, shape.width, shape.classes)
        self.heads = {
            "weight": setting.randn(*size) / shape.width**0.5,
            "bias": torch.zeros(len(setting.configs), shape.depth, 1, shape.classes),
        }
        self.optimizer = Optimizer(self.heads)
        self.lr_S = setting.each("est_lr")

    def _errors(self, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        h = trajectory.h_SLBD[:, :-1]
        logits = torch.matmul(h, self.heads["weight"]) + self.heads["bias"]
        classes = logits.shape[-1]
        hot = functional.one_hot(trajectory.y, classes).unsqueeze(1)
        loss = -(logits.log_softmax(-1) * hot).sum(-1)
        return logits.softmax(-1) - hot, loss

    def fit_step(self, trajectory: Trajectory, view: View) -> dict[str, Tensor]:
        """One update of the classifiers."""
        error, loss = self._errors(trajectory)
        h, samples = trajectory.h_SLBD[:, :-1], error.shape[2]
        gradients = {
            "weight": torch.matmul(h.mT, error) / samples,
            "bias": error.mean(2, keepdim=True),
        }
        self.optimizer.step(gradients, self.pace * self.lr_S)
        return {"fit": loss.mean((1, 2))}

    def credit(self, trajectory: Trajectory, view: View) -> Tensor:
        """Derivative of each layer's own loss by its state."""
        error, _ = self._errors(trajectory)
        return torch.matmul(error, self.heads["weight"].mT)

    def state(self) -> dict[str, Tensor]:
        """Classifiers, and the optimizer's moments."""
        return {**self.heads, **self.optimizer.state}
