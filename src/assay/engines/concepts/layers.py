"""Parts of which encoder, decoders and heads are made."""

# Suffixes in this package: B = texts, N = tokens, C = concepts, Q = queries, K = what they read,
# H = hidden numbers, V = vocabulary.

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from assay.engines.concepts.configuration import ConceptConfig


class Attention(nn.Module):
    """Multi-head attention with biases; queries read from a sequence of their own or another.

    Args:
        config: Sizes and dropout.
    """

    def __init__(self, config: ConceptConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.heads = config.num_attention_heads
        self.dropout = float(config.attention_probs_dropout_prob)
        self.query, self.key, self.value, self.out = (nn.Linear(size, size) for _ in range(4))

    def _projected(self, reading_BQH: Tensor, read_BKH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.query(reading_BQH), self.key(read_BKH), self.value(read_BKH)
        return tuple(x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))

    def forward(
        self, reading_BQH: Tensor, read_BKH: Tensor, mask_BK: Tensor | None = None
    ) -> Tensor:
        """What each query reads, [B, Q, H].

        Args:
            reading_BQH: Asks.
            read_BKH: Is read.
            mask_BK: True where it may be read; None for everywhere.
        """
        query, key, value = self._projected(reading_BQH, read_BKH)
        mask = None if mask_BK is None else mask_BK[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        read = functional.scaled_dot_product_attention(query, key, value, mask, dropout)
        out: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return out

    def weights(
        self, reading_BQH: Tensor, read_BKH: Tensor, mask_BK: Tensor | None = None
    ) -> Tensor:
        """How much of each place a query reads, [B, heads, Q, K]; rows sum to 1. Costs memory of that size."""
        query, key, _ = self._projected(reading_BQH, read_BKH)
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        if mask_BK is not None:
            scores = scores.masked_fill(~mask_BK[:, None, None, :], -torch.inf)
        return scores.softmax(-1)


class FeedForward(nn.Module):
    """H → I → H with GELU."""

    def __init__(self, config: ConceptConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.hidden_size, config.intermediate_size)
        self.out = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        """Of every row by itself."""
        out: Tensor = self.out(self.dropout(functional.gelu(self.inner(x))))
        return out


class GatedFeedForward(nn.Module):
    """H → 2I → H: the first half, through GELU, times the second (Shazeer 2020, GEGLU)."""

    def __init__(self, config: ConceptConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.out = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        """Of every row by itself."""
        gate, value = self.inner(x).chunk(2, dim=-1)
        out: Tensor = self.out(self.dropout(functional.gelu(gate) * value))
        return out


def norm(config: ConceptConfig, *, affine: bool = True) -> nn.LayerNorm:
    """A layer norm over H."""
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, elementwise_affine=affine)


def waves(places: Tensor, size: int) -> Tensor:
    """Sines and cosines of places [...] at `size` / 2 frequencies from 1 to 1/10,000, [..., size].

    Vaswani et al. 2017, section 3.5; halves instead of turns.
    """
    half = (size + 1) // 2
    rates = torch.exp(-math.log(1e4) * torch.arange(half, device=places.device) / half)
    angles = places[..., None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :size]


class TokenEmbedding(nn.Module):
    """Tokens and their places as vectors of H numbers.

    Args:
        config: Sizes; tokens have `embedding_dim` numbers and are projected to H if that is another.
    """

    def __init__(self, config: ConceptConfig) -> None:
        super().__init__()
        size = config.embedding_dim
        self.tokens = nn.Embedding(config.vocab_size, size)
        self.places = nn.Embedding(config.max_position_embeddings, size)
        self.project = (
            nn.Identity() if size == config.hidden_size else nn.Linear(size, config.hidden_size)
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def without_places(self, ids_BN: Tensor) -> Tensor:
        """Of the tokens alone."""
        found: Tensor = self.project(self.tokens(ids_BN))
        return found

    def forward(self, ids_BN: Tensor) -> Tensor:
        """[B, N, H]."""
        places = self.places(torch.arange(ids_BN.shape[1], device=ids_BN.device))
        found: Tensor = self.dropout(self.project(self.tokens(ids_BN) + places))
        return found
