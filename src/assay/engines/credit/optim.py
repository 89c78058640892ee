"""Optimizers of S runs at once: elementwise, so each run's update is what it would be alone."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["adam", "sgd"]


class Optimizer:
    """Adam (Kingma & Ba 2015, betas 0.9 and 0.999, eps 1e-8) or SGD with momentum, in place.

    Args:
        parameters: Name → tensor with a leading axis of runs.
        kind: Which.
        momentum: Of SGD.
        decay_S: Decoupled weight decay of each run, times its learning rate; matrices only.
    """

    BETAS = (0.9, 0.999)
    EPS = 1e-8

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        kind: Kind = "adam",
        momentum: float = 0.0,
        decay_S: Tensor | None = None,
    ) -> None:
        self.parameters = parameters
        self.kind = kind
        self.momentum = momentum
        self.decay_S = decay_S
        names = ("first", "second") if kind == "adam" else ("first",)
        self.state = {
            f"{name}.{moment}": torch.zeros_like(value)
            for name, value in parameters.items()
            for moment in names
        }
        self.state["steps"] = torch.zeros(())

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], lr_S: Tensor) -> None:
        """Advance every run by one update.

        Args:
            gradients: Name → gradient of the sum of the runs' losses.
            lr_S: Learning rate of each run.
        """
        self.state["steps"] += 1
        for name, value in self.parameters.items():
            if self.decay_S is not None and name.rpartition(".")[2] != "bias":
                value.mul_(beside(1 - lr_S * self.decay_S, value))
        if self.kind == "adam":
            self._adam(gradients, lr_S)
            return
        for name, value in self.parameters.items():
            first = self.state[f"{name}.first"].mul_(self.momentum).add_(gradients[name])
            value.sub_(beside(lr_S, value) * first)

    def _adam(self, gradients: Mapping[str, Tensor], lr_S: Tensor) -> None:
        """One pass by torch's fused kernel, where written out it takes eight; run by run.

        So each run has its own rate, and its numbers do not depend on how many are stacked.
        """
        names = list(self.parameters)
        steps = [self.state["steps"]] * len(names)
        one, two = self.BETAS
        moments = [[self.state[f"{name}.{m}"] for name in names] for m in ("first", "second")]
        parameters = [self.parameters[name] for name in names]
        # The kernel reads addresses, not strides.
        lying = [gradients[name].contiguous() for name in names]
        stacks = [[each.unbind() for each in stack] for stack in (parameters, lying, *moments)]
        for run, lr in enumerate(lr_S.tolist()):
            weights, slopes, first, second = ([each[run] for each in stack] for stack in stacks)
            torch._fused_adam_(
                weights,
                slopes,
                first,
                second,
                [],
                steps,
                lr=lr,
                beta1=one,
                beta2=two,
                weight_decay=0.0,
                eps=self.EPS,
                amsgrad=False,
                maximize=False,
            )


def cosine_pace(step: int, steps: int) -> float:
    """Factor on a learning rate that falls from 1 to 0 as a cosine."""
    return (1 + math.cos(math.pi * step / steps)) / 2


def beside(value: Tensor, tensor: Tensor) -> Tensor:
    """A number for each run (and block), with as many axes as a tensor whose first axes these are."""
    return value.view(*value.shape, *[1] * (tensor.dim() - value.dim()))


def length(gradients: Mapping[str, Tensor], axes: int = 1) -> Tensor:
    """Length over all tensors together, of each run, or with two axes of each block of it."""
    each = [torch.linalg.vector_norm(g.flatten(axes), dim=-1) for g in gradients.values()]
    return torch.linalg.vector_norm(torch.stack(each, -1), dim=-1)


def clip_each(gradients: Mapping[str, Tensor], most: float, axes: int) -> dict[str, Tensor]:
    """Shorten gradients whose norm, over all tensors together, is above a limit.

    Args:
        gradients: Tensors that are clipped together.
        most: The limit.
        axes: Leading axes that are kept apart: 1 for each run, 2 for each block of each run.
    """
    factor = (most / (length(gradients, axes) + 1e-12)).clamp(max=1.0)
    return {name: g * beside(factor, g) for name, g in gradients.items()}
