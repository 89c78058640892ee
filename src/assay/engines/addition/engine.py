"""Adapter: what the lab needs to know about this engine. No torch until a task runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.core.engine import Engine, Metric, RunContext, Task
from assay.engines.addition import released
from assay.engines.addition.config import PUBLIC_TEST_SEEDS, STACKABLE, AdditionConfig


def _rate(says: str) -> Metric:
    return Metric(says=says, goal="max", low=0.0, high=1.0)


METRICS = {
    "train/loss_nats": Metric(
        says="Mean cross-entropy of the 12 supervised tokens on this step's training batch.",
        goal="min",
        low=0.0,
    ),
    "train/grad_norm": Metric(says="Global gradient norm of this step before clipping.", low=0.0),
    "train/lr": Metric(says="Learning rate of this step.", low=0.0),
    "val/loss_nats": Metric(
        says="Mean cross-entropy of the 12 supervised tokens on the held-out validation pairs.",
        goal="min",
        low=0.0,
    ),
    "val/exact_match": _rate(
        "Share of the validation pairs whose 11 sum digits are all right (greedy)."
    ),
    "val/token_accuracy": _rate(
        "Share of right sum digits on the validation pairs under teacher forcing."
    ),
    "val/best_exact_match": _rate("Largest val/exact_match of the run."),
    "val/best_step": Metric(says="Step of the weights that were kept as best.", low=0.0),
    "val/grok_step": Metric(
        says="First evaluated step at which val/exact_match reached grok_threshold; absent if none.",
        goal="min",
        low=0.0,
    ),
    "test/exact_match": _rate(
        "Share of all test pairs, all test sets together, that the best weights add right."
    ),
    "test/errors": Metric(
        says="Test pairs, all test sets together, that the best weights add wrong.",
        goal="min",
        low=0.0,
    ),
    "model/parameters": Metric(says="Trained numbers after tying.", low=0.0),
    "speed/model_steps_per_s": Metric(
        says="Updates of all runs of the cohort per second of this attempt, evaluation included.",
        low=0.0,
    ),
} | {
    # No direction: a table shows all ten together, as test/exact_match.
    f"test/exact_match_set_{seed}": Metric(
        says=f"Exact match of the best weights on the test set of holdout seed {seed}.",
        low=0.0,
        high=1.0,
    )
    for seed in PUBLIC_TEST_SEEDS
}


RELEASED_METRICS = {
    "test/exact_match": _rate(
        "Share of the pairs of this test set that the checkpoint adds right."
    ),
    "test/errors": Metric(
        says="Pairs of this test set that the checkpoint adds wrong.", goal="min", low=0.0
    ),
    "test/loss_nats": Metric(
        says="Mean cross-entropy of the supervised tokens on this test set.", goal="min", low=0.0
    ),
    "model/parameters": Metric(says="Trained numbers after tying.", low=0.0),
}


def _train(configs: Sequence[Any], contexts: Sequence[RunContext]) -> None:
    from assay.engines.addition.train import train

    train(configs, contexts)


def _fingerprint(
    config: AdditionConfig, seeds: Mapping[str, int], data_dir: Path | None
) -> dict[str, str]:
    from assay.engines.addition.data import description

    return description(config, seeds["data"])


def _environment() -> dict[str, str]:
    from assay.engines import facts
    from assay.engines.addition import fused

    return {**facts.of_torch(), "kernel": fused.describe()}


ENGINE = Engine(
    name="addition",
    tasks={
        "train": Task(
            name="train",
            config=AdditionConfig,
            seeds=("init", "data"),
            metrics=METRICS,
            run=_train,
            stackable=STACKABLE,
            budget=("steps",),
            fingerprint=_fingerprint,
            environment=_environment,
            max_threads=1,
        ),
        "evaluate": Task(
            name="evaluate",
            config=released.EvaluateConfig,
            seeds=("data",),
            metrics=RELEASED_METRICS,
            run=released.evaluate,
            check=released.check,
            fingerprint=released.fingerprint,
            environment=_environment,
            max_threads=1,
        ),
    },
    packages=("torch", "numpy", "safetensors"),
)
