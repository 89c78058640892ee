"""Texts to train on: documents by name, from the data folder, the hub, or this machine. No torch here."""

import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from assay.core.errors import ConfigError

PYTHON = "python"
HUB = "hub:"
"""Before a name, of texts, a model or a task: from the hub, not from this machine."""
HELD_OUT = 0.1
"""Share of the documents, at the end, that are held out where a corpus has no part of its own for it."""
LEAST_CHARACTERS = 2
"""Shorter lines are no documents."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents.

    Attributes:
        name: As it was asked for.
        train: To train on; any sequence of texts, also one that reads from disk.
        held: Held out.
    """

    name: str
    train: Sequence[str]
    held: Sequence[str]


def corpus(name: str, data_dir: Path | None) -> Corpus:
    """Read a corpus.

    Args:
        name: "python" (the interpreter's standard library, a file a document), "hub:NAME" or
            "hub:NAME:CONFIGURATION" (the column `text` of its parts `train` and `validation`), or a
            folder of the data folder with train.txt and valid.txt, or a text file there: a line a
            document.
        data_dir: The data folder, `ASSAY_DATA`; also its subfolder data/ is looked into.

    Raises:
        ConfigError: It is not there, is empty, or is no text.
    """
    if name == PYTHON:
        return _divided(name, _sources())
    if name.startswith(HUB):
        return _hub(name)
    train, held = _files(name, data_dir)
    if held is None:
        return _divided(name, _lines(train))
    return Corpus(name, _lines(train), _lines(held))


def digest(name: str, data_dir: Path | None) -> str:
    """What identifies the corpus: the sha256 of its files, or of the hub's own fingerprints.

    Raises:
        ConfigError: As `corpus`.
    """
    if name == PYTHON:
        return hashlib.sha256("\n".join(_sources()).encode()).hexdigest()
    if name.startswith(HUB):
        found = _loaded(name)
        parts = sorted((part, found[part]._fingerprint) for part in found)
        return hashlib.sha256(repr(parts).encode()).hexdigest()
    whole = hashlib.sha256()
    for path in _files(name, data_dir):
        if path is not None:
            with path.open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _divided(name: str, documents: Sequence[str]) -> Corpus:
    held = max(1, int(len(documents) * HELD_OUT))
    if len(documents) < 2:
        raise ConfigError(
            f"A corpus must hold two documents or more, one to train on and one to hold out; {name!r} has "
            f"{len(documents)}. Give a longer one: of a text file, each line is a document."
        )
    return Corpus(name, documents[:-held], documents[-held:])


@lru_cache(maxsize=1)
def _sources() -> Sequence[str]:
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "test", "tests", "idle_test", "lib2to3"}
    paths = sorted(p for p in root.rglob("*.py") if not left_out & set(p.relative_to(root).parts))
    return tuple(text for path in paths if (text := path.read_text("utf-8", "replace")).strip())


def _files(name: str, data_dir: Path | None) -> tuple[Path, Path | None]:
    """The files of a corpus in the data folder: what to train on, and what is held out if it is apart."""
    places = [] if data_dir is None else [data_dir / name, data_dir / "data" / name]
    if Path(name).is_absolute():
        places = [Path(name)]
    for place in places:
        if place.is_file():
            return place, None
        if (place / "train.txt").is_file():
            held = place / "valid.txt"
            return place / "train.txt", held if held.is_file() else None
    raise ConfigError(
        f'corpus must be "{PYTHON}", "{HUB}NAME", or in the data folder a text file or a folder with train.txt '
        f"(and valid.txt); got {name!r}, and ASSAY_DATA is {data_dir or 'not set'}. Correct it, or set "
        "ASSAY_DATA to the folder that holds it."
    )


@lru_cache(maxsize=4)
def _lines(path: Path) -> Sequence[str]:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"A corpus must be UTF-8 text; {path} is not at byte {error.start}. Convert it, or give the text "
            "file that was meant."
        ) from error
    if "\0" in text:
        raise ConfigError(
            f"A corpus must be UTF-8 text; {path} has zero bytes, as UTF-16 and binary files have. Convert it, "
            "or give the text file that was meant."
        )
    found = tuple(line for line in text.splitlines() if len(line.strip()) >= LEAST_CHARACTERS)
    if not found:
        raise ConfigError(f"A corpus must hold text; {path} has no line of it. Give another file.")
    return found


def _loaded(name: str) -> Any:
    import datasets  # noqa: PLC0415  (heavy, and not needed for texts of this machine)

    repository, _, configuration = name.removeprefix(HUB).partition(":")
    try:
        return datasets.load_dataset(repository, configuration or None)
    except Exception as error:
        raise ConfigError(
            f"corpus {name!r} cannot be loaded from the hub: {type(error).__name__}: {error}. Look at its name, "
            "and whether this machine may reach the hub; a local folder needs no network."
        ) from error


def _hub(name: str) -> Corpus:
    found = _loaded(name)
    if "train" not in found or "text" not in found["train"].column_names:
        raise ConfigError(
            f'A corpus of the hub must have a part "train" with a column "text"; {name!r} has '
            f"{ {part: found[part].column_names for part in found} }. Take another, or write its texts to a file."
        )
    train = found["train"]
    if "validation" in found:
        return Corpus(name, train["text"], found["validation"]["text"])
    held = max(1, int(len(train) * HELD_OUT))
    parts = (
        train.select(range(len(train) - held)),
        train.select(range(len(train) - held, len(train))),
    )
    return Corpus(name, parts[0]["text"], parts[1]["text"])


def batches(texts: Sequence[str], size: int) -> Iterator[list[str]]:
    """Texts in batches, in order; reads no more than one at a time."""
    for first in range(0, len(texts), size):
        yield list(texts[first : first + size])
