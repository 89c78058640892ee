import json
from datetime import UTC, datetime, timedelta

import pytest

from assay.core import ledger
from assay.core.errors import StoreError, TamperedError
from assay.core.ledger import invalidations, last_freeze, read_ledger, record

FREEZE = {"study_digest": "d", "commit": "c", "tree_sha256": "t"}


@pytest.fixture
def backwards(monkeypatch):
    """A clock that runs backwards, a minute a look."""

    class Clock(datetime):
        looks = 0

        @classmethod
        def now(cls, tz=None):
            cls.looks += 1
            return datetime(2026, 1, 1, tzinfo=UTC) - timedelta(minutes=cls.looks)

    monkeypatch.setattr(ledger, "datetime", Clock)


def strike(folder, target="R1", because="leak"):
    return record(folder, "invalidate", "s", {"target": target, "because": because})


def unstrike(folder, event):
    return record(folder, "restore", "s", {"target": "R1", "because": "?"}, follows=[event.digest])


def test_what_is_recorded_is_read(tmp_path):
    """An event comes back as it was recorded; another study's is left out if asked."""
    event = strike(tmp_path)
    other = record(tmp_path, "restore", "t", {"target": "é \u2028"})
    assert {e.digest for e in read_ledger(tmp_path)} == {event.digest, other.digest}
    assert read_ledger(tmp_path, "s") == [event]


def test_empty_ledger(tmp_path):
    """A ledger that does not exist has no events."""
    assert read_ledger(tmp_path / "nothing") == []


def test_ad_hoc_events_lie_in_scratch(tmp_path):
    """An event without a study lies under "scratch"."""
    event = record(tmp_path, "restore", "", {"target": "x"})
    assert read_ledger(tmp_path, "scratch") == [event]


def test_edited_event_is_noticed(tmp_path):
    """Content that no longer matches its name is tampered with: exit code 3."""
    strike(tmp_path)
    (path,) = tmp_path.glob("*/*.json")
    path.write_text(path.read_text().replace("leak", "lark"))
    with pytest.raises(TamperedError, match=rf"{path.name}.*changed or moved") as caught:
        read_ledger(tmp_path)
    assert caught.value.exit_code == 3


def test_renamed_or_moved_event_is_noticed(tmp_path):
    """An event in another study's folder would strike other runs."""
    strike(tmp_path)
    (path,) = tmp_path.glob("*/*.json")
    (tmp_path / "other").mkdir()
    path.rename(tmp_path / "other" / path.name)
    with pytest.raises(TamperedError, match="of study s"):
        read_ledger(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"kind": "restore"}', b"\xff"])
def test_unreadable_event_is_an_error(tmp_path, content):
    """A half-written event is an error, never skipped: it may have been an invalidation."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "invalidate-0.json").write_bytes(content)
    with pytest.raises(StoreError, match="cannot be read"):
        read_ledger(tmp_path)


def test_unknown_kind_or_lacking_body_is_an_error(tmp_path, monkeypatch):
    """An event of a later version is an error, not ignored."""
    record(tmp_path, "invalidate", "s", {"target": "R1"})
    with pytest.raises(StoreError, match="lacks because"):
        read_ledger(tmp_path)
    monkeypatch.setattr(ledger, "KINDS", (*ledger.KINDS, "absolve"))
    record(tmp_path / "b", "absolve", "s", {})
    monkeypatch.undo()
    with pytest.raises(StoreError, match="does not know"):
        read_ledger(tmp_path / "b")


@pytest.mark.parametrize("kind", ["verdict", "absolve", "note"])
def test_a_kind_that_nothing_records_is_refused(tmp_path, kind):
    """What no command writes would be read as if it meant something."""
    with pytest.raises(AssertionError):
        record(tmp_path, kind, "s", {})


def test_restore_undoes_and_a_second_invalidation_stands(tmp_path, backwards):
    """Invalidate, restore, invalidate again: each time the last word holds, clocks or not."""
    first = strike(tmp_path)
    assert invalidations(read_ledger(tmp_path))["R1"] == first
    unstrike(tmp_path, first)
    assert invalidations(read_ledger(tmp_path)) == {}
    second = strike(tmp_path, because="leak again")
    assert invalidations(read_ledger(tmp_path)) == {"R1": second}


def test_order_follows_events_not_clocks(tmp_path, backwards):
    """An event comes after those that it follows, although its clock says otherwise."""
    before = strike(tmp_path)
    chain = [before]
    for _ in range(3):
        chain.append(unstrike(tmp_path, chain[-1]))
    assert chain[0].at > chain[-1].at
    assert read_ledger(tmp_path) == chain


def test_a_long_chain_is_read(tmp_path, monkeypatch):
    """A chain of events longer than Python's recursion limit is no problem."""
    monkeypatch.setattr(ledger, "write_atomic", lambda path, content: path.write_bytes(content))
    event = None
    for i in range(1200):
        follows = [event.digest] if event else []
        event = record(tmp_path, "restore", "s", {"text": str(i)}, follows=follows)
    read = read_ledger(tmp_path)
    assert [e.body["text"] for e in read] == [str(i) for i in range(1200)]


def test_two_branches_merge(tmp_path):
    """Events of two branches have different files; two invalidations need two restores."""
    one, two = strike(tmp_path), strike(tmp_path, because="other")
    unstrike(tmp_path, two)
    assert invalidations(read_ledger(tmp_path)) == {"R1": one}
    unstrike(tmp_path, one)
    assert invalidations(read_ledger(tmp_path)) == {}


def test_invalidated_study_may_list_its_runs(tmp_path):
    """The listed runs are struck by the study's event, and restored with it."""
    body = {"target": "s", "because": "leak", "runs": ["R1", "R2"]}
    event = record(tmp_path, "invalidate", "s", body)
    assert invalidations(read_ledger(tmp_path)) == {"s": event, "R1": event, "R2": event}
    unstrike(tmp_path, event)
    assert invalidations(read_ledger(tmp_path)) == {}


def test_last_freeze_is_the_highest_version(tmp_path, backwards):
    """The version decides, not the clock; another study's freeze does not count."""
    record(tmp_path, "freeze", "s", {"version": 1, **FREEZE})
    newest = record(tmp_path, "freeze", "s", {"version": 2, **FREEZE})
    record(tmp_path, "freeze", "t", {"version": 3, **FREEZE})
    assert last_freeze(read_ledger(tmp_path), "s") == newest
    assert last_freeze([], "s") is None


def test_file_is_canonical_json(tmp_path):
    """One line of JSON with sorted keys: merges and diffs are readable."""
    event = strike(tmp_path)
    (path,) = tmp_path.glob("*/*.json")
    assert path.read_text().count("\n") == 1
    keys = list(json.loads(path.read_text()))
    assert keys == sorted(keys)
    assert path.name == f"invalidate-{event.digest[:20]}.json"


def test_unwritable_ledger_is_an_error(tmp_path):
    """A ledger that cannot be written is told."""
    (tmp_path / "s").write_text("a file in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        strike(tmp_path)
