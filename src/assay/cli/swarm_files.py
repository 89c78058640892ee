"""The files of a swarm outside the lab, and its progress lines."""

import csv
import hashlib
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from assay.core.errors import StoreError
from assay.core.files import write_atomic

STATE = "state.npz"


class LocalContext:
    """A run that writes plain files into one folder: the lab's `RunContext` without the lab."""

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        threads: int,
        quiet: bool,
        data_dir: Path | None,
        config: Mapping[str, Any],
    ) -> None:
        """Begin, or go on in a folder of the same configuration and seed."""
        self.seeds: Mapping[str, int] = {"init": seed, "data": seed, "faults": seed}
        self.device, self.threads, self.data_dir = "cpu", threads, data_dir
        self.folder, self.quiet, self._stop = folder, quiet, False
        self.step, self.is_finished = 0, False
        self.final: dict[str, float] = {}
        self._began = time.monotonic()
        told = {"config": dict(config), "seed": seed}
        path = folder / "config.json"
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if json.loads(path.read_text("utf-8")) != json.loads(json.dumps(told)):
                raise StoreError(
                    f"{folder} holds a run of another configuration or seed. Give a new folder, or the "
                    "settings of its config.json."
                )
            if (folder / "summary.json").exists():
                raise StoreError(f"{folder} holds a finished run. Give a new folder.")
        self._write("config.json", json.dumps(told, indent=1).encode())

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Append a row to metrics.jsonl; metrics.csv is made of it at the end, when all names are known."""
        self.step = step
        row = {"step": step, **values}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def summary(self, values: Mapping[str, float]) -> None:
        """Final values: summary.json, and metrics.csv of all rounds."""
        self.final, self.is_finished = dict(values), True
        rows = [
            json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()
        ]
        names = list(dict.fromkeys(name for row in rows for name in row))
        with (self.folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        (self.folder / "metrics.jsonl").unlink()
        (self.folder / STATE).unlink(missing_ok=True)
        self._write("summary.json", json.dumps(self.final, indent=1, sort_keys=True).encode())

    def save(self, name: str, content: bytes) -> str:
        """Write a file."""
        return self._write(name, content)

    def save_checkpoint(self, step: int, content: bytes) -> None:
        """Replace the state from which the run goes on."""
        self._write(STATE, step.to_bytes(8, "little") + content)

    def load_checkpoint(self) -> tuple[int, bytes] | None:
        """The state in the folder; rows that were logged after it are dropped."""
        path, rows = self.folder / STATE, self.folder / "metrics.jsonl"
        if not path.exists():
            rows.unlink(missing_ok=True)
            return None
        content = path.read_bytes()
        step = int.from_bytes(content[:8], "little")
        kept = [line for line in rows.read_text().splitlines() if json.loads(line)["step"] <= step]
        self._write("metrics.jsonl", "".join(f"{line}\n" for line in kept).encode())
        return step, content[8:]

    def event(self, kind: str, message: str, **details: Any) -> None:
        """Say it on stderr."""
        print(f"{kind}: {message}", file=sys.stderr)

    def spent(self, **budget: float) -> None:
        """Part of the final values."""
        self.final |= {f"spent/{name}": value for name, value in budget.items()}
        self._write("summary.json", json.dumps(self.final, indent=1, sort_keys=True).encode())

    def progress(self, step: int, total: int, shown: Mapping[str, float]) -> None:
        """A line on stderr, at most one a second."""
        if not self.quiet:
            losses = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
            print(f"round {step}/{total}  {losses}", file=sys.stderr, flush=True)

    def should_stop(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._stop

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """The first Ctrl-C stops after the round; the second one at once."""

        def ask(number: int, frame: object) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True

        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def report(self, console: Console) -> None:
        """What came of it."""
        for name, value in sorted(self.final.items()):
            console.print(f"{name:32} {value:,.6g}")
        console.print(f"{self.folder}: {time.monotonic() - self._began:.1f} s")

    def _write(self, name: str, content: bytes) -> str:
        """A file, whole or not at all; its sha256."""
        write_atomic(self.folder / name, content)
        return hashlib.sha256(content).hexdigest()
