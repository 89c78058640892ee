"""Parameters of a cohort, and the model written out plainly.

Suffixes, this file: S = seeds, P = numbers of a seed's flat row, B = examples, T = positions,
V = vocabulary, D = width.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.data import Batch
from assay.engines.addition.kernel import Kernel
from assay.engines.addition.layout import Layout, Matrix, layout, matrix
from assay.engines.addition.norms import EPS


class Parameters:
    """The parameters of S seeds, one flat row each, with a named view of every tensor."""

    def __init__(self, config: AdditionConfig, rows_SP: Tensor) -> None:
        self.config = config
        self.layout: Layout = layout(config)
        self.rows_SP = rows_SP
        self._named = [self._views(row) for row in rows_SP]

    @classmethod
    def zeros(
        cls, config: AdditionConfig, num_seeds: int, dtype: torch.dtype = torch.float32
    ) -> "Parameters":
        """All numbers zero: for gradients and optimizer states."""
        return cls(config, torch.zeros(num_seeds, layout(config).row, dtype=dtype))

    @classmethod
    def initial(cls, config: AdditionConfig, seeds: Sequence[int]) -> "Parameters":
        """Fresh parameters. Seed s has a generator of its own, whatever the others are."""
        made = cls.zeros(config, len(seeds))
        for index, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            for slot in made.layout.slots:
                view = made.seed(index)[slot.name]
                if slot.std:
                    view.copy_(torch.randn(slot.shape, generator=generator)).mul_(slot.std)
                else:
                    view.fill_(slot.fill)
        return made

    def seed(self, index: int) -> dict[str, Tensor]:
        """Named views of one seed's row; writing to them writes to the row."""
        return self._named[index]

    def stacked(self) -> dict[str, Tensor]:
        """Named views of all rows, with the leading seed axis."""
        return {
            slot.name: self.rows_SP[:, slot.start : slot.start + slot.numel].unflatten(
                1, slot.shape
            )
            for slot in self.layout.slots
        }

    def _views(self, row: Tensor) -> dict[str, Tensor]:
        return {
            slot.name: row[slot.start : slot.start + slot.numel].view(slot.shape)
            for slot in self.layout.slots
        }


def count(named: Mapping[str, Tensor]) -> int:
    """Numbers in unique storage: a tensor that appears under two names counts once."""
    unique = {
        (t.untyped_storage().data_ptr(), t.storage_offset()): t.numel() for t in named.values()
    }
    return sum(unique.values())


def loss_and_grad(
    p: Mapping[str, Tensor], g: Mapping[str, Tensor], row_P: Tensor, batch: Batch, kernel: Kernel
) -> Tensor:
    """Mean cross-entropy (nats) of one seed on a batch, and its gradient.

    Args:
        p: Named parameters of the seed.
        g: Named views into `row_P`; overwritten with the gradient.
        row_P: The flat gradient row.
        batch: As many examples as the kernel has buffers for.
        kernel: Buffers of the calling thread.

    Returns:
        The loss, a 0-d tensor: the caller decides when to read it.
    """
    row_P.zero_()
    kernel.forward(p, batch)
    loss = kernel.loss(batch)
    kernel.backward(p, g, batch)
    row_P.mul_(1 / kernel.rows)
    return loss


def reference_logits(config: AdditionConfig, p: Mapping[str, Tensor], token_SBT: Tensor) -> Tensor:
    """Logits [S, B, T, V] at every position, as the formula in the paper reads; differentiable.

    The kernel is tested against this, and greedy decoding uses it.

    Args:
        config: The model.
        p: Named parameters with the leading seed axis, see `Parameters.stacked`.
        token_SBT: Tokens, at most 33 positions.
    """
    length = token_SBT.shape[-1]
    plan = layout(config)
    index_S11 = torch.arange(token_SBT.shape[0]).view(-1, 1, 1)
    token_SVD = p["token_emb.weight"]
    position_STD = _matrix(p, matrix("pos_emb", config.pos_rank))[:, :length]
    x = token_SVD[index_S11, token_SBT] + position_STD[:, None]

    def apply(x: Tensor, item: Matrix) -> Tensor:
        x = x @ p[item.left][:, None]
        return x @ p[item.right][:, None] if item.right else x

    h = _norm(config, p, "blocks.0.ln1", x)
    q, k, v = torch.cat([apply(h, item) for item in plan.qkv], -1).chunk(3, -1)
    score = q @ k.transpose(-2, -1) / math.sqrt(config.d_model)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    weight = score.masked_fill(future, float("-inf")).softmax(-1)
    x = x + apply(weight @ v, matrix("blocks.0.attn.proj", config.attn_out_rank))
    h = _norm(config, p, "blocks.0.ln2", x)
    h = F.gelu(apply(h, matrix("blocks.0.mlp.fc1", config.ffn_rank)))
    x = x + apply(h, matrix("blocks.0.mlp.fc2", config.ffn_rank))
    return _norm(config, p, "ln_f", x) @ token_SVD.transpose(-2, -1)[:, None]


def _matrix(p: Mapping[str, Tensor], item: Matrix) -> Tensor:
    return p[item.left] @ p[item.right] if item.right else p[item.left]


def _norm(config: AdditionConfig, p: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    if config.norm == "layernorm":
        x = x - x.mean(-1, keepdim=True)
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS[config.norm])
    x = x * p[f"{name}.weight"][:, None, None]
    return x + p[f"{name}.bias"][:, None, None] if config.norm == "layernorm" else x
