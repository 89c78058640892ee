"""Parameters of a cohort, and loss and gradient on a batch by either of two ways.

Suffixes, this file: S = seeds, P = numbers of a seed's flat row, E = of its dense row, B = examples,
Q = supervised rows, T = positions, V = vocabulary.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from assay.engines.addition.block import logits, targets, tokens
from assay.engines.addition.compose import dense_weights, flat, shape_of
from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.layout import Layout, Slot, layout


class Parameters:
    """Parameters and frozen buffers of S seeds: flat rows with named views."""

    def __init__(self, config: AdditionConfig, rows_SP: Tensor, frozen_SP: Tensor) -> None:
        self.config = config
        self.layout: Layout = layout(config)
        self.rows_SP, self.frozen_SP = rows_SP, frozen_SP

    @classmethod
    def zeros(
        cls, config: AdditionConfig, num_seeds: int, dtype: torch.dtype = torch.float32
    ) -> "Parameters":
        """All numbers zero, to be filled."""
        plan = layout(config)
        return cls(
            config,
            torch.zeros(num_seeds, plan.row, dtype=dtype),
            torch.zeros(num_seeds, plan.frozen_row, dtype=dtype),
        )

    @classmethod
    def initial(cls, config: AdditionConfig, seeds: Sequence[int]) -> "Parameters":
        """Fresh parameters. Seed s has a generator of its own, whatever the others are.

        Frozen buffers are drawn last: with and without them a seed starts at the same parameters.
        """
        made = cls.zeros(config, len(seeds))
        for index, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            for slot, view in made.seed(index).items():
                if slot.std:
                    view.copy_(torch.randn(slot.shape, generator=generator)).mul_(slot.std)
                else:
                    view.fill_(slot.fill)
        return made

    def named(self, rows_SP: Tensor | None = None) -> dict[str, Tensor]:
        """Views by name with the leading seed axis: parameters, then frozen buffers.

        Args:
            rows_SP: Use these rows for the parameters, to differentiate with respect to them.
        """
        rows = self.rows_SP if rows_SP is None else rows_SP
        return _views(self.layout.slots, rows) | _views(self.layout.frozen, self.frozen_SP)

    def seed(self, index: int) -> dict[Slot, Tensor]:
        """Views of one seed by slot; writing to them writes to the rows."""
        named = self.named()
        return {s: named[s.name][index] for s in (*self.layout.slots, *self.layout.frozen)}

    def dense(self) -> Tensor:
        """Dense rows [S, E], without a graph."""
        with torch.no_grad():
            return flat(dense_weights(self.config, self.layout, self.named()))

    def select(self, indices: Sequence[int]) -> "Parameters":
        """A copy of some of the seeds."""
        index = torch.tensor(indices, dtype=torch.int64, device=self.rows_SP.device)
        return Parameters(self.config, self.rows_SP[index], self.frozen_SP[index])

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "Parameters":
        """A copy on a device."""
        rows, frozen = self.rows_SP.to(device, dtype), self.frozen_SP.to(device, dtype)
        return Parameters(self.config, rows, frozen)


def _views(slots: Sequence[Slot], rows_SP: Tensor) -> dict[str, Tensor]:
    """Named parts of rows. Cut in one operation: its gradient is then one too, not one a slot."""
    ends = [*(slot.start for slot in slots[1:]), rows_SP.shape[1]]
    sizes = [
        size
        for slot, end in zip(slots, ends, strict=bool(slots))
        for size in (slot.numel, end - slot.start - slot.numel)
    ]
    parts = rows_SP.split(sizes, 1)[::2] if sizes else ()
    seeds = rows_SP.shape[0]
    return {
        slot.name: part.view(seeds, *slot.shape) for slot, part in zip(slots, parts, strict=True)
    }


def count(named: Mapping[str, Tensor]) -> int:
    """Numbers in unique storage: a tensor that appears under two names counts once."""
    unique = {
        (t.untyped_storage().data_ptr(), t.storage_offset()): t.numel() for t in named.values()
    }
    return sum(unique.values())


def model_logits(parameters: Parameters, token_SBT: Tensor, num_rows: int) -> Tensor:
    """Logits [S, B, num_rows, V] of the last positions, by the plain block."""
    weights = dense_weights(parameters.config, parameters.layout, parameters.named())
    return logits(shape_of(parameters.config), weights, token_SBT, num_rows)


def eager_losses(parameters: Parameters, rows_SP: Tensor, a_SB: Tensor, b_SB: Tensor) -> Tensor:
    """Mean cross-entropy [S] (nats), differentiable with respect to `rows_SP`: the reference."""
    config = parameters.config
    shape = shape_of(config)
    weights = dense_weights(config, parameters.layout, parameters.named(rows_SP))
    token_SBT = tokens(shape.format, a_SB, b_SB)
    logit = logits(shape, weights, token_SBT, shape.format.num_rows)
    target_SBQ = targets(shape.format, a_SB, b_SB)
    loss = F.cross_entropy(logit.flatten(0, 2), target_SBQ.flatten(), reduction="none")
    return loss.view(target_SBQ.shape).mean((1, 2))
