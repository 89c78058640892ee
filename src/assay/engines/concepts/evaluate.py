"""A checkpoint on a labelled task, beside what it has to be better than; and that as files."""

import csv
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast, set_seed

from assay.core.errors import ConfigError
from assay.engines.concepts.baselines import bag_of_words, majority
from assay.engines.concepts.checkpoints import classifier, located
from assay.engines.concepts.finetune import (
    FineTuneConfig,
    FineTuned,
    fine_tune,
    reads_apart,
    share_cut,
    with_length,
)
from assay.engines.concepts.frozen import linear_probe, zero_shot
from assay.engines.concepts.parts import Parts
from assay.engines.concepts.tasks import Task
from assay.engines.concepts.tokens import check_fits, fetch_tokenizer

MAJORITY, WORDS, SIMILARITY, PROBE, TUNED = (
    "majority", "bag of words", "zero-shot", "linear probe", "fine-tuned",
)  # fmt: skip
UNTRAINED = ", untrained"
"""Suffix of ways that are of a model with the same settings and first weights."""
Values = Mapping[str, Sequence[float]]
"""Metric → a value for each seed; one where nothing is drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReport:
    """All ways of answering one task.

    Attributes:
        parts: The examples.
        checkpoint: Place of the model.
        head: Of a concept model; empty for others.
        config: How it was fine-tuned.
        rows: Way → its values on `reported`.
        settings: Way → what was chosen for it on `chosen`.
        runs: Each fine-tuning.
        cut: Part → share of its examples that have more tokens than `config.max_length`.
    """

    parts: Parts
    checkpoint: str
    head: str
    config: FineTuneConfig
    rows: Mapping[str, Values]
    settings: Mapping[str, Mapping[str, Any]]
    runs: Sequence[FineTuned]
    cut: Mapping[str, float]

    @property
    def name(self) -> str:
        """Of the model, short."""
        return short(self.checkpoint)

    def not_above(self, way: str) -> list[str]:
        """Metrics of which fine-tuning has no more, on the mean of its seeds, than another way."""
        tuned, other = self.rows[TUNED], self.rows.get(way, {})
        return [
            name
            for name, values in other.items()
            if statistics.fmean(tuned[name]) <= statistics.fmean(values)
        ]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        parts = self.parts
        return {
            "task": parts.task.name,
            "checkpoint": self.checkpoint,
            "head": self.head,
            "chosen_by": parts.task.first,
            "sizes": parts.sizes,
            "told": dict(parts.told),
            "overlap": dict(parts.overlap),
            "data_sha256": parts.digest,
            "config": asdict(self.config),
            "rows": {way: dict(values) for way, values in self.rows.items()},
            "settings": {way: dict(values) for way, values in self.settings.items()},
            "runs": [asdict(run) for run in self.runs],
            "cut": dict(self.cut),
        }


def evaluate(
    checkpoint: str,
    parts: Parts,
    config: FineTuneConfig,
    seeds: Sequence[int],
    *,
    head: str | None = None,
    frozen: bool = False,
    beside: str = "",
    tell: Callable[[str], None] = lambda line: None,
) -> TaskReport:
    """Fine-tune a checkpoint with each seed, and measure the baselines on the same examples.

    Args:
        checkpoint: Folder with model and tokenizer, or "hub:NAME".
        parts: Of the task.
        config: How to fine-tune.
        seeds: One training each.
        head: Of a concept model; None for that of its settings.
        frozen: Measure its vectors as they are too: a linear probe, and of pairs with a number the
            similarity without training. Beside them stand those of a model of the same shape that
            was not pretrained, drawn with each seed: vectors of random weights hold which words
            a text has, and that alone is worth much on such tasks.
        beside: Another checkpoint, measured on the same examples in the same ways; "" for none.
        tell: Gets a line when something is done.

    Raises:
        ConfigError: As `classifier` and `fine_tune`.
    """
    task = parts.task
    # Before anything is computed, so that a wrong head or place is told at once.
    first = _loaded(checkpoint, task, config, head)
    loaded = {"": first}
    if beside:
        other = _loaded(beside, task, config, None)
        loaded[f"{short(beside)} ({other.model.num_parameters():,} parameters), "] = other
    words = bag_of_words(parts)
    tell(f"{task.name}: bag of words")
    rows: dict[str, Values] = {MAJORITY: _single(majority(parts)), WORDS: _single(words.reported)}
    settings: dict[str, Mapping[str, Any]] = {WORDS: words.settings}
    runs: dict[str, list[FineTuned]] = {}
    for whose, each in loaded.items():
        if frozen:
            for way, values, chosen in each.frozen(parts, seeds):
                rows[whose + way], settings[whose + way] = values, chosen
            tell(f"{task.name}: {whose}frozen vectors")
        runs[whose] = _tuned(each, parts, seeds, tell)
        rows[whose + TUNED] = _joined([run.reported for run in runs[whose]])
        settings[whose + TUNED] = {"epochs": [run.epoch for run in runs[whose]]}
    return TaskReport(
        parts=parts,
        checkpoint=checkpoint,
        head=getattr(first.model.config, "head", ""),
        config=first.config,
        rows=rows,
        settings=settings,
        runs=runs[""],
        cut=first.cut(parts),
    )


def short(checkpoint: str) -> str:
    """A checkpoint's name: its folder's, of OUT/model that of OUT."""
    path = Path(checkpoint)
    return path.parent.name if path.name == "model" and path.parent.name else path.name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """A checkpoint.

    Attributes:
        model: With a new last layer.
        make: Gives it anew.
        tokenizer: Which fits it.
        config: With a length of texts that does.
    """

    model: PreTrainedModel
    make: Callable[[], PreTrainedModel]
    tokenizer: PreTrainedTokenizerFast
    config: FineTuneConfig

    def frozen(
        self, parts: Parts, seeds: Sequence[int]
    ) -> Iterator[tuple[str, Values, Mapping[str, Any]]]:
        """As `frozen_ways`."""
        length = self.config.max_length
        return frozen_ways(self.model, self.tokenizer, parts, length, seeds)

    def cut(self, parts: Parts) -> dict[str, float]:
        """Part → share of its examples that are longer than the model is given."""
        apart = reads_apart(self.model)
        return {
            name: share_cut(self.tokenizer, part, self.config.max_length, apart=apart)
            for name, part in parts.named.items()
        }


def _loaded(checkpoint: str, task: Task, config: FineTuneConfig, head: str | None) -> _Loaded:
    """A checkpoint for a task."""
    make = partial(classifier, checkpoint, task, head)
    model = make()
    tokenizer = fetch_tokenizer(located(checkpoint), beside_model=True)
    check_fits(tokenizer, model.config, checkpoint)
    return _Loaded(model=model, make=make, tokenizer=tokenizer, config=with_length(model, config))


def _tuned(
    loaded: _Loaded, parts: Parts, seeds: Sequence[int], tell: Callable[[str], None]
) -> list[FineTuned]:
    """A fine-tuning with each seed."""
    task, epochs, runs = parts.task, loaded.config.epochs, []
    for seed in seeds:
        run = fine_tune(loaded.make, loaded.tokenizer, parts, loaded.config, seed=seed)
        runs.append(run)
        best = f"{task.first} {run.history[run.epoch - 1][task.first]:.4f}"
        tell(f"{task.name}: seed {seed}: epoch {run.epoch} of {epochs}, {best} on chosen")
    return runs


def frozen_ways(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    parts: Parts,
    length: int,
    seeds: Sequence[int],
) -> Iterator[tuple[str, Values, Mapping[str, Any]]]:
    """Way, values and settings of pretrained vectors, and of such as were drawn with each seed."""
    bare = []
    for seed in seeds:
        set_seed(seed)
        untrained: Any = type(model)(model.config)
        bare.append(untrained.to(model.device))
    for suffix, models in (("", [model]), (UNTRAINED, bare)):
        if parts.task.is_pair and parts.task.is_regression:
            found = [zero_shot(each, tokenizer, parts, max_length=length) for each in models]
            yield SIMILARITY + suffix, _joined(found), {}
        probes = [linear_probe(each, tokenizer, parts, max_length=length) for each in models]
        strengths = {"strength": [probe.settings["strength"] for probe in probes]}
        yield PROBE + suffix, _joined([probe.reported for probe in probes]), strengths


def _joined(found: Sequence[Mapping[str, float]]) -> Values:
    return {name: [values[name] for values in found] for name in found[0]}


def _single(values: Mapping[str, float]) -> Values:
    return {name: [value] for name, value in values.items()}


def write_report(folder: Path, report: TaskReport, now: datetime) -> list[Path]:
    """Write a task's report as files; none is overwritten.

    glue-TASK-MODEL-PARAMSM-YYYYMMDD_HHMM-results.csv (a row for each way, metric and seed),
    -summary.csv (for each way and metric) and -metadata.csv (name and value), as the source named them, and a
    .json with all and the history of each training. Tasks that are not of GLUE begin with "bench", as there.

    Args:
        folder: Made if it is not there.
        report: Of a task.
        now: Time of the name.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    kind = "glue" if report.parts.task.folder.startswith("glue/") else "bench"
    model = "".join(c if c.isalnum() or c in "._" else "-" for c in report.name)
    millions = report.runs[0].parameters / 1e6
    size = f"{millions:.0f}" if millions >= 10 else f"{millions:.2g}"
    stem = f"{kind}-{report.parts.task.name}-{model}-{size}M-{now:%Y%m%d_%H%M}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        name, number = stem, 1
        while (folder / f"{name}-results.csv").exists():
            number += 1
            name = f"{stem}-{number}"
        results, summary, metadata, plain = (
            folder / f"{name}{end}"
            for end in ("-results.csv", "-summary.csv", "-metadata.csv", ".json")
        )
        _write_csv(results, ("task", "way", "metric", "seed", "value"), _rows(report))
        _write_csv(summary, ("task", "way", "metric", "mean", "std", "n"), _means(report))
        _write_csv(metadata, ("name", "value"), _metadata(report, now))
        plain.write_text(json.dumps(report.plain(), indent=1) + "\n", "utf-8")
    except OSError as error:
        raise ConfigError(
            f"Reports must have a folder that can be written to; {folder} cannot: {error.strerror or error}. Give "
            "another one."
        ) from error
    return [results, summary, metadata, plain]


def _rows(report: TaskReport) -> list[tuple[Any, ...]]:
    seeds = [run.seed for run in report.runs]
    return [
        (report.parts.task.name, way, metric, seed, value)
        for way, metrics in report.rows.items()
        for metric, values in metrics.items()
        for seed, value in zip(
            seeds if way.endswith((TUNED, UNTRAINED)) else [""], values, strict=True
        )
    ]


def _means(report: TaskReport) -> list[tuple[Any, ...]]:
    """Mean, sample deviation (empty for one value) and number of values."""
    return [
        (
            report.parts.task.name,
            way,
            metric,
            statistics.fmean(values),
            statistics.stdev(values) if len(values) > 1 else "",
            len(values),
        )
        for way, metrics in report.rows.items()
        for metric, values in metrics.items()
    ]


def _metadata(report: TaskReport, now: datetime) -> list[tuple[str, Any]]:
    plain = report.plain()
    single = [(name, plain[name]) for name in ("task", "checkpoint", "head", "chosen_by")]
    nested = [
        (f"{name}.{key}", value)
        for name in ("sizes", "told", "overlap", "cut", "config")
        for key, value in plain[name].items()
    ]
    return [
        *single,
        ("parameters", report.runs[0].parameters),
        ("date", now.isoformat(timespec="seconds")),
        ("data_sha256", report.parts.digest),
        *nested,
    ]


def _write_csv(path: Path, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("x", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(heads)
        writer.writerows(rows)
