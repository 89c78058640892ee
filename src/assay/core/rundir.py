"""The run directory on disk: what each file holds, and how a directory is read back.

    runs/<study>/<arm>/<cell>/<seed>-<ulid>/
        run.json                         `RunRecord`: what was to be run; written once
        events.jsonl                     append-only; the first event of an attempt is "started"
        metrics-<rank>-<attempt>.jsonl   rows, see `assay.core.rows`
        metrics.parquet                  sealed merged view, see `assay.core.seal`
        artifacts/                       see `assay.core.artifacts`
        checkpoint                       state to go on from; gone once the run is completed
        provenance.json env.json diff.patch stdout.log end.json     one each an attempt

Files of attempt 1 carry no number; those of attempt 2 are `end-2.json` and so on. The names of
folders are for people: what a run is stands in `run.json`.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from ulid import ULID

from assay.core.errors import StoreError
from assay.core.files import (
    append_line,
    numbers,
    read_json,
    read_json_lines,
    to_json,
    write_atomic,
    write_error,
)

T = TypeVar("T")

SCHEMA = 1
STATUSES = ("completed", "failed", "interrupted")
_ATTEMPT_FILE = re.compile(
    r"(?:provenance|env|diff|stdout|end)-(\d+)\.(?:json|patch|log)|metrics-\d+-(\d+)\.jsonl"
)


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be run: `run.json`, written once and never changed.

    Attributes:
        schema: Version of this format.
        id: ULID.
        study: Id of the study; "scratch" for runs without one.
        arm: Name of the arm.
        cell: Values of the study's grid.
        seeds: Seed role → seed.
        engine: Engine, or None for a program.
        task: Task of the engine, or None.
        config: Resolved configuration.
        cmd: Command, or None for an engine.
        identity: Digest that is equal for runs that ask for the same computation.
        generation: Raised to run again what was invalidated.
        phase: "debug", "pilot" or "frozen".
        budget: What may be spent.
        created_at: ISO 8601, UTC.
        cell_label: The cell in words, the name of its folder.
        seed_label: The seeds that vary in the study; runs of different arms pair by it.
    """

    schema: int = SCHEMA
    id: str
    study: str
    arm: str
    cell: dict[str, Any]
    seeds: dict[str, int]
    engine: str | None
    task: str | None
    config: dict[str, Any]
    cmd: list[str] | None
    identity: str
    generation: int
    phase: str
    budget: dict[str, float]
    created_at: str
    cell_label: str = "all"
    seed_label: str = ""


class EndRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt ended: `end.json`.

    Attributes:
        status: "completed", "failed" or "interrupted".
        attempt: Which attempt.
        ended_at: ISO 8601, UTC.
        duration_s: From the monotonic clock.
        error: Traceback, or None.
        summary: Final values.
        spent: What was spent.
        rows: Rows of metrics in the merged view, all ranks.
        files: Sealed file → sha256.
    """

    status: str
    attempt: int
    ended_at: str
    duration_s: float
    error: str | None
    summary: dict[str, float]
    spent: dict[str, float]
    rows: int
    files: dict[str, str]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `events.jsonl`.

    Attributes:
        at: ISO 8601, UTC.
        attempt: Which attempt.
        kind: "started", "from-scratch", "summary", "spent", "ended", or a word of the engine's.
        message: For people.
        details: For programs.
    """

    at: str
    attempt: int
    kind: str
    message: str = ""
    details: dict[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """A run directory as read.

    Attributes:
        path: The directory.
        record: What was to be run.
        status: "completed", "failed", "interrupted", or "open": running or killed.
        attempts: Number of the last attempt; 0 before the first.
        starts: Attempt → the step at which it resumed, None for from scratch.
        events: All events, in order.
        end: How the last attempt ended; None while it is open.
        ends: Attempt → how it ended, for all that did.
        summary: Final values of the last attempt.
        spent: What the last attempt spent.
        torn_lines: Files whose last line was cut off by a kill.
        problems: A sentence for each thing that a reader should not overlook.
    """

    path: Path
    record: RunRecord
    status: str
    attempts: int
    starts: dict[int, int | None]
    events: list[Event]
    end: EndRecord | None
    summary: dict[str, float]
    spent: dict[str, float]
    torn_lines: int
    problems: list[str] = field(default_factory=list)
    ends: dict[int, EndRecord] = field(default_factory=dict)


def new_id() -> str:
    """A fresh run id: sorts by time of creation, unique on its own."""
    return str(ULID())


def attempt_name(name: str, attempt: int) -> str:
    """The name of a file that each attempt has for itself: "end.json" → "end-2.json"."""
    if attempt == 1:
        return name
    path = Path(name)
    return f"{path.stem}-{attempt}{path.suffix}"


def new_record(*, study: str, arm: str, identity: str, **fields: Any) -> RunRecord:
    """A record with a fresh id and the time of now.

    Args:
        study: Id of the study.
        arm: Name of the arm.
        identity: Digest of what is asked for.
        fields: Any other field of `RunRecord`; those left out are empty.
    """
    empty: dict[str, Any] = {
        "cell": {},
        "seeds": {},
        "engine": None,
        "task": None,
        "config": {},
        "cmd": None,
        "generation": 1,
        "phase": "debug",
        "budget": {},
    }
    given = {"study": study, "arm": arm, "identity": identity, **empty, **fields}
    return RunRecord(id=new_id(), created_at=now(), **given)


def now() -> str:
    """The time for a record: ISO 8601, UTC. For people; nothing is ordered or measured by it."""
    return datetime.now(UTC).isoformat()


def run_folder(runs_dir: Path, study: str, arm: str, cell_label: str) -> Path:
    """The folder that holds the runs of one cell, one `<seed_label>-<id>` each."""
    return runs_dir / _slug(study) / _slug(arm) / _slug(cell_label)


def _slug(text: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9._=,+-]", "_", text).lstrip(".")
    if slug == text and 0 < len(slug) <= 150:
        return slug
    # Two texts that differ only in what was replaced or cut must not share a folder.
    tag = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{slug[:140]}-{tag}"


def create_run(runs_dir: Path, record: RunRecord) -> Path:
    """Make the directory of a new run, with its `run.json`.

    Raises:
        StoreError: The directory exists or cannot be written.
    """
    content = to_json(msgspec.to_builtins(record))
    parent = run_folder(runs_dir, record.study, record.arm, record.cell_label)
    folder = parent / f"{_slug(record.seed_label or 'none')}-{record.id}"
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise StoreError(
            f"A run is made once, but {folder} exists already. Take a new id, or go on with that "
            "run as its next attempt."
        ) from None
    except OSError as error:
        raise write_error(folder, error) from error
    write_atomic(folder / "run.json", content)
    return folder


def read_record(folder: Path) -> RunRecord:
    """Read `run.json`.

    Raises:
        StoreError: It is missing, half-written, or of an unknown version.
    """
    path = folder / "run.json"
    raw = read_json(path)
    schema = raw.get("schema")
    if schema != SCHEMA:
        raise StoreError(
            f"{path} must have schema {SCHEMA}; got {schema!r}. It was written by another version "
            "of Assay: read it with that version, or upgrade this one."
        )
    return _convert(raw, RunRecord, path)


def read_run(folder: Path) -> RunState:
    """Read all of a run directory but its metrics and artifacts.

    Raises:
        StoreError: `run.json` or an `end.json` cannot be read, so that nothing can be said about
            the run.
    """
    record = read_record(folder)
    events, problems = read_events(folder)
    starts = start_steps(events)
    attempts = next_attempt(folder) - 1
    ends: dict[int, EndRecord] = {}
    for attempt in range(1, attempts + 1):
        path = folder / attempt_name("end.json", attempt)
        if path.exists():
            ends[attempt] = read_end(path)
            if attempt not in starts:
                problems.append(f"events.jsonl does not tell that attempt {attempt} started")
    end = ends.get(attempts)
    return RunState(
        path=folder,
        record=record,
        status=end.status if end else "open",
        attempts=attempts,
        starts=starts,
        events=events,
        end=end,
        summary=end.summary if end else {},
        spent=end.spent if end else {},
        torn_lines=sum(map(_is_torn, sorted(folder.glob("*.jsonl")))),
        problems=problems,
        ends=ends,
    )


def write_end(folder: Path, end: EndRecord) -> None:
    """Write how an attempt ended, once.

    Raises:
        StoreError: The attempt has ended already, or the directory cannot be written.
    """
    path = folder / attempt_name("end.json", end.attempt)
    if path.exists():
        raise StoreError(
            f"An attempt ends once, but {path} exists already. Go on with the next attempt: "
            "`assay run` does that by itself."
        )
    write_atomic(path, to_json(msgspec.structs.asdict(end)))


def append_event(folder: Path, attempt: int, kind: str, message: str, **details: Any) -> None:
    """Add one event to a run.

    Raises:
        StoreError: The directory cannot be written, or the details are no plain data.
    """
    event = Event(at=now(), attempt=attempt, kind=kind, message=message, details=details)
    append_line(folder / "events.jsonl", to_json(msgspec.structs.asdict(event)))


def read_end(path: Path) -> EndRecord:
    """Read an `end.json`.

    Raises:
        StoreError: It is missing, half-written, or not what it should be.
    """
    raw = read_json(path)
    try:
        for key in ("summary", "spent"):
            raw[key] = numbers(raw.get(key, {}))
    except (ValueError, AttributeError) as error:
        raise StoreError(
            f"{path}: {key} must be a table of numbers; {error}. {_WAY_OUT}"
        ) from error
    end = _convert(raw, EndRecord, path)
    if end.status not in STATUSES:
        raise StoreError(
            f"{path}: status must be one of {STATUSES}; got {end.status!r}. {_WAY_OUT}"
        )
    return end


def read_events(folder: Path) -> tuple[list[Event], list[str]]:
    """All events, and a sentence if some lines could not be read.

    Raises:
        StoreError: The file exists but cannot be read.
    """
    path = folder / "events.jsonl"
    rows, bad = read_json_lines(path)
    events = []
    for row in rows:
        try:
            events.append(msgspec.convert(row, Event, strict=True))
        except msgspec.ValidationError:
            bad += 1
    return events, [f"events.jsonl: {bad} unreadable line(s) skipped"] if bad else []


def start_steps(events: list[Event]) -> dict[int, int | None]:
    """Attempt → the step at which it resumed, None for from scratch."""
    starts: dict[int, int | None] = {}
    for event in events:
        if event.kind in ("started", "from-scratch"):
            step = event.details.get("start_step")
            starts[event.attempt] = step if isinstance(step, int) else None
    return starts


def next_attempt(folder: Path) -> int:
    """The number of the attempt that would come next: one more than any file tells of."""
    used = {event.attempt for event in read_events(folder)[0]}
    for path in folder.iterdir():
        match = _ATTEMPT_FILE.fullmatch(path.name)
        if match:
            used.add(int(match[1] or match[2]))
        elif path.name in ("provenance.json", "stdout.log", "end.json"):
            used.add(1)
    return max(used, default=0) + 1


_WAY_OUT = "It was edited: restore it from a copy, or move this run out of runs/ and run again."


def _convert(raw: Mapping[str, Any], kind: type[T], path: Path) -> T:
    try:
        return msgspec.convert(raw, kind, strict=True)
    except msgspec.ValidationError as error:
        raise StoreError(f"{path} does not hold what it should: {error}. {_WAY_OUT}") from error


def _is_torn(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size == 0:
            return False
        file.seek(size - 1)
        return file.read(1) != b"\n"
