"""A run context in memory, and configurations small enough for a test."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assay.engines.addition.config import AdditionConfig

SMALL: dict[str, Any] = {
    "steps": 60,
    "batch_size": 32,
    "warmup_steps": 6,
    "eval_interval": 25,
    "val_size": 70,
    "test_size": 50,
    "test_seeds": (41, 100),
    "curriculum": ((1, 2, 10), (1, 10, 60)),
}
PUBLIC_456: dict[str, Any] = {
    "d_model": 7,
    "d_ff": 14,
    "pos_rank": 3,
    "qkv_rank": 3,
    "attn_out_rank": 2,
    "ffn_rank": 3,
    "norm": "rmsnorm",
    "tie_qkv": "shareA_tieKV",
}


def small(**changes: Any) -> AdditionConfig:
    return AdditionConfig(**{**SMALL, **changes})


class MemoryContext:
    """Keeps what a run hands over. `stop_after` calls of `should_stop` later, it says stop."""

    def __init__(
        self, seed: int = 0, *, data: int | None = None, threads: int = 1, stop_after: int = 10**9
    ) -> None:
        self.seeds: Mapping[str, int] = {"init": seed, "data": seed if data is None else data}
        self.device = "cpu"
        self.threads = threads
        self.data_dir: Path | None = None
        self.stop_after = stop_after
        self.rows: dict[int, dict[str, float]] = {}
        self.final: dict[str, float] = {}
        self.files: dict[str, bytes] = {}
        self.checkpoint: tuple[int, bytes] | None = None
        self.checkpoints: list[tuple[int, bytes]] = []
        self.events: list[tuple[str, str]] = []
        self.budget: dict[str, float] = {}
        self.shown: list[dict[str, float]] = []

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        self.rows[step] = dict(values)

    def summary(self, values: Mapping[str, float]) -> None:
        self.final |= values

    def save(self, name: str, content: bytes) -> str:
        self.files[name] = content
        return name

    def save_checkpoint(self, step: int, content: bytes) -> None:
        self.checkpoint = (step, content)
        self.checkpoints.append(self.checkpoint)

    def load_checkpoint(self) -> tuple[int, bytes] | None:
        return self.checkpoint

    def event(self, kind: str, message: str, **details: Any) -> None:
        self.events.append((kind, message))

    def spent(self, **budget: float) -> None:
        self.budget |= budget

    def progress(self, step: int, total: int, shown: Mapping[str, float]) -> None:
        self.shown.append(dict(shown))

    def should_stop(self) -> bool:
        self.stop_after -= 1
        return self.stop_after < 0
