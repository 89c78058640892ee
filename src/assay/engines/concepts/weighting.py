"""How a task's loss and the concept losses become one."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import initialization

from assay.engines.concepts.configuration import ConceptConfig


class LossWeights(nn.Module):
    """Weights of losses: the task's first, then those of the settings.

    "fixed": the task 1, `concept_weight` shared equally. "learned": a softmax of learned numbers, all
    the same at first. "kendall-gal": Σ ½ e^(-s) ℓ + ½ s (Kendall et al. 2018, eq. 7, with s = log σ²),
    whose optimum s = ln ℓ gives every loss the gradient ∇ℓ / 2ℓ: a loss that is nearly 0 mutes others.

    Args:
        config: Losses and their weighting.
    """

    def __init__(self, config: ConceptConfig) -> None:
        super().__init__()
        self.names = list(config.concept_losses)
        self.kind, self.share = config.weighting, float(config.concept_weight)
        learned = bool(self.names) and self.kind != "fixed"
        self.raw = nn.Parameter(torch.empty(1 + len(self.names))) if learned else None

    def first_weights(self, std: float) -> None:
        """All losses alike."""
        if self.raw is not None:
            initialization.zeros_(self.raw)

    def weights(self) -> dict[str, float]:
        """What each loss is multiplied by now."""
        if self.raw is None:
            found = [1.0, *[self.share / max(1, len(self.names))] * len(self.names)]
        elif self.kind == "learned":
            found = self.raw.detach().softmax(0).tolist()
        else:
            found = (self.raw.detach().neg().exp() / 2).tolist()
        return dict(zip(["task", *self.names], found, strict=True))

    def forward(self, task: Tensor, concept: Mapping[str, Tensor]) -> Tensor:
        """One loss.

        Args:
            task: The task's.
            concept: Name → concept loss, those of the settings.
        """
        if not self.names:
            return task
        losses = torch.stack([task, *(concept[name] for name in self.names)])
        if self.raw is None:
            return task + self.share * losses[1:].mean()
        if self.kind == "learned":
            return self.raw.softmax(0) @ losses
        return (self.raw.neg().exp() @ losses + self.raw.sum()) / 2
