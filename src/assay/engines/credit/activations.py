"""Activations of plain blocks, and their derivatives."""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Activation = Literal["tanh", "relu", "gelu", "silu", "identity"]

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "identity": lambda z: z,
}


def slope(activation: Activation, z: Tensor) -> Tensor:
    """Derivative of an activation."""
    if activation == "relu":
        return (z > 0).to(z.dtype)
    if activation == "tanh":
        return 1 - torch.tanh(z).square()
    if activation == "gelu":
        return gelu_slope(z)
    if activation == "silu":
        return silu_slope(z)
    return torch.ones_like(z)


def gelu_slope(z: Tensor) -> Tensor:
    """Derivative of z Phi(z), Phi the normal distribution."""
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return torch.special.ndtr(z) + z * density


def silu_slope(z: Tensor) -> Tensor:
    """Derivative of z sigmoid(z)."""
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))
