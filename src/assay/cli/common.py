"""What every command needs: the project, its studies by name, and output."""

import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from assay.core.config import unknown_key
from assay.core.errors import StudyError
from assay.core.index import Index
from assay.core.ledger import Event, read_ledger
from assay.core.plan import expand
from assay.core.settings import Settings
from assay.core.study import Study, choose, load_scales, scaled_id

UNLIMITED = 10_000


class Output(Console):
    """Text as it is: what people wrote into studies and reasons is no markup.

    In a terminal, tables fit its width; elsewhere nothing is cut, so that it can be searched.
    """

    def __init__(self, **options: Any) -> None:
        """For standard output, or what rich's Console takes."""
        super().__init__(markup=False, highlight=False, emoji=False, soft_wrap=True, **options)
        if not self.is_terminal:
            self.width = UNLIMITED

    def on_broken_pipe(self) -> None:
        """Leave it to `main`, which ends as a shell expects."""
        raise BrokenPipeError


@contextmanager
def open_index(settings: Settings, study: str | None = None) -> Iterator[Index]:
    """The index, brought up to date (for one study or for all)."""
    with Index(settings.index_path, settings.runs_dir) as index:
        index.refresh(study)
        yield index


def study_paths(settings: Settings) -> dict[str, Path]:
    """Id → file, for every study file of the project that can be parsed, at each of its scales.

    Raises:
        StudyError: Two files have one id, or the id of one is another's at a scale.
    """
    found: dict[str, Path] = {}
    for path in _study_files(settings):
        try:
            raw = tomllib.loads(path.read_text("utf-8"))
            study, scales = str(raw["study"]["id"]), raw.get("scales", {})
        except (OSError, ValueError, KeyError, TypeError):
            continue
        for scale in ("", *(scales if isinstance(scales, dict) else ())):
            name = scaled_id(study, scale)
            if name in found:
                raise StudyError(
                    f"A study's id must be one file's, at one scale; '{name}' is the id of "
                    f"{found[name]} and of {path}{f' at scale {scale}' if scale else ''}. Their "
                    "runs would be mixed: change the id in one of them, or the name of the scale."
                )
            found[name] = path
    return found


def load_studies(settings: Settings) -> list[Study]:
    """Every study of the project, by id; each at all its scales.

    Raises:
        StudyError: A file breaks a rule: a log without its study would look complete.
    """
    paths = study_paths(settings)
    # Files without an id are named by the error of reading them.
    unnamed = [path for path in _study_files(settings) if path not in paths.values()]
    files = dict.fromkeys((*paths.values(), *unnamed))
    return [study for path in files for study in _read_study(path).values()]


def open_study(name: str, settings: Settings, scale: str | None = None) -> Study:
    """A study by the path of its file or by its id, which may be that of a scale (`d8.full`).

    Raises:
        StudyError: No such file, id or scale, or the file breaks a rule at any of its scales.
    """
    path = Path(name)
    if path.suffix == ".toml":
        found = _read_study(path)
        study = found[""]
    else:
        known = study_paths(settings)
        if name not in known:
            raise StudyError(unknown_study(name, sorted(known), settings))
        found = _read_study(known[name])
        study = next(study for study in found.values() if study.id == name)
    if scale is not None:
        if study.scale:
            raise StudyError(f"'{name}' is a study at the scale {study.scale}: leave out --scale.")
        study = choose(found, scale)
    if path.suffix == ".toml" and "." in study.id:
        # By an id this is seen when it is looked up; without a dot it is no scale's.
        study_paths(settings)
    return study


def _read_study(path: Path) -> dict[str, Study]:
    """A file at all its scales, of which each can be planned: none breaks when it is needed."""
    found = load_scales(path)
    for scale, study in found.items():
        if scale:
            expand(study)
    return found


def unknown_study(name: str, known: list[str], settings: Settings) -> str:
    """The paragraph for a study that does not exist."""
    hint = unknown_key(name, known).replace("Known keys: .", "There are none.")
    return (
        f"{hint.replace('keys', 'studies').replace('key', 'study')} Studies are the .toml files "
        f"under {settings.root / 'studies'}; a path works too."
    )


def ledger(settings: Settings) -> list[Event]:
    """All events of the project's ledger."""
    return read_ledger(settings.ledger_dir)


def headed_table(*heads: str) -> Table:
    """A table without lines, its heads bold."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head)
    return table


def print_json(value: Any) -> None:
    """Plain data as one JSON document on standard output."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")


def _study_files(settings: Settings) -> list[Path]:
    return sorted((settings.root / "studies").rglob("*.toml"))
