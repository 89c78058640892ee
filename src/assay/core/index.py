"""The index: a disposable SQLite copy of what the run directories say. The only module with SQL.

Deleting it loses nothing: the next question rebuilds it, and gives the same answers. It holds the
run table, one value a run and metric, and curves thinned to at most 512 points. A run directory
is read again only when it changed. One that cannot be read, was changed after it was completed,
lies in another folder than its `run.json` says, or is a copy of another, is listed as broken and
counts nowhere.
"""

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from assay.core.errors import StoreError
from assay.core.read import CurveRow, IndexedRun, LoadedRun, MetricRow
from assay.core.run import run_folder
from assay.core.scan import Loaded, load, signatures

VERSION = 4
"""Raised when the schema, or what is read from a run directory, changes."""
BATCH = 256
LOCK_TIMEOUT_S = 300
TABLES = ("runs", "facts", "metrics", "curves", "broken")
SCHEMA = """
CREATE TABLE runs (id TEXT PRIMARY KEY, path TEXT UNIQUE, signature TEXT, study TEXT, arm TEXT,
  cell_label TEXT, seed_label TEXT, body BLOB, facts TEXT, own_facts TEXT);
CREATE INDEX runs_by_study ON runs (study);
CREATE INDEX signatures ON runs (path, signature);
CREATE TABLE facts (digest TEXT PRIMARY KEY, body TEXT) WITHOUT ROWID;
CREATE TABLE metrics (run TEXT, name TEXT, value REAL, source TEXT, count INTEGER, non_finite INTEGER,
  last_step INTEGER, low REAL, high REAL, PRIMARY KEY (run, name)) WITHOUT ROWID;
CREATE TABLE curves (run TEXT, name TEXT, steps BLOB, points BLOB, PRIMARY KEY (run, name));
CREATE TABLE broken (path TEXT PRIMARY KEY, signature TEXT, reason TEXT) WITHOUT ROWID;
"""
BY_PLACE = attrgetter("study", "arm", "cell_label", "seed_label", "generation", "id")
Curve: TypeAlias = tuple[NDArray[np.int64], NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refresh:
    """What a refresh found: directories read, gone, and as they were."""

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
        self.path = path
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
        """Forget everything and read every run directory.

        Whoever reads meanwhile sees the old answers until the new ones are complete.

        Raises:
            StoreError: The index cannot be written.
        """

        def anew() -> Refresh:
            found = dict(signatures(self.runs_dir, None, {}))
            with self._transaction():
                for table in TABLES:
                    self.db.execute(f"DELETE FROM {table}")
                for one in load(self.runs_dir, sorted(found)):
                    self._enter(one, found)
            return Refresh(read=len(found), removed=0, unchanged=0)

        return self._healing(anew)

    def refresh(self, study: str | None = None) -> Refresh:
        """Read what changed since the last time, of one study or of all.

        A completed run counts as unchanged while its folder is; `verify` reads it all the same.

        Raises:
            StoreError: The index cannot be written.
        """
        return self._healing(lambda: self._update(study, verify=False))

    def verify(self, study: str | None = None) -> Refresh:
        """Read every run directory again, of one study or of all: an edit in place shows as broken.

        Whoever reads meanwhile sees every run.

        Raises:
            StoreError: The index cannot be written.
        """
        return self._healing(lambda: self._update(study, verify=True))

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Several questions, answered from one state, whatever other processes enter meanwhile."""
        if self.db.in_transaction:
            yield
            return
        self._query("BEGIN")
        try:
            yield
        finally:
            self._query("COMMIT")

    def studies(self) -> list[tuple[str, int]]:
        """Study ids with their number of runs."""
        return self._query("SELECT study, count(*) FROM runs GROUP BY study ORDER BY study")

    def runs(self, study: str | None = None) -> list[IndexedRun]:
        """All runs (of one study), by arm, cell, seed, generation and id."""
        where, values = ("WHERE study = ?", (study,)) if study is not None else ("", ())
        rows = self._query(f"SELECT body FROM runs {where}", values)
        return sorted((IndexedRun.from_json(body) for (body,) in rows), key=BY_PLACE)

    def find(self, name: str) -> IndexedRun:
        """The run whose id starts with this text, or whose path inside `runs/` it is.

        Raises:
            StoreError: None or several match.
        """
        rows = self._query(
            "SELECT body FROM runs WHERE id LIKE ? ESCAPE '!' OR path = ?",
            (_like(name) + "%", name.strip("/").removeprefix("runs/")),
        )
        if len(rows) != 1:
            raise StoreError(
                f"{'No run' if not rows else f'{len(rows)} runs'} with the id {name!r}. "
                "`assay ls STUDY` lists ids; the first letters are enough if only one run has them."
            )
        return IndexedRun.from_json(rows[0][0])

    def facts(self, run_id: str) -> dict[str, object]:
        """Realised provenance of a run, flat; empty if there is no such run."""
        for found in self._facts("id = ?", run_id).values():
            return found
        return {}

    def study_facts(self, study: str) -> dict[str, dict[str, object]]:
        """Run id → realised provenance, flat, for every run of a study."""
        return self._facts("study = ?", study)

    def _facts(self, where: str, value: str) -> dict[str, dict[str, object]]:
        rows = self._query(f"SELECT id, facts, own_facts FROM runs WHERE {where}", (value,))
        shared: dict[str, dict[str, object]] = {}
        for digest in {digest for _, digest, _ in rows}:
            ((body,),) = self._query("SELECT body FROM facts WHERE digest = ?", (digest,))
            shared[digest] = json.loads(body)
        return {name: shared[digest] | json.loads(own) for name, digest, own in rows}

    def values(self, study: str) -> list[MetricRow]:
        """One row a run and metric of a study."""
        rows = self._query(
            "SELECT m.* FROM runs r JOIN metrics m ON m.run = r.id WHERE r.study = ?", (study,)
        )
        return [MetricRow(*row) for row in rows]

    def run_values(self, run_id: str) -> list[MetricRow]:
        """One row a metric of a run."""
        rows = self._query("SELECT * FROM metrics WHERE run = ? ORDER BY name", (run_id,))
        return [MetricRow(*row) for row in rows]

    def curve(self, run_id: str, name: str) -> Curve | None:
        """Steps and values of a metric, thinned; None if it has no series."""
        rows = self._query(
            "SELECT steps, points FROM curves WHERE run = ? AND name = ?", (run_id, name)
        )
        return _curve(*rows[0]) if rows else None

    def curves(self, study: str, name: str) -> dict[str, Curve]:
        """Run id → steps and values of a metric, thinned, for the runs of a study that have it."""
        rows = self._query(
            "SELECT c.run, c.steps, c.points FROM runs r JOIN curves c ON c.run = r.id "
            "AND c.name = ? WHERE r.study = ?",
            (name, study),
        )
        return {run: _curve(steps, points) for run, steps, points in rows}

    def broken(self, study: str | None = None) -> list[tuple[str, str]]:
        """Run directories that cannot be read or do not count, with the reason."""
        rows = self._query("SELECT path, reason FROM broken ORDER BY path")
        return [(p, r) for p, r in rows if study is None or p.startswith(f"{study}/")]

    def _query(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            return self.db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(
                f"The index {self.path} cannot be read: {error}. It is a cache: delete it, and the "
                "next command reads the run directories anew."
            ) from error

    def _healing(self, work: Callable[[], Refresh]) -> Refresh:
        """Do it; should the index turn out to be damaged, do it once more with a fresh one."""
        try:
            try:
                return work()
            except sqlite3.OperationalError:
                raise  # Locked or full: a fresh one would be no better.
            except sqlite3.DatabaseError:
                self.db.close()
                _remove(self.path)
                self.db = _open(self.path)
                return work()
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"The index {self.path} cannot be written: {error}. It is a cache: delete it, or "
                "set ASSAY_CACHE to a folder on local disk that is writable and has space left."
            ) from error

    def _update(self, study: str | None, *, verify: bool) -> Refresh:
        # Known before found: what another process enters meanwhile is not taken for gone.
        known = self._known(study)
        trusted: Mapping[str, str] = {} if verify else known
        found = dict(signatures(self.runs_dir, study, trusted))
        changed = sorted(path for path in found if trusted.get(path) != found[path])
        gone = [path for path in known if path not in found]
        if gone:
            with self._transaction():
                for path in gone:
                    self._forget(path)
        loaded = iter(load(self.runs_dir, changed))
        # Reading takes long and needs no lock; each batch is entered at once.
        while batch := list(islice(loaded, BATCH)):
            with self._transaction():
                for one in batch:
                    self._enter(one, found)
        return Refresh(read=len(changed), removed=len(gone), unchanged=len(found) - len(changed))

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
        # "0" follows "/": the paths below one folder, told from those of "d8-b" or "D8".
        where, values = ("", ()) if study is None else (
            "WHERE path > ? AND path < ?", (f"{study}/", f"{study}0")
        )  # fmt: skip
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

    def _enter(self, one: Loaded, found: Mapping[str, str]) -> None:
        path, loaded = one
        signature = found[path]
        self._forget(path)
        if not isinstance(loaded, str):
            loaded = self._misplaced(path, loaded) or loaded
        if isinstance(loaded, str):
            self.db.execute("INSERT INTO broken VALUES (?, ?, ?)", (path, signature, loaded))
            return
        run = loaded.run
        if run.status == "completed":
            signature = f"sealed-{signature.split('-')[1]}"
        twin = self.db.execute("SELECT path FROM runs WHERE id = ?", (run.id,)).fetchone()
        if twin is not None:
            kept, copy = sorted((path, twin[0]), key=lambda p: (not p.endswith(f"-{run.id}"), p))
            self._forget(copy)
            # No signature: it is read again each time, for the case that the other one goes.
            self.db.execute(
                "INSERT INTO broken VALUES (?, '', ?)",
                (copy, f"is a copy of {kept}, with the same run id. Move it out of runs/."),
            )
            if copy == path:
                return
        self.db.execute(
            "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (run.id, path, signature, run.study, run.arm, run.cell_label, run.seed_label,
             run.to_json(), loaded.facts_digest, loaded.own_facts),
        )  # fmt: skip
        self.db.execute(
            "INSERT OR IGNORE INTO facts VALUES (?, ?)", (loaded.facts_digest, loaded.facts)
        )
        rows = map(msgspec.structs.astuple, loaded.metrics)
        self.db.executemany("INSERT INTO metrics VALUES (?,?,?,?,?,?,?,?,?)", rows)
        self.db.executemany("INSERT INTO curves VALUES (?,?,?,?)", _blobs(loaded.curves))

    def _misplaced(self, path: str, loaded: LoadedRun) -> str | None:
        run = loaded.run
        place = run_folder(self.runs_dir, run.study, run.arm, run.cell_label)
        place_name = place.relative_to(self.runs_dir).as_posix()
        if path.rpartition("/")[0] == place_name:
            return None
        return (
            f"lies in another folder than its run.json says, {place_name}. Move it there, or out "
            "of runs/."
        )


def _blobs(curves: Iterable[CurveRow]) -> Iterator[tuple[str, str, bytes, bytes]]:
    for curve in curves:
        yield curve.run, curve.name, curve.steps.tobytes(), curve.points.tobytes()


def _curve(steps: bytes, points: bytes) -> Curve:
    return np.frombuffer(steps, dtype=np.int64), np.frombuffer(points, dtype=np.float64)


def _open(path: Path) -> sqlite3.Connection:
    for _ in range(2):
        db = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
        try:
            _prepare(db)
            return db
        except sqlite3.OperationalError:
            db.close()
            raise
        except sqlite3.DatabaseError:
            pass
        db.close()
        _remove(path)
    raise StoreError(
        f"{path}: a fresh index cannot be made there. Set ASSAY_CACHE to another folder."
    )


def _prepare(db: sqlite3.Connection) -> None:
    """Make the tables, unless they are there in this version."""
    db.execute("PRAGMA journal_mode = WAL")
    # A cache needs no durability: after a power cut it is read anew.
    db.execute("PRAGMA synchronous = OFF")
    if db.execute("PRAGMA user_version").fetchone()[0] == VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    # Asked again under the lock: another process may have made them.
    if db.execute("PRAGMA user_version").fetchone()[0] != VERSION:
        old = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in old:
            quoted = name.replace('"', '""')
            db.execute(f'DROP TABLE "{quoted}"')
        for statement in SCHEMA.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {VERSION}")
    db.execute("COMMIT")


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _like(text: str) -> str:
    return text.replace("!", "!!").replace("%", "!%").replace("_", "!_")
