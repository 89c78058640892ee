"""`assay addition`: train one configuration without a study, evaluate and use checkpoints.

A study (`assay run`) is the way to results that can support a claim; this writes plain files.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from assay.cli import addition_models as models
from assay.cli.addition_files import PlainContext, draw_curves, write_root
from assay.cli.addition_settings import config_from, settings
from assay.cli.local_files import interruptible
from assay.cli.options import SetOption
from assay.core.errors import ConfigError, StoreError

app = App(name="addition", help="Tiny transformers that learn to add two 10-digit numbers.")

app.command(models.evaluate)
app.command(models.predict)
app.command(models.verify)
app.command(models.export)
app.command(models.attack)
app.command(models.count)
app.command(settings)


@app.command
def train(
    out: Path,
    *,
    seed: Annotated[list[int] | None, Parameter(consume_multiple=True, negative="")] = None,
    data_seed: int | None = None,
    set_: SetOption = None,
    threads: int | None = None,
    quiet: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train one configuration with one or more seeds, stacked in this process.

    Writes OUT/seed-N/ with metrics.csv, summary.json, results.json, best.safetensors,
    last.safetensors, train_val_loss_per_step.png and val_accuracy_per_step.png, and with several
    seeds OUT/summary.json. Ctrl-C saves the state; the same command goes on from it, bit for bit.
    `assay addition settings` lists what can be set.

    Args:
        out: Folder for the runs.
        seed: Seeds of initialisation and data; one run each. Default: 0.
        data_seed: One data seed for all runs instead of each run's own seed.
        set_: Settings as name=value, as in a study's [config]: --set d_model=8 d_ff=28 lr=0.015.
            Values are JSON; words need no quotes. Warm-up and curriculum follow the steps unless
            they are given.
        threads: CPU threads of the kernel; no result depends on it. Default: the cores there are.
        quiet: No progress lines.
    """
    config = config_from(set_ or [])
    seeds = seed or [0]
    if threads is not None and threads < 1:
        raise ConfigError(f"--threads must be at least 1; got {threads}.")
    cores = threads or len(os.sched_getaffinity(0))
    contexts = _contexts(out, seeds, data_seed, quiet=quiet, threads=cores)
    from assay.engines.addition.train import train as train_cohort

    with interruptible(contexts):
        train_cohort([config] * len(contexts), contexts)
    if contexts[0].stop and not all(context.results for context in contexts):
        print(f"stopped; the same command goes on from {out}", file=sys.stderr)
        raise SystemExit(130)
    for context in contexts:
        draw_curves(context.folder)
    if len(contexts) > 1:
        write_root(out, contexts)
    print(f"{contexts[0].report['params']} parameters, {config.steps} steps")
    for context, name in zip(contexts, seeds, strict=True):
        result = context.results
        print(
            f"seed {name}: exact match {result['test/exact_match']:.5f} on "
            f"{config.test_size * len(config.test_seeds)} test pairs, {result['test/errors']:.0f} "
            f"errors; best at step {result['val/best_step']:.0f}"
        )


def _contexts(
    out: Path, seeds: Sequence[int], data_seed: int | None, *, quiet: bool, threads: int
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
                threads=threads,
            )
            for s in seeds
        ]
    except OSError as error:
        raise StoreError(
            f"{error.filename}: the output folder cannot be made ({error.strerror}). Choose a "
            "folder that you may write to."
        ) from error
