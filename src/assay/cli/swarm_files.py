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
        begin_from: str | None = None,
    ) -> None:
        """Begin, or go on in a folder of the same configuration and seed."""
        self.seeds: Mapping[str, int] = {"init": seed, "data": seed, "faults": seed}
        self.device, self.threads, self.data_dir = "cpu", threads, data_dir
        self.folder, self.quiet, self._stop = folder, quiet, False
        self.step, self.is_finished = 0, False
        self.final: dict[str, float] = {}
        self._began = time.monotonic()
        told: dict[str, Any] = {"config": dict(config), "seed": seed}
        if begin_from is not None:
            told["begin_from"] = begin_from
        self.identity = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
        path = folder / "config.json"
        if folder.exists() and not folder.is_dir():
            raise StoreError(f"{folder} must be a folder; it is a file. Give another place.")
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if _told(path) != json.loads(json.dumps(told)):
                raise StoreError(
                    f"{folder} holds a run of another configuration or seed: {_different(_told(path), told)}. "
                    "Give a new folder, or those settings."
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
        rows = _rows(self.folder / "metrics.jsonl")
        names = list(dict.fromkeys(name for row in rows for name in row))
        with (self.folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        self._write("summary.json", json.dumps(self.final, indent=1, sort_keys=True).encode())
        (self.folder / "metrics.jsonl").unlink(missing_ok=True)
        (self.folder / STATE).unlink(missing_ok=True)

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
        if not self.quiet:
            print(f"goes on from round {step}", file=sys.stderr)
        kept = [json.dumps(row) for row in _rows(rows) if row["step"] < step]
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
            print("stops after this round; Ctrl-C again stops at once", file=sys.stderr)

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


def _different(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Which settings differ, as `name: there → asked`."""
    old, new = ({**each.get("config", {}), **each} for each in (there, asked))
    names = sorted((old.keys() | new.keys()) - {"config"})
    pairs = {name: (json.dumps(old.get(name)), json.dumps(new.get(name))) for name in names}
    return ", ".join(f"{name}: {a} → {b}" for name, (a, b) in pairs.items() if a != b)


def _told(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} must hold the run's configuration; it cannot be read: {error}. Give a new folder."
        ) from error


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows that were logged; a last one that was cut off by a kill is left out."""
    found = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
