"""The transformer block over effective dense weights, written out plainly: the reference.

`compose` makes the dense weights of a configuration (low rank, ties, frozen terms, arcs); here
they are used, on the supervised rows only. The fused kernel computes the same function.

Suffixes, this file: S = seeds, B = examples, T = input positions, Q = supervised rows,
D = width, H = heads, W = head width, F = hidden width, V = vocabulary.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from assay.engines.addition.prompt import Format, Kind

Norm = Literal["layernorm", "rmsnorm", "none"]

EPS: dict[str, float] = {"layernorm": 1e-5, "rmsnorm": 1e-8, "none": 0.0}
"""Added under the root, as in the sources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """All that the arithmetic of the block depends on, besides weights and examples.

    Attributes:
        format: Positions and tokens.
        width: Of the residual stream.
        heads: Attention heads.
        head_width: Features of one head.
        hidden: Hidden width of the feed-forward layer.
        norm: Kind of all three norms.
        qk_norm: Whether queries and keys are normalised (RMS, per head) before the rotation.
        rope_theta: Base of the rotary embedding; 0 for none.
        gated: SwiGLU (silu(x G) * (x U)) D instead of GELU (gelu(x U)) D.
    """

    format: Format
    width: int
    heads: int
    head_width: int
    hidden: int
    norm: Norm
    qk_norm: bool = False
    rope_theta: float = 0.0
    gated: bool = False

    def dense(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the dense weights of one seed, in the order of the kernel's flat row.

        Weights that a model does not have (biases, a learned position) are zeros there; the
        gate has no elements where there is none. Norms are [weight, bias].
        """
        width, inner, hidden = self.width, self.heads * self.head_width, self.hidden
        gate = hidden if self.gated else 0
        return {
            "token": (self.format.vocabulary, width),
            "position": (len(self.format.positions), width),
            "norm1": (2, width),
            "query": (width, inner),
            "query_bias": (inner,),
            "key": (width, inner),
            "key_bias": (inner,),
            "value": (width, inner),
            "value_bias": (inner,),
            "head_norm": (2, self.head_width),  # weights of the query norm and of the key norm
            "out": (inner, width),
            "out_bias": (width,),
            "norm2": (2, width),
            "up": (width, hidden),
            "up_bias": (hidden,),
            "gate": (width, gate),
            "gate_bias": (gate,),
            "down": (hidden, width),
            "down_bias": (width,),
            "norm_f": (2, width),
            "head": (self.format.vocabulary, width),
        }

    @property
    def dense_size(self) -> int:
        """Numbers in the flat row of dense weights."""
        return sum(math.prod(shape) for shape in self.dense().values())


def tokens(form: Format, a_SB: Tensor, b_SB: Tensor) -> Tensor:
    """Input tokens [S, B, T] (int64) of operands given as whole float64 numbers."""
    digit = {
        Kind.A: _digits(a_SB),
        Kind.B: _digits(b_SB),
        Kind.SUM: _digits(a_SB + b_SB),
    }
    columns = []
    for position in form.positions:
        if position.kind is Kind.CONSTANT:
            value = torch.zeros_like(digit[Kind.A][0])
        elif position.kind is Kind.PAIR:
            value = 10 * digit[Kind.A][position.place] + digit[Kind.B][position.place]
        else:
            value = digit[position.kind][position.place]
        columns.append(value + position.first)
    return torch.stack(columns, -1)


def targets(form: Format, a_SB: Tensor, b_SB: Tensor) -> Tensor:
    """Tokens [S, B, Q] that the supervised rows must predict."""
    digits = list(_digits(a_SB + b_SB))
    if form.end >= 0:
        digits.append(torch.full_like(digits[0], form.end))
    return torch.stack(digits, -1)


def _digits(value_SB: Tensor) -> Tensor:
    """Eleven digits [11, S, B] (int64), units first. Below 2^53 the float64 quotients are exact."""
    power = torch.tensor([10.0**k for k in range(12)], dtype=torch.float64, device=value_SB.device)
    quotient = torch.floor(value_SB[None] / power[:, None, None])
    return (quotient[:-1] - 10.0 * quotient[1:]).to(torch.int64)


def logits(shape: Shape, w: Mapping[str, Tensor], token_SBT: Tensor, num_rows: int) -> Tensor:
    """Logits [S, B, num_rows, V] of the last positions; differentiable.

    Args:
        shape: Of the block.
        w: Dense weights with a leading seed axis, see `Shape.dense`.
        token_SBT: Tokens of the first T positions; T may be shorter than the format.
        num_rows: How many of the last positions are wanted.
    """
    seeds, length = token_SBT.shape[0], token_SBT.shape[-1]
    index_S11 = torch.arange(seeds, device=token_SBT.device).view(-1, 1, 1)
    x = w["token"][index_S11, token_SBT] + w["position"][:, None, :length]
    h = _norm(shape, w["norm1"], x)
    rows = slice(length - num_rows, length)
    x = x[:, :, rows]
    query = _project(shape, w, "query", h[:, :, rows])
    key, value = _project(shape, w, "key", h), _project(shape, w, "value", h)
    if shape.qk_norm:
        query = _head_norm(query, w["head_norm"][:, 0])
        key = _head_norm(key, w["head_norm"][:, 1])
    if shape.rope_theta:
        turn = rotary(shape, length).to(device=x.device, dtype=x.dtype)
        query, key = _rotate(query, turn[:, rows]), _rotate(key, turn)
    score = query @ key.transpose(-2, -1) / math.sqrt(shape.head_width)
    seen = torch.ones(num_rows, length, dtype=torch.bool, device=x.device).tril(length - num_rows)
    mixed = score.masked_fill(~seen, float("-inf")).softmax(-1) @ value
    x = x + _linear(w, "out", mixed.transpose(-3, -2).flatten(-2))
    h = _norm(shape, w["norm2"], x)
    up = _linear(w, "up", h)
    inner = F.silu(_linear(w, "gate", h)) * up if shape.gated else F.gelu(up)
    x = x + _linear(w, "down", inner)
    return _norm(shape, w["norm_f"], x) @ w["head"].transpose(-2, -1)[:, None]


def rotary(shape: Shape, length: int) -> Tensor:
    """Cosines and sines [2, T, W/2] (float64): feature pair i of position t turns by t theta^(-2i/W)."""
    pair = torch.arange(shape.head_width // 2, dtype=torch.float64)
    speed = shape.rope_theta ** (-2 * pair / shape.head_width)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * speed
    return torch.stack((angle.cos(), angle.sin()))


def _rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the neighbouring features (2i, 2i + 1)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = turn
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def _linear(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[name][:, None] + w[f"{name}_bias"][:, None, None]


def _project(shape: Shape, w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """[S, B, T, D] to heads [S, B, H, T, W]."""
    return _linear(w, name, x).unflatten(-1, (shape.heads, shape.head_width)).transpose(-3, -2)


def _head_norm(x: Tensor, weight_SW: Tensor) -> Tensor:
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS["rmsnorm"])
    return x * weight_SW[:, None, None, None]


def _norm(shape: Shape, weight_S2D: Tensor, x: Tensor) -> Tensor:
    if shape.norm == "none":
        return x
    if shape.norm == "layernorm":
        x = x - x.mean(-1, keepdim=True)
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS[shape.norm])
    x = x * weight_S2D[:, 0, None, None]
    return x + weight_S2D[:, 1, None, None] if shape.norm == "layernorm" else x
