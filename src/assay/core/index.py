"""The index: a disposable SQLite copy of what the run directories say. The only module with SQL.

Deleting it loses nothing: the next question rebuilds it, and gives the same answers. It holds the
run table, one value a run and metric, and curves thinned to at most 512 points. A run directory
is read again only when it changed.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from assay.core.errors import StoreError
from assay.core.read import CurveRow, IndexedRun, LoadedRun, MetricRow, load_run

VERSION = 1
POOL_FROM = 400
SCHEMA = """
CREATE TABLE runs (id TEXT PRIMARY KEY, path TEXT UNIQUE, signature TEXT, study TEXT, arm TEXT,
  cell_label TEXT, seed_label TEXT, body TEXT, facts TEXT) WITHOUT ROWID;
CREATE INDEX runs_by_study ON runs (study, arm);
CREATE TABLE facts (digest TEXT PRIMARY KEY, body TEXT) WITHOUT ROWID;
CREATE TABLE metrics (run TEXT, name TEXT, value REAL, source TEXT, count INTEGER, non_finite INTEGER,
  last_step INTEGER, low REAL, high REAL, PRIMARY KEY (run, name)) WITHOUT ROWID;
CREATE TABLE curves (run TEXT, name TEXT, steps BLOB, points BLOB, PRIMARY KEY (run, name));
CREATE TABLE broken (path TEXT PRIMARY KEY, signature TEXT, reason TEXT) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refresh:
    """What a refresh found."""

    read: int
    removed: int
    unchanged: int


class Index:
    """An open index; use it as a context manager."""

    def __init__(self, path: Path, runs_dir: Path) -> None:
        """Open the index, making it anew when it is missing, damaged or of another version.

        Raises:
            StoreError: The cache folder cannot be written.
        """
        self.runs_dir = runs_dir
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.db = _open(path)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"The index {path} cannot be opened: {error}. It is a cache: delete it, or set "
                "ASSAY_CACHE to a folder on local disk that is writable."
            ) from error

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *exception: object) -> None:
        self.db.close()

    def rebuild(self) -> Refresh:
        """Forget everything and read every run directory."""
        with self._transaction():
            for table in ("runs", "facts", "metrics", "curves", "broken"):
                self.db.execute(f"DELETE FROM {table}")
        return self.refresh()

    def refresh(self, study: str | None = None) -> Refresh:
        """Read what changed since the last time, of one study or of all."""
        known = self._known(study)
        found = dict(_signatures(self.runs_dir, study, known))
        changed = [path for path, signature in found.items() if known.get(path) != signature]
        gone = [path for path in known if path not in found]
        if changed or gone:
            with self._transaction():
                for path in (*gone, *changed):
                    self._forget(path)
                for path, loaded in _load(self.runs_dir, changed):
                    self._insert(path, found[path], loaded)
        return Refresh(read=len(changed), removed=len(gone), unchanged=len(found) - len(changed))

    def studies(self) -> list[tuple[str, int]]:
        """Study ids with their number of runs."""
        return list(
            self.db.execute("SELECT study, count(*) FROM runs GROUP BY study ORDER BY study")
        )

    def runs(self, study: str | None = None) -> list[IndexedRun]:
        """All runs (of one study), by arm, cell, seed and generation."""
        where, values = ("WHERE study = ?", (study,)) if study is not None else ("", ())
        rows = self.db.execute(f"SELECT body FROM runs {where}", values)
        runs = [IndexedRun.from_json(body) for (body,) in rows]
        return sorted(
            runs, key=lambda r: (r.study, r.arm, r.cell_label, r.seed_label, r.generation)
        )

    def find(self, name: str) -> IndexedRun:
        """The run whose id, or path inside `runs/`, starts or ends with this text.

        Raises:
            StoreError: None or several match.
        """
        rows = self.db.execute(
            "SELECT body FROM runs WHERE id LIKE ? ESCAPE '!' OR path = ?",
            (_like(name) + "%", name.strip("/").removeprefix("runs/")),
        ).fetchall()
        if len(rows) != 1:
            raise StoreError(
                f"{'No run' if not rows else f'{len(rows)} runs'} with the id {name!r}. "
                "`assay ls STUDY` lists ids; the first letters are enough if only one run has them."
            )
        return IndexedRun.from_json(rows[0][0])

    def facts(self, run_id: str) -> dict[str, object]:
        """Realised provenance of a run, flat."""
        row = self.db.execute(
            "SELECT facts.body FROM runs JOIN facts ON facts.digest = runs.facts WHERE id = ?",
            (run_id,),
        ).fetchone()
        facts: dict[str, object] = json.loads(row[0]) if row else {}
        return facts

    def values(self, study: str) -> list[MetricRow]:
        """One row a run and metric of a study."""
        rows = self.db.execute(
            "SELECT m.* FROM metrics m JOIN runs r ON r.id = m.run WHERE r.study = ?", (study,)
        )
        return [MetricRow(*row) for row in rows]

    def run_values(self, run_id: str) -> list[MetricRow]:
        """One row a metric of a run."""
        rows = self.db.execute("SELECT * FROM metrics WHERE run = ? ORDER BY name", (run_id,))
        return [MetricRow(*row) for row in rows]

    def curve(self, run_id: str, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """Steps and values of a metric, thinned; None if it has no series."""
        row = self.db.execute(
            "SELECT steps, points FROM curves WHERE run = ? AND name = ?", (run_id, name)
        ).fetchone()
        if row is None:
            return None
        return np.frombuffer(row[0], dtype=np.int64), np.frombuffer(row[1], dtype=np.float64)

    def broken(self, study: str | None = None) -> list[tuple[str, str]]:
        """Run directories that cannot be read, with the reason."""
        rows = self.db.execute("SELECT path, reason FROM broken ORDER BY path").fetchall()
        return [(p, r) for p, r in rows if study is None or p.startswith(f"{study}/")]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    def _known(self, study: str | None) -> dict[str, str]:
        where, values = (
            ("WHERE path LIKE ? ESCAPE '!'", (f"{_like(study)}/%",)) if study else ("", ())
        )
        known: dict[str, str] = {}
        for table in ("runs", "broken"):
            known.update(self.db.execute(f"SELECT path, signature FROM {table} {where}", values))
        return known

    def _forget(self, path: str) -> None:
        row = self.db.execute("SELECT id FROM runs WHERE path = ?", (path,)).fetchone()
        if row is not None:
            for table, column in (("metrics", "run"), ("curves", "run"), ("runs", "id")):
                self.db.execute(f"DELETE FROM {table} WHERE {column} = ?", row)
        self.db.execute("DELETE FROM broken WHERE path = ?", (path,))

    def _insert(self, path: str, signature: str, loaded: LoadedRun | str) -> None:
        if isinstance(loaded, str):
            self.db.execute("INSERT INTO broken VALUES (?, ?, ?)", (path, signature, loaded))
            return
        run = loaded.run
        if run.status == "completed":
            signature = f"sealed-{signature.split('-')[1]}"
        try:
            self.db.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (run.id, path, signature, run.study, run.arm, run.cell_label, run.seed_label,
                 run.to_json(), loaded.facts_digest),
            )  # fmt: skip
        except sqlite3.IntegrityError:
            reason = f"has the id {run.id} of another run directory: a copy? Move it out of runs/."
            self.db.execute("INSERT INTO broken VALUES (?, ?, ?)", (path, signature, reason))
            return
        self.db.execute(
            "INSERT OR IGNORE INTO facts VALUES (?, ?)", (loaded.facts_digest, loaded.facts)
        )
        self.db.executemany("INSERT INTO metrics VALUES (?,?,?,?,?,?,?,?,?)", loaded.metrics)
        self.db.executemany("INSERT INTO curves VALUES (?,?,?,?)", _blobs(loaded.curves))


def _blobs(curves: Iterable[CurveRow]) -> Iterator[tuple[str, str, bytes, bytes]]:
    for curve in curves:
        yield curve.run, curve.name, curve.steps.tobytes(), curve.points.tobytes()


def _open(path: Path) -> sqlite3.Connection:
    for _ in range(2):
        db = sqlite3.connect(path, timeout=60, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            # A cache needs no durability: after a power cut it is read anew.
            db.execute("PRAGMA synchronous = OFF")
            db.execute("BEGIN IMMEDIATE")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {VERSION}")
            db.execute("COMMIT")
            if version in (0, VERSION):
                return db
        except sqlite3.OperationalError:
            db.close()
            raise
        except sqlite3.DatabaseError:
            pass
        db.close()
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    raise StoreError(
        f"{path}: a fresh index cannot be made there. Set ASSAY_CACHE to another folder."
    )


def _signatures(
    runs_dir: Path, study: str | None, known: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Path inside `runs/` and a cheap sign of change, for every run directory.

    A completed run is immutable but for files added or removed, which its folder's own time
    tells; any other is told by the number and sizes of its files.
    """
    for study_dir in _folders(runs_dir) if study is None else [runs_dir / study]:
        for arm_dir in _folders(study_dir):
            for cell_dir in _folders(arm_dir):
                for run_dir in _folders(cell_dir):
                    name = str(run_dir)[len(str(runs_dir)) + 1 :]
                    sealed = f"sealed-{run_dir.stat().st_mtime_ns}"
                    yield name, sealed if known.get(name) == sealed else _open_signature(run_dir)


def _open_signature(run_dir: Path) -> str:
    with os.scandir(run_dir) as entries:
        sizes = [e.stat().st_size for e in entries if e.is_file()]
    return f"open-{run_dir.stat().st_mtime_ns}-{len(sizes)}-{sum(sizes)}"


def _folders(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return sorted(
                Path(e.path) for e in entries if e.is_dir() and not e.name.startswith(".")
            )
    except FileNotFoundError:
        return []


def _like(text: str) -> str:
    return text.replace("!", "!!").replace("%", "!%").replace("_", "!_")


def _load(runs_dir: Path, paths: Sequence[str]) -> Iterator[tuple[str, LoadedRun | str]]:
    folders = [runs_dir / path for path in paths]
    if len(paths) < POOL_FROM:
        yield from zip(paths, map(load_run, folders), strict=True)
        return
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        yield from zip(paths, pool.map(load_run, folders, chunksize=32), strict=True)
