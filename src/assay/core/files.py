"""Files that are whole or not there, and JSON that says what it means.

`write_atomic` replaces a file in one step; `append_line` adds one line that can never be glued to
a torn one. Both turn what the operating system reports into a `StoreError` with a way out. JSON
has no word for NaN or infinity and orjson writes them as `null`, so they are spelled out as the
strings "nan", "inf" and "-inf", here and in the rows of metrics.
"""

import hashlib
import itertools
import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from assay.core.errors import StoreError

NON_FINITE = frozenset({"nan", "inf", "-inf"})
_TEMPORARY = re.compile(r"\..+\.\d+-\d+\.tmp")
_serial = itertools.count()


def temporary_of(path: Path) -> Path:
    """Where a file is written before it gets its name: beside it, hidden, another place each time."""
    return path.with_name(f".{path.name}.{os.getpid()}-{next(_serial)}.tmp")


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that every reader sees all of it or none, also after a power cut.

    Raises:
        StoreError: The folder is missing, read-only or full. Nothing is left behind.
    """
    temporary = temporary_of(path)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        # The folder that refused the write may refuse this too; the first error is the one to tell.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise write_error(path, error) from error


def remove_unfinished(*folders: Path) -> None:
    """Remove what killed processes left half-written; only for who alone may write there now."""
    for path in itertools.chain.from_iterable(folder.glob(".*.tmp") for folder in folders):
        if _TEMPORARY.fullmatch(path.name):
            # A folder that does not let go of it refuses the next write too, and that is told.
            with suppress(OSError):
                path.unlink()


def append_line(path: Path, line: bytes) -> None:
    """Append one line (without its newline) to a file that several attempts share, one at a time.

    A line torn by an earlier crash is closed first, so that it alone is lost. A write that comes
    out short is taken back.

    Raises:
        StoreError: The file cannot be written.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise write_error(path, error) from error
    try:
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        data = (b"\n" if torn else b"") + line + b"\n"
        write_whole(fd, data, path)
        os.fsync(fd)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        os.close(fd)


def write_whole(fd: int, data: bytes, path: Path) -> None:
    """One `write()`: all of `data` is in the file afterwards, or none of it and an error.

    Raises:
        StoreError: The disk is full, a limit is reached, or the write failed.
    """
    try:
        written = os.write(fd, data)
    except OSError as error:
        raise write_error(path, error) from error
    if written != len(data):
        os.ftruncate(fd, os.fstat(fd).st_size - written)
        raise StoreError(
            f"A row must be written whole, but only {written} of {len(data)} bytes fitted into "
            f"{path}: the disk, a quota or a file-size limit is full. The part was taken back, "
            "so that every row before it stays readable. Free some space, then run again."
        )


def write_error(path: Path, error: OSError) -> StoreError:
    """The one paragraph for a write that the operating system refused."""
    reason = error.strerror or str(error)
    return StoreError(
        f"A run's files must be writable, but {path} is not: {reason}. Check that the folder "
        "exists, is yours and has space left, or set ASSAY_ROOT to a folder that is."
    )


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        StoreError: It is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(
            f"A run's files must be readable, but {path} is not: {error.strerror or error}. "
            "Restore it from a copy of the run directory, or move this run out of runs/."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        StoreError: It is missing, half-written, or not an object.
    """
    content = read_bytes(path)
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise StoreError(
            f"{path} must be a JSON object, but cannot be read at character {error.pos} of "
            f"{len(content)} bytes ({error.msg}). It was half-written or edited: restore it from "
            "a copy, or move this run out of runs/ and run again."
        ) from error
    if not isinstance(value, dict):
        raise StoreError(
            f"{path} must be a JSON object; got a {type(value).__name__}. Restore it from a "
            "copy, or move this run out of runs/ and run again."
        )
    return value


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """All whole lines of an append-only file, and the number of lines that could not be read.

    A file that does not exist has no lines.
    """
    if not path.exists():
        return [], 0
    rows: list[dict[str, Any]] = []
    bad = 0
    for line in read_bytes(path).split(b"\n"):
        if not line:
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad += 1
    return rows, bad


def to_json(value: Any) -> bytes:
    """Plain data as JSON, with non-finite numbers spelled out.

    Raises:
        StoreError: Something in it is no plain data.
    """
    try:
        return orjson.dumps(explicit(value))
    except TypeError as error:
        raise StoreError(
            f"What is stored must be plain data (text, numbers, lists, tables); {error}. "
            f"The value is {str(value)[:200]!r}. Convert it before you hand it over."
        ) from error


def explicit(value: Any) -> Any:
    """The same data with NaN and infinities as the strings "nan", "inf", "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, Mapping):
        return {key: explicit(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [explicit(item) for item in value]
    return value


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """What `explicit` made of a table of numbers, as floats again.

    Raises:
        ValueError: A value is neither a number nor the name of a non-finite one.
    """
    result: dict[str, float] = {}
    for name, value in values.items():
        known = isinstance(value, int | float) and not isinstance(value, bool)
        if not known and not (isinstance(value, str) and value in NON_FINITE):
            raise ValueError(f"{name!r} must be a number; got {value!r}")
        result[name] = float(value)
    return result


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file's content.

    Raises:
        StoreError: It is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(
            f"{path} must be readable to check its digest: {error.strerror or error}. Restore it "
            "from a copy of the run directory."
        ) from error


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
