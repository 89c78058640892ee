"""Texts of the user's own: what is read, its digest, and what is refused before a run starts."""

import hashlib
from dataclasses import replace

import pytest
from test_swarm_train import CONFIG, Context

from assay.core.errors import ConfigError
from assay.engines.swarm.corpus import corpus, description, pinned
from assay.engines.swarm.engine import ENGINE, check
from assay.engines.swarm.train import train

BYTES = bytes(range(256)) * 8


def test_a_text_is_its_bytes(tmp_path):
    """One token a byte, UTF-8 or not; the digest is that of the text, and goes into the provenance."""
    (tmp_path / "own.txt").write_bytes(BYTES)
    name = pinned("own.txt", tmp_path)
    assert name == f"own.txt@sha256:{hashlib.sha256(BYTES).hexdigest()}"
    assert corpus(name, tmp_path).tobytes() == BYTES
    config = replace(CONFIG, corpus=name)
    fingerprint = ENGINE.tasks["train"].fingerprint(config, {}, None)
    assert fingerprint == {"corpus own.txt": hashlib.sha256(BYTES).hexdigest()}
    context = Context()
    context.data_dir = tmp_path
    train([config], [context])
    assert context.final["sync/replicas_equal"] == 1


def test_a_folder_is_its_files_in_order(tmp_path):
    """Joined in the order of their paths, with a line feed between them; hidden ones left out."""
    for name, text in (
        ("b/c", b"two"),
        ("a.md", b"one"),
        ("z", b"three"),
        (".git/x", b"no"),
        ("b/.y", b"no"),
    ):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_bytes(text)
    name = pinned("texts", tmp_path)
    assert corpus(name, tmp_path).tobytes() == b"one\ntwo\nthree"
    assert pinned(name, tmp_path) == name
    assert pinned(str(tmp_path / "texts"), None) == str(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("own.txt", None, "must be python or tinyshakespeare, or a file or folder in the data folder"),
        ("", None, "must be python or tinyshakespeare, or a file"),
        ("own.txt", b"", "is empty"),
        ("own.txt", BYTES, 'Write corpus = "own.txt@sha256:[0-9a-f]{64}"'),
        ("own.txt@sha256:0123", BYTES, "the text there has"),
        ("../own.txt", BYTES, "inside the data folder"),
        ("/own.txt", BYTES, "inside the data folder"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, name, content, message):
    """Not there, empty, without its digest or with another's, outside: told with the way out."""
    if content is not None:
        (tmp_path / "own.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        ENGINE.tasks["train"].check([replace(CONFIG, corpus=name)], tmp_path)


def test_an_empty_folder_is_no_text(tmp_path):
    """Nor is a data folder that is not set."""
    (tmp_path / "texts").mkdir()
    with pytest.raises(ConfigError, match="is empty"):
        pinned("texts", tmp_path)
    with pytest.raises(ConfigError, match="ASSAY_DATA is not set"):
        pinned("texts", None)
    with pytest.raises(ConfigError, match="digest"):
        description("texts")


def test_a_text_must_hold_three_sequences(tmp_path):
    """One to train, one to choose and one to test with, of seq_len tokens and one to predict."""
    for size, fits in ((3 * 16 + 1, True), (3 * 16, False)):
        (tmp_path / f"{size}").write_bytes(b"x" * size)
        config = replace(CONFIG, corpus=pinned(f"{size}", tmp_path))
        if fits:
            check([config], tmp_path)
        else:
            with pytest.raises(ConfigError, match="48 tokens make 2 of seq_len 16"):
                check([config], tmp_path)
