"""Losses on a batch of concepts [B, C, H] that push slots apart or make them vary.

All are means, so that their size does not depend on B, C or H more than their formula says.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from assay.engines.concepts.config import AMONG_TEXTS

SOFT_MARGIN = 0.1
"""Cosines below it cost nothing under `soft_orthogonality`."""
UNIFORMITY_TAU = 2.0
VARIANCE_EPS = 1e-4


def cosines(concepts_BCH: Tensor) -> Tensor:
    """Cosines of different slots of one text, [B, C (C - 1)]."""
    unit = functional.normalize(concepts_BCH, dim=-1)
    slots = unit.shape[1]
    apart = ~torch.eye(slots, dtype=torch.bool, device=unit.device)
    return (unit @ unit.mT)[:, apart]


def orthogonality(concepts_BCH: Tensor) -> Tensor:
    """Mean squared cosine of different slots. Can be 0 only where C ≤ H."""
    return cosines(concepts_BCH).square().mean()


def soft_orthogonality(concepts_BCH: Tensor) -> Tensor:
    """The same of what is above a margin."""
    return (cosines(concepts_BCH).abs() - SOFT_MARGIN).relu().square().mean()


def uniformity(concepts_BCH: Tensor) -> Tensor:
    """Mean exp(-2 d²) of distances between unit slots (Wang & Isola 2020, section 4.1.2, without the log)."""
    return (-UNIFORMITY_TAU * (2 - 2 * cosines(concepts_BCH))).exp().mean()


def variance(concepts_BCH: Tensor) -> Tensor:
    """How far each number's deviation, over all slots of all texts, is below 1 (Bardes et al. 2022, eq. 1).

    Slots that differ satisfy it, also where every text has the same ones.
    """
    rows = concepts_BCH.flatten(0, 1)
    return (1 - (rows.var(0) + VARIANCE_EPS).sqrt()).relu().mean()


def covariance(concepts_BCH: Tensor) -> Tensor:
    """Squared covariances of different numbers, over all slots of all texts, by H (the same, eq. 3)."""
    rows = concepts_BCH.flatten(0, 1)
    centred = rows - rows.mean(0)
    covariances = centred.mT @ centred / (len(rows) - 1)
    off = covariances.square().sum() - covariances.diagonal().square().sum()
    return off / rows.shape[1]


def vicreg(concepts_BCH: Tensor) -> Tensor:
    """`variance` + `covariance`."""
    return variance(concepts_BCH) + covariance(concepts_BCH)


def combined(concepts_BCH: Tensor) -> Tensor:
    """`variance` + `uniformity`, the source's own."""
    return variance(concepts_BCH) + uniformity(concepts_BCH)


def spread(concepts_BCH: Tensor) -> Tensor:
    """Minus the mean distance of a unit slot to its nearest (the source's `t_regs_mst`)."""
    unit = functional.normalize(concepts_BCH, dim=-1)
    slots = unit.shape[1]
    same = torch.eye(slots, dtype=torch.bool, device=unit.device)
    nearest = (unit @ unit.mT).masked_fill(same, -torch.inf).amax(-1)
    # From cosines, whose root has no slope where two slots are the same: held a little away from it.
    return -(2 - 2 * nearest).clamp(min=1e-6).sqrt().mean()


def input_variance(concepts_BCH: Tensor) -> Tensor:
    """How far the deviation of each number of each slot *over texts* is below 1.

    Slots that are the same in all texts do not satisfy it.

    Raises:
        ValueError: One text alone has no deviation.
    """
    if len(concepts_BCH) < 2:
        raise ValueError(f"input_variance needs 2 texts or more; got {len(concepts_BCH)}")
    return (1 - (concepts_BCH.var(0) + VARIANCE_EPS).sqrt()).relu().mean()


def input_uniformity(concepts_BCH: Tensor) -> Tensor:
    """Mean exp(-2 d²) of distances between texts, of each the unit mean of its concepts.

    `uniformity` of texts instead of slots, which is what Wang and Isola meant.

    Raises:
        ValueError: One text alone has no other.
    """
    if len(concepts_BCH) < 2:
        raise ValueError(f"input_uniformity needs 2 texts or more; got {len(concepts_BCH)}")
    return uniformity(concepts_BCH.mean(1)[None])


def input_combined(concepts_BCH: Tensor) -> Tensor:
    """`input_variance` + `input_uniformity`: the source's `combined`, over texts instead of slots."""
    return input_variance(concepts_BCH) + input_uniformity(concepts_BCH)


OVER_TEXTS = frozenset({"variance", "covariance", "vicreg", "combined", *AMONG_TEXTS})
"""Those that are not a mean over texts: of a part of a batch they are another."""
REGULARISERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "orthogonality": orthogonality,
    "soft-orthogonality": soft_orthogonality,
    "uniformity": uniformity,
    "variance": variance,
    "covariance": covariance,
    "vicreg": vicreg,
    "combined": combined,
    "spread": spread,
    "input-variance": input_variance,
    "input-uniformity": input_uniformity,
    "input-combined": input_combined,
}
