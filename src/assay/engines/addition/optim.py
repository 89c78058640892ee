"""AdamW, clipping and the learning-rate schedule for one seed's flat row.

A row at a time: a dozen passes over 5 kB cost microseconds, and the arithmetic of a seed cannot
depend on how many others there are.
"""

import math

import torch
from torch import Tensor

from assay.engines.addition.config import AdditionConfig

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


def learning_rate(config: AdditionConfig, step: int) -> float:
    """Learning rate of the update that follows `step` updates.

    Linear warm-up to the peak (its last step is the peak), then a cosine that would reach
    `min_lr_ratio` of the peak at step `steps`.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * (step - config.warmup_steps) / span))
    low = config.lr * config.min_lr_ratio
    return low + (config.lr - low) * cosine


class AdamW:
    """Decoupled weight decay on every parameter (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

    def __init__(self, row_P: Tensor) -> None:
        self.row_P = row_P
        self.mean_P = torch.zeros_like(row_P)
        self.square_P = torch.zeros_like(row_P)
        self._scratch_P = torch.zeros_like(row_P)

    def step(self, grad_P: Tensor, *, step: int, config: AdditionConfig) -> Tensor:
        """Clip the gradient, update the row in place; returns the norm before clipping.

        Args:
            grad_P: Overwritten with the clipped gradient.
            step: Updates done before this one.
            config: Learning rate, schedule, decay and clipping of this run.
        """
        norm = torch.linalg.vector_norm(grad_P)
        grad_P.mul_(torch.clamp(config.grad_clip / (norm + 1e-6), max=1.0))
        lr = learning_rate(config, step)
        done = step + 1
        self.row_P.mul_(1 - lr * config.weight_decay)
        self.mean_P.lerp_(grad_P, 1 - BETA1)
        self.square_P.mul_(BETA2).addcmul_(grad_P, grad_P, value=1 - BETA2)
        scale = torch.sqrt(self.square_P, out=self._scratch_P)
        scale.div_(math.sqrt(1 - BETA2**done)).add_(EPS)
        self.row_P.addcdiv_(self.mean_P, scale, value=-lr / (1 - BETA1**done))
        return norm
