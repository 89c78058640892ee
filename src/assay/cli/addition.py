"""`assay addition`: train one configuration without a study, evaluate and use checkpoints.

A study (`assay run`) is the way to results that can support a claim; this writes plain files.
"""

import csv
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from assay.core.config import build
from assay.core.errors import ConfigError, DataError, StoreError
from assay.engines.addition.config import AdditionConfig, num_parameters

app = App(name="addition", help="Tiny transformers that learn to add two 10-digit numbers.")

STATE = "state.safetensors"


class PlainContext:
    """A run that writes plain files into one folder: the lab's `RunContext` without the lab."""

    def __init__(self, folder: Path, *, seeds: Mapping[str, int], quiet: bool):
        self.seeds: Mapping[str, int] = dict(seeds)
        self.device = "cpu"
        self.threads = 1
        self.data_dir: Path | None = None
        self.stop = False
        self._folder, self._quiet = folder, quiet
        self.results: dict[str, float] = {}
        self._shown_s = 0.0
        folder.mkdir(parents=True, exist_ok=True)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Append a row to metrics.csv."""
        path = self._folder / "metrics.csv"
        is_new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if is_new:
                writer.writerow(["step", *values])
            writer.writerow([step, *values.values()])

    def summary(self, values: Mapping[str, float]) -> None:
        """Keep final values; results.json holds them all."""
        self.results |= values
        self.save("results.json", json.dumps(self.results, indent=1, sort_keys=True).encode())

    def save(self, name: str, content: bytes) -> str:
        """Write a file, whole or not at all."""
        import hashlib

        target = self._folder / name
        draft = target.with_name(f".{name}.part")
        draft.write_bytes(content)
        draft.replace(target)
        return hashlib.sha256(content).hexdigest()

    def save_checkpoint(self, step: int, content: bytes) -> None:
        """Replace the state from which the run goes on."""
        self.save(STATE, content)

    def load_checkpoint(self) -> tuple[int, bytes] | None:
        """The state in the folder; drops rows of metrics.csv that were logged after it."""
        from assay.engines.addition.checkpoint import parse

        path = self._folder / STATE
        if not path.exists():
            (self._folder / "metrics.csv").unlink(missing_ok=True)
            return None
        content = path.read_bytes()
        _, about = parse(content, where=str(path))
        step = int(about["step"])
        self._drop_rows_after(step)
        return step, content

    def _drop_rows_after(self, step: int) -> None:
        path = self._folder / "metrics.csv"
        if path.exists():
            lines = path.read_text().split("\n")[:-1]  # a torn last line has no end
            kept = [line for line in lines[1:] if int(line.split(",")[0]) <= step]
            self.save("metrics.csv", "\n".join([*lines[:1], *kept, ""]).encode())

    def event(self, kind: str, message: str, **details: Any) -> None:
        """Say it on stderr."""
        print(f"{self._folder.name}: {kind}: {message}", file=sys.stderr)

    def spent(self, **budget: float) -> None:
        """Part of results.json."""
        self.summary({f"spent/{name}": value for name, value in budget.items()})

    def progress(self, step: int, total: int, shown: Mapping[str, float]) -> None:
        """A line on stderr every few seconds."""
        now = time.monotonic()
        if self._quiet or (now - self._shown_s < 3 and step < total):
            return
        self._shown_s = now
        values = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        print(f"{self._folder.name}  step {step}/{total}  {values}", file=sys.stderr)

    def should_stop(self) -> bool:
        """True after Ctrl-C."""
        return self.stop


@app.command
def train(
    out: Path,
    *,
    seed: Annotated[list[int] | None, Parameter(consume_multiple=True, negative="")] = None,
    data_seed: int | None = None,
    set_: Annotated[
        list[str] | None, Parameter(name="--set", consume_multiple=True, negative="")
    ] = None,
    quiet: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train one configuration with one or more seeds, stacked in this process.

    Writes OUT/seed-N/ with metrics.csv, best.safetensors, last.safetensors, summary.json and
    results.json. Ctrl-C saves the state; the same command goes on from it, bit for bit.

    Args:
        out: Folder for the runs.
        seed: Seeds of initialisation and data; one run each. Default: 0.
        data_seed: One data seed for all runs instead of each run's own seed.
        set_: Settings as name=value, as in a study's [config]: --set d_model=8 d_ff=28 lr=0.015.
            Values are JSON; words need no quotes.
        quiet: No progress lines.
    """
    config = _config(set_ or [])
    seeds = seed or [0]
    contexts = _contexts(out, seeds, data_seed, quiet=quiet)
    from assay.engines.addition.train import train as train_cohort

    with _interruptible(contexts):
        train_cohort([config] * len(contexts), contexts)
    if contexts[0].stop and not all(context.results for context in contexts):
        print(f"stopped; the same command goes on from {out}", file=sys.stderr)
        raise SystemExit(130)
    print(f"{num_parameters(config)} parameters, {config.steps} steps")
    for context, name in zip(contexts, seeds, strict=True):
        result = context.results
        print(
            f"seed {name}: exact match {result['test/exact_match']:.5f} on "
            f"{config.test_size * len(config.test_seeds)} test pairs, {result['test/errors']:.0f} "
            f"errors; best at step {result['val/best_step']:.0f}"
        )


def _contexts(
    out: Path, seeds: Sequence[int], data_seed: int | None, *, quiet: bool
) -> list[PlainContext]:
    """One folder a seed; nothing is made before everything is checked."""
    if len(set(seeds)) != len(seeds):
        raise ConfigError(f"--seed must name different seeds; got {seeds}. Leave the repeated out.")
    if min([*seeds, data_seed or 0]) < 0:
        raise ConfigError(
            f"seeds must be 0 or more; got {seeds} and data seed {data_seed}. Any whole number "
            "from 0 will do."
        )
    try:
        return [
            PlainContext(
                out / f"seed-{s}",
                seeds={"init": s, "data": s if data_seed is None else data_seed},
                quiet=quiet,
            )
            for s in seeds
        ]
    except OSError as error:
        raise StoreError(
            f"{error.filename}: the output folder cannot be made ({error.strerror}). Choose a "
            "folder that you may write to."
        ) from error


@app.command
def evaluate(
    checkpoint: Annotated[list[Path], Parameter(consume_multiple=True)],
    /,
    *,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Evaluate checkpoints on the ten public test sets of 10,000 pairs.

    Args:
        checkpoint: best.safetensors or last.safetensors of a run, or a released .pt file.
        json_: Print JSON with the result of every test set.
    """
    from assay.core.config import to_plain
    from assay.engines.addition.checkpoint import load_model
    from assay.engines.addition.evaluate import Workspace, report, score_test_sets

    results = []
    for path in checkpoint:
        model = load_model(path)
        judged = AdditionConfig()
        work = Workspace(model.config, 500)
        sets = score_test_sets(judged, model.parameters.seed(0), work)
        results.append(
            {
                "checkpoint": str(path),
                "parameters": num_parameters(model.config),
                "config": to_plain(model.config),
                "training": dict(model.about),
                "multi_seed_validation": report(sets),
            }
        )
        if not json_:
            whole: Any = results[-1]["multi_seed_validation"]
            print(
                f"{path}: {num_parameters(model.config)} parameters, exact match "
                f"{whole['aggregate_exact_match']:.5f}, {whole['aggregate_errors']} errors in "
                f"{whole['total_examples']}"
            )
    if json_:
        print(json.dumps(results, indent=1))


@app.command
def predict(
    checkpoint: Path,
    a: str,
    b: str,
    /,
    *,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Let a checkpoint add two numbers, greedily, digit by digit.

    Args:
        checkpoint: best.safetensors or last.safetensors of a run, or a released .pt file.
        a: First operand, 0 to 9999999999.
        b: Second operand.
        json_: Print JSON.
    """
    operands = [_operand(name, text) for name, text in (("A", a), ("B", b))]
    from assay.engines.addition.checkpoint import load_model
    from assay.engines.addition.evaluate import predict as ask

    answer, truth = ask(load_model(checkpoint), *operands), sum(operands)
    if json_:
        fields: dict[str, int | bool] = {"A": operands[0], "B": operands[1]}
        fields |= {"prediction": answer, "ground_truth": truth, "correct": answer == truth}
        print(json.dumps(fields))
    else:
        verdict = "correct" if answer == truth else f"wrong, it is {truth}"
        print(f"{operands[0]} + {operands[1]} = {answer} ({verdict})")


def _operand(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text.lstrip("0")) <= 10):
        raise DataError(
            f"operand {name} must be a whole number from 0 to 9999999999 in digits; got {text!r}. "
            "The model has exactly 10 digit positions an operand, and no sign or point."
        )
    return int(text)


def _config(settings: Sequence[str]) -> AdditionConfig:
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set takes name=value; got {setting!r}. Write --set d_model=8.")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
        if isinstance(values[name], float) and not math.isfinite(values[name]):
            raise ConfigError(f"--set {name} must be a finite number; got {text}.")
    return build(AdditionConfig, values, where="--set")


class _interruptible:  # noqa: N801  (used as a statement)
    """Ctrl-C asks the runs to save and stop; a second one interrupts at once."""

    def __init__(self, contexts: Sequence[PlainContext]) -> None:
        self._contexts = contexts

    def __enter__(self) -> None:
        import signal

        self._before = signal.getsignal(signal.SIGINT)

        def ask(*_: object) -> None:
            for context in self._contexts:
                context.stop = True
            signal.signal(signal.SIGINT, self._before)

        signal.signal(signal.SIGINT, ask)

    def __exit__(self, *_: object) -> Literal[False]:
        import signal

        signal.signal(signal.SIGINT, self._before)
        return False
