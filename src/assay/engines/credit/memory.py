"""A run without files, for use as a library: the lab's `RunContext` that keeps all in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Memory:
    """What a run was told and has reported.

    Args:
        seeds: By role: init and data.
        data_dir: The data folder, if there is one.
    """

    def __init__(self, seeds: Mapping[str, int], data_dir: Path | None = None) -> None:
        self.seeds: Mapping[str, int] = dict(seeds)
        self.device, self.threads, self.data_dir = "cpu", 1, data_dir
        self.rows: list[dict[str, float]] = []
        self.final: dict[str, float] = {}
        self.files: dict[str, bytes] = {}
        self.events: list[str] = []

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Keep a row."""
        self.rows.append({"step": step, **values})

    def summary(self, values: Mapping[str, float]) -> None:
        """Keep final values."""
        self.final |= values

    def save(self, name: str, content: bytes) -> str:
        """Keep a file; it has no digest."""
        self.files[name] = content
        return ""

    def save_checkpoint(self, step: int, content: bytes) -> None:
        """Nothing goes on from memory."""

    def load_checkpoint(self) -> tuple[int, bytes] | None:
        """There is none."""
        return None

    def event(self, kind: str, message: str, **details: Any) -> None:
        """Keep what a reader should know."""
        self.events.append(f"{kind}: {message}")

    def spent(self, **budget: float) -> None:
        """Part of the final values."""
        self.final |= {f"spent/{name}": value for name, value in budget.items()}

    def progress(self, step: int, total: int, shown: Mapping[str, float]) -> None:
        """Nobody looks."""

    def should_stop(self) -> bool:
        """Never: Ctrl-C is Python's own here."""
        return False
