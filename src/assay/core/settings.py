"""Where things are. The only module that reads or changes the process environment.

A *project* is the nearest folder upwards that holds an `assay.toml`, a `pyproject.toml` or a
`.git`; without one it is the current folder. Runs lie in `runs/`, the ledger in `ledger/`, both
inside the project. The index is a cache and lies on local disk in the user's cache folder.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from assay.core.errors import ConfigError

PROJECT_MARKS = ("assay.toml", "pyproject.toml", ".git")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Resolved locations, passed to whoever needs them.

    Attributes:
        root: The project folder.
        cache_dir: Local, disposable files (the index).
        data_dir: Local data sets (`ASSAY_DATA`), or None.
        run_dir: Set when this process was started by `assay run`: the directory of its run.
        attempt: The attempt that this process is, when `run_dir` is set.
        environment: A copy of the process environment at the time of reading.
    """

    root: Path
    cache_dir: Path
    data_dir: Path | None = None
    run_dir: Path | None = None
    attempt: int = 1
    environment: Mapping[str, str]

    @property
    def runs_dir(self) -> Path:
        """The run directories: the truth."""
        return self.root / "runs"

    @property
    def ledger_dir(self) -> Path:
        """The ledger's events: small files, kept in git."""
        return self.root / "ledger"

    @property
    def notes_dir(self) -> Path:
        """Prose of people, one Markdown file a study, included by the log."""
        return self.root / "notes"

    @property
    def figures_dir(self) -> Path:
        """Figures that the log shows, one folder a study."""
        return self.root / "figures"

    @property
    def index_path(self) -> Path:
        """The SQLite index of this project."""
        key = hashlib.sha256(str(self.root).encode()).hexdigest()[:16]
        return self.cache_dir / f"index-{key}.sqlite"

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] | None = None, *, start: Path | None = None
    ) -> "Settings":
        """Read `ASSAY_ROOT`, `ASSAY_DATA`, `ASSAY_CACHE` (and what `assay run` hands a child).

        Args:
            environment: Instead of the process's own, for tests.
            start: Folder to search upwards from; the current one by default.

        Raises:
            ConfigError: `ASSAY_ROOT` or `ASSAY_DATA` names a folder that does not exist, or
                `ASSAY_ATTEMPT` is not a whole number from 1.
        """
        env = dict(os.environ if environment is None else environment)
        root = _folder(env, "ASSAY_ROOT") or find_project(start or Path.cwd())
        home = Path(env.get("HOME") or tempfile.gettempdir())
        cache = env.get("ASSAY_CACHE") or Path(
            env.get("XDG_CACHE_HOME") or home / ".cache", "assay"
        )
        attempt = env.get("ASSAY_ATTEMPT", "1")
        if not attempt.isdecimal() or int(attempt) < 1:
            raise ConfigError(
                f"ASSAY_ATTEMPT must be a whole number from 1; got {attempt!r}. It is set by "
                "`assay run` for its children; unset it in your shell."
            )
        run_dir = env.get("ASSAY_RUN_DIR")
        return cls(
            root=root,
            # Absolute: one project has one index, wherever inside it a command is given.
            cache_dir=Path(cache).expanduser().absolute(),
            data_dir=_folder(env, "ASSAY_DATA"),
            run_dir=Path(run_dir) if run_dir else None,
            attempt=int(attempt),
            environment=env,
        )


def find_project(start: Path) -> Path:
    """The nearest folder from `start` upwards that holds a project mark; else `start`."""
    start = start.resolve()
    for folder in (start, *start.parents):
        if any((folder / mark).exists() for mark in PROJECT_MARKS):
            return folder
    return start


def _folder(env: Mapping[str, str], name: str) -> Path | None:
    value = env.get(name)
    if not value:
        return None
    path = Path(value).expanduser().resolve()
    if not path.is_dir():
        raise ConfigError(
            f"{name} must name an existing folder; got {value!r}. Create it, or unset {name}."
        )
    return path


@contextmanager
def variables(**values: str) -> Iterator[None]:
    """Variables of the environment while something runs: a library that takes a setting in no other way."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
