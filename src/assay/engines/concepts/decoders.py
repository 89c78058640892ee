"""What rebuilds a text's tokens from its concepts; all give [B, N, H], from which a head gives logits."""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization

from assay.engines.concepts.configuration import ConceptConfig
from assay.engines.concepts.layers import (
    Attention,
    FeedForward,
    GatedFeedForward,
    TokenEmbedding,
    norm,
    waves,
)


class Rebuilder(Protocol):
    """A decoder as the models see it.

    Attributes:
        rows_are_alone: Whether a row is the same whichever others are rebuilt beside it, so that
            those that nobody asks for can be left out.
    """

    rows_are_alone: bool

    def __call__(
        self,
        concepts_BCH: Tensor,
        ids_BN: Tensor,
        embedding: TokenEmbedding,
        time_B: Tensor | None,
        mask_BN: Tensor | None,
        places_BN: Tensor | None = None,
    ) -> Tensor:
        """A row for each token.

        Args:
            concepts_BCH: Of the encoder.
            ids_BN: Tokens as the decoder may see them.
            embedding: The encoder's, of tokens.
            time_B: Share of hidden tokens of each text, of the diffusion decoder.
            mask_BN: True where there is a token.
            places_BN: Where in the text the tokens are; by default one after another.
        """


def _places(ids_BN: Tensor, places_BN: Tensor | None) -> Tensor:
    """Where the tokens are: as given, or one after another."""
    return torch.arange(ids_BN.shape[1], device=ids_BN.device) if places_BN is None else places_BN


class PerceiverDecoder(nn.Module):
    """A query for each place reads the concepts once (Jaegle et al. 2021, Perceiver IO, section 3.2).

    Args:
        config: Sizes; under "position" the query is the place alone and knows nothing of the text.
    """

    rows_are_alone = True

    def __init__(self, config: ConceptConfig) -> None:
        super().__init__()
        self.sees_tokens = config.decoder_type == "perceiver"
        self.places = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.read_norm, self.read = norm(config), Attention(config)
        self.feed_norm, self.feed = norm(config), FeedForward(config)

    def forward(
        self,
        concepts_BCH: Tensor,
        ids_BN: Tensor,
        embedding: TokenEmbedding,
        time_B: Tensor | None = None,
        mask_BN: Tensor | None = None,
        places_BN: Tensor | None = None,
    ) -> Tensor:
        """See `Rebuilder`."""
        x = self.places(_places(ids_BN, places_BN))
        x = (
            x + embedding.without_places(ids_BN)
            if self.sees_tokens
            else x.expand(len(ids_BN), -1, -1)
        )
        x = x + self.read(self.read_norm(x), concepts_BCH)
        out: Tensor = x + self.feed(self.feed_norm(x))
        return out


class WeightedDecoder(nn.Module):
    """Every place is a fixed mixture of the slots, whatever the text.

    Args:
        config: Sizes.
    """

    rows_are_alone = True

    def __init__(self, config: ConceptConfig) -> None:
        super().__init__()
        self.mixture = nn.Parameter(torch.empty(config.max_position_embeddings, config.concept_num))
        self.norm = norm(config)
        self.inner = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def first_weights(self, std: float) -> None:
        """Of the mixture: nearly even."""
        initialization.normal_(self.mixture, mean=0.0, std=self.mixture.shape[1] ** -0.5)

    def forward(
        self,
        concepts_BCH: Tensor,
        ids_BN: Tensor,
        embedding: TokenEmbedding | None = None,
        time_B: Tensor | None = None,
        mask_BN: Tensor | None = None,
        places_BN: Tensor | None = None,
    ) -> Tensor:
        """See `Rebuilder`."""
        mixed = self.mixture[_places(ids_BN, places_BN)].softmax(-1) @ concepts_BCH
        out: Tensor = self.dropout(functional.gelu(self.inner(self.norm(mixed))))
        return out


class Clock(nn.Module):
    """The time in [0, 1] as a vector of H numbers.

    Args:
        config: Sizes, and the scale of the time: at 1, most waves would hardly move.
    """

    def __init__(self, config: ConceptConfig) -> None:
        super().__init__()
        self.scale, self.size = float(config.time_scale), config.hidden_size
        self.inner = nn.Linear(self.size, 2 * self.size)
        self.out = nn.Linear(2 * self.size, self.size)

    def forward(self, time_B: Tensor) -> Tensor:
        """[B, H]."""
        wave = waves(self.scale * time_B, self.size).to(self.inner.weight.dtype)
        out: Tensor = self.out(functional.silu(self.inner(wave)))
        return out


def _modulated(x: Tensor, scale_B1H: Tensor, shift_B1H: Tensor) -> Tensor:
    return x * (1 + scale_B1H) + shift_B1H


class GatedTimeLayer(nn.Module):
    """Concepts are read and rows computed, both scaled, shifted and gated by the time.

    adaLN-Zero (Peebles & Xie 2023, section 3.2): gates begin at 0, so that the layer begins as nothing.

    Args:
        config: Sizes, and whether gates begin at 0.
    """

    def __init__(self, config: ConceptConfig) -> None:
        super().__init__()
        self.norm = norm(config, affine=False)
        self.modulation = nn.Linear(config.hidden_size, 6 * config.hidden_size)
        self.modulation.begins_at_zero = config.modulation == "zero"  # type: ignore[assignment]
        self.read, self.feed = Attention(config), GatedFeedForward(config)

    def forward(
        self, x: Tensor, concepts_BCH: Tensor, clock_BH: Tensor, mask_BN: Tensor | None
    ) -> Tensor:
        """Rows [B, N, H] after this layer; `mask_BN` is not needed, since rows do not see one another."""
        parts = self.modulation(clock_BH)[:, None].chunk(6, dim=-1)
        scale, shift, gate, feed_scale, feed_shift, feed_gate = parts
        x = x + gate * self.read(_modulated(self.norm(x), scale, shift), concepts_BCH)
        out: Tensor = x + feed_gate * self.feed(_modulated(self.norm(x), feed_scale, feed_shift))
        return out


class PlainTimeLayer(nn.Module):
    """Scale and shift by the time before self-attention; then concepts are read. No gates.

    Args:
        config: Sizes; under "plain-alone" there is no self-attention, and the time reaches the reading.
    """

    def __init__(self, config: ConceptConfig) -> None:
        super().__init__()
        self.modulation = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        mixes = config.modulation == "plain"
        self.mix_norm = norm(config) if mixes else None
        self.mix = Attention(config) if mixes else None
        self.read_norm, self.read = norm(config), Attention(config)
        self.feed_norm, self.feed = norm(config), FeedForward(config)

    def forward(
        self, x: Tensor, concepts_BCH: Tensor, clock_BH: Tensor, mask_BN: Tensor | None
    ) -> Tensor:
        """Rows [B, N, H] after this layer."""
        scale, shift = self.modulation(clock_BH)[:, None].chunk(2, dim=-1)
        timed = _modulated(x, scale, shift)
        if self.mix is not None and self.mix_norm is not None:
            normed = self.mix_norm(timed)
            x = x + self.mix(normed, normed, mask_BN)
            timed = x
        x = x + self.read(self.read_norm(timed), concepts_BCH)
        out: Tensor = x + self.feed(self.feed_norm(x))
        return out


class DiffusionDecoder(nn.Module):
    """A partly hidden text reads the concepts, layer by layer, and knows how much of it is hidden.

    Args:
        config: Sizes, layers, and how the time reaches them.
    """

    def __init__(self, config: ConceptConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.places = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.clock = Clock(config)
        # Only this one has self-attention.
        self.rows_are_alone = config.modulation != "plain"
        gated = config.modulation in ("zero", "normal")
        kind = GatedTimeLayer if gated else PlainTimeLayer
        self.layers = nn.ModuleList(kind(config) for _ in range(config.decoder_layers))
        self.last_norm = norm(config)

    def forward(
        self,
        concepts_BCH: Tensor,
        ids_BN: Tensor,
        embedding: TokenEmbedding | None = None,
        time_B: Tensor | None = None,
        mask_BN: Tensor | None = None,
        places_BN: Tensor | None = None,
    ) -> Tensor:
        """See `Rebuilder`. Without a time, everything counts as hidden: t = 1."""
        x = self.tokens(ids_BN) + self.places(_places(ids_BN, places_BN))
        time = x.new_ones(len(x)) if time_B is None else time_B
        clock = self.clock(time)
        for layer in self.layers:
            x = layer(x, concepts_BCH, clock, mask_BN)
        out: Tensor = self.last_norm(x)
        return out


def decoder_of(config: ConceptConfig) -> nn.Module:
    """The decoder that the settings name."""
    if config.decoder_type == "weighted":
        return WeightedDecoder(config)
    if config.decoder_type == "diffusion":
        return DiffusionDecoder(config)
    return PerceiverDecoder(config)
