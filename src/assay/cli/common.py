"""What every command needs: the project, its studies by name, and output."""

import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from assay.core.config import unknown_key
from assay.core.errors import StudyError
from assay.core.index import Index
from assay.core.ledger import Event, read_ledger
from assay.core.settings import Settings
from assay.core.study import Study, load_study


@contextmanager
def open_index(settings: Settings, study: str | None = None) -> Iterator[Index]:
    """The index, brought up to date (for one study or for all)."""
    with Index(settings.index_path, settings.runs_dir) as index:
        index.refresh(study)
        yield index


def study_paths(settings: Settings) -> dict[str, Path]:
    """Id → file, for every study file of the project; files that are not TOML are left out."""
    found: dict[str, Path] = {}
    for path in sorted((settings.root / "studies").rglob("*.toml")):
        try:
            name = tomllib.loads(path.read_text("utf-8"))["study"]["id"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found.setdefault(str(name), path)
    return found


def open_study(name: str, settings: Settings) -> Study:
    """A study by the path of its file or by its id.

    Raises:
        StudyError: No such file or id, or the file breaks a rule.
    """
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        return load_study(path)
    known = study_paths(settings)
    if name not in known:
        hint = unknown_key(name, sorted(known)).replace("key", "study").replace("keys", "studies")
        raise StudyError(
            f"{hint} Studies are the .toml files under {settings.root.name}/studies; a path works too."
        )
    return load_study(known[name])


def ledger(settings: Settings) -> list[Event]:
    """All events of the project's ledger."""
    return read_ledger(settings.ledger_dir)


def print_json(value: Any) -> None:
    """Plain data as one JSON document on standard output."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")
