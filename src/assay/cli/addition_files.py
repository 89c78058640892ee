"""The files of a training run outside the lab: the names and keys that users of the sources know."""

import csv
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.cli.local_files import Folder

STATE = "state.safetensors"
SHOW_EVERY_S = 3
COLUMNS = {
    "train_loss": "train/loss_nats",
    "val_exact": "val/exact_match",
    "val_token_acc": "val/token_accuracy",
    "grad_norm": "train/grad_norm",
    "lr": "train/lr",
}
"""Columns of metrics.csv between step and elapsed_sec, and the metrics that they hold."""


class PlainContext(Folder):
    """A run that writes the files of the public trainers into one folder."""

    def __init__(self, folder: Path, *, seeds: Mapping[str, int], quiet: bool, threads: int = 1):
        super().__init__(folder, seeds=seeds, quiet=quiet, threads=threads)
        self.results: dict[str, float] = {}
        self.report: dict[str, Any] = {}
        self._shown_s = 0.0
        self._start_s, self._before_s = time.monotonic(), 0.0
        folder.mkdir(parents=True, exist_ok=True)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Append a row to metrics.csv."""
        path = self.folder / "metrics.csv"
        is_new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if is_new:
                writer.writerow(["step", *COLUMNS, "elapsed_sec", "val_loss"])
            row = [values[metric] for metric in COLUMNS.values()]
            writer.writerow([step, *row, f"{self.elapsed_s():.3f}", values["val/loss_nats"]])

    def elapsed_s(self) -> float:
        """Seconds of training, those before an interruption included."""
        return self._before_s + time.monotonic() - self._start_s

    def summary(self, values: Mapping[str, float]) -> None:
        """Keep final values; results.json holds them all."""
        self.results |= values
        super().save("results.json", json.dumps(self.results, indent=1, sort_keys=True).encode())

    def save(self, name: str, content: bytes) -> str:
        """Write a file; the engine's summary is completed with the keys of the sources."""
        if name == "summary.json":
            self.report = self._complete(json.loads(content))
            content = json.dumps(self.report, indent=1).encode()
        return super().save(name, content)

    def _complete(self, plain: dict[str, Any]) -> dict[str, Any]:
        known = {
            "run_name": self.folder.name,
            "params": sum(plain["parameters"].values()),
            "best_val_exact": plain["best_val_exact_match"],
            "best_step": plain["best_step"],
            "train_steps": plain["steps"],
            "elapsed_sec": round(self.elapsed_s(), 3),
            "model_config": plain["config"],
        }
        return known | {name: value for name, value in plain.items() if name != "config"}

    def save_checkpoint(self, step: int, content: bytes) -> None:
        """Replace the state from which the run goes on."""
        super().save(STATE, content)

    def load_checkpoint(self) -> tuple[int, bytes] | None:
        """The state in the folder; drops rows of metrics.csv that were logged after it."""
        from assay.engines.addition.checkpoint import parse

        path = self.folder / STATE
        if not path.exists():
            (self.folder / "metrics.csv").unlink(missing_ok=True)
            return None
        content = path.read_bytes()
        _, about = parse(content, where=str(path))
        step = int(about["step"])
        self._drop_rows_after(step)
        return step, content

    def _drop_rows_after(self, step: int) -> None:
        path = self.folder / "metrics.csv"
        if path.exists():
            lines = path.read_text().split("\n")[:-1]  # a torn last line has no end
            kept = [line for line in lines[1:] if int(line.split(",")[0]) <= step]
            super().save("metrics.csv", "\n".join([*lines[:1], *kept, ""]).encode())
            if kept:
                self._before_s = float(
                    kept[-1].split(",")[lines[0].split(",").index("elapsed_sec")]
                )

    def spent(self, **budget: float) -> None:
        """Part of results.json."""
        self.summary({f"spent/{name}": value for name, value in budget.items()})

    def progress(self, step: int, total: int, shown: Mapping[str, float]) -> None:
        """A line on stderr every few seconds: this engine tells after every step."""
        now = time.monotonic()
        if now - self._shown_s >= SHOW_EVERY_S or step == total:
            self._shown_s = now
            super().progress(step, total, shown)


def write_root(out: Path, contexts: Sequence[PlainContext]) -> None:
    """The summary of all seeds beside their folders, as the vectorised source writes it."""
    reports = [context.report for context in contexts]
    best = [report["best_val_exact"] for report in reports]
    whole = {
        "run_name": out.name,
        "num_models": len(reports),
        "params_per_model": reports[0]["params"],
        "params_total": sum(report["params"] for report in reports),
        "train_steps": reports[0]["train_steps"],
        "elapsed_sec": max(report["elapsed_sec"] for report in reports),
        "model_config": reports[0]["model_config"],
        "aggregate": {
            "best_val_exact_mean": sum(best) / len(best),
            "best_val_exact_min": min(best),
            "best_val_exact_max": max(best),
        },
        "models": [
            {"model_index": index, "seed": report["seeds"]["init"], **report}
            for index, report in enumerate(reports)
        ],
    }
    (out / "summary.json").write_text(json.dumps(whole, indent=1))


def draw_curves(folder: Path) -> None:
    """train_val_loss_per_step.png and val_accuracy_per_step.png from metrics.csv."""
    from matplotlib.figure import Figure

    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    plots = {
        "train_val_loss_per_step.png": (
            "cross-entropy, nats a token",
            {"train_loss": "training batch", "val_loss": "validation"},
        ),
        "val_accuracy_per_step.png": (
            "share of validation pairs or digits",
            {"val_exact": "exact match", "val_token_acc": "digits, teacher-forced"},
        ),
    }
    for name, (label, columns) in plots.items():
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.subplots()
        for column, says in columns.items():
            axes.plot(steps, [float(row[column]) for row in rows], label=says, linewidth=1.2)
        axes.set(xlabel="step", ylabel=label, title=folder.name)
        if "loss" in name:
            axes.set_yscale("log")
        else:
            axes.set_ylim(-0.02, 1.02)
        axes.legend(frameon=False)
        figure.savefig(folder / name, dpi=110)
