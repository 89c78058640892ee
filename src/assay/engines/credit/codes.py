"""What a learned estimator is told about the output of the net."""

import torch
from torch import Tensor
from torch.nn import functional

from assay.engines.credit.config import Code as CodeName
from assay.engines.credit.estimators.base import Setting
from assay.engines.credit.net import Shape, Trajectory
from assay.engines.credit.surrogates import SMALL

PROJECTED = 64
"""Numbers of the fixed projection of h_L."""


def code_width(shape: Shape, name: CodeName) -> int:
    """Numbers of a code."""
    base = shape.width if name.startswith("deltaL") else shape.classes
    return base + (PROJECTED if name.endswith("_hL") else 0)


class Code:
    """The code that a configuration names.

    Args:
        setting: Of the estimator; a projection is drawn from its generators.
    """

    def __init__(self, setting: Setting) -> None:
        self.name = setting.config.code
        width = setting.shape.width
        self.projection_SDP: Tensor | None = None
        if self.name.endswith("_hL"):
            self.projection_SDP = setting.randn(width, PROJECTED) / width**0.5

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """[S, B, numbers]."""
        if self.name == "y":
            y = trajectory.y
            classes = trajectory.error_SBC.shape[-1]
            same = y.is_floating_point()
            return y if same else functional.one_hot(y, classes).to(trajectory.h_SLBD.dtype)
        if self.name.startswith("deltaL"):
            last = trajectory.last_SBD
            base = last / (last.square().mean((1, 2), keepdim=True).sqrt() + SMALL)
        else:
            base = trajectory.error_SBC
        if self.projection_SDP is None:
            return base
        return torch.cat([base, torch.bmm(trajectory.h_SLBD[:, -1], self.projection_SDP)], -1)

    def state(self) -> dict[str, Tensor]:
        """The projection, if there is one."""
        return {} if self.projection_SDP is None else {"projection": self.projection_SDP}
