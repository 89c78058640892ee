"""Estimators that look at how the loss changes when something is perturbed; forward passes only."""

from typing import ClassVar

import torch
from torch import Tensor

from assay.engines.credit.estimators.base import Estimator, Setting
from assay.engines.credit.estimators.mlp import Learner, Mlp, mean_square
from assay.engines.credit.firewall import Derivative, View
from assay.engines.credit.net import Net, Trajectory
from assay.engines.credit.optim import Optimizer, beside

FORWARD: frozenset[Derivative] = frozenset({"tail", "tail-jvp"})


def sizes(trajectory: Trajectory, epsilon: float) -> Tensor:
    """A share of the root mean square of each layer's states, [S, L + 1, 1, 1]."""
    return epsilon * trajectory.h_SLBD.square().mean((2, 3), keepdim=True).sqrt()


def loss_changes(
    setting: Setting, trajectory: Trajectory, view: View, layers: list[int], u_SKMBD: Tensor
) -> Tensor:
    """How each sample's loss changes along directions at some layers, per unit; [S, K, M, B]."""
    config = setting.config
    h = trajectory.h_SLBD[:, layers].unsqueeze(2)
    at = h.expand_as(u_SKMBD).unbind(1)
    if config.difference == "jvp":
        return view.tail_jvp(layers, at, u_SKMBD.unbind(1), trajectory.y)
    step = sizes(trajectory, config.epsilon)[:, layers].unsqueeze(2)
    shift = step * u_SKMBD
    up = view.tail(layers, (h + shift).unbind(1), trajectory.y)
    if config.difference == "one-sided":
        change = up - trajectory.loss_SB.unsqueeze(1).unsqueeze(1)
        return change / step.squeeze(-1)
    down = view.tail(layers, torch.sub(h, shift, out=shift).unbind(1), trajectory.y)
    return (up - down) / (2 * step.squeeze(-1))


class Probe:
    """Random directions at all layers or at some, and the loss changes along them.

    Where some are drawn (`layers_per_step`), they depend on the number of the step alone, so that
    runs of a cohort share them and each is what it would be alone.

    Args:
        setting: Of the estimator.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.asked = torch.zeros(())

    def __call__(self, trajectory: Trajectory, view: View) -> tuple[list[int], Tensor, Tensor]:
        """Layers (the same for all runs), directions [S, K, M, B, D], changes [S, K, M, B]."""
        config, depth = self.setting.config, self.setting.shape.depth
        _, _, samples, width = trajectory.h_SLBD.shape
        layers = list(range(depth))
        if 0 < config.layers_per_step < depth:
            order = torch.randperm(depth, generator=torch.Generator().manual_seed(int(self.asked)))
            layers = sorted(order[: config.layers_per_step].tolist())
        self.asked += 1
        u = self.setting.randn(len(layers), config.directions, samples, width)
        u = u.to(trajectory.h_SLBD.dtype)
        changes = loss_changes(self.setting, trajectory, view, layers, u)
        if config.shuffled:
            orders = [torch.randperm(samples, generator=g) for g in self.setting.generators]
            order = torch.stack(orders).view(-1, 1, 1, samples).expand_as(changes)
            changes = changes.gather(-1, order)
        return layers, u, changes


class VectorField(Estimator):
    """a(h, t, code) whose product with random directions is the loss change along them.

    In expectation over directions this is the squared distance to the costate, from targets without
    noise; the number of directions sets rows per sample, not bias. A net on the error's factors
    (`factored`) is linear in the error, as the costate is.
    """

    derivatives: ClassVar[frozenset[Derivative]] = FORWARD

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        shape, config = setting.shape, setting.config
        outputs = shape.width * (shape.classes if config.factored else 1)
        self.learner = Learner(setting, outputs, coded=not config.factored)
        self.probe = Probe(setting)
        self.terminal_S = setting.each("terminal_weight")

    def _field(self, mlp: Mlp, inputs: Tensor, trajectory: Trajectory) -> Tensor:
        """[S, K, B, D] of rows [S, K B, ...]."""
        out, _ = mlp(inputs)
        runs, samples, classes = trajectory.error_SBC.shape
        if self.setting.config.factored:
            factors = out.view(runs, -1, samples, classes, self.setting.shape.width)
            made = torch.einsum("sbc,skbcd->skbd", trajectory.error_SBC, factors)
        else:
            made = out.view(runs, -1, samples, self.setting.shape.width)
        return made * self.learner.unit.unsqueeze(1)

    def fit_step(self, trajectory: Trajectory, view: View) -> dict[str, Tensor]:
        """One update of the net; "fit" is the unexplained share of the loss changes, and the terminal."""
        self.learner.observe(trajectory)
        layers, u, changes = self.probe(trajectory, view)
        depth = self.setting.shape.depth
        h = trajectory.h_SLBD[:, [*layers, depth]]
        times = [i / depth for i in layers] + [1.0]
        inputs = self.learner.inputs(h, times, trajectory)
        size_S = changes.square().flatten(1).mean(1).clamp_min(1e-30)
        last, last_size_S = trajectory.last_SBD, mean_square(trajectory.last_SBD).clamp_min(1e-30)

        def loss(mlp: Mlp) -> Tensor:
            field = self._field(mlp, inputs, trajectory)
            missed = (field[:, :-1].unsqueeze(2) * u).sum(-1) - changes
            parts = missed.square().flatten(1).mean(1) / size_S
            return parts + self.terminal_S * mean_square(field[:, -1] - last) / last_size_S

        return {"fit": self.learner.learn(loss, self.pace)}

    def credit(self, trajectory: Trajectory, view: View) -> Tensor:
        """The field at h_0 … h_{L - 1}."""
        h, depth = trajectory.h_SLBD[:, :-1], self.setting.shape.depth
        inputs = self.learner.inputs(h, [i / depth for i in range(depth)], trajectory)
        return self._field(self.learner.mlp, inputs, trajectory)

    def state(self) -> dict[str, Tensor]:
        """The net, and how often it was taught."""
        return {**self.learner.state(), "asked": self.probe.asked}


class LearnedFeedback(Estimator):
    """e B_l with matrices learned from perturbations (Lansdell, Prakash & Kording 2020)."""

    derivatives: ClassVar[frozenset[Derivative]] = FORWARD

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        shape = setting.shape
        size = (shape.depth, shape.classes, shape.width)
        self.feedback = {"matrix": setting.randn(*size) / shape.classes**0.5}
        self.optimizer = Optimizer(self.feedback)
        self.lr_S = setting.each("est_lr")
        self.probe = Probe(setting)

    def fit_step(self, trajectory: Trajectory, view: View) -> dict[str, Tensor]:
        """One update of the matrices; the gradient is written out."""
        layers, u, changes = self.probe(trajectory, view)
        error = trajectory.error_SBC
        field = torch.matmul(error.unsqueeze(1), self.feedback["matrix"][:, layers])
        missed = (field.unsqueeze(2) * u).sum(-1) - changes
        size_S = changes.square().flatten(1).mean(1).clamp_min(1e-30)
        weight = 2 / (missed[0].numel() * size_S).view(-1, 1, 1, 1)
        toward = (missed.unsqueeze(-1) * u).sum(2) * weight
        gradient = torch.zeros_like(self.feedback["matrix"])
        gradient[:, layers] = torch.matmul(error.mT.unsqueeze(1), toward)
        self.optimizer.step({"matrix": gradient}, self.pace * self.lr_S)
        return {"fit": missed.square().flatten(1).mean(1) / size_S}

    def credit(self, trajectory: Trajectory, view: View) -> Tensor:
        """E B_l."""
        return torch.matmul(trajectory.error_SBC.unsqueeze(1), self.feedback["matrix"])

    def state(self) -> dict[str, Tensor]:
        """Matrices, and the optimizer's moments."""
        return {**self.feedback, **self.optimizer.state, "asked": self.probe.asked}


class ForwardGradient(Estimator):
    """Activity-perturbed forward gradient (Ren et al. 2023): a direction times the slope along it.

    One direction over all layers together; unbiased, with a variance that grows with L D.
    """

    derivatives: ClassVar[frozenset[Derivative]] = frozenset({"tail-jvp"})

    def credit(self, trajectory: Trajectory, view: View) -> Tensor:
        """(sum_l <a_l, u_l>) u."""
        h = trajectory.h_SLBD[:, :-1]
        u = self.setting.randn(*h.shape[1:]).to(h.dtype)
        return view.perturbed_jvp(trajectory, u)[:, None, :, None] * u


class NodePerturbation(Estimator):
    """Node perturbation: noise on all layers together, times the loss change that it makes."""

    derivatives: ClassVar[frozenset[Derivative]] = frozenset({"tail"})

    def credit(self, trajectory: Trajectory, view: View) -> Tensor:
        """Noise of each layer's own size; divided by its variance."""
        h = trajectory.h_SLBD[:, :-1]
        u = self.setting.randn(*h.shape[1:]).to(h.dtype)
        size = sizes(trajectory, self.setting.config.epsilon)[:, :-1]
        change = view.perturbed(trajectory, size * u) - trajectory.loss_SB
        return change[:, None, :, None] * u / size


class WeightPerturbation(Estimator):
    """Weight perturbation: no credit, but a gradient of all blocks from one change of the loss.

    The head is left to its own gradient, as with all others.
    """

    derivatives: ClassVar[frozenset[Derivative]] = frozenset({"tail", "weights"})

    def credit(self, trajectory: Trajectory, view: View) -> Tensor:
        """0: its gradient goes straight to the weights."""
        return torch.zeros_like(trajectory.h_SLBD[:, :-1])

    @torch.no_grad()
    def parameter_gradients(self, trajectory: Trajectory, view: View) -> dict[str, Tensor]:
        """Central difference of the mean loss along one direction, times that direction."""
        own = _hidden(view.net)
        step = self.setting.config.epsilon
        # A step in the direction is a share of each tensor's own size, biases the blocks' least.
        u = {name: self.setting.randn(*w.shape[1:]).to(w.dtype) for name, w in own.items()}
        least = trajectory.h_SLBD.new_tensor(1e-3)
        size = {
            name: beside(w.square().flatten(1).mean(1).sqrt().clamp_min(least), w)
            for name, w in own.items()
        }
        moved = {name: step * size[name] * u[name] for name in own}
        up = view.loss_at(trajectory, moved)
        down = view.loss_at(trajectory, {name: -m for name, m in moved.items()})
        slope = (up - down) / (2 * step)
        return {name: beside(slope, w) * u[name] / size[name] for name, w in own.items()}


def _hidden(net: Net) -> dict[str, Tensor]:
    return {name: w for name, w in net.parameters.items() if not name.startswith("head.")}
