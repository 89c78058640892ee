"""Running any program as one run: its output kept, its end recorded, its numbers collected."""

import contextlib
import ctypes
import hashlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from assay.core.collect import collect, compile_pattern
from assay.core.errors import AssayError, DataError, LaunchError
from assay.core.run import RunWriter, attempt_name
from assay.core.study import Collect

GRACE_S = 30.0
POLL_S = 0.1
TAIL_BYTES = 4000
OUT = "{out}"
"""In a study's command: the run's own output folder."""
USUAL_FILES = {"csv": "metrics.csv", "summary": "summary.json"}
"""What an ad-hoc command is searched for when nothing is asked for."""
PR_SET_PDEATHSIG = 1


class StopFlag(Protocol):
    """Whether the user asked to stop."""

    asked: int
    """How often; the second time means at once."""
    number: int
    """The signal that said so."""

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
    keep_open: Sequence[int] = (),
) -> str | None:
    """Run a command to its end and collect its numbers.

    Args:
        command: Program and arguments; no shell is involved. `{out}` is the output folder.
        writer: The run; its directory takes the output.
        out: Folder that the program writes to (`$ASSAY_OUT`); None: the current folder, of which
            only files written meanwhile are collected.
        what: Where the numbers are.
        environment: Complete environment of the program.
        stop: Asked several times a second; then the program gets that signal, and SIGKILL after
            30 seconds or when the user asks again.
        echo: Whether the output is shown as well.
        keep_open: Lock files that the program inherits: should this process be killed, the run
            stays locked for as long as the program lives.

    Returns:
        None if it ended well, else how it ended and the end of its output.

    Raises:
        DataError: It ended well but did not leave the numbers that it was to leave.
        LaunchError: It cannot be started.
    """
    log = writer.folder / attempt_name("stdout.log", writer.attempt)
    env = {
        **environment,
        "ASSAY_RUN_DIR": str(writer.folder),
        "ASSAY_ATTEMPT": str(writer.attempt),
        **({"ASSAY_OUT": str(out)} if out else {}),
    }
    words = [word.replace(OUT, str(out)) for word in command] if out else list(command)
    before = _Before(out or Path.cwd(), what)
    process = _start(words, env, keep_open)
    try:
        _follow(process, log, stop, echo=echo)
    except BaseException:
        _signal(process, signal.SIGKILL)
        process.wait()
        raise
    code = process.returncode
    well = code == 0 and not stop.asked
    before.collect(writer, log, adhoc=out is None, lenient=not well)
    if code == 0:
        return None
    how = f"exit code {code}" if code > 0 else signal_name(-code)
    return f"{Path(words[0]).name} ended with {how}.\nIts last output:\n{_tail(log)}"


def signal_name(number: int) -> str:
    """SIGKILL for 9; real-time signals have numbers only."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _start(
    words: Sequence[str], env: Mapping[str, str], keep_open: Sequence[int]
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            pass_fds=tuple(keep_open),
            start_new_session=True,
            preexec_fn=_dies_with_parent(),
        )
    except (OSError, ValueError) as error:
        raise LaunchError(
            f"The program must be one that this machine can start; {words[0]!r} is not: {error}. "
            "A script needs a first line such as #!/usr/bin/env python3, or its interpreter "
            "written before it."
        ) from error


def _dies_with_parent() -> Callable[[], None] | None:
    """What makes the program die when the process that records it is killed (Linux)."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    recorder = os.getpid()

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # Killed between the fork and this line, the recorder would never be missed.
        if os.getppid() != recorder:
            os.kill(os.getpid(), signal.SIGKILL)

    return ask


def _follow(process: subprocess.Popen[bytes], log: Path, stop: StopFlag, *, echo: bool) -> None:
    """Keep what the program writes until it ends, and pass on the wish to stop."""
    assert process.stdout is not None
    fd = process.stdout.fileno()
    os.set_blocking(fd, False)
    ready = select.poll()
    ready.register(fd, select.POLLIN)
    asked: float | None = None
    with log.open("ab") as output, process.stdout:
        while True:
            # Asked first and read afterwards: what it wrote before its end is in the pipe by now.
            ended = process.poll() is not None
            chunk = _read(fd)
            if chunk:
                output.write(chunk)
                output.flush()
                echo = echo and _echo(chunk)
            elif ended:
                # A grandchild may hold the pipe open; what the program itself wrote is read.
                return
            elif chunk == b"":
                time.sleep(POLL_S)
            else:
                ready.poll(POLL_S * 1000)
            asked = _forward(stop, process, asked)


def _echo(chunk: bytes) -> bool:
    """Show output; False once nobody reads it any more, which is no reason to stop the program."""
    try:
        sys.stdout.buffer.write(chunk)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


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
    if asked is None:
        _signal(process, stop.number)
    elif stop.asked > 1 or now - asked > GRACE_S:
        _signal(process, signal.SIGKILL)
    return now if asked is None else asked


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        return file.read().decode("utf-8", "replace")


Signature = tuple[int, int, int]


class _Before:
    """What lay in the folder before the program started, so that none of it is taken for its own.

    Files are compared with themselves, not with a clock, which may be set back or be another
    machine's.
    """

    def __init__(self, folder: Path, what: Collect) -> None:
        if what.stdout is not None:
            compile_pattern(what.stdout)
        self._folder, self._what = folder, what
        names = {n for n in (what.csv, what.summary, what.tensorboard) if n is not None}
        self._files = {
            path: _signature(path)
            for name in {*names, *USUAL_FILES.values()}
            for path in _files(folder / name)
        }
        csv = folder / (what.csv or USUAL_FILES["csv"])
        self._csv = (csv, csv.stat().st_size, _sha256(csv)) if csv.is_file() else None

    def collect(self, writer: RunWriter, log: Path, *, adhoc: bool, lenient: bool) -> None:
        """Take the numbers in; lenient: what is missing is an event, since the program broke off.

        Raises:
            DataError: A file that was asked for is missing, or is from before the run.
        """
        for spec in self._specs(adhoc=adhoc):
            try:
                self._check(spec, writer)
                collect(self._folder, spec, writer, stdout=log)
            except AssayError as error:
                if not lenient:
                    raise
                writer.event("collect", str(error))

    def _specs(self, *, adhoc: bool) -> list[Collect]:
        """One specification a source, and for TensorBoard one a file that is this run's."""
        what = self._what
        if adhoc:
            usual: dict[str, Any] = {
                key: name
                for key, name in USUAL_FILES.items()
                if getattr(what, key) is None and self._fresh(self._folder / name)
            }
            what = replace(what, **usual)
        none = Collect(rename=what.rename)
        specs = [
            replace(none, **{key: getattr(what, key)})
            for key in ("csv", "summary", "stdout")
            if getattr(what, key) is not None
        ]
        if what.tensorboard is None:
            return specs
        folder = self._folder / what.tensorboard
        files = [
            p for p in _files(folder) if "tfevents" in p.name and (not adhoc or self._fresh(p))
        ]
        if not files or not self._fresh(folder):
            return [*specs, replace(none, tensorboard=what.tensorboard)]
        return [*specs, *(replace(none, tensorboard=str(path)) for path in files)]

    def _check(self, spec: Collect, writer: RunWriter) -> None:
        # Event files of earlier attempts are this run's too: their folder is checked as a whole.
        is_folder = spec.tensorboard == self._what.tensorboard
        for name in (spec.csv, spec.summary, spec.tensorboard if is_folder else None):
            if name is None:
                continue
            path = self._folder / name
            if path.exists() and _files(path) and not self._fresh(path):
                raise DataError(
                    f"{name} was not written by this run: it lay there before the "
                    "run started and did not change. It would be another run's result. Delete it, "
                    "or give the file that the program does write."
                )
            if self._csv and path == self._csv[0] and path.is_file():
                _, size, sha256 = self._csv
                if path.stat().st_size > size and _sha256(path, size) == sha256:
                    writer.event(
                        "collect",
                        f"{name} begins with what lay there before this run: if the program "
                        "appends to it, rows of an earlier run are among this run's",
                    )

    def _fresh(self, path: Path) -> bool:
        """Whether the file, or a file in the folder, is new or changed."""
        return any(self._files.get(file) != _signature(file) for file in _files(path))


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path] if path.is_file() else []


def _signature(path: Path) -> Signature:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _sha256(path: Path, size: int = -1) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(size)).hexdigest()
