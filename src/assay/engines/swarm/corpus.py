"""Corpora as tokens. No torch here: `assay run --dry-run` looks whether a study's text is there."""

import hashlib
import sysconfig
from functools import lru_cache
from pathlib import Path

import numpy as np

from assay.core.errors import ConfigError

SHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
"""The sha256 of tinyshakespeare's input.txt."""
HELD_OUT = 0.1
"""Share of a corpus, at its end, that is never trained on."""
NAMES = ("python", "tinyshakespeare")
"""Corpora that are known; all others are the user's own."""
PIN = "@sha256:"
"""Between the path of a text of the user's own and its digest."""
FIRST_ID = 4
"""Id of the first character of tinyshakespeare: the source's prepared data starts there."""


@lru_cache(maxsize=4)
def corpus(name: str, data_dir: Path | None) -> np.ndarray:
    """All tokens of a corpus, uint8.

    "python" is the text of the interpreter's standard library in the order of its paths, one token
    a byte; "tinyshakespeare" is one token a character, numbered from 4 in the order of codes. All else
    is PATH@sha256:DIGEST, a text in the data folder, one token a byte.

    Raises:
        ConfigError: The text is not there, or is another one.
    """
    if name not in NAMES:
        return np.frombuffer(_own(name, data_dir), np.uint8)
    if name == "python":
        root = Path(sysconfig.get_path("stdlib"))
        files = sorted(
            path for path in root.rglob("*.py")
            if not {"site-packages", "test", "tests", "idle_test", "lib2to3"} & set(path.relative_to(root).parts)
        )  # fmt: skip
        return np.frombuffer(b"\n".join(path.read_bytes() for path in files), np.uint8)
    path = None if data_dir is None else data_dir / "tinyshakespeare" / "input.txt"
    if path is None or not path.is_file():
        path = None if data_dir is None else data_dir / "data" / "tinyshakespeare" / "input.txt"
    if path is None or not path.is_file():
        raise ConfigError(
            "The corpus 'tinyshakespeare' must be in the data folder as tinyshakespeare/input.txt; "
            f"ASSAY_DATA is {data_dir or 'not set'}. Set ASSAY_DATA to the folder that holds it, or "
            'take corpus = "python", which is on every machine.'
        )
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != SHAKESPEARE:
        raise ConfigError(
            f"tinyshakespeare must be the file with sha256 {SHAKESPEARE[:12]}…; {path} has "
            f"{found[:12]}…. Restore the file: a study says the same on every machine."
        )
    text = np.frombuffer(content, np.uint8)
    known = np.unique(text)
    return (np.searchsorted(known, text) + FIRST_ID).astype(np.uint8)


def description(name: str) -> tuple[str, str]:
    """What is read, for the provenance of a run: its name, and the sha256 of the text.

    Raises:
        ConfigError: A text of the user's own comes without its digest.
    """
    if name == "tinyshakespeare":
        return name, SHAKESPEARE
    if name == "python":
        return name, hashlib.sha256(corpus(name, None).tobytes()).hexdigest()
    path, _, digest = name.partition(PIN)
    if not digest:
        raise ConfigError(f"corpus {name!r} needs the digest of its text: PATH{PIN}DIGEST.")
    return path, digest


def pinned(name: str, data_dir: Path | None) -> str:
    """A corpus with the digest of its text, if it is the user's own and comes without."""
    if name in NAMES or PIN in name:
        return name
    return f"{name}{PIN}{hashlib.sha256(_content(name, data_dir)).hexdigest()}"


def _own(name: str, data_dir: Path | None) -> bytes:
    """A text of the user's own, compared with its digest."""
    path, _, wanted = name.partition(PIN)
    content = _content(path, data_dir)
    found = hashlib.sha256(content).hexdigest()
    if found != wanted:
        why = f"the text there has {found}" if wanted else "it has none"
        raise ConfigError(
            f"corpus {name!r} must name the text with its digest, so that a study says the same on every "
            f'machine; {why}. Write corpus = "{path}{PIN}{found}", or restore the text.'
        )
    return content


def _content(path: str, data_dir: Path | None) -> bytes:
    """A file, or all files of a folder that are not hidden, in the order of their paths, a line feed between."""
    place = (data_dir or Path()) / path
    if not path or not (data_dir or place.is_absolute()) or not place.exists():
        raise ConfigError(
            f"corpus must be {' or '.join(NAMES)}, or a file or folder in the data folder (for `assay swarm "
            f"local` also in the current one); got {path!r}, and ASSAY_DATA is {data_dir or 'not set'}. "
            "Correct it, or set ASSAY_DATA to the folder that holds it."
        )
    files = [place] if place.is_file() else sorted(
        file for file in place.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(place).parts)
    )  # fmt: skip
    try:
        content = b"\n".join(file.read_bytes() for file in files)
    except OSError as error:
        raise ConfigError(f"corpus {path!r} cannot be read: {error}. Make it readable.") from error
    if not content:
        raise ConfigError(f"corpus must hold text; {place} is empty. Give another file or folder.")
    return content


def divided(tokens: int, seq_len: int) -> tuple[int, int]:
    """How many sequences of a corpus of so many tokens are trained on, and how many held out.

    Raises:
        ConfigError: It is too short.
    """
    total = max(0, tokens - 1) // seq_len
    held = max(2, int(total * HELD_OUT))
    if total <= held:
        raise ConfigError(
            f"A corpus must hold a sequence to train, one to choose and one to test with; {tokens} "
            f"tokens make {total} of seq_len {seq_len}. Take a longer text, or a shorter seq_len."
        )
    return total - held, held
