"""A corpus as sequences, and which of them each client gets in a round."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from assay.engines.swarm.config import SwarmConfig
from assay.engines.swarm.corpus import divided


class Text:
    """Sequences of a corpus: in the order of the file for training, the last tenth held out.

    Sequence i begins at token i x seq_len and has one token more than are predicted.
    """

    def __init__(self, tokens: np.ndarray, seq_len: int) -> None:
        """Cut a corpus into sequences."""
        self.tokens, self.seq_len = tokens, seq_len
        self.train, self.held = divided(len(tokens), seq_len)

    def sequences(self, numbers: Sequence[int] | np.ndarray) -> Tensor:
        """Token ids [len(numbers), seq_len + 1], int64."""
        at = np.asarray(numbers, dtype=np.int64)[:, None] * self.seq_len
        return torch.from_numpy(self.tokens[at + np.arange(self.seq_len + 1)].astype(np.int64))

    def test(self, count: int) -> Tensor:
        """The first `count` held-out sequences, at most half of them: for final values only."""
        return self.sequences(range(self.train, self.train + self._tested(count)))

    def validation(self, count: int) -> Tensor:
        """As many held-out sequences that are no test sequences, or all of those: for curves and choices."""
        first = self.train + self._tested(count)
        return self.sequences(range(first, min(first + count, self.train + self.held)))

    def _tested(self, count: int) -> int:
        return min(count, self.held // 2)


def assignment(
    config: SwarmConfig, order: np.ndarray, step: int, clients: Sequence[int]
) -> dict[int, np.ndarray]:
    """Client → its sequences in a round.

    Args:
        config: Says how a round is divided.
        order: The training sequences in the order in which they are used.
        step: Round, from 1.
        clients: Who trains, by tier and number.
    """
    if not clients:
        return {}
    if config.batches == "fixed":
        each = max(1, config.batch // len(clients))
        return dict.fromkeys(clients, order[:each])
    at = (np.arange(config.batch) + (step - 1) * config.batch) % len(order)
    part = order[at]
    if config.batches == "same":
        each = max(1, config.batch // len(clients))
        return dict.fromkeys(clients, part[:each])
    if config.batches == "disjoint":
        # Fisher-Yates with the draw of this round: no client always has the larger part.
        clients = [
            clients[i]
            for i in np.random.default_rng([int(order[0]), step]).permutation(len(clients))
        ]
    sizes = [
        config.batch // len(clients) + (i < config.batch % len(clients))
        for i in range(len(clients))
    ]
    ends = np.cumsum([0, *sizes])
    return {client: part[ends[i] : ends[i + 1]] for i, client in enumerate(clients)}
