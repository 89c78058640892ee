"""The ledger: append-only, content-addressed events that live in git.

One small JSON file an event, named by the digest of its content, so that two branches merge
without conflict and an edited event is noticed. Nothing in the lab deletes one. What an event
undoes or replaces it names by digest, so no meaning depends on a clock; times only sort what is
shown.
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

KINDS = ("freeze", "invalidate", "restore", "revise", "baseline")
NEEDED: Mapping[str, tuple[str, ...]] = {
    "freeze": ("version", "study_digest", "commit", "tree_sha256"),
    "invalidate": ("target", "because"),
    "revise": ("claim", "by", "because"),
    "baseline": ("name", "version", "study", "arm", "runs_used", "values"),
}
"""What the body of an event must tell."""


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One event.

    Attributes:
        schema: Version of this format.
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
        body=_tidy(body),
    )
    folder = ledger_dir / (study or "scratch")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(_path(folder, event), canonical(msgspec.to_builtins(event)).encode() + b"\n")
    except OSError as error:
        raise StoreError(f"{folder}: the ledger cannot be written: {error}.") from error
    return event


def _tidy(body: Mapping[str, Any]) -> dict[str, Any]:
    """An event's body with its reason on one line: a reason is a sentence in tables and the log."""
    because = " ".join(str(body.get("because", "")).split())
    return {**body, "because": because} if "because" in body else dict(body)


def read_ledger(ledger_dir: Path, study: str | None = None) -> list[Event]:
    """All events (of one study), each after the events that it follows, else by time.

    Raises:
        TamperedError: An event's content does not match its name.
        StoreError: An event cannot be read.
    """
    pattern = f"{study or '*'}/*.json"
    events = {e.digest: e for e in (_read(path) for path in sorted(ledger_dir.glob(pattern)))}
    ordered: dict[str, Event] = {}
    # A stack, not recursion: a chain of events may be long.
    waiting = sorted(events, key=lambda name: (events[name].at, name), reverse=True)
    while waiting:
        name = waiting[-1]
        before = [n for n in events[name].follows if n in events and n not in ordered]
        if before and name not in ordered:
            waiting += reversed(before)
            continue
        ordered.setdefault(name, events[name])
        waiting.pop()
    return list(ordered.values())


def invalidations(events: Sequence[Event]) -> dict[str, Event]:
    """Target → the invalidation that stands. A restored invalidation stands no more.

    An invalidated study that lists its `runs` in the event strikes those and no later ones.
    """
    undone = {name for e in events if e.kind == "restore" for name in e.follows}
    standing = [e for e in events if e.kind == "invalidate" and e.digest not in undone]
    struck = {str(run): e for e in standing for run in e.body.get("runs", ())}
    return struck | {str(e.body["target"]): e for e in standing}


def revised_by(claim: str, events: Sequence[Event]) -> set[str]:
    """The claims that revise one, directly or over others."""
    found: set[str] = set()
    todo = [claim]
    while todo:
        name = todo.pop()
        new = {str(e.body["by"]) for e in events if e.kind == "revise" and e.body["claim"] == name}
        todo += sorted(new - found)
        found |= new
    return found


def revisions(events: Sequence[Event], study: str) -> list[Event]:
    """The revisions of a study's claims, and those of other claims by one of its own."""
    return [
        e
        for e in events
        if e.kind == "revise"
        and study in (str(e.body[key]).partition("/")[0] for key in ("claim", "by"))
    ]


def last_freeze(events: Sequence[Event], study: str) -> Event | None:
    """The freeze of the highest version of a study."""
    freezes = [e for e in events if e.kind == "freeze" and e.study == study]
    return max(freezes, key=lambda e: (int(e.body["version"]), e.digest), default=None)


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
    where = f"{path.parent.name}/{path.name}"
    if path != _path(path.parent.with_name(event.study or "scratch"), event):
        raise TamperedError(
            f"{where} in the ledger was changed or moved after it was recorded: its content is "
            f"{event.kind}-{event.digest[:20]} of study {event.study or 'scratch'}. Restore it "
            "from git; to correct an event, record a further one."
        )
    lacking = [key for key in NEEDED.get(event.kind, ()) if key not in event.body]
    if event.kind not in KINDS or lacking:
        raise StoreError(
            f"{where} in the ledger is of a kind that this version of Assay does not know, or "
            f"lacks {', '.join(lacking) or 'nothing'}. Upgrade Assay, or restore it from git."
        )
    return event


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
