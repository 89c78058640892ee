"""Child processes on this machine: a clean environment, their own threads, no service."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from assay.core.errors import LaunchError
from assay.core.launch.job import Job, Message

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class LocalWorker:
    """A worker process and the pipe on which it tells how far it is.

    It leads its own process group: Ctrl-C in the terminal reaches the runner alone, which then
    asks every worker to stop at its next checkpoint. The lock files stay open in the worker, so
    that its runs are locked for as long as it lives, even if the runner dies.
    """

    def __init__(
        self, job: Job, environment: Mapping[str, str], stdout: Path, locks: Sequence[int]
    ) -> None:
        """Start the process.

        Args:
            job: What to compute.
            environment: The complete environment of the child.
            stdout: File that takes its standard output and error.
            locks: Open lock files that it inherits.

        Raises:
            LaunchError: The process cannot be started.
        """
        self.job = job
        reading, writing = os.pipe()
        # What the study declares wins over what the job would set.
        env = {**dict.fromkeys(THREAD_VARIABLES, str(job.threads)), **environment}
        # -P: a file of the project must not stand in for a module of the lab or of Python.
        program = [sys.executable, "-P", "-m", "assay.core.worker"]
        try:
            with stdout.open("ab") as output:
                self.process = subprocess.Popen(
                    [*program, *map(str, (writing, *locks))],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=job.root,
                    env=env,
                    pass_fds=(writing, *locks),
                    start_new_session=True,
                )
        except OSError as error:
            os.close(reading)
            raise LaunchError(
                f"A worker process could not be started: {error}. The runs stay as they were; "
                "start `assay run` again."
            ) from error
        finally:
            os.close(writing)
        assert self.process.stdin is not None
        # A worker that is dead already is found by its exit code.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(msgspec.json.encode(job))
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        os.set_blocking(reading, False)
        self.pipe = reading
        self._partial = b""

    def messages(self) -> list[Message]:
        """What arrived since the last call; never waits. What cannot be read is left out."""
        try:
            while chunk := os.read(self.pipe, 65536):
                self._partial += chunk
        except BlockingIOError:
            pass
        *lines, self._partial = self._partial.split(b"\n")
        found = []
        for line in lines:
            # Progress is for the eye: an engine that reports nonsense must not end the others.
            with contextlib.suppress(msgspec.DecodeError):
                found.append(msgspec.json.decode(line, type=Message))
        return found

    def stop(self) -> None:
        """Ask for a checkpoint and an end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, with everything that it started."""
        self._signal(signal.SIGKILL)

    def close(self) -> int:
        """Wait for the end; returns the exit code (negative: killed by that signal)."""
        # The pipe first: a worker that waits for a reader would wait for ever.
        os.close(self.pipe)
        return self.process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
