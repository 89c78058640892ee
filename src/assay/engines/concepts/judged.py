"""An encoder at the end of its pretraining, on labelled tasks, beside what needs no pretraining."""

from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from assay.engines.concepts.baselines import bag_of_words, majority
from assay.engines.concepts.checkpoints import classifier
from assay.engines.concepts.config import PretrainConfig
from assay.engines.concepts.evaluate import (
    MAJORITY,
    PROBE,
    SIMILARITY,
    TUNED,
    UNTRAINED,
    WORDS,
    frozen_ways,
)
from assay.engines.concepts.finetune import (
    FineTuneConfig,
    fine_tune,
    reads_apart,
    share_cut,
)
from assay.engines.concepts.parts import Parts, load

BEGINNINGS = {
    MAJORITY: "majority_",
    WORDS: "words_",
    PROBE: "probe_",
    SIMILARITY: "zero_shot_",
    PROBE + UNTRAINED: "untrained_probe_",
    SIMILARITY + UNTRAINED: "untrained_zero_shot_",
    TUNED: "",
}
"""Way of answering → how the names of its metrics begin."""


def judge(
    config: PretrainConfig,
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    data_dir: Path | None,
    device: str = "cpu",
) -> dict[str, float]:
    """Every task of the settings, every way of answering it: name → value on the reported part.

    Names are those of `assay.engines.concepts.labels.METRICS`.

    Args:
        config: Of the run.
        folder: With the stored model.
        tokenizer: Of the model.
        seed: Of heads and of untrained models.
        data_dir: The data folder.
        device: Where models compute.

    Raises:
        ConfigError: Examples are not there or not as they should be.
    """
    head = config.head if config.architecture == "concepts" else None
    found: dict[str, float] = {}
    for name in config.evaluate:
        parts, ways = _baselines(name, data_dir, config.tune_examples)
        model: Any = classifier(folder, parts.task, head)
        model.to(device)
        frozen = frozen_ways(model, tokenizer, parts, config.seq_len, [seed])
        measured: dict[str, Mapping[str, float]] = {
            way: {m: of_seed for m, (of_seed,) in values.items()} for way, values, _ in frozen
        }
        if config.tune_epochs:
            make = partial(classifier, folder, parts.task, head)
            tuned = fine_tune(make, tokenizer, parts, _tuning(config), seed=seed, device=device)
            measured[TUNED] = tuned.reported
        apart = not config.tune_epochs or reads_apart(model)
        for suffix, part in parts.reported.items():
            cut = share_cut(tokenizer, part, config.seq_len, apart=apart)
            found[f"{parts.task.name}/share_cut{suffix}"] = cut
        for way, values in {**ways, **measured}.items():
            found |= {
                f"{parts.task.name}/{BEGINNINGS[way]}{metric}": v for metric, v in values.items()
            }
    return found


@lru_cache(maxsize=16)
def _baselines(
    name: str, data_dir: Path | None, most: int
) -> tuple[Parts, Mapping[str, Mapping[str, float]]]:
    """The examples, and what needs no model; runs of one process share both."""
    parts = load(name, data_dir, most=most)
    return parts, {MAJORITY: majority(parts), WORDS: bag_of_words(parts).reported}


def _tuning(config: PretrainConfig) -> FineTuneConfig:
    return FineTuneConfig(
        lr=config.tune_lr,
        batch=config.tune_batch,
        epochs=config.tune_epochs,
        max_length=config.seq_len,
    )
