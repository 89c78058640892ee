"""An export is whole or not there: it is written beside its place and moved there at the end."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from assay.core.errors import StoreError


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A path to write a file or folder to, which becomes `out` if nothing went wrong.

    Raises:
        StoreError: `out` exists, or its folder is missing or cannot be written.
    """
    _must_be_free(out)
    out = out.parent.resolve() / out.name
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        try:
            _remove(temporary)
            yield temporary
            _must_be_free(out)
            temporary.rename(out)
        finally:
            _remove(temporary)
    except OSError as error:
        raise StoreError(
            f"An export must be written to a folder that exists and is writable; {out} could not "
            f"be written: {error.strerror or error}. Make the folder {out.parent}, free some "
            "space, or give another place. Nothing was left behind."
        ) from error


def _must_be_free(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise StoreError(
            f"An export never overwrites or adds to what is there, but {out} exists. Give a new "
            "name, or remove it first."
        )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
