import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.core.artifacts import ArtifactStore, write_atomic
from assay.core.errors import StoreError, TamperedError
from assay.core.files import append_line, read_json_lines


@given(content=st.binary(max_size=2000), name=st.text(min_size=1, max_size=60))
@settings(deadline=None, max_examples=100)
def test_any_accepted_name_stays_in_its_folder(content, name, tmp_path_factory):
    """A name is either refused or its content comes back; no file appears anywhere else."""
    folder = tmp_path_factory.mktemp("run")
    store = ArtifactStore(folder)
    try:
        sha256 = store.save(name, content)
    except StoreError:
        assert list(folder.iterdir()) == []
        return
    assert sha256 == hashlib.sha256(content).hexdigest()
    assert store.read(name) == content
    assert [p.name for p in folder.iterdir()] == ["artifacts"]
    assert len(list((folder / "artifacts").iterdir())) == 2


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/etc/x", "a\\b", "a\0b", "a\nb", "x" * 201, "é" * 150,
             "\ud800"]
)  # fmt: skip
def test_a_name_that_is_no_file_name_is_refused(name, tmp_path):
    """No separators, no traversal, no control characters, not too long: nothing is written."""
    with pytest.raises(StoreError, match="plain file name"):
        ArtifactStore(tmp_path).save(name, b"x")
    with pytest.raises(StoreError, match="plain file name"):
        ArtifactStore(tmp_path).save_file(name, tmp_path / "source")
    assert list(tmp_path.iterdir()) == []


def test_the_longest_names_fit(tmp_path):
    """Names at the limit can be stored on a file system that takes 255 bytes."""
    source = tmp_path / "source"
    source.write_bytes(b"y")
    store = ArtifactStore(tmp_path)
    for name in ("x" * 200, "é" * 107):
        store.save(name, b"x")
        store.save_file(name, source)
        assert store.read(name) == b"y"


def test_a_second_save_keeps_the_first(tmp_path):
    """The latest save of a name is current; older content stays on disk under its digest."""
    store = ArtifactStore(tmp_path)
    first = store.save("model.bin", b"one")
    store.save("model.bin", b"two")
    assert store.read("model.bin") == b"two"
    assert store.history()[0].sha256 == first
    assert (tmp_path / "artifacts" / f"{first[:12]}-model.bin").read_bytes() == b"one"
    store.save("model.bin", b"one")
    assert store.read("model.bin") == b"one"
    assert len(store.history()) == 3


def test_save_file_equals_save(tmp_path):
    """A copied file and the same bytes are one artifact, and no temporary file stays."""
    source = tmp_path / "weights"
    source.write_bytes(os.urandom(3_000_000))
    store = ArtifactStore(tmp_path)
    assert store.save_file("w", source) == store.save("w", source.read_bytes())
    assert len(list((tmp_path / "artifacts").iterdir())) == 2
    store.verify()


def test_save_file_of_a_missing_file_leaves_nothing(tmp_path):
    """The error names the file; no half artifact is listed."""
    store = ArtifactStore(tmp_path)
    with pytest.raises(StoreError, match="nowhere"):
        store.save_file("w", tmp_path / "nowhere")
    assert store.history() == []
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_changed_content_is_found(tmp_path):
    """`verify`, `read` and a further save of the same content find what was changed."""
    store = ArtifactStore(tmp_path)
    store.save("a", b"content")
    store.verify()
    path = store.path("a")
    path.write_bytes(b"c0ntent")
    for check in (store.verify, lambda: store.read("a"), lambda: store.save("a", b"content")):
        with pytest.raises(TamperedError, match="changed after"):
            check()


def test_changed_older_content_is_found(tmp_path):
    """What is no longer current is evidence too."""
    store = ArtifactStore(tmp_path)
    store.save("a", b"old")
    old = store.path("a")
    store.save("a", b"new")
    old.write_bytes(b"0ld")
    with pytest.raises(TamperedError):
        store.verify()


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    """A misspelt artifact is answered with what there is."""
    store = ArtifactStore(tmp_path)
    store.save("predictions.json", b"{}")
    with pytest.raises(StoreError, match=r"predictions\.json"):
        store.read("prediction.json")


def test_a_torn_manifest_line_costs_only_itself(tmp_path):
    """After a kill in the middle of a line, the next save starts a line of its own."""
    store = ArtifactStore(tmp_path)
    store.save("a", b"1")
    manifest = tmp_path / "artifacts" / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes() + b'{"name":"b","sha')
    store.save("c", b"3")
    assert sorted(store.current()) == ["a", "c"]
    assert read_json_lines(manifest)[1] == 1


def test_a_failed_replace_leaves_the_old_file(tmp_path, monkeypatch):
    """Until the rename the old content stands, and no temporary file stays behind."""
    path = tmp_path / "run.json"
    write_atomic(path, b"old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_appending_to_a_full_disk_is_a_store_error(tmp_path):
    """`/dev/full` refuses every write; the error says so."""
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    with pytest.raises(StoreError, match="No space left"):
        append_line(tmp_path / "events.jsonl", b"{}")
