"""`assay concepts evaluate`: a checkpoint on labelled tasks, beside what it has to be better than."""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, validators

from assay.cli.common import Output, headed_table, print_json
from assay.cli.options import SetOption, assigned, checked, seeds_of
from assay.core.errors import ConfigError
from assay.core.settings import Settings

if TYPE_CHECKING:
    from assay.engines.concepts.evaluate import TaskReport
    from assay.engines.concepts.finetune import FineTuneConfig
    from assay.engines.concepts.parts import Parts

Flag = Annotated[bool, Parameter(negative="")]
NotNegative = validators.Number(gte=0)
LISTING = "assay concepts evaluate --help"
MISSING = (
    "no plain encoder beside it: pretrain one of this size on the same texts, assay concepts pretrain plain "
    '--set architecture="bert" init_range=0.02, and give it as --beside plain/model'
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Which:
    """Which examples."""

    tasks: str = "mrpc,stsb"
    """cola, sst2, qnli, rte, mnli, mrpc, qqp, qqp-subset, stsb, sick-r, sick-e, paws; with commas. Read from the
    folder ASSAY_DATA; with hub: before a name, from the Hugging Face hub."""
    examples: Annotated[int, Parameter(validator=NotNegative)] = 0
    """Of the official training part at most, drawn at random; a tenth of them is held out. 0 for all."""
    reported: str = ""
    """Another official part to report on, such as test. Default: what the table says."""

    def load(self) -> "list[Parts]":
        """All of them, before anything is trained."""
        from assay.engines.concepts.parts import load
        from assay.engines.concepts.tasks import task_of

        names = [name.strip() for name in self.tasks.split(",")]
        if len({task_of(name).name for name in names}) != len(names):
            raise ConfigError(f"--tasks takes different ones; got {self.tasks!r}.")
        data_dir = Settings.from_environment().data_dir
        return [load(name, data_dir, most=self.examples, reported=self.reported) for name in names]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class How:
    """How the classifier is trained."""

    head: str | None = None
    """cls-query, weighted, mean, decoder or pair. Default: the checkpoint's. Of concept models only."""
    epochs: int = 10
    """Passes over the training examples; the best one on the held-out tenth is taken."""
    seeds: str = "0,1,2"
    """Of the head's first weights, the order of the examples and dropout; one training each."""
    threads: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 1
    """Of the CPU. Another number may change the last digits; on a busy machine more are slower."""
    set_: SetOption = None
    """Further settings as name=value: lr=1e-4, batch=32, warmup=0.1, weight_decay=0.01, clip=1.0,
    max_length=128."""

    @property
    def config(self) -> "FineTuneConfig":
        """All of it, checked."""
        from assay.engines.concepts.finetune import FineTuneConfig

        others = assigned(self.set_ or [], "lr=0.0003")
        if "epochs" in others:
            raise ConfigError("--set epochs: give it as --epochs.")
        return checked(FineTuneConfig, {"epochs": self.epochs} | others, listing=LISTING)

    @property
    def chosen(self) -> list[int]:
        """The seeds."""
        return seeds_of(self.seeds)


def evaluate(
    checkpoint: str,
    which: Which | None = None,
    how: How | None = None,
    *,
    beside: str = "",
    frozen: Flag = False,
    report: Path | None = None,
    json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    quiet: Flag = False,
) -> None:
    """Fine-tune a checkpoint on labelled tasks, beside baselines on the same examples.

    Three parts: it learns from train; epochs, and the baselines' settings, are chosen on a held-out
    tenth of the official training part; what is reported had no say in anything. Beside it stand
    one answer for all (majority) and a linear model on words without their order (bag of words).

    Args:
        checkpoint: Folder of a pretrained model with its tokenizer, or hub:NAME; a concept model, or
            another such as BERT to compare with.
        which: Which examples.
        how: How the classifier is trained.
        beside: Another checkpoint, measured on the same examples in the same ways, such as a plain encoder of
            this size that was pretrained on the same texts.
        frozen: Measure the vectors as they are too, by a linear probe, and on stsb and sick-r by
            their cosine; beside those of a model of that shape that was not pretrained.
        report: Folder for glue-TASK-MODEL-…-results.csv, -summary.csv, -metadata.csv and .json of each task.
        json: Plain data.
        quiet: No progress lines.
    """
    how, which = how or How(), which or Which()
    # What is quick to check comes first: torch takes seconds to load.
    seeds, parts, config = how.chosen, which.load(), how.config
    from assay.engines.concepts.evaluate import evaluate as measure
    from assay.engines.concepts.evaluate import write_report
    from assay.engines.concepts.modes import threads

    now, found = datetime.now().astimezone(), []

    def tell(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    for part in parts:
        with threads(how.threads):
            made = measure(
                checkpoint, part, config, seeds,
                head=how.head, frozen=frozen, beside=beside, tell=tell,
            )  # fmt: skip
            found.append(made)
        # A task at a time: what is done is kept if a later one fails.
        for path in write_report(report, found[-1], now) if report else ():
            tell(f"{part.task.name}: wrote {path}")
    if json:
        print_json([each.plain() for each in found])
        return
    for each in found:
        _show(each)
    if not beside and any(each.head for each in found):
        print(MISSING)


def _show(report: "TaskReport") -> None:
    parts, sizes = report.parts, report.parts.sizes
    out = Output()
    out.print(
        f"{parts.task.name}: {sizes['train']} to learn from, {sizes['chosen']} to choose on "
        f"({parts.told['chosen']}; by {parts.task.first})"
    )
    for suffix, part in parts.reported.items():
        overlap = parts.overlap
        name = f"reported{suffix}"
        out.print(
            f"{name}: {len(part)} ({parts.told['reported']}); {overlap[f'{name}_in_train']} of them also in "
            f"train, {overlap[f'{name}_texts_in_train']} share a text with it"
        )
    if cut := ", ".join(f"{share:.1%} of {part}" for part, share in report.cut.items() if share):
        out.print(f"longer than max_length = {report.config.max_length} tokens, and cut: {cut}")
    model = f"{report.name}{f', {report.head}' if report.head else ''}"
    tuned = f"{model} ({report.runs[0].parameters:,} parameters)"
    table = headed_table("metric", *(tuned if way == "fine-tuned" else way for way in report.rows))
    for metric in report.rows["fine-tuned"]:
        table.add_row(metric, *(_spread(values.get(metric, ())) for values in report.rows.values()))
    out.print(table)
    for way in ("majority", "bag of words"):
        if names := report.not_above(way):
            out.print(f"not above {way}: {', '.join(names)}")
    same = [str(run.seed) for run in report.runs if run.answers == 1]
    if same:
        out.print(f"the same answer to all: seeds {', '.join(same)}")
    out.print()


def _spread(values: Sequence[Any]) -> str:
    """Mean, sample deviation and how many; one value alone where nothing is drawn."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f} [{len(values)}]"
