"""An encoder at the end of its pretraining, on labelled tasks, beside what needs no pretraining."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast, set_seed

from assay.engines.concepts.baselines import bag_of_words, majority
from assay.engines.concepts.config import PretrainConfig
from assay.engines.concepts.finetune import FineTuneConfig, classifier, fine_tune
from assay.engines.concepts.frozen import linear_probe, zero_shot
from assay.engines.concepts.parts import Parts, load


def judge(
    config: PretrainConfig,
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    data_dir: Path | None,
) -> dict[str, float]:
    """Every task of the settings, every way of answering it: name → value on the reported part.

    Names are those of `assay.engines.concepts.labels.METRICS`.

    Args:
        config: Of the run.
        folder: With the stored model.
        tokenizer: Of the model.
        seed: Of heads and of untrained models.
        data_dir: The data folder.

    Raises:
        ConfigError: Examples are not there or not as they should be.
    """
    found: dict[str, float] = {}
    for name in config.evaluate:
        parts = _parts(name, data_dir, config.tune_examples)
        ways = {"majority_": majority(parts), "words_": _words(parts)}
        model = classifier(
            folder, parts.task, config.head if config.architecture == "concepts" else None
        )
        set_seed(seed)
        bare = type(model)(model.config)
        for prefix, each in (("", model), ("untrained_", bare)):
            ways |= {
                prefix + way: values
                for way, values in _frozen(each, tokenizer, parts, config).items()
            }
        if config.tune_epochs:
            ways[""] = _tuned(config, folder, tokenizer, parts, seed)
        found |= {
            f"{name}/{way}{metric}": value
            for way, values in ways.items()
            for metric, value in values.items()
        }
    return found


@lru_cache(maxsize=16)
def _parts(name: str, data_dir: Path | None, most: int) -> Parts:
    return load(name, data_dir, most=most)


def _words(parts: Parts) -> Mapping[str, float]:
    return bag_of_words(parts).reported


def _frozen(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, parts: Parts, config: PretrainConfig
) -> dict[str, Mapping[str, float]]:
    options: dict[str, Any] = {"max_length": config.seq_len}
    found = {"probe_": linear_probe(model, tokenizer, parts, **options).reported}
    if parts.task.is_pair and parts.task.is_regression:
        found["zero_shot_"] = zero_shot(model, tokenizer, parts, **options)
    return found


def _tuned(
    config: PretrainConfig,
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    parts: Parts,
    seed: int,
) -> Mapping[str, float]:
    tuning = FineTuneConfig(
        lr=config.tune_lr,
        batch=config.tune_batch,
        epochs=config.tune_epochs,
        max_length=config.seq_len,
    )
    head = config.head if config.architecture == "concepts" else None
    return fine_tune(
        lambda: classifier(folder, parts.task, head), tokenizer, parts, tuning, seed=seed
    ).reported
