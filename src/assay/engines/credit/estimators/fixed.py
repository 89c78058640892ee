"""Estimators that learn nothing: the oracle, two controls, and fixed feedback."""

from typing import ClassVar

import torch
from torch import Tensor

from assay.engines.credit.estimators.base import Estimator, Setting
from assay.engines.credit.firewall import Derivative, View
from assay.engines.credit.net import MATRICES, Trajectory, initial


class Oracle(Estimator):
    """The true costates, by backpropagation: what all others are measured against."""

    derivatives: ClassVar[frozenset[Derivative]] = frozenset({"oracle"})

    def credit(self, trajectory: Trajectory, view: View) -> Tensor:
        """Exact."""
        return view.costates(trajectory)[:, :-1]


class Zero(Estimator):
    """No credit: only the last block and the head learn."""

    def credit(self, trajectory: Trajectory, view: View) -> Tensor:
        """0."""
        return torch.zeros_like(trajectory.h_SLBD[:, :-1])


class TerminalCopy(Estimator):
    """The credit of h_L for every layer: right where the blocks are near the identity."""

    def credit(self, trajectory: Trajectory, view: View) -> Tensor:
        """The same for all layers."""
        return trajectory.last_SBD.unsqueeze(1).expand_as(trajectory.h_SLBD[:, :-1])


class DirectFeedback(Estimator):
    """Direct feedback alignment (Nøkland 2016): the error through a fixed matrix for each layer.

    B_l has normal entries of variance 1 / classes.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        shape = setting.shape
        size = (shape.depth, shape.classes, shape.width)
        self.feedback_SLCD = setting.randn(*size) / shape.classes**0.5

    def credit(self, trajectory: Trajectory, view: View) -> Tensor:
        """E B_l."""
        return torch.matmul(trajectory.error_SBC.unsqueeze(1), self.feedback_SLCD)

    def state(self) -> dict[str, Tensor]:
        """The matrices."""
        return {"feedback": self.feedback_SLCD}


class FeedbackAlignment(Estimator):
    """Feedback alignment (Lillicrap et al. 2016): the chain of blocks, with fixed random matrices.

    The matrices on the way back are drawn as the blocks' own are; activations, norms and skip
    connections are differentiated as they are.
    """

    derivatives: ClassVar[frozenset[Derivative]] = frozenset({"feedback-chain"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        drawn = [
            initial(setting.shape, g, getattr(config, "gain", 1.0))
            for g, config in zip(setting.generators, setting.configs, strict=True)
        ]
        self.feedback: dict[str, Tensor] = {
            name: torch.stack([each[name] for each in drawn])
            for name in MATRICES
            if name in drawn[0]
        }

    def matrices(self, view: View) -> dict[str, Tensor]:
        """What stands in for each matrix on the way back."""
        return self.feedback

    def credit(self, trajectory: Trajectory, view: View) -> Tensor:
        """From the last layer to the first."""
        matrices = self.matrices(view)
        found = [trajectory.last_SBD]
        for index in reversed(range(view.shape.depth)):
            h = trajectory.h_SLBD[:, index]
            found.append(view.feedback_vjp(index, h, found[-1], matrices))
        return torch.stack(found[:0:-1], 1)

    def state(self) -> dict[str, Tensor]:
        """The matrices."""
        return dict(self.feedback)


class SignSymmetric(FeedbackAlignment):
    """Uniform sign-symmetric feedback (Liao et al. 2016): signs of the matrices, one size for each."""

    derivatives: ClassVar[frozenset[Derivative]] = frozenset({"feedback-chain", "weights"})

    def matrices(self, view: View) -> dict[str, Tensor]:
        """sign(W) times the root mean square of W."""
        own = {name: view.net.parameters[name] for name in self.feedback}
        return {
            name: w.sign() * w.square().mean((-2, -1), keepdim=True).sqrt()
            for name, w in own.items()
        }
