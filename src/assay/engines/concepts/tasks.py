"""Labelled tasks: what is asked of a text or a pair of texts, and where the examples lie. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from assay.core.errors import ConfigError
from assay.engines.concepts.corpus import HUB

Metric = Literal["accuracy", "f1", "mcc", "pearson", "spearman"]
Home = tuple[str, str | None, str | None]
"""Repository of the hub, configuration, revision."""

GLUE = "nyu-mll/glue"
OFFICIAL = "official validation, as in the source and the papers; nothing is chosen on it"
FIRST = ("sentence1", "sentence_A", "question1")
SECOND = ("sentence2", "sentence_B", "question2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is asked, and where it lies.

    Attributes:
        name: As asked for.
        columns: Of the texts, one or two; each by the names that it has in one source or another.
        label: Column of the answer.
        classes: How many, numbered from 0; 1 for a number.
        low: Least answer, of numbers.
        high: Greatest answer, of numbers.
        metrics: What is measured; epochs and settings are chosen by the first.
        hub: Where it is on the hub.
        folder: Its folder in the data folder.
        reported: Suffix of the metrics → part on which they are reported; empty where there is no
            official split.
        why: Why that part.
    """

    name: str
    columns: tuple[tuple[str, ...], ...]
    classes: int
    metrics: tuple[Metric, ...]
    hub: Home
    folder: str
    label: str = "label"
    low: float = 0.0
    high: float = 0.0
    reported: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({"": "validation"})
    )
    why: str = OFFICIAL

    @property
    def is_pair(self) -> bool:
        """Whether there are two texts."""
        return len(self.columns) == 2

    @property
    def is_regression(self) -> bool:
        """Whether the answer is a number."""
        return self.classes == 1

    @property
    def first(self) -> Metric:
        """The metric by which epochs and settings are chosen; greater is better."""
        return self.metrics[0]


def _glue(
    name: str, columns: tuple[tuple[str, ...], ...], *metrics: Metric, classes: int = 2
) -> Task:
    return Task(
        name=name, columns=columns, classes=classes, metrics=metrics, high=5.0,
        hub=(GLUE, name, None), folder=f"glue/{name}",
    )  # fmt: skip


def _sick(name: str, label: str, classes: int, *metrics: Metric) -> Task:
    return Task(
        name=name, columns=(FIRST, SECOND), classes=classes, metrics=metrics, label=label, low=1.0,
        high=5.0, hub=("RobZamp/sick", None, "refs/convert/parquet"), folder="sick",
        reported=MappingProxyType({"": "test"}),
        why="official test, which is labelled: 4,927 examples, where validation has 500",
    )  # fmt: skip


PAIR = (FIRST, SECOND)
ONE = (("sentence",),)
_ALL = (
    _glue("cola", ONE, "mcc", "accuracy"),
    _glue("sst2", ONE, "accuracy"),
    _glue("qnli", (("question",), ("sentence",)), "accuracy"),
    _glue("rte", PAIR, "accuracy"),
    Task(
        name="mnli", columns=(("premise",), ("hypothesis",)), classes=3, metrics=("accuracy",),
        hub=(GLUE, "mnli", None), folder="glue/mnli",
        reported=MappingProxyType({"": "validation_matched", "_mm": "validation_mismatched"}),
    ),
    _glue("mrpc", PAIR, "accuracy", "f1"),
    _glue("qqp", PAIR, "accuracy", "f1"),
    Task(
        name="qqp-subset", columns=PAIR, classes=2, metrics=("accuracy", "f1"),
        hub=(GLUE, "qqp", None), folder="glue/qqp_train_subset", reported=MappingProxyType({}),
        why="a tenth of the pairs: 23,496 rows of QQP's training part that have no official split",
    ),
    _glue("stsb", PAIR, "pearson", "spearman", classes=1),
    _sick("sick-r", "relatedness_score", 1, "pearson", "spearman"),
    _sick("sick-e", "label", 3, "accuracy"),
    Task(
        name="paws", columns=PAIR, classes=2, metrics=("accuracy", "f1"),
        hub=("google-research-datasets/paws", "labeled_final", None), folder="paws",
        reported=MappingProxyType({"": "test"}),
        why="official test, which is labelled, and on which papers report",
    ),
)  # fmt: skip
TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _ALL})
"""Name → task. GLUE's WNLI is left out, as in most papers: its parts contradict one another."""


def task_of(name: str) -> Task:
    """The task of that name, with or without `hub:` before it.

    Raises:
        ConfigError: There is none.
    """
    if (found := TASKS.get(name.removeprefix(HUB))) is None:
        raise ConfigError(
            f"A task must be one of {', '.join(TASKS)}, with {HUB} before it to be read from the hub; got {name!r}. mnli "
            "is reported on both of its validation parts, matched and mismatched."
        )
    return found
