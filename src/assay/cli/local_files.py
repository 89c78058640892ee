"""Runs outside the lab: one folder of plain files each, Ctrl-C, and going on in the same folder."""

import csv
import fcntl
import hashlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from assay.core.errors import StoreError
from assay.core.files import remove_unfinished, write_atomic

ECHO_S = 1.0
"""Signals of one and the same Ctrl-C lie no further apart."""


class Folder:
    """What every such run is to its engine: the lab's `RunContext` without the lab and its log.

    Args:
        folder: Of the run.
        seeds: By role.
        quiet: No progress lines.
        threads: What it may use.
        data_dir: The data folder, if there is one.
    """

    unit = "step"
    """What the engine counts."""

    def __init__(
        self,
        folder: Path,
        *,
        seeds: Mapping[str, int],
        quiet: bool,
        threads: int = 1,
        data_dir: Path | None = None,
    ) -> None:
        self.seeds: Mapping[str, int] = dict(seeds)
        self.device, self.threads, self.data_dir = "cpu", threads, data_dir
        self.folder, self.quiet, self.stop = folder, quiet, False

    def save(self, name: str, content: bytes) -> str:
        """A file, whole or not at all; its sha256."""
        write_atomic(self.folder / name, content)
        return hashlib.sha256(content).hexdigest()

    def event(self, kind: str, message: str, **details: Any) -> None:
        """Say it on stderr."""
        print(f"{self.folder.name}: {kind}: {message}", file=sys.stderr)

    def progress(self, step: int, total: int, shown: Mapping[str, float]) -> None:
        """A line on stderr; engines ask for one a second at most."""
        if not self.quiet:
            values = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
            line = f"{self.folder.name}  {self.unit} {step}/{total}  {values}"
            print(line, file=sys.stderr, flush=True)

    def should_stop(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self.stop

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While this process writes into the folder, no other one does.

        Raises:
            StoreError: Another one does.
        """
        place = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(place)
            raise StoreError(
                f"{self.folder} must be written by one process; another one trains there. Wait until it ends, or "
                "give another folder."
            ) from error
        try:
            remove_unfinished(self.folder)
            yield
        finally:
            os.close(place)


class LocalContext(Folder):
    """A run that writes config.json, metrics.csv and summary.json.

    Args:
        folder: Of the run.
        told: What config.json says of the run, `config` among it: another run is refused there.
        seeds: By role.
        quiet: No progress lines.
        threads: What it may use.
        data_dir: The data folder, if there is one.
    """

    state = "state.bin"
    """File of the state from which the run goes on."""

    def __init__(
        self,
        folder: Path,
        *,
        told: Mapping[str, Any],
        seeds: Mapping[str, int],
        quiet: bool,
        threads: int = 1,
        data_dir: Path | None = None,
    ) -> None:
        super().__init__(folder, seeds=seeds, quiet=quiet, threads=threads, data_dir=data_dir)
        self.step = 0
        self.final: dict[str, float] = {}
        self._began = time.monotonic()
        self.identity = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
        path = folder / "config.json"
        if folder.exists() and not folder.is_dir():
            raise StoreError(f"{folder} must be a folder; it is a file. Give another place.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{folder} must be a folder that can be made; {error.strerror or error}. Give another place."
            ) from error
        # config.json alone is what a run leaves that was refused before its first step
        begun = path.exists() and any(each != path for each in folder.iterdir())
        if begun and read_json(path) != json.loads(json.dumps(told)):
            raise StoreError(
                f"{folder} holds a run of another configuration or seed: "
                f"{_different(read_json(path), told)}. Give a new folder, or those settings."
            )
        self.save("config.json", json.dumps(told, indent=1).encode())

    @property
    def is_finished(self) -> bool:
        """Whether the final values are there."""
        return (self.folder / "summary.json").exists()

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Append a row to metrics.jsonl; metrics.csv is made of it at the end, when all names are known."""
        self.step = step
        row = {"step": step, **values}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def summary(self, values: Mapping[str, float]) -> None:
        """Final values: summary.json, and metrics.csv of all steps."""
        self.final = dict(values)
        rows = _rows(self.folder / "metrics.jsonl")
        names = list(dict.fromkeys(name for row in rows for name in row))
        with (self.folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        self._write_final()
        (self.folder / "metrics.jsonl").unlink(missing_ok=True)
        (self.folder / self.state).unlink(missing_ok=True)

    def spent(self, **budget: float) -> None:
        """Part of the final values."""
        self.final |= {f"spent/{name}": value for name, value in budget.items()}
        self._write_final()

    def _write_final(self) -> None:
        # JSON has no word for what is no number.
        told = {name: v if math.isfinite(v) else None for name, v in self.final.items()}
        self.save("summary.json", json.dumps(told, indent=1, sort_keys=True).encode())

    def save_checkpoint(self, step: int, content: bytes) -> None:
        """Replace the state from which the run goes on."""
        self.save(self.state, step.to_bytes(8, "little") + content)

    def checkpoint_step(self) -> int:
        """The step that the run would go on from; 0 if it would begin."""
        path = self.folder / self.state
        if not path.exists():
            return 0
        with path.open("rb") as file:
            return int.from_bytes(file.read(8), "little")

    def load_checkpoint(self) -> tuple[int, bytes] | None:
        """The state in the folder; rows that were logged after it are dropped."""
        path, rows = self.folder / self.state, self.folder / "metrics.jsonl"
        if not path.exists():
            rows.unlink(missing_ok=True)
            return None
        content = path.read_bytes()
        step = int.from_bytes(content[:8], "little")
        if not self.quiet:
            print(f"{self.folder.name}: goes on from {self.unit} {step}", file=sys.stderr)
        kept = [json.dumps(row) for row in _rows(rows) if row["step"] < step]
        self.save("metrics.jsonl", "".join(f"{line}\n" for line in kept).encode())
        return step, content[8:]

    def report(self, console: Console) -> dict[str, float]:
        """What came of it, now or when it was trained; the final values."""
        told = finals(self.folder)
        for name, value in sorted(told.items()):
            console.print(f"{name:32} {value:,.6g}")
        took = f"{time.monotonic() - self._began:.1f} s" if self.final else "was trained before"
        console.print(f"{self.folder}: {took}")
        return told


@contextmanager
def interruptible(contexts: Sequence[Folder]) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) lets the runs save and stop; the next one stops at once.

    What comes within a second is not the next one: torchrun passes on what the terminal has already told us.

    Raises:
        StoreError: Another process trains one of them.
    """
    first_s = math.inf

    def ask(number: int, frame: object) -> None:
        nonlocal first_s
        if contexts[0].stop:
            if time.monotonic() - first_s > ECHO_S:
                raise KeyboardInterrupt
            return
        first_s = time.monotonic()
        for context in contexts:
            context.stop = True
        unit = contexts[0].unit
        print(f"stops after this {unit}; Ctrl-C again stops at once", file=sys.stderr)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ExitStack() as held:
            for context in contexts:
                held.enter_context(context.alone())
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_json(path: Path) -> Any:
    """What a run's config.json or summary.json says."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} must be a file that the run's command wrote; it cannot be read: {error}. Give the "
            "folder of a whole run or, to run anew, a new folder."
        ) from error


def finals(folder: Path) -> dict[str, float]:
    """The final values of a run; NaN where one was no number."""
    told = read_json(folder / "summary.json")
    return {name: math.nan if value is None else value for name, value in told.items()}


def _different(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Which settings differ, as `name: there → asked`."""
    old, new = ({**each.get("config", {}), **each} for each in (there, asked))
    names = sorted((old.keys() | new.keys()) - {"config"})
    pairs = {name: (json.dumps(old.get(name)), json.dumps(new.get(name))) for name in names}
    return ", ".join(f"{name}: {a} → {b}" for name, (a, b) in pairs.items() if a != b)


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows that were logged; a last one that was cut off by a kill is left out."""
    found = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
