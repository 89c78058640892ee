"""The ledger: append-only, content-addressed events that live in git.

One small JSON file an event, named by the digest of its content, so that two branches merge
without conflict and an edited event is noticed. Nothing in the lab deletes one. Order never
depends on a clock: an event names the digests of the events that it follows.
"""

import getpass
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from assay.core.artifacts import write_atomic
from assay.core.config import canonical, digest
from assay.core.errors import StoreError, TamperedError

KINDS = ("freeze", "invalidate", "restore", "verdict", "revise", "note")


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One event.

    Attributes:
        kind: One of `KINDS`.
        study: The study it concerns; "" for an ad-hoc run.
        at: UTC time, ISO 8601; for people, never for order.
        by: Who recorded it.
        follows: Digests of the events that this one follows or undoes.
        body: What happened; depends on the kind.
    """

    schema: int = 1
    kind: str
    study: str
    at: str
    by: str
    follows: tuple[str, ...] = ()
    body: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the event's content: its name."""
        return digest(msgspec.to_builtins(self))


def record(
    ledger_dir: Path,
    kind: str,
    study: str,
    body: Mapping[str, Any],
    *,
    follows: Sequence[str] = (),
) -> Event:
    """Append an event and return it.

    Raises:
        StoreError: The ledger cannot be written.
    """
    assert kind in KINDS, kind
    event = Event(
        kind=kind,
        study=study,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        by=_user(),
        follows=tuple(follows),
        body=dict(body),
    )
    folder = ledger_dir / (study or "scratch")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(_path(folder, event), canonical(msgspec.to_builtins(event)).encode() + b"\n")
    except OSError as error:
        raise StoreError(f"{folder}: the ledger cannot be written: {error}.") from error
    return event


def read_ledger(ledger_dir: Path, study: str | None = None) -> list[Event]:
    """All events (of one study), each after the events that it follows.

    Raises:
        TamperedError: An event's content does not match its name.
        StoreError: An event cannot be read.
    """
    pattern = f"{study or '*'}/*.json"
    events = {e.digest: e for e in (_read(path) for path in sorted(ledger_dir.glob(pattern)))}
    ordered: list[Event] = []
    done: set[str] = set()

    def add(event: Event) -> None:
        if event.digest in done:
            return
        done.add(event.digest)
        for name in event.follows:
            if name in events:
                add(events[name])
        ordered.append(event)

    for event in sorted(events.values(), key=lambda e: (e.at, e.digest)):
        add(event)
    return ordered


def invalidations(events: Sequence[Event]) -> dict[str, Event]:
    """Target → the invalidation that stands. A restored invalidation stands no more."""
    undone = {name for e in events if e.kind == "restore" for name in e.follows}
    standing = (e for e in events if e.kind == "invalidate" and e.digest not in undone)
    return {str(e.body["target"]): e for e in standing}


def last_freeze(events: Sequence[Event], study: str) -> Event | None:
    """The freeze of the highest version of a study."""
    freezes = [e for e in events if e.kind == "freeze" and e.study == study]
    return max(freezes, key=lambda e: int(e.body["version"]), default=None)


def _path(folder: Path, event: Event) -> Path:
    return folder / f"{event.kind}-{event.digest[:20]}.json"


def _read(path: Path) -> Event:
    try:
        content = path.read_bytes()
        event = msgspec.json.decode(content, type=Event)
    except (OSError, msgspec.DecodeError) as error:
        raise StoreError(
            f"{path.name} in the ledger cannot be read: {error}. Restore it from git."
        ) from error
    if path.name != _path(path.parent, event).name:
        raise TamperedError(
            f"{path.parent.name}/{path.name} in the ledger was changed after it was recorded: its "
            f"content has the digest {event.digest[:20]}. Restore it from git; to correct an "
            "event, record a further one."
        )
    return event


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
