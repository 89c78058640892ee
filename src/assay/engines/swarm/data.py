"""Text as tokens, and which sequences each client gets in a round."""

import hashlib
import sysconfig
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from assay.core.errors import ConfigError
from assay.engines.swarm.config import SwarmConfig

SHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
"""The sha256 of tinyshakespeare's input.txt."""
HELD_OUT = 0.1
"""Share of a corpus, at its end, that is never trained on."""
FIRST_ID = 4
"""Id of the first character of tinyshakespeare: the source's prepared data starts there."""


@lru_cache(maxsize=4)
def corpus(name: str, data_dir: Path | None) -> np.ndarray:
    """All tokens of a corpus, uint8.

    "python" is the text of the interpreter's standard library in the order of its paths, one token
    a byte; "tinyshakespeare" is one token a character, numbered from 4 in the order of codes.

    Raises:
        ConfigError: The corpus needs a data folder and it is not there.
    """
    if name == "python":
        root = Path(sysconfig.get_path("stdlib"))
        files = sorted(
            path for path in root.rglob("*.py")
            if not {"site-packages", "test", "tests", "idle_test", "lib2to3"} & set(path.relative_to(root).parts)
        )  # fmt: skip
        return np.frombuffer(b"\n".join(path.read_bytes() for path in files), np.uint8)
    path = None if data_dir is None else data_dir / "tinyshakespeare" / "input.txt"
    if path is None or not path.is_file():
        path = None if data_dir is None else data_dir / "data" / "tinyshakespeare" / "input.txt"
    if path is None or not path.is_file():
        raise ConfigError(
            "The corpus 'tinyshakespeare' must be in the data folder as tinyshakespeare/input.txt; "
            f"ASSAY_DATA is {data_dir or 'not set'}. Set ASSAY_DATA to the folder that holds it, or "
            'take corpus = "python", which is on every machine.'
        )
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != SHAKESPEARE:
        raise ConfigError(
            f"tinyshakespeare must be the file with sha256 {SHAKESPEARE[:12]}…; {path} has "
            f"{found[:12]}…. Restore the file: a study says the same on every machine."
        )
    text = np.frombuffer(content, np.uint8)
    known = np.unique(text)
    return (np.searchsorted(known, text) + FIRST_ID).astype(np.uint8)


def description(name: str) -> str:
    """What is read, for the provenance of a run: the sha256 of the text."""
    if name == "tinyshakespeare":
        return SHAKESPEARE
    return hashlib.sha256(corpus(name, None).tobytes()).hexdigest()


class Text:
    """Sequences of a corpus: in the order of the file for training, the last tenth held out.

    Sequence i begins at token i x seq_len and has one token more than are predicted.
    """

    def __init__(self, tokens: np.ndarray, seq_len: int) -> None:
        """Cut a corpus into sequences."""
        self.tokens, self.seq_len = tokens, seq_len
        total = (len(tokens) - 1) // seq_len
        self.held = max(2, int(total * HELD_OUT))
        self.train = total - self.held
        if self.held < 2 or self.train < 1:
            raise ConfigError(
                f"A corpus must hold sequences to train, to choose and to test with; {len(tokens)} tokens make {total} of "
                f"{seq_len}. Take a shorter seq_len."
            )

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
