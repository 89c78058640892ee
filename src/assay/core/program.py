"""Running any program as one run: its output kept, its end recorded, its numbers collected."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

from assay.core.collect import CollectSpec, collect
from assay.core.errors import DataError
from assay.core.run import RunWriter, attempt_name
from assay.core.study import Collect

GRACE_S = 30.0
TAIL_BYTES = 4000


class StopFlag(Protocol):
    """Whether the user asked to stop."""

    def __call__(self) -> bool:
        """True once they did; asking counts as having noticed."""


def run_program(
    command: Sequence[str],
    writer: RunWriter,
    out: Path | None,
    what: Collect,
    environment: Mapping[str, str],
    stop: StopFlag,
    *,
    echo: bool,
) -> str | None:
    """Run a command to its end and collect its numbers.

    Args:
        command: Program and arguments; no shell is involved.
        writer: The run; its directory takes the output.
        out: Folder that the program writes to (`$ASSAY_OUT`); None: the current folder, of which
            only files written meanwhile are collected.
        what: Where the numbers are.
        environment: Complete environment of the program.
        stop: Asked several times a second; then the program gets SIGTERM, and SIGKILL after
            30 seconds.
        echo: Whether the output is shown as well.

    Returns:
        None if it ended well, else how it ended and the end of its output.
    """
    log = writer.folder / attempt_name("stdout.log", writer.attempt)
    env = {
        **environment,
        "ASSAY_RUN_DIR": str(writer.folder),
        "ASSAY_ATTEMPT": str(writer.attempt),
        **({"ASSAY_OUT": str(out)} if out else {}),
    }
    began = time.time()
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        asked: float | None = None
        while True:
            chunk = _read(process.stdout.fileno())
            if chunk:
                output.write(chunk)
                output.flush()
                if echo:
                    sys.stdout.buffer.write(chunk)
                    sys.stdout.flush()
            elif chunk == b"" and process.poll() is not None:
                break
            elif chunk is None and process.poll() is not None:
                # A grandchild may hold the pipe open; what the program itself wrote is read.
                break
            else:
                time.sleep(0.02)
            asked = _forward(stop, process, asked)
    if out is None:
        out, what = Path.cwd(), _written_since(began, Path.cwd(), what)
    collect(out, CollectSpec(**asdict(what)), writer, stdout=log)
    code = process.returncode
    if code == 0:
        return None
    how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
    tail = log.read_bytes()[-TAIL_BYTES:].decode("utf-8", "replace")
    return f"{Path(command[0]).name} ended with {how}; its last output:\n{tail}"


def _written_since(began: float, folder: Path, what: Collect) -> Collect:
    """For an ad-hoc command: its usual files if it wrote them, and no file from before it ran.

    Raises:
        DataError: A file that was asked for is older than the run: it belongs to another.
    """

    def fresh(name: str) -> bool:
        path = folder / name
        files = [path] if path.is_file() else list(path.rglob("*"))
        # File systems keep times in steps; a file as old as the start is this run's.
        return any(file.stat().st_mtime >= began - 0.01 for file in files if file.is_file())

    for name in (what.csv, what.summary, what.tensorboard):
        if name is not None and (folder / name).exists() and not fresh(name):
            raise DataError(
                f"{name} was not written by this run: it is older than its start. It would be "
                "another run's result. Delete it, or give the file that the program does write."
            )
    return replace(
        what,
        csv=what.csv or ("metrics.csv" if fresh("metrics.csv") else None),
        summary=what.summary or ("summary.json" if fresh("summary.json") else None),
    )


def _read(fd: int) -> bytes | None:
    """What there is to read; b"" at the end of the stream; None if nothing is there now."""
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return None


def _forward(stop: StopFlag, process: subprocess.Popen[bytes], asked: float | None) -> float | None:
    """Pass the user's wish to stop on; returns when it was first passed on."""
    if not stop():
        return None
    now = time.monotonic()
    if asked is None or now - asked > GRACE_S:
        number = signal.SIGTERM if asked is None else signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    return now if asked is None else asked
