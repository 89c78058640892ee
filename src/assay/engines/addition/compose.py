"""From parameters to the dense weights of the block: low rank, ties, rotations, arcs, frozen terms.

This is where models differ. Everything is a few operations on tiny matrices, stacked by seed, in
PyTorch autograd; the block itself (`block`, or the fused kernel) knows dense weights only.

Suffixes, this file: S = seeds, D = width, V = vocabulary, T = positions, E = dense row.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from assay.engines.addition.block import Shape
from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.layout import (
    ATTENTION,
    MLP,
    Layout,
    Matrix,
    ffn_matrix,
    norm_names,
    out_matrix,
)
from assay.engines.addition.prompt import format_of


def shape_of(config: AdditionConfig) -> Shape:
    """What the block needs to know of a configuration."""
    return Shape(
        format=format_of(config.prompt),
        width=config.d_model,
        heads=config.heads,
        head_width=config.width_of_head,
        hidden=config.d_ff,
        norm=config.norm,
        qk_norm=config.qk_norm,
        rope_theta=config.rope_theta,
        gated=config.ffn == "swiglu",
    )


def dense_weights(
    config: AdditionConfig, plan: Layout, p: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Dense weights with the leading seed axis, in the order of `Shape.dense`; differentiable.

    Args:
        config: The model.
        plan: Its layout.
        p: Parameters and frozen buffers by name, stacked by seed.
    """
    token = _tokens(config, p)
    query, key, value = _attention(config, plan, p)
    up = product(p, ffn_matrix(config, "fc1"))
    made = {
        "token": token,
        "position": _positions(config, p, token),
        "query": query,
        "key": key,
        "value": value,
        "out": query.transpose(1, 2)
        if config.tie_out == "query"
        else product(p, out_matrix(config)),
        "up": up,
        "gate": product(p, ffn_matrix(config, "gate")) if config.ffn == "swiglu" else None,
        "down": _down(config, p, up),
        "head": token,
        **_norms(config, p),
        **_biases(config, p),
    }
    seeds = token.shape[0]
    found = {}
    for name, shape in shape_of(config).dense().items():
        tensor = made.get(name)
        found[name] = token.new_zeros((seeds, *shape)) if tensor is None else tensor
    return found


def flat(weights: Mapping[str, Tensor]) -> Tensor:
    """The dense rows [S, E] of dense weights."""
    return torch.cat([tensor.flatten(1) for tensor in weights.values()], 1)


def product(p: Mapping[str, Tensor], item: Matrix) -> Tensor:
    """A matrix [S, in, out] from its parameter, or from its two factors and its frozen term."""
    if not item.right:
        return p[item.left]
    if item.fixed:
        return torch.baddbmm(p[item.fixed], p[item.left], p[item.right])
    return torch.bmm(p[item.left], p[item.right])


def _tokens(config: AdditionConfig, p: Mapping[str, Tensor]) -> Tensor:
    if config.embedding == "table":
        return p["token_emb.weight"]
    digit = torch.arange(10, dtype=p["token_emb.start"].dtype, device=p["token_emb.start"].device)
    angle = p["token_emb.start"] + digit * p["token_emb.stride"]
    arc = p["token_emb.amplitude"][:, :, None] * torch.stack((angle.cos(), angle.sin()), -1)
    return torch.nn.functional.pad(arc, (0, config.d_model - 2))


def _positions(config: AdditionConfig, p: Mapping[str, Tensor], like: Tensor) -> Tensor | None:
    length = len(format_of(config.prompt).positions)
    if config.positions == "none":
        return None
    if config.positions == "sinusoidal":
        table = sinusoids(length, config.d_model).to(like)
        return table.expand(like.shape[0], -1, -1)
    left = p["pos_emb.A" if config.pos_rank else "pos_emb.weight"][:, :length]
    return torch.bmm(left, p["pos_emb.B"]) if config.pos_rank else left


def sinusoids(length: int, width: int) -> Tensor:
    """Fixed positions [T, D] (float64) of Vaswani et al. 2017 (arXiv:1706.03762), section 3.5."""
    index = torch.arange(width, dtype=torch.float64)
    speed = 10_000.0 ** (-(index - index % 2) / width)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * speed
    return torch.where(index % 2 == 0, angle.sin(), angle.cos())


def _attention(
    config: AdditionConfig, plan: Layout, p: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    if len(plan.qkv) == 1:
        whole = product(p, plan.qkv[0])
        inner = config.inner_width
        return whole[..., :inner], whole[..., inner : 2 * inner], whole[..., 2 * inner :]
    made: dict[Matrix, Tensor] = {}
    for item in plan.qkv:
        if item not in made:
            made[item] = product(p, item)
    query, key, value = (made[item] for item in plan.qkv)
    if config.tie_qkv == "rotated":
        key = turn_columns(query, p[f"{ATTENTION}.key_angle"])
    return query, key, value


def turn_columns(x: Tensor, angle_S1: Tensor) -> Tensor:
    """Turn the neighbouring columns (2i, 2i + 1) of [S, rows, columns] by one angle a seed."""
    cos, sin = angle_S1.cos()[:, :, None], angle_S1.sin()[:, :, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def _down(config: AdditionConfig, p: Mapping[str, Tensor], up: Tensor) -> Tensor:
    if config.tie_down == "none":
        return product(p, ffn_matrix(config, "fc2"))
    if config.tie_down == "rotated":
        up = turn_columns(up, p[f"{MLP}.down_angle"])
    return up.transpose(1, 2)


def _norms(config: AdditionConfig, p: Mapping[str, Tensor]) -> dict[str, Tensor]:
    made = {}
    if config.norm != "none":
        for field, name in zip(("norm1", "norm2", "norm_f"), norm_names(config), strict=True):
            weight = p[f"{name}.weight"]
            bias = p.get(f"{name}.bias", torch.zeros_like(weight))
            made[field] = torch.stack((weight, bias), 1)
    if config.qk_norm:
        weight = p[f"{ATTENTION}.qk_norm.weight"]
        made["head_norm"] = torch.stack((weight, weight), 1)
    return made


def _biases(config: AdditionConfig, p: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not config.bias:
        return {}
    query, key, value = p[f"{ATTENTION}.qkv.bias"].chunk(3, 1)
    made = {"query_bias": query, "key_bias": key, "value_bias": value}
    made["out_bias"] = p[f"{ATTENTION}.proj.bias"]
    made["up_bias"], made["down_bias"] = p[f"{MLP}.fc1.bias"], p[f"{MLP}.fc2.bias"]
    if config.ffn == "swiglu":
        made["gate_bias"] = p[f"{MLP}.gate.bias"]
    return made
