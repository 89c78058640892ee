"""Local updates: from credit to gradients of each block's own parameters.

Block l sees its input h_l as a constant and gets a credit for its output. With the raw oracle
credit, the mean over samples and the inner product, the gradients of all blocks together *are* the
gradient of the batch loss; that is a test.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from assay.engines.credit.activations import slope
from assay.engines.credit.net import Net, Trajectory, block_gradient
from assay.engines.credit.optim import length

Surrogate = Literal["inner", "target-shift", "cosine"]
Normalise = Literal["none", "per-layer", "per-sample"]
SMALL = 1e-6
TINY = 1e-24


def normalised(credit_SLBD: Tensor, how: Normalise, into: Tensor | None = None) -> Tensor:
    """Credit divided by its root mean square (plus 1e-6): of each sample's, or of a layer's batch.

    "per-sample" makes samples that are right push as hard as those that are wrong: it changes the
    direction of a batch's update even where the credit is exact.

    Args:
        credit_SLBD: Of any number of layers.
        how: Over what the mean is taken.
        into: Where the result is written; new if not given.
    """
    if how == "none":
        return credit_SLBD if into is None else into.copy_(credit_SLBD)
    axes = (-1,) if how == "per-sample" else (-2, -1)
    many = math.prod(credit_SLBD.shape[axis] for axis in axes)
    length = torch.linalg.vector_norm(credit_SLBD, dim=axes, keepdim=True)
    return torch.div(credit_SLBD, length / many**0.5 + SMALL, out=into)


def lesson_of(
    guessed_SLBD: Tensor, trajectory: Trajectory, last_SCD: Tensor | None, how: Normalise
) -> Tensor:
    """Credit of h_0 … h_L, normalised: the guess, and that of h_L, exact or by random feedback."""
    last = trajectory.last_SBD
    if last_SCD is not None:
        last = torch.bmm(trajectory.error_SBC, last_SCD.to(last.dtype))
    whole = torch.empty_like(trajectory.h_SLBD)
    normalised(guessed_SLBD, how, whole[:, :-1])
    normalised(last.unsqueeze(1), how, whole[:, -1:])
    return whole


def toward(
    output: Tensor, start: Tensor, state: Tensor, credit: Tensor, kind: Surrogate, eta: float
) -> Tensor:
    """Derivative of a sample's local loss by its block's output; all [..., D].

    Args:
        output: The block's output now.
        start: Its input (0 of the encoder), from which the cosine counts.
        state: Its output when the credit was given.
        credit: For that output.
        kind: "inner": <a, h>; "target-shift": ‖h − (h° − eta a)‖² / 2; "cosine": cos(h − input, a).
        eta: Of target-shift.
    """
    if kind == "inner":
        return credit
    if kind == "target-shift":
        return output - state + eta * credit
    way = output - start
    lengths = way.norm(dim=-1, keepdim=True) * credit.norm(dim=-1, keepdim=True)
    square = way.square().sum(-1, keepdim=True)
    inner = (way * credit).sum(-1, keepdim=True)
    return (credit - way * (inner / square.clamp_min(TINY))) / lengths.clamp_min(TINY)


@torch.no_grad()
def gradients(
    net: Net,
    trajectory: Trajectory,
    credit_SLBD: Tensor,
    kind: Surrogate = "inner",
    eta: float = 1.0,
    *,
    again: bool = False,
) -> dict[str, Tensor]:
    """Gradients of every parameter: the head's by its own loss, all others by their local loss.

    Args:
        net: Of which.
        trajectory: Of the batch; each block's input is a constant.
        credit_SLBD: For h_0 … h_L: L + 1 of them.
        kind: Which local loss; see `toward`.
        eta: Of target-shift.
        again: The parameters have changed since the trajectory, so blocks are computed anew.

    Returns:
        Name → gradient of each run's own mean over samples.
    """
    h = trajectory.h_SLBD
    samples = h.shape[2]
    found = {n: torch.empty_like(w) for n, w in net.parameters.items() if n.startswith("blocks.")}
    for index in range(net.shape.depth):
        start, state, kept = h[:, index], h[:, index + 1], trajectory.kept[index]
        output = state
        if again:
            output, kept = net.forward(index, start)
        out = toward(output, start, state, credit_SLBD[:, index + 1], kind, eta)
        part = net.of_block(index)
        into = {name: g[:, index] for name, g in found.items()}
        block_gradient(net.shape, net.alpha_S, part, kept, out, into)
    for g in found.values():
        g.div_(samples)
    if net.shape.loss == "quadratic":
        return found
    first = h[:, 0]
    encoded = net.encode(trajectory.x_SBI) if again else first
    out = toward(encoded, torch.zeros_like(first), first, credit_SLBD[:, 0], kind, eta)
    return {**_encoder(net, trajectory, out), **found, **_head(net, trajectory, again=again)}


def _encoder(net: Net, trajectory: Trajectory, out: Tensor) -> dict[str, Tensor]:
    samples = out.shape[1]
    if net.shape.block != "plain":
        return {"encoder.weight": torch.bmm(trajectory.x_SBI.mT, out).div_(samples)}
    back = out * slope(net.shape.activation, net.affine(trajectory.x_SBI)) / samples
    return {"encoder.weight": torch.bmm(trajectory.x_SBI.mT, back), "encoder.bias": back.sum(1)}


def _head(net: Net, trajectory: Trajectory, *, again: bool) -> dict[str, Tensor]:
    last = trajectory.h_SLBD[:, -1]
    error = trajectory.error_SBC
    if again:
        error = net.error(net.head(last), trajectory.y)
    error = error / last.shape[1]
    return {"head.weight": torch.bmm(last.mT, error), "head.bias": error.sum(1)}


def cosine(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
    """Cosine of two gradients of all parameters, for each run; [S]."""
    inner = sum((one[name] * other[name]).flatten(1).sum(-1) for name in one)
    assert isinstance(inner, Tensor)
    return inner / (length(one) * length(other))
