"""AdamW with clipping and Grokfast for a stack of rows, and the learning-rate schedule.

Every operation works on each number, or on each row, by itself: the arithmetic of a seed does not
depend on how many others there are.

Suffixes, this file: S = seeds, P = numbers of a flat row.
"""

import math
from collections.abc import Iterable, Sequence

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
    """Decoupled weight decay on every parameter (Loshchilov & Hutter 2019, arXiv:1711.05101).

    Where the configuration asks for it, the gradient's slow part is amplified first: the moving
    average, times lambda, is added (Grokfast-EMA: Lee et al. 2024, arXiv:2405.20233, section 2).
    """

    STATE = ("mean_SP", "square_SP", "slow_SP")

    def __init__(self, rows_SP: Tensor, configs: Sequence[AdditionConfig]) -> None:
        self.rows_SP = rows_SP
        self.mean_SP, self.square_SP = torch.zeros_like(rows_SP), torch.zeros_like(rows_SP)
        self.slow_SP = torch.zeros_like(rows_SP)
        self._scratch_SP = torch.zeros_like(rows_SP)
        self.configs = tuple(configs)
        self._distinct = list(dict.fromkeys(configs))
        self._which = torch.tensor([self._distinct.index(c) for c in configs])
        self._decay_S1 = self._column(c.weight_decay for c in configs)
        self._clip_S1 = self._column(c.grad_clip for c in configs)

    def _column(self, values: Iterable[float]) -> Tensor:
        made = torch.tensor(list(values), dtype=torch.float64)
        return made.to(self.rows_SP.dtype)[:, None].to(self.rows_SP.device)

    def step(self, grad_SP: Tensor, *, step: int) -> Tensor:
        """Update the rows in place; returns the gradient norms [S] before clipping.

        Args:
            grad_SP: Overwritten.
            step: Updates done before this one.
        """
        first = self.configs[0]
        if first.grokfast_lambda and step >= first.grokfast_from:
            self.slow_SP.mul_(first.grokfast_alpha).add_(grad_SP, alpha=1 - first.grokfast_alpha)
            grad_SP.add_(self.slow_SP, alpha=first.grokfast_lambda)
        norm_S1 = torch.linalg.vector_norm(grad_SP, dim=1, keepdim=True)
        grad_SP.mul_((self._clip_S1 / (norm_S1 + 1e-6)).clamp_(max=1.0))
        rates = torch.tensor([learning_rate(c, step) for c in self._distinct], dtype=torch.float64)
        lr_S1 = rates[self._which][:, None].to(grad_SP)
        done = step + 1
        self.rows_SP.mul_(1 - lr_S1 * self._decay_S1)
        self.mean_SP.lerp_(grad_SP, 1 - BETA1)
        self.square_SP.mul_(BETA2).addcmul_(grad_SP, grad_SP, value=1 - BETA2)
        scale_SP = torch.sqrt(self.square_SP, out=self._scratch_SP)
        scale_SP.div_(math.sqrt(1 - BETA2**done)).add_(EPS)
        torch.div(self.mean_SP, scale_SP, out=scale_SP)
        self.rows_SP.sub_(scale_SP.mul_(lr_S1 / (1 - BETA1**done)))
        return norm_S1[:, 0]

    def select(self, indices: Sequence[int], rows_SP: Tensor) -> "AdamW":
        """The optimizer of some of the seeds, for a copy of their rows."""
        chosen = AdamW(rows_SP, [self.configs[i] for i in indices])
        index = torch.tensor(indices, dtype=torch.int64, device=rows_SP.device)
        for name in self.STATE:
            setattr(chosen, name, getattr(self, name)[index])
        return chosen
