"""Writing rows of metrics: one line a row, one `write()` a call, one writer a file.

A row is `{"step": int, "time": unix seconds, "values": {name: number}}`. When `log` returns, the
row is in the operating system's hands and survives SIGKILL; a background thread calls `fsync` at
least every two seconds, which bounds what a power cut can take. Reading is `assay.core.metrics`,
which needs numpy; this module stays light, because `assay.init` imports it.
"""

import math
import operator
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from assay.core.errors import MetricError, StoreError
from assay.core.files import write_error, write_whole

STEP_LIMIT = 2**63
SYNC_EVERY_S = 2.0
_PLAIN_TYPES = frozenset({float, int})


def metrics_name(rank: int, attempt: int) -> str:
    """The file that holds the rows of one rank in one attempt."""
    return f"metrics-{rank}-{attempt}.jsonl"


def encode_row(values: Mapping[str, Any], *, step: int, now: float) -> bytes:
    """One row as a line with its newline.

    Raises:
        MetricError: A name, the step or a value cannot be logged.
    """
    if type(step) is not int or not -STEP_LIMIT < step < STEP_LIMIT:
        step = _checked_step(step)
    try:
        plain = _PLAIN_TYPES.issuperset(map(type, values.values())) and "" not in values
    except AttributeError:
        raise MetricError(
            f"log() takes a table of names and numbers; got {values!r}. "
            'Write log({"train/loss_nats": loss}, step=i).'
        ) from None
    if plain:
        try:
            line = _dump(values, step, now)
        except TypeError:
            # A name that is not Unicode text, or an integer over 64 bits: the checks below name it.
            return _dump(_checked_values(values), step, now)
        # orjson writes NaN and infinities as null, so a row without "null" has none.
        if b"null" not in line:
            return line
    return _dump(_checked_values(values), step, now)


def _dump(values: Mapping[str, Any], step: int, now: float) -> bytes:
    return orjson.dumps(
        {"step": step, "time": now, "values": values}, option=orjson.OPT_APPEND_NEWLINE
    )


def _checked_step(step: Any) -> int:
    try:
        if isinstance(step, bool):
            raise TypeError
        value = operator.index(step)
    except TypeError:
        raise MetricError(
            f"A step must be a whole number; got {step!r} ({type(step).__name__}). "
            "Log the number of optimizer steps done, for example step=i."
        ) from None
    if not -STEP_LIMIT < value < STEP_LIMIT:
        raise MetricError(
            f"A step must lie between -2^63 and 2^63; got {value}. "
            "Log the number of optimizer steps done, not a time in nanoseconds or a hash."
        )
    return value


def _checked_values(values: Mapping[str, Any]) -> dict[str, float | int | str]:
    return {_checked_name(name): _checked_value(name, value) for name, value in values.items()}


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise MetricError(
            f"A metric's name must be non-empty text; got {name!r}. "
            'Name it as split/quantity_unit, for example "train/loss_nats".'
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise MetricError(
            f"A metric's name must be Unicode text; got {name!r}, which holds half a surrogate "
            "pair. Decode the bytes that it came from with the right encoding."
        ) from None
    return str(name)


def _checked_value(name: str, value: Any) -> float | int | str:
    number = value
    # numpy scalars and 0-d tensors; an array of one element is refused, it is a mistake elsewhere.
    if not isinstance(number, int | float) or type(number) not in _PLAIN_TYPES:
        if hasattr(number, "item") and getattr(number, "ndim", 0) == 0:
            number = number.item()
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise MetricError(
                f"metric {name!r} must be one real number; got {_shown(value)}. "
                "Log a float or an int (for a truth value 1 or 0, for an array its mean), or keep "
                "it as an artifact with save()."
            )
    if isinstance(number, int) and not -STEP_LIMIT <= number < 2 * STEP_LIMIT:
        try:
            number = float(number)
        except OverflowError:
            raise MetricError(
                f"metric {name!r} must fit into a 64-bit float; got an integer of "
                f"{number.bit_length()} bits. Log its logarithm."
            ) from None
    if not math.isfinite(number):
        return "nan" if math.isnan(number) else "inf" if number > 0 else "-inf"
    return float(number) if isinstance(number, float) else int(number)


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


class MetricWriter:
    """The only writer of one file of rows. Threads of one process may share it.

    Attributes:
        path: The file.
        num_rows: Rows acknowledged so far.
    """

    def __init__(
        self, folder: Path, *, rank: int = 0, attempt: int = 1, sync_every_s: float = SYNC_EVERY_S
    ) -> None:
        """Create the file and start the thread that syncs it.

        Raises:
            StoreError: The file exists (another process writes it), or cannot be created.
        """
        self.path = folder / metrics_name(rank, attempt)
        self.num_rows = 0
        self._synced_rows = 0
        self._failure: OSError | None = None
        self._lock = threading.Lock()
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(self.path, flags, 0o644)
        except FileExistsError:
            raise StoreError(
                f"One process writes one file of metrics, but {self.path} exists already. Give "
                f"each process its own rank (this one has {rank}), and a resumed run its next "
                f"attempt (this one has {attempt})."
            ) from None
        except OSError as error:
            raise write_error(self.path, error) from error
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._sync, args=(sync_every_s,), name=f"sync {self.path.name}", daemon=True
        )
        self._thread.start()

    def log(self, values: Mapping[str, Any], *, step: int) -> None:
        """Append one row. When this returns, the row survives SIGKILL.

        Args:
            values: Names and numbers: float, int, numpy scalars, 0-d tensors. NaN and infinities
                are kept.
            step: Any whole number; steps may come in any order.

        Raises:
            MetricError: A name, the step or a value cannot be logged; nothing is written.
            StoreError: The row could not be written whole; the rows before it are intact.
        """
        line = encode_row(values, step=step, now=time.time())
        with self._lock:
            if self._closed.is_set():
                raise StoreError(
                    f"Rows go to an open run, but {self.path} was closed by finish(). "
                    "Log before finish(), or start a new run with assay.init()."
                )
            if self._failure is not None:
                raise write_error(self.path, self._failure) from self._failure
            write_whole(self._fd, line, self.path)
            self.num_rows += 1

    def sync(self) -> None:
        """Return when every acknowledged row would survive a power cut.

        Raises:
            StoreError: The disk refused.
        """
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise write_error(self.path, error) from error

    def close(self) -> None:
        """Sync to disk and close. Calling it again does nothing.

        Raises:
            StoreError: The disk refused what was written before.
        """
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
        self._thread.join()
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise write_error(self.path, error) from error
        finally:
            os.close(self._fd)
        if self._failure is not None:
            raise write_error(self.path, self._failure) from self._failure

    def _sync(self, every_s: float) -> None:
        while not self._closed.wait(every_s):
            num_rows = self.num_rows
            if num_rows == self._synced_rows:
                continue
            try:
                os.fsync(self._fd)
                self._synced_rows = num_rows
            except OSError as error:
                # Told by the next log(): a thread has nobody to raise to.
                self._failure = error
                return
