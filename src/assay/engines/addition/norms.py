"""Normalisation of columns, forward and backward, into buffers that are kept.

Activations lie feature by feature ([width, rows]): with 7 or 8 features a row is shorter than a
vector register, and a reduction over features becomes whole-register sums over rows. Measured
at 8 by 6,144 on one core: 45 us against 165 us for `layer_norm` on rows.

Suffixes, this file: D = width, R = rows.
"""

import torch
from torch import Tensor

from assay.engines.addition.config import Norm

EPS: dict[str, float] = {"layernorm": 1e-5, "rmsnorm": 1e-8}


class ColumnNorm:
    """LayerNorm or RMSNorm over the first axis, with what its backward needs."""

    def __init__(self, kind: Norm, width: int, rows: int, dtype: torch.dtype) -> None:
        self.centred = kind == "layernorm"
        self.eps = EPS[kind]
        self.width = width
        self.unit_DR = torch.empty(width, rows, dtype=dtype)
        self.scratch_DR = torch.empty(width, rows, dtype=dtype)
        self.inverse_1R = torch.empty(1, rows, dtype=dtype)
        self.one_1R = torch.empty(1, rows, dtype=dtype)

    def forward(self, x_DR: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """Write norm(x) * weight + bias to `out`."""
        unit, scratch, inverse = self.unit_DR, self.scratch_DR, self.inverse_1R
        if self.centred:
            torch.mean(x_DR, 0, keepdim=True, out=inverse)
            torch.sub(x_DR, inverse, out=unit)
            torch.mul(unit, unit, out=scratch)
        else:
            torch.mul(x_DR, x_DR, out=scratch)
        torch.mean(scratch, 0, keepdim=True, out=inverse)
        inverse.add_(self.eps).rsqrt_()
        torch.mul(unit if self.centred else x_DR, inverse, out=unit)
        torch.mul(unit, weight[:, None], out=out)
        if bias is not None:
            out.add_(bias[:, None])

    def backward(
        self, d_out: Tensor, weight: Tensor, d_weight: Tensor, d_bias: Tensor | None, out: Tensor
    ) -> None:
        """Write the gradient of x to `out` and those of weight and bias to their places."""
        unit, scratch, one = self.unit_DR, self.scratch_DR, self.one_1R
        share = (weight / self.width)[None, :]
        torch.mul(d_out, unit, out=scratch)
        torch.sum(scratch, 1, out=d_weight)
        torch.mul(d_out, weight[:, None], out=out)
        if d_bias is not None:
            torch.sum(d_out, 1, out=d_bias)
            out.sub_(torch.mm(share, d_out, out=one))
        torch.mm(share, scratch, out=one)
        out.sub_(torch.mul(unit, one, out=scratch))
        out.mul_(self.inverse_1R)
