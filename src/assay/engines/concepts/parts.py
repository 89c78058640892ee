"""The examples of labelled tasks: read from the data folder or the hub, checked, and divided. No torch here.

Three parts, so that the number that is reported is of examples on which nothing was decided:
`train`, `chosen` (held out of it; epochs and all settings are chosen on these) and `reported`.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl

from assay.core.errors import ConfigError
from assay.engines.concepts.corpus import HUB
from assay.engines.concepts.scores import Values
from assay.engines.concepts.tasks import Task, task_of

Reader = Callable[[Task, str], tuple[pl.DataFrame, str]]
"""A task's official part by its name: the rows, and where they were found."""
SPLIT_SEED = 20_260_226
"""Of the generator that holds out `chosen`: one split for all models, whatever their seeds."""
HELD_OUT = 0.1
"""Share of the training examples in `chosen`; and in `reported`, where there is no official split."""
UNLABELLED = -1


@dataclass(frozen=True, slots=True)
class Examples:
    """Texts and their answers.

    Attributes:
        first: Texts.
        second: Second texts, of a task of pairs.
        labels: Classes (int64) or numbers (float64), [n].
    """

    first: tuple[str, ...]
    second: tuple[str, ...] | None
    labels: Values

    def __len__(self) -> int:
        return len(self.first)

    def at(self, rows: Values) -> "Examples":
        """Those rows, in that order."""
        second = None if self.second is None else tuple(self.second[i] for i in rows)
        return Examples(tuple(self.first[i] for i in rows), second, self.labels[rows])

    def keys(self) -> list[tuple[str, ...]]:
        """What makes two examples the same: their texts, without case, spaces and order."""
        if self.second is None:
            return [(_plain(text),) for text in self.first]
        pairs = zip(self.first, self.second, strict=True)
        return [tuple(sorted((_plain(a), _plain(b)))) for a, b in pairs]


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The examples of a task.

    Attributes:
        task: What is asked.
        train: To learn from, in random order.
        chosen: To choose by: held out of the official training part, no example in both.
        reported: Suffix of the metrics → examples to report on.
        told: "chosen" and "reported" → of which official part they are, and why.
        overlap: Counts: examples of one part that are also in another ("chosen_in_train",
            "reported_in_train", "reported_in_chosen"), and "reported_texts_in_train" and so on:
            those of which at least one text stands somewhere in the other.
        digest: sha256 of all texts and answers in their order.
    """

    task: Task
    train: Examples
    chosen: Examples
    reported: Mapping[str, Examples]
    told: Mapping[str, str]
    overlap: Mapping[str, int]
    digest: str

    @property
    def named(self) -> dict[str, Examples]:
        """Name → each part."""
        own = {f"reported{suffix}": found for suffix, found in self.reported.items()}
        return {"train": self.train, "chosen": self.chosen, **own}

    @property
    def sizes(self) -> dict[str, int]:
        """Examples of each part."""
        return {name: len(part) for name, part in self.named.items()}


def load(name: str, data_dir: Path | None, *, most: int = 0, reported: str = "") -> Parts:
    """The examples of a task, in three parts.

    The examples of `train` and `chosen` are drawn by a generator of a fixed seed from the official
    training part; those with the same texts stay together.

    Args:
        name: Of the task; with `hub:` before it, it is read from the hub.
        data_dir: Else it holds FOLDER/PART-*.parquet, itself or in its subfolder data/, where FOLDER is
            `Task.folder` and PART is train, validation, …; None where no folder is set, which is an error.
        most: Examples of the official training part at most, drawn at random, before a tenth of them
            is held out; 0 for all.
        reported: Another official part to report on, such as "test".

    Raises:
        ConfigError: No such task, file or part; columns or answers are not what the task says; a
            part is empty or unlabelled; or `most` is negative.
    """
    task = task_of(name)
    if reported == "train":
        raise ConfigError(
            "What is reported must be of examples that had no say in anything; got train, on which models learn. "
            "Give validation or test."
        )
    if most < 0:
        raise ConfigError(f"Training examples at most must be 0 (all) or more; got {most}.")
    read: Reader = _from_hub if name.startswith(HUB) else partial(_from_folder, data_dir=data_dir)
    whole = _examples(task, "train", read)
    names = {"": reported} if reported else dict(task.reported)
    why = f"{reported}, as asked for" if reported else task.why
    generator = np.random.default_rng(SPLIT_SEED)
    if names:
        train, chosen = _divided(whole, (HELD_OUT,), most, generator)
        shown = {suffix: _examples(task, part, read) for suffix, part in names.items()}
    else:
        train, chosen, last = _divided(whole, (HELD_OUT, HELD_OUT), most, generator)
        shown = {"": last}
    for part, found in {"train": train, "chosen": chosen, **shown}.items():
        if not len(found):
            raise ConfigError(
                f"Task '{name}': each part needs an example; {part or 'reported'} has none of the "
                f"{len(whole)} training examples. Give more of them."
            )
    return Parts(
        task=task,
        train=train,
        chosen=chosen,
        reported=MappingProxyType(shown),
        told=MappingProxyType({"chosen": f"{HELD_OUT:.0%} of train, held out", "reported": why}),
        overlap=MappingProxyType(_overlap(train, chosen, shown)),
        digest=_digest([train, chosen, *shown.values()]),
    )


def _divided(
    whole: Examples, shares: Sequence[float], most: int, generator: np.random.Generator
) -> list[Examples]:
    """What is left and one part for each share, in random order, none with another's texts."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for row, key in enumerate(whole.keys()):
        groups.setdefault(key, []).append(row)
    together = list(groups.values())
    mixed = [together[i] for i in generator.permutation(len(together))]
    rows = np.array([row for group in mixed for row in group], np.int64)
    # A group is where its first row is, whole, so that a part may be a few rows longer than asked.
    firsts = np.repeat(np.cumsum([0, *map(len, mixed[:-1])]), list(map(len, mixed)))
    total = min(most or len(rows), len(rows))
    found, start = [], 0
    for share in shares:
        end = start + max(1, round(share * total))
        found.append(whole.at(rows[(firsts >= start) & (firsts < end)]))
        start = end
    return [whole.at(rows[(firsts >= start) & (firsts < total)]), *found]


def _overlap(train: Examples, chosen: Examples, reported: Mapping[str, Examples]) -> dict[str, int]:
    found = {}
    pairs = [("chosen", chosen, "train", train)]
    for suffix, part in reported.items():
        pairs += [(f"reported{suffix}", part, "train", train)]
        pairs += [(f"reported{suffix}", part, "chosen", chosen)]
    for name, part, other_name, other in pairs:
        there = set(other.keys())
        texts = {text for key in there for text in key}
        keys = part.keys()
        found[f"{name}_in_{other_name}"] = sum(key in there for key in keys)
        found[f"{name}_texts_in_{other_name}"] = sum(
            any(text in texts for text in key) for key in keys
        )
    return found


def _digest(parts: Sequence[Examples]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(repr((part.first, part.second, part.labels.tolist())).encode())
    return whole.hexdigest()


def _examples(task: Task, part: str, read: Reader) -> Examples:
    """One official part, checked."""
    frame, where = read(task, part)
    names = [_column(task, options, frame, where) for options in (*task.columns, (task.label,))]
    if not len(frame):
        raise ConfigError(
            f"Task '{task.name}': {where} must hold examples; it is empty. Fetch it again, or report on another part."
        )
    texts = [_texts(task, frame[name], where) for name in names[:-1]]
    labels = _labels(task, frame[names[-1]], where)
    return Examples(texts[0], texts[1] if task.is_pair else None, labels)


def _from_hub(task: Task, part: str) -> tuple[pl.DataFrame, str]:
    import datasets  # noqa: PLC0415  (heavy, and not needed for files of this machine)

    repository, configuration, revision = task.hub
    where = f"part {part} of hub:{repository}{f':{configuration}' if configuration else ''}"
    if not task.reported:
        raise ConfigError(
            f"Task '{task.name}' is a subset in a data folder; the hub has the whole task. Take the task "
            f"'{configuration}' there."
        )
    try:
        found: Any = datasets.load_dataset(repository, configuration, split=part, revision=revision)
    except Exception as error:
        raise ConfigError(
            f"Task '{task.name}': {where} cannot be loaded: {type(error).__name__}: {error}. Look at whether "
            "this machine may reach the hub, and whether there is such a part; a local folder needs no network."
        ) from error
    return pl.DataFrame(found.to_polars()), where


def _from_folder(task: Task, part: str, data_dir: Path | None) -> tuple[pl.DataFrame, str]:
    places = [] if data_dir is None else [data_dir / task.folder, data_dir / "data" / task.folder]
    files = next((found for at in places if (found := sorted(at.glob(f"{part}-*.parquet")))), [])
    if not files:
        looked = " and ".join(map(str, places)) or "no folder, since ASSAY_DATA is not set"
        # The subset of QQP is never taken silently for the task.
        subset = " There may be a subset: the task 'qqp-subset'." if task.name == "qqp" else ""
        raise ConfigError(
            f"Task '{task.name}' needs {part}-*.parquet in {task.folder} of the data folder; looked in {looked}. "
            f"Set ASSAY_DATA to the folder that holds it, or take {HUB}{task.name} from the hub.{subset}"
        )
    where = str(files[0] if len(files) == 1 else files[0].parent / f"{part}-*.parquet")
    try:
        return pl.read_parquet(files), where
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(
            f"Task '{task.name}': {where} must be a Parquet file; it cannot be read: {error}. Fetch it again."
        ) from error


def _column(task: Task, options: Sequence[str], frame: pl.DataFrame, where: str) -> str:
    found = next((name for name in options if name in frame.columns), None)
    if found is None:
        raise ConfigError(
            f"Task '{task.name}': {where} must have the column {' or '.join(map(repr, options))}; its columns are "
            f"{', '.join(frame.columns)}. Rename them, or give the task's own file."
        )
    return found


def _texts(task: Task, column: pl.Series, where: str) -> tuple[str, ...]:
    if column.dtype != pl.String or column.null_count():
        missing = f"{column.null_count()} are missing" if column.null_count() else "they are not"
        raise ConfigError(
            f"Task '{task.name}': column '{column.name}' of {where} must hold texts in every row; {missing} "
            f"(type {column.dtype}). Give the task's own file."
        )
    return tuple(column.to_list())


def _labels(task: Task, column: pl.Series, where: str) -> Values:
    """Classes or numbers, each one that the task has."""
    rule = (
        f"a number from {task.low:g} to {task.high:g}"
        if task.is_regression
        else f"a class from 0 to {task.classes - 1}"
    )
    start = f"Task '{task.name}': column '{column.name}' of {where} must hold {rule} in every row"
    right_type = column.dtype.is_numeric() if task.is_regression else column.dtype.is_integer()
    if not right_type or column.null_count():
        raise ConfigError(
            f"{start}; its type is {column.dtype}, with {column.null_count()} missing. Give the task's own file."
        )
    kind = np.float64 if task.is_regression else np.int64
    found: Values = column.to_numpy().astype(kind)
    if (found == UNLABELLED).all():
        raise ConfigError(
            f"{start}; this part is unlabelled (all are {UNLABELLED}), as GLUE's tests are. Report on another "
            "part, such as validation."
        )
    low, high = (task.low, task.high) if task.is_regression else (0, task.classes - 1)
    wrong = np.flatnonzero(~((found >= low) & (found <= high)))
    if len(wrong):
        raise ConfigError(
            f"{start}; row {wrong[0]} has {found[wrong[0]]:g} ({len(wrong)} rows are wrong). Give the task's own "
            "file, or drop these rows."
        )
    return found
