"""Trains a classifier on a labelled task, chooses its epoch, and measures it where nothing was chosen."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from assay.core.errors import ConfigError
from assay.engines.concepts.baselines import majority
from assay.engines.concepts.linear import reported_scores
from assay.engines.concepts.modes import quiet
from assay.engines.concepts.parts import Examples, Parts
from assay.engines.concepts.scores import Values, scores
from assay.engines.concepts.tasks import Task

LENGTH = 128
"""Tokens of a text where nothing is said, as in the source."""

SECOND = "_b"
"""Suffix of what belongs to the second text, where texts are read one by one."""

SAME = 1e-5
"""Numbers whose range is less than this share of the greatest are one answer: float32 rounds about so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneConfig:
    """How a classifier is trained: AdamW, the rate rising and then falling linearly to 0.

    The source's values, in brackets, are for models of 35M to 60M parameters; smaller ones learn
    with higher rates, as the BERT miniatures do (Turc et al. 2019: 3e-5 to 3e-4).

    Attributes:
        lr: Highest learning rate (1e-5).
        batch: Examples of a step (96).
        epochs: Passes over `train`; the best one is taken (20; 5 of SST-2; 3 of large tasks).
        warmup: Steps in which the rate rises; below 1 their share of all (100).
        weight_decay: Of matrices (0.01).
        clip: Greatest norm of the gradient (1).
        max_length: Tokens at most of a text, or of a joined pair; 0 for 128, or the model's places where
            it has fewer.
    """

    lr: float = 1e-4
    batch: int = 32
    epochs: int = 10
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    max_length: int = 0

    def __post_init__(self) -> None:
        rules = {
            "lr": (self.lr > 0, "above 0"),
            "batch": (self.batch >= 1, "1 or more"),
            "epochs": (self.epochs >= 1, "1 or more"),
            "warmup": (self.warmup >= 0, "0 or more: steps, or below 1 a share of them"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "clip": (self.clip > 0, "above 0"),
            "max_length": (
                self.max_length >= 4 or self.max_length == 0,
                "4 or more, for three special tokens and one other, or 0",
            ),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ConfigError(f"Fine-tuning: {name} must be {rule}; got {getattr(self, name)}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuned:
    """One training.

    Attributes:
        seed: Of the head's first weights, the order of the examples and dropout.
        epoch: The one that was taken, from 1: the first of the best on `chosen`, by the task's
            first metric.
        history: Of each epoch: "train_loss", and "loss" and metrics on `chosen`.
        reported: Metrics on `reported`, of the weights of that epoch.
        majority: What one answer for all has of each.
        answers: Different answers on `reported`; 1 where the model tells nothing apart.
        parameters: Of the model, head included.
    """

    seed: int
    epoch: int
    history: Sequence[Mapping[str, float]]
    reported: Mapping[str, float]
    majority: Mapping[str, float]
    answers: int
    parameters: int


def with_length(model: PreTrainedModel, config: FineTuneConfig) -> FineTuneConfig:
    """The configuration with a length of texts that fits the model's places.

    Raises:
        ConfigError: Texts may be longer.
    """
    places = getattr(model.config, "max_position_embeddings", LENGTH)
    if config.max_length > places:
        raise ConfigError(
            f"max_length must be at most the model's {places} places; got {config.max_length}. Give --set "
            f"max_length={places}, or leave it out."
        )
    return replace(config, max_length=config.max_length or min(LENGTH, places))


def fine_tune(
    make: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    parts: Parts,
    config: FineTuneConfig,
    *,
    seed: int,
    device: str = "cpu",
) -> FineTuned:
    """Train on `train`, take the epoch that is best on `chosen`, and measure its weights on `reported`.

    By the library's Trainer, in this process; the same seed and threads give the same numbers. **Sets the
    global seeds** of Python, numpy and torch, from which the library draws first weights and dropout.

    Args:
        make: Gives the model, its head drawn from the seed: `lambda: classifier(folder, task, head)`.
        tokenizer: Of the model.
        parts: Of the task. A pair is one text [CLS] a [SEP] b [SEP], of the head "pair" two.
        config: How.
        seed: Of the head's first weights, the order of the examples and dropout.
        device: "cpu", or any other for the first GPU that this process may use.

    Raises:
        ConfigError: Texts may be longer than the model's places, or the training diverged.
    """
    set_seed(seed)
    model = _with_padding(make(), tokenizer)
    config = with_length(model, config)
    apart = reads_apart(model)
    # The Trainer takes any sequence; its types know the library's own class only.
    rows: Any = partial(_rows, tokenizer, max_length=config.max_length, apart=apart)
    given: list[Values] = []
    with quiet(), tempfile.TemporaryDirectory(prefix="assay-") as folder:
        trainer = Trainer(
            model=model,
            args=_arguments(folder, config, parts.task, seed, device),
            train_dataset=rows(parts.train),
            eval_dataset=rows(parts.chosen),
            data_collator=_Collator(tokenizer),
            compute_metrics=lambda found: _measured(found, parts.task),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()

        def answers(part: Examples) -> Values:
            logits = trainer.predict(rows(part)).predictions
            given.append(_answers(np.asarray(logits), parts.task))
            return given[-1]

        reported = reported_scores(parts, answers)
    history = _history(trainer.state.log_history)
    return FineTuned(
        seed=seed,
        epoch=_epoch(history, parts.task, trainer.state),
        history=history,
        reported=reported,
        majority=majority(parts),
        answers=len(np.unique(np.concatenate(given))),
        parameters=model.num_parameters(),
    )


def _with_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Decoders such as GPT-2 do not know the token, and would take one text at a time."""
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model


def _arguments(
    folder: str, config: FineTuneConfig, task: Task, seed: int, device: str
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        seed=seed,
        learning_rate=config.lr,
        per_device_train_batch_size=config.batch,
        per_device_eval_batch_size=4 * config.batch,
        num_train_epochs=config.epochs,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip,
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="best",
        save_only_model=True,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=task.first,
        greater_is_better=True,
        use_cpu=device == "cpu",
        # Pinned memory is for GPUs, and columns are those that the model takes.
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )


def _rows(
    tokenizer: PreTrainedTokenizerFast, part: Examples, max_length: int | None, *, apart: bool
) -> list[dict[str, Any]]:
    """Examples as ids, not filled up; with the labels. None cuts nothing."""

    def encoded(*texts: Sequence[str]) -> Any:
        cut = max_length is not None
        return tokenizer(*(list(each) for each in texts), truncation=cut, max_length=max_length)

    if part.second is None:
        found = dict(encoded(part.first))
    elif apart:
        second = encoded(part.second)
        found = dict(encoded(part.first))
        found |= {name + SECOND: second[name] for name in ("input_ids", "attention_mask")}
    else:
        found = dict(encoded(part.first, part.second))
    found["labels"] = part.labels.tolist()
    return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]


def reads_apart(model: PreTrainedModel) -> bool:
    """Whether it reads the texts of a pair one by one."""
    return getattr(model.config, "head", None) == "pair"


def share_cut(
    tokenizer: PreTrainedTokenizerFast, part: Examples, max_length: int, *, apart: bool
) -> float:
    """Share of examples of which a text, or the joined pair, has more tokens than the model is given.

    Args:
        tokenizer: Of the model.
        part: The examples.
        max_length: Tokens that it is given at most.
        apart: Texts of a pair are read one by one.
    """
    with quiet():
        whole = _rows(tokenizer, part, None, apart=apart)
    texts = [name for name in whole[0] if name.startswith("input_ids")]
    return float(np.mean([any(len(row[name]) > max_length for name in texts) for row in whole]))


class _Collator:
    """Rows as a batch, each text filled up to the longest of its batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.pad = DataCollatorWithPadding(tokenizer)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        second = [name for name in rows[0] if name.endswith(SECOND)]
        batch = dict(self.pad([{k: v for k, v in row.items() if k not in second} for row in rows]))
        if second:
            others = [{name.removesuffix(SECOND): row[name] for name in second} for row in rows]
            batch |= {name + SECOND: value for name, value in self.pad(others).items()}
        return batch


def _answers(logits: Values, task: Task) -> Values:
    if not np.isfinite(logits).all():
        raise ConfigError(
            f"Task '{task.name}': answers must be finite numbers; some are not, so the training diverged. Lower "
            "lr, or raise warmup."
        )
    if not task.is_regression:
        return np.asarray(logits.argmax(-1))
    numbers = logits[:, 0].astype(np.float64)
    if np.ptp(numbers) <= SAME * np.abs(numbers).max():
        return np.full(len(numbers), numbers.mean())
    return numbers


def _measured(found: EvalPrediction, task: Task) -> dict[str, float]:
    answers = _answers(np.asarray(found.predictions), task)
    return scores(task.metrics, answers, np.asarray(found.label_ids))


def _epoch(history: Sequence[Mapping[str, float]], task: Task, state: TrainerState) -> int:
    """The first of the best, which is the one that the Trainer took."""
    values = [row[task.first] for row in history]
    epoch = values.index(max(values)) + 1
    assert epoch * state.max_steps == (state.best_global_step or 0) * len(history)
    return epoch


def _history(log: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """A row for each epoch, of what the Trainer told."""
    losses = [row["loss"] for row in log if "loss" in row]
    measured = [row for row in log if "eval_loss" in row]
    speed = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    return [
        {"train_loss": loss}
        | {k[5:]: v for k, v in row.items() if k.startswith("eval_") and k not in speed}
        for loss, row in zip(losses, measured, strict=True)
    ]
