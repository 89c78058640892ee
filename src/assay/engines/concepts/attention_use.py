"""What slots read, as sums over texts. All in float64."""

# Suffixes, this file: T = texts, A = heads, C = slots, N = tokens.

import torch
from torch import Tensor
from torch.nn import functional

from assay.engines.concepts.analysis_metrics import DISTINCT

SUM_TOLERANCE = 0.02
"""What attention weights of one slot may sum to beside 1: bfloat16 rounds each to 2⁻⁸."""


class AttentionUse:
    """What the slots of one layer read, added up over batches; the weights themselves are not kept."""

    def __init__(self) -> None:
        self.texts = 0
        self._entropy_C = self._distance_C = self._slots_C = torch.zeros(0, dtype=torch.float64)
        self._places_N = self._there_N = torch.zeros(0, dtype=torch.float64)
        self._first = self._top = self._padding = 0.0

    def add(self, weights_TACN: Tensor, mask_TN: Tensor | None = None) -> None:
        """Take more texts.

        Args:
            weights_TACN: How much of each token a slot reads, by head; sums to 1 over tokens.
            mask_TN: True, or 1, where there is a token; None for everywhere.

        Raises:
            ValueError: Shapes do not fit, a text has no token, or rows do not sum to 1.
        """
        shape = (weights_TACN.shape[0], weights_TACN.shape[-1])
        if weights_TACN.dim() != 4 or (mask_TN is not None and mask_TN.shape != shape):
            raise ValueError(
                "weights must be [texts, heads, slots, tokens] and the mask [texts, tokens]; got "
                f"{tuple(weights_TACN.shape)} and {None if mask_TN is None else tuple(mask_TN.shape)}"
            )
        if self.texts and weights_TACN.shape[2] != len(self._entropy_C):
            raise ValueError(
                f"all batches must have the same slots; got {weights_TACN.shape[2]} after {len(self._entropy_C)}"
            )
        off = (weights_TACN.double().sum(-1) - 1).abs().max()
        if not off <= SUM_TOLERANCE:
            raise ValueError(f"attention weights of a slot must sum to 1; one is off by {off:.3g}")
        real_TN = torch.ones(shape, dtype=torch.bool) if mask_TN is None else mask_TN.bool()
        if not real_TN.any(1).all():
            raise ValueError("every text must have a token; one is masked from end to end")
        for weights_ACN, real_N in zip(weights_TACN, real_TN, strict=True):
            self._add_text(weights_ACN.double().cpu(), real_N.cpu())

    def _add_text(self, weights_ACN: Tensor, real_N: Tensor) -> None:
        self._padding += float(weights_ACN[..., ~real_N].sum(-1).mean())
        read = weights_ACN[..., real_N]
        read = read / read.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        tokens = read.shape[-1]
        entropy_C = -torch.xlogy(read, read).sum(-1).mean(0)
        # Of one token there is no choice: what reads it reads all there is.
        entropy_C = entropy_C / torch.tensor(tokens).double().log() if tokens > 1 else entropy_C + 1
        mean = read.mean(1, keepdim=True)
        distance_C = (read - mean).abs().sum(-1).mean(0) / 2
        readers = read.sum(1, keepdim=True)
        slots_C = torch.where(readers > 0, read / readers, 1 / read.shape[1]).mean((0, 2))
        place_N = mean.mean((0, 1))
        self._first += float(place_N[0])
        self._top += float(place_N.max())
        self._entropy_C = _longer(self._entropy_C, entropy_C)
        self._distance_C = _longer(self._distance_C, distance_C)
        self._slots_C = _longer(self._slots_C, slots_C)
        whole_N = torch.zeros(len(real_N), dtype=torch.float64)
        whole_N[real_N] = place_N
        self._places_N = _longer(self._places_N, whole_N)
        self._there_N = _longer(self._there_N, real_N.double())
        self.texts += 1

    @property
    def entropy(self) -> Tensor:
        """Of each slot [C]: entropy of what it reads by the log of the number of tokens, mean over heads and texts."""
        return self._entropy_C / self.texts

    @property
    def distance(self) -> Tensor:
        """Of each slot [C]: total variation distance, in [0, 1], of what it reads from what the mean slot reads."""
        return self._distance_C / self.texts

    @property
    def share(self) -> Tensor:
        """Of each slot [C]: its share of the tokens, each divided among slots by how much they read; sums to 1."""
        return self._slots_C / self.texts

    @property
    def place(self) -> Tensor:
        """Of each place [N]: share of a text's attention on it, mean over the texts with a token there."""
        return self._places_N / self._there_N.clamp(min=1)

    def measures(self) -> dict[str, float]:
        """Values under the names of `METRICS`."""
        share = self.share
        balance = (-torch.xlogy(share, share).sum()).exp() / len(share)
        return {
            "attention_entropy": float(self.entropy.mean()),
            "attention_entropy_min": float(self.entropy.min()),
            "attention_distance": float(self.distance.mean()),
            "attention_distinct_share": float((self.distance > DISTINCT).double().mean()),
            "attention_slot_balance": float(balance),
            "attention_first_share": self._first / self.texts,
            "attention_top_share": self._top / self.texts,
            "attention_padding_share": self._padding / self.texts,
        }


def _longer(sums: Tensor, more: Tensor) -> Tensor:
    """Sums, of which either may have fewer places."""
    size = max(len(sums), len(more))
    return functional.pad(sums, (0, size - len(sums))) + functional.pad(more, (0, size - len(more)))
