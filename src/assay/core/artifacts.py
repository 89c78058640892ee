"""Artifacts: files addressed by their SHA-256, with an append-only manifest.

Content lies in `artifacts/<first 12 of sha256>-<name>`, so two contents of one name never meet.
`artifacts/manifest.jsonl` has one line a save; the latest line of a name is the current one.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from assay.core.errors import StoreError, TamperedError
from assay.core.files import (
    append_line,
    read_bytes,
    read_json_lines,
    sha256_of,
    sync_folder,
    temporary_of,
    to_json,
    write_atomic,
    write_error,
)

__all__ = ["MANIFEST_NAME", "Artifact", "ArtifactStore", "check_name", "write_atomic"]

MANIFEST_NAME = "manifest.jsonl"
NAME_LIMIT = 200
# A file system takes 255 bytes; 13 go to the digest and about 25 to the name of the temporary file.
NAME_LIMIT_BYTES = 215


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the manifest.

    Attributes:
        name: File name as given.
        sha256: Digest of the content, hex.
        bytes: Size of the content.
        at: When it was saved, ISO 8601, UTC.
    """

    name: str
    sha256: str
    bytes: int
    at: str

    @property
    def file_name(self) -> str:
        """Name of the file that holds the content."""
        return f"{self.sha256[:12]}-{self.name}"


def check_name(name: str) -> None:
    """Refuse a name that is no plain file name.

    Raises:
        StoreError: It is empty, too long, or could lead out of the folder.
    """
    bad = not isinstance(name, str) or name in ("", ".", "..")
    bad = bad or any(char in "/\\" or ord(char) < 32 or ord(char) == 127 for char in name)
    bad = bad or len(name) > NAME_LIMIT or any("\ud800" <= char <= "\udfff" for char in name)
    if bad or len(name.encode()) > NAME_LIMIT_BYTES:
        raise StoreError(
            f"An artifact's name must be a plain file name of at most {NAME_LIMIT} characters "
            f"({NAME_LIMIT_BYTES} bytes), without / \\ or control characters; got {name!r}. "
            'Use dots instead of folders, for example "eval.predictions.json".'
        )


class ArtifactStore:
    """The artifacts of one run directory."""

    def __init__(self, run_dir: Path) -> None:
        """Nothing is created before the first save."""
        self.folder = run_dir / "artifacts"

    def save(self, name: str, content: bytes) -> str:
        """Store bytes under a name and make them its current content.

        Returns:
            The sha256, hex.

        Raises:
            StoreError: The name is no plain file name, or the folder cannot be written.
            TamperedError: The same content was stored before and its file was changed since.
        """
        check_name(name)
        entry = self._entry(name, hashlib.sha256(content).hexdigest(), len(content))
        path = self._path_for(entry)
        if not self._is_stored(entry):
            write_atomic(path, content)
        append_line(self.folder / MANIFEST_NAME, to_json(msgspec.to_builtins(entry)))
        return entry.sha256

    def save_file(self, name: str, source: Path) -> str:
        """Store a copy of a file without loading it into memory; see `save`."""
        check_name(name)
        with self._temporary(name) as temporary:
            try:
                with source.open("rb") as read, temporary.open("xb") as write:
                    shutil.copyfileobj(read, write, 1 << 20)
                    write.flush()
                    os.fsync(write.fileno())
            except OSError as error:
                raise StoreError(
                    f"Artifact {name!r} could not be copied from {source}: "
                    f"{error.strerror or error}. Check that the file is there and that there is "
                    "space for a copy of it."
                ) from error
            # The copy is what is kept, so the copy is what is hashed.
            size = temporary.stat().st_size
            entry = self._entry(name, sha256_of(temporary), size)
            if not self._is_stored(entry):
                temporary.replace(self._path_for(entry))
                sync_folder(self.folder)
        append_line(self.folder / MANIFEST_NAME, to_json(msgspec.to_builtins(entry)))
        return entry.sha256

    def history(self) -> list[Artifact]:
        """Every save, in order.

        Raises:
            StoreError: A whole line of the manifest is no entry.
        """
        path = self.folder / MANIFEST_NAME
        rows, _ = read_json_lines(path)
        try:
            return [msgspec.convert(row, Artifact, strict=True) for row in rows]
        except msgspec.ValidationError as error:
            raise StoreError(
                f"Every line of {path} must be an entry of the manifest; {error}. Restore the "
                "file from a copy of the run directory."
            ) from error

    def current(self) -> dict[str, Artifact]:
        """The latest save of each name."""
        return {entry.name: entry for entry in self.history()}

    def read(self, name: str) -> bytes:
        """The current content of a name, checked against its digest.

        Raises:
            StoreError: There is no such artifact.
            TamperedError: The content was changed after it was saved.
        """
        entry = self.current().get(name)
        if entry is None:
            known = ", ".join(sorted(self.current())) or "none"
            raise StoreError(
                f"There is no artifact {name!r} in {self.folder}. It has: {known}. "
                "Names are those given to save()."
            )
        content = read_bytes(self._path_for(entry))
        _check_digest(self._path_for(entry), entry.sha256, hashlib.sha256(content).hexdigest())
        return content

    def path(self, name: str) -> Path | None:
        """Where the current content of a name lies; None if there is none."""
        entry = self.current().get(name)
        return None if entry is None else self._path_for(entry)

    def verify(self) -> None:
        """Recompute every digest.

        Raises:
            StoreError: A file is missing.
            TamperedError: A file was changed after it was saved.
        """
        for entry in {entry.file_name: entry for entry in self.history()}.values():
            path = self._path_for(entry)
            _check_digest(path, entry.sha256, sha256_of(path))

    def _path_for(self, entry: Artifact) -> Path:
        return self.folder / entry.file_name

    def _entry(self, name: str, sha256: str, size: int) -> Artifact:
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(self.folder, error) from error
        return Artifact(name=name, sha256=sha256, bytes=size, at=datetime.now(UTC).isoformat())

    def _is_stored(self, entry: Artifact) -> bool:
        path = self._path_for(entry)
        if not path.exists():
            return False
        _check_digest(path, entry.sha256, sha256_of(path))
        return True

    @contextmanager
    def _temporary(self, name: str) -> Iterator[Path]:
        temporary = temporary_of(self.folder / name)
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(self.folder, error) from error
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def _check_digest(path: Path, recorded: str, found: str) -> None:
    if found != recorded:
        raise TamperedError(
            f"{path} must have the digest recorded in the manifest, {recorded[:12]}…, but has "
            f"{found[:12]}…: it was changed after it was saved. Restore it from a copy, or "
            "invalidate the run with `assay invalidate`."
        )
