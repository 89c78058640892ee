"""Local updates: from credit to gradients of each block's own parameters.

Block l sees its input h_l as a constant and gets a credit for its output. With the raw oracle
credit, the mean over samples and the inner product, the gradients of all blocks together *are* the
gradient of the batch loss; that is a test.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from assay.engines.credit.net import Net, Trajectory

Surrogate = Literal["inner", "target-shift", "cosine"]
Normalise = Literal["none", "per-layer", "per-sample"]
SMALL = 1e-6


def normalised(credit_SLBD: Tensor, how: Normalise) -> Tensor:
    """Credit divided by its root mean square (plus 1e-6): of each sample's, or of a layer's batch.

    "per-sample" makes samples that are right push as hard as those that are wrong: it changes the
    direction of a batch's update even where the credit is exact.
    """
    if how == "none":
        return credit_SLBD
    axes = (-1,) if how == "per-sample" else (-2, -1)
    rms = credit_SLBD.square().mean(axes, keepdim=True).sqrt()
    return credit_SLBD / (rms + SMALL)


def surrogate(
    net: Net,
    trajectory: Trajectory,
    credit_SLBD: Tensor,
    kind: Surrogate = "inner",
    eta: float = 1.0,
) -> Tensor:
    """The local losses of all blocks and encoders of all runs, added up; a scalar.

    Args:
        net: Its parameters are what it can be differentiated by.
        trajectory: Of the batch.
        credit_SLBD: For h_0 … h_L: L + 1 of them.
        kind: "inner": mean_i <a, h>; "target-shift": mean_i ‖h − (h° − eta a)‖² / 2, h° the state of
            the trajectory; "cosine": mean_i cos(h − input, a).
        eta: Of target-shift.
    """
    inputs = trajectory.h_SLBD[:, :-1]
    outputs = net.all_blocks(inputs)
    credit, first = credit_SLBD[:, 1:], credit_SLBD[:, 0]
    encoded = net.encode(trajectory.x_SBI)
    if kind == "inner":
        parts = [(credit * outputs).sum(-1), (first * encoded).sum(-1)]
    elif kind == "target-shift":
        wanted = trajectory.h_SLBD - eta * credit_SLBD
        parts = [
            (outputs - wanted[:, 1:]).square().sum(-1) / 2,
            (encoded - wanted[:, 0]).square().sum(-1) / 2,
        ]
    else:
        parts = [
            functional.cosine_similarity(outputs - inputs, credit, dim=-1, eps=1e-12),
            functional.cosine_similarity(encoded, first, dim=-1, eps=1e-12),
        ]
    samples = inputs.shape[2]
    return (parts[0].sum() + parts[1].sum()) / samples


def gradients(
    net: Net,
    trajectory: Trajectory,
    credit_SLBD: Tensor,
    kind: Surrogate = "inner",
    eta: float = 1.0,
) -> dict[str, Tensor]:
    """Gradients of every parameter: the head's by its own loss, all others by the surrogate.

    Args:
        net: Of which.
        trajectory: Of the batch.
        credit_SLBD: For h_0 … h_L: L + 1 of them.
        kind: Which surrogate.
        eta: Of target-shift.

    Returns:
        Name → gradient of each run's own mean loss.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in net.parameters.items()}
    with torch.enable_grad():
        leafy = net.having(leaves)
        loss = surrogate(leafy, trajectory, credit_SLBD, kind, eta)
        if net.shape.loss == "cross-entropy":
            logits = leafy.head(trajectory.h_SLBD[:, -1])
            loss = loss + leafy.losses(logits, trajectory.y).sum() / trajectory.y.shape[1]
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def cosine(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
    """Cosine of two gradients of all parameters, for each run; [S]."""
    inner = sum((one[name] * other[name]).flatten(1).sum(-1) for name in one)
    lengths = [sum(g.flatten(1).square().sum(-1) for g in each.values()) for each in (one, other)]
    assert isinstance(inner, Tensor)
    return inner / torch.stack([torch.as_tensor(n) for n in lengths]).prod(0).sqrt()
