"""The decoder-only transformer: RMSNorm, rotary positions, SwiGLU, untied head (specs/swarm.md §6).

Suffixes, this file: B = sequences, T = tokens, H = heads, D = features of a head.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.engines.swarm.config import Shape

EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Scaling:
    """What stabilises a narrow client, and how far the suffix is let in (specs/swarm.md §1).

    Attributes:
        mlp: Factor of a feed-forward block's output.
        residual: Factor of what a feed-forward block adds to the residual stream.
        norm: Factor of the norm before a feed-forward block.
        core: Neurons that are always active; those behind them are the suffix.
        suffix: Factor of the suffix: out = prefix + suffix factor x suffix.
        tier: Whose learnable gate is taken, where the model has them.
    """

    mlp: float = 1.0
    residual: float = 1.0
    norm: float = 1.0
    core: int = 0
    suffix: float = 1.0
    tier: int = 0


PLAIN = Scaling()
THETA = 10_000.0


@lru_cache(maxsize=16)
def _rotary(length: int, features: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position times frequency, each [length, features]."""
    frequency = THETA ** (-torch.arange(0, features, 2, dtype=torch.float64) / features)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    angle = torch.cat([angle, angle], dim=1)
    return angle.cos().float(), angle.sin().float()


def _rotate(x_BHTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): the halves of a head's features are turned together."""
    left, right = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * cos_TD + torch.cat([-right, left], dim=-1) * sin_TD


def logits(
    weights: Mapping[str, Tensor], shape: Shape, tokens_BT: Tensor, scaling: Scaling = PLAIN
) -> Tensor:
    """Scores of the next token, [B, T, vocab].

    Args:
        weights: Name → tensor, of any tier: the feed-forward width is that of `gate`.
        shape: Sizes of the full model.
        tokens_BT: Token ids.
        scaling: Of the feed-forward blocks.
    """
    features = shape.hidden // shape.heads
    cos, sin = _rotary(tokens_BT.shape[1], features)
    cos, sin = cos.to(weights["norm"].dtype), sin.to(weights["norm"].dtype)
    x = F.embedding(tokens_BT, weights["embedding"])
    for i in range(shape.layers):
        at = f"layers.{i}."
        h = F.rms_norm(x, (shape.hidden,), weights[at + "norm1"], EPS)
        q, k, v = (
            F.linear(h, weights[at + n]).unflatten(-1, (shape.heads, features)).transpose(1, 2)
            for n in ("q", "k", "v")
        )
        mixed = F.scaled_dot_product_attention(
            _rotate(q, cos, sin), _rotate(k, cos, sin), v, is_causal=True
        )
        x = x + F.linear(mixed.transpose(1, 2).flatten(2), weights[at + "o"])
        h = F.rms_norm(x, (shape.hidden,), weights[at + "norm2"], EPS)
        if scaling.norm != 1:
            h = h * scaling.norm
        x = x + _feed_forward(h, weights, at, scaling)
    return F.linear(F.rms_norm(x, (shape.hidden,), weights["norm"], EPS), weights["head"])


def _feed_forward(h: Tensor, weights: Mapping[str, Tensor], at: str, scaling: Scaling) -> Tensor:
    """SwiGLU of a block, with its gates and factors."""
    gate, up, down = (weights[at + name] for name in ("gate", "up", "down"))
    inner = F.silu(F.linear(h, gate)) * F.linear(h, up)
    opened: float | Tensor = scaling.suffix
    logit = weights.get(at + "suffix_logit")
    if logit is not None and inner.shape[-1] > scaling.core:
        opened = opened * logit.sigmoid()
    if isinstance(opened, Tensor) or opened != 1:
        core, suffix = inner[..., : scaling.core], inner[..., scaling.core :]
        inner = torch.cat([core, suffix * opened], dim=-1)
    out = F.linear(inner, down)
    if scaling.mlp * scaling.residual != 1:
        out = out * (scaling.mlp * scaling.residual)
    if (own := weights.get(f"{at}tier_gate.{scaling.tier}")) is not None:
        out = out * own.exp()
    return out


def loss(
    weights: Mapping[str, Tensor], shape: Shape, text_BT: Tensor, scaling: Scaling = PLAIN
) -> Tensor:
    """Mean cross-entropy, in nats, of every token but the first of each sequence.

    Args:
        weights: Name → tensor.
        shape: Sizes of the full model.
        text_BT: One token more than are predicted.
        scaling: Of the feed-forward blocks.
    """
    return cross_entropy(logits(weights, shape, text_BT[:, :-1], scaling), text_BT)


def cross_entropy(logits_BTV: Tensor, text_BT: Tensor) -> Tensor:
    """The same, of scores that are there already."""
    return F.cross_entropy(logits_BTV.flatten(0, 1), text_BT[:, 1:].flatten())
