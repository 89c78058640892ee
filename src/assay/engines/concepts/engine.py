"""Adapter: what the lab needs to know about this engine. No torch until a task runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from assay.core.engine import Engine, Metric, RunContext, Task
from assay.core.errors import ConfigError
from assay.engines import facts
from assay.engines.concepts.analysis_metrics import CHIEF, under
from assay.engines.concepts.config import ConceptLoss, CostConfig, PretrainConfig
from assay.engines.concepts.corpus import HUB, PYTHON, digest
from assay.engines.concepts.labels import METRICS as LABELLED
from assay.engines.concepts.labels import PROBES

_LOSSES: tuple[str, ...] = get_args(ConceptLoss)


def _held(split: str) -> dict[str, Metric]:
    return {
        f"{split}/loss_nats": Metric(
            says="Mean cross-entropy of the tokens that the objective asks for, on held-out texts "
            f"({split}); unweighted, unsmoothed, without concept losses. Another objective asks for other tokens: "
            "between two, compare what each gains on test/unigram_nats.",
            goal="min",
            low=0.0,
        ),
        f"{split}/accuracy": Metric(
            says=f"Share of those tokens that are the likeliest, on held-out texts ({split}).",
            goal="max",
            low=0.0,
            high=1.0,
            chance="test/majority_accuracy" if split == "test" else None,
        ),
    }


TRAINING = {
    "train/loss_nats": Metric(
        says="The task's loss on this step's batch, before the step, with its weights of time and its smoothing.",
        goal="min",
    ),
    "train/grad_norm": Metric(
        says="Length of all gradients together, before they are clipped.", goal="min", low=0.0
    ),
    "train/grad_norm_max": Metric(says="The largest of the run.", goal="min", low=0.0),
    "train/grad_norm_max_late": Metric(
        says="The largest of the second half of the run.", goal="min", low=0.0
    ),
    "model/parameters": Metric(says="Trained numbers, those of decoder and head too.", low=0.0),
    "train/blocks": Metric(says="Texts to train on, each read once an epoch.", low=0.0),
    "speed/seconds_per_step": Metric(
        says="Wall time of a step of this attempt, measurements included.", goal="min", low=0.0
    ),
    "weight/task": Metric(
        says="What the task's loss is multiplied by, where that is learned.", low=0.0
    ),
} | {
    name: metric
    for loss in _LOSSES
    for name, metric in (
        (f"train/{loss}_loss", Metric(says=f"The concept loss {loss} of this step's batch.")),
        (f"weight/{loss}", Metric(says=f"What the concept loss {loss} is multiplied by.", low=0.0)),
    )
}


GUESSED = {
    "test/unigram_nats": Metric(
        says="What test/loss_nats is when every token is guessed by how often it stands in the texts trained on, "
        "without reading: a model above it has learned less than that.",
        low=0.0,
    ),
    "test/majority_accuracy": Metric(
        says="What test/accuracy is when the most frequent token is always guessed.",
        low=0.0,
        high=1.0,
    ),
}

COST = {
    "cost/seconds": Metric(
        says="Wall time of forward and backward of one text, median over repeats.",
        goal="min",
        low=0.0,
    ),
    "cost/seconds_min": Metric(says="The same, the shortest.", goal="min", low=0.0),
    "model/parameters": Metric(says="Trained numbers of the encoder.", low=0.0),
}


def _cost(configs: Sequence[Any], contexts: Sequence[RunContext]) -> None:
    from assay.engines.concepts.cost import measure

    measure(configs, contexts)


def _train(configs: Sequence[Any], contexts: Sequence[RunContext]) -> None:
    from assay.engines.concepts.pretrain import train

    train(configs, contexts)


def _fingerprint(
    config: PretrainConfig, seeds: Mapping[str, int], data_dir: Path | None
) -> dict[str, str]:
    found = {f"corpus {config.corpus}": digest(config.corpus, data_dir)}
    if config.tokenizer:
        from assay.engines.concepts.tokens import fetch_tokenizer, identity

        found[f"tokenizer {config.tokenizer}"] = identity(fetch_tokenizer(config.tokenizer))
    if config.evaluate:
        from assay.engines.concepts.parts import load

        for name in config.evaluate:
            parts = load(name, data_dir, most=config.tune_examples)
            found[f"task {name}"] = parts.digest
    return found


def check(configs: Sequence[PretrainConfig], data_dir: Path | None) -> None:
    """Refuse what would fail every run: a text that is not there, or that a study cannot name everywhere.

    Raises:
        ConfigError: Told with the way out.
    """
    from assay.engines.concepts.corpus import corpus
    from assay.engines.concepts.parts import load

    for name in {config.corpus for config in configs}:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ConfigError(
                f"corpus must be {PYTHON}, {HUB}NAME or a path inside the data folder, ASSAY_DATA, so that a "
                f"study says the same on every machine; got {name!r}. Put the text there, and name it from there."
            )
        if not name.startswith(HUB):
            corpus(name, data_dir)
    for name, most in {(n, config.tune_examples) for config in configs for n in config.evaluate}:
        load(name, data_dir, most=most)


ENGINE = Engine(
    name="concepts",
    tasks={
        "pretrain": Task(
            name="pretrain",
            config=PretrainConfig,
            seeds=("init", "data"),
            metrics=TRAINING
            | LABELLED
            | PROBES
            | _held("val")
            | _held("test")
            | GUESSED
            | under("val")
            | under("test")
            | {
                n: m for n, m in under("untrained").items() if n.removeprefix("untrained/") in CHIEF
            },
            run=_train,
            budget=("steps",),
            check=check,
            fingerprint=_fingerprint,
            environment=facts.of_torch,
            max_threads=1,
        ),
        "cost": Task(
            name="cost",
            config=CostConfig,
            seeds=("init",),
            metrics=COST,
            run=_cost,
            budget=("repeats",),
            environment=facts.of_torch,
            max_threads=1,
        ),
    },
    packages=("torch", "transformers", "tokenizers", "accelerate", "numpy"),
)
