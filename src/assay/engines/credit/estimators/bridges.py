"""State Bridge and Scalar Credit Bridge: credit as a derivative of a learned net."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from assay.engines.credit.estimators.base import Estimator, Setting
from assay.engines.credit.estimators.mlp import Learner, Mlp, mean_square
from assay.engines.credit.firewall import Derivative, View
from assay.engines.credit.net import Trajectory


class StateBridge(Estimator):
    """P(h, t, code) predicts h_L; the credit is its Jacobian, transposed, times the credit at h_L."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.learner = Learner(setting, setting.shape.width)
        self.times = [i / setting.shape.depth for i in range(setting.shape.depth)]

    def fit_step(self, trajectory: Trajectory, view: View) -> dict[str, Tensor]:
        """Mean squared error of the prediction, relative to the mean square of h_L."""
        self.learner.observe(trajectory)
        inputs = self.learner.inputs(trajectory.h_SLBD[:, :-1], self.times, trajectory)
        wanted = (trajectory.h_SLBD[:, -1] / self.learner.h_size).repeat(1, len(self.times), 1)
        size_S = mean_square(wanted)

        def loss(mlp: Mlp) -> Tensor:
            return mean_square(mlp(inputs)[0] - wanted) / size_S

        return {"fit": self.learner.learn(loss, self.pace)}

    def credit(self, trajectory: Trajectory, view: View) -> Tensor:
        """J_P(h_l)ᵀ a_L; both sides of P are in units of h's size, which cancels."""
        h = trajectory.h_SLBD[:, :-1]
        mlp = self.learner.mlp
        hidden = mlp.hidden(self.learner.inputs(h, self.times, trajectory))
        last = trajectory.last_SBD.repeat(1, len(self.times), 1)
        return mlp.input_gradient(hidden, last, h.shape[-1]).view_as(h)

    def state(self) -> dict[str, Tensor]:
        """The net."""
        return self.learner.state()


class ScalarBridge(Estimator):
    """V(h, t, code) predicts the loss; the credit is its gradient by h.

    The loss of the net has three parts, each relative to what it is about: values at all layers
    against the sample's loss; a tie between neighbouring layers (`bridge`); and the gradient at h_L
    against the observed credit (`terminal_weight`). The loss of a sample follows from the error
    alone, so with that code the values say nothing of h: what credit there is comes from the third.
    """

    derivatives: ClassVar[frozenset[Derivative]] = frozenset({"tail"})
    SLOW = 0.995

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        depth = setting.shape.depth
        self.learner = Learner(setting, 1)
        self.times = [i / depth for i in range(depth + 1)]
        self.terminal_S = setting.each("terminal_weight")
        self.tie_S = setting.each("bridge_weight")
        self.slow: Mlp | None = None
        if setting.config.bridge == "td":
            mlp = self.learner.mlp
            self.slow = Mlp([w.clone() for w in mlp.weights], [b.clone() for b in mlp.biases])

    def fit_step(self, trajectory: Trajectory, view: View) -> dict[str, Tensor]:
        """One update of V."""
        learner = self.learner
        learner.observe(trajectory)
        h, samples = trajectory.h_SLBD, trajectory.loss_SB.shape[1]
        inputs = learner.inputs(h, self.times, trajectory)
        wanted = trajectory.loss_SB.repeat(1, len(self.times))
        spread_S = trajectory.loss_SB.var(1, unbiased=False).clamp_min(1e-12)
        last = trajectory.last_SBD
        last_size_S = mean_square(last).clamp_min(1e-30)
        tie = self._tie(inputs, trajectory, view)

        def loss(mlp: Mlp) -> Tensor:
            # The last layer apart: its hidden layers are needed once more, and a slice's derivative
            # would be a new tensor of all rows.
            before, (at_end, hidden) = mlp(inputs[:, :-samples])[0], mlp(inputs[:, -samples:])
            value = torch.cat([before, at_end], 1)
            missed = (value.squeeze(-1) - wanted).square().view(len(wanted), -1, samples)
            parts = missed.mean(2).sum(1) / spread_S
            slope = mlp.input_gradient(hidden, torch.ones_like(at_end), h.shape[-1])
            slope = slope / learner.h_size
            parts = parts + self.terminal_S * mean_square(slope - last) / last_size_S
            if self.setting.config.bridge != "mc":
                parts = parts + self.tie_S * tie(mlp, value) / (
                    spread_S if self.setting.config.bridge == "td" else 1.0
                )
            return parts

        fit = {"fit": learner.learn(loss, self.pace)}
        if self.slow is not None:
            for slow, value in zip(
                self.slow.weights + self.slow.biases,
                learner.mlp.weights + learner.mlp.biases,
                strict=True,
            ):
                slow.lerp_(value, 1 - self.SLOW)
        return fit

    def _tie(
        self, inputs: Tensor, trajectory: Trajectory, view: View
    ) -> Callable[[Mlp, Tensor], Tensor]:
        """What compares neighbouring layers: of a net and its values [S, (L + 1) B, 1], a loss [S]."""
        h, samples = trajectory.h_SLBD, trajectory.loss_SB.shape[1]
        if self.slow is not None:
            aim = self.slow(inputs)[0][:, samples:]
            per_layer = len(self.times) - 1
            return lambda mlp, value: mean_square(value[:, :-samples] - aim) * per_layer
        if self.setting.config.bridge == "mc":
            return lambda mlp, value: value.new_zeros(len(value))
        size = self.setting.config.bridge_noise * h.square().mean((1, 2, 3)).sqrt()
        noise = self.setting.randn(*h[0, :-1].shape).to(h.dtype) * size.view(-1, 1, 1, 1)
        moved = h[:, :-1] + noise
        before = self.learner.inputs(moved, self.times[:-1], trajectory)
        after = self.learner.inputs(view.blocks(moved), self.times[1:], trajectory)
        with torch.no_grad():
            aim = self.learner.mlp(after)[0] - self.learner.mlp(inputs)[0][:, samples:]
        size_S = mean_square(aim).clamp_min(1e-30)

        def tie(mlp: Mlp, value: Tensor) -> Tensor:
            change = mlp(before)[0] - value[:, :-samples]
            return mean_square(change - aim) / size_S

        return tie

    def credit(self, trajectory: Trajectory, view: View) -> Tensor:
        """The gradient of V by h_l."""
        h = trajectory.h_SLBD[:, :-1]
        mlp = self.learner.mlp
        hidden = mlp.hidden(self.learner.inputs(h, self.times[:-1], trajectory))
        slope = mlp.input_gradient(hidden, torch.ones_like(hidden[0][..., :1]), h.shape[-1])
        return (slope / self.learner.h_size).view_as(h)

    def state(self) -> dict[str, Tensor]:
        """The net, and its slow copy if there is one."""
        slow = {} if self.slow is None else self.slow.named()
        return self.learner.state() | {f"slow.{name}": value for name, value in slow.items()}
