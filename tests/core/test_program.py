"""Laws of running any program as one run."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from assay.core import program
from assay.core.errors import ConfigError, DataError, LaunchError
from assay.core.metrics import read_metrics
from assay.core.program import run_program
from assay.core.run import RunWriter, create_run, new_record, read_run
from assay.core.study import Collect
from assay.core.worker import Stop


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Run a Python program in a folder of its own; returns how it ended, and its run."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(
        code: str,
        *,
        what: Collect | None = None,
        out: Path | None = None,
        stop: Stop | None = None,
        command: tuple[str, ...] = (),
    ):
        record = new_record(study="scratch", arm="a", identity="x", cmd=["python"])
        writer = RunWriter(create_run(tmp_path / "runs", record), attempt=1, rank=1)
        if out is not None:
            out.mkdir(exist_ok=True)
        error = run_program(
            command or (sys.executable, "-c", code),
            writer,
            out,
            what or Collect(),
            {"PATH": os.environ["PATH"]},
            stop or Stop(),
            echo=False,
        )
        writer.finish("failed" if error else "completed", error)
        return error, writer.folder

    return run


def rows(folder: Path) -> dict[str, list[float]]:
    series = read_metrics(folder, read_run(folder).starts).series
    return {name: list(s.values) for name, s in series.items()}


def told(folder: Path) -> list[str]:
    return [e.message for e in read_run(folder).events if e.kind == "collect"]


def test_success_is_none(start):
    """A program that ends with 0 has no error."""
    assert start("print('hello')")[0] is None


def test_exit_code_and_tail_are_told(start):
    """A failure tells the exit code and the end of the output."""
    error, _ = start("import sys; print('on the way'); sys.exit(3)")
    assert "exit code 3" in error
    assert "on the way" in error


def test_exit_code_is_not_hidden_by_missing_files(start):
    """A program that failed before it wrote its numbers is told by its exit code."""
    error, folder = start("import sys; sys.exit(3)", what=Collect(csv="metrics.csv"))
    assert "exit code 3" in error
    assert "metrics.csv" in told(folder)[0]


def test_rows_before_a_failure_are_kept(start):
    """What a program logged before it failed is collected."""
    code = "open('metrics.csv', 'w').write('step,loss\\n0,2.5\\n'); raise SystemExit(1)"
    assert rows(start(code)[1]) == {"loss": [2.5]}


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGRTMIN"])
def test_signal_is_named(start, name):
    """Death by a signal is told by its name, real-time signals included."""
    number = int(getattr(signal, name))
    assert name in start(f"import os; os.kill(os.getpid(), {number})")[0]


def test_all_output_is_kept(start):
    """10 MB of output, of any bytes, are in stdout.log to the last byte."""
    code = (
        "import sys; b = bytes(range(256)) * 4096; [sys.stdout.buffer.write(b) for _ in range(10)]"
    )
    _, folder = start(code)
    assert (folder / "stdout.log").read_bytes() == bytes(range(256)) * 40960


def test_last_words_are_kept(start, monkeypatch):
    """What is written between the last look at the pipe and the program's end is read too."""
    real = program._read

    def slow(fd: int) -> bytes | None:
        chunk = real(fd)
        if chunk is None:
            time.sleep(0.5)
        return chunk

    monkeypatch.setattr(program, "_read", slow)
    _, folder = start("", command=("/bin/sh", "-c", "sleep 0.2; echo last"))
    assert (folder / "stdout.log").read_text() == "last\n"


def test_output_of_a_daemon_does_not_delay_the_end(start):
    """A grandchild that holds the pipe open does not keep the run from ending."""
    began = time.monotonic()
    _, folder = start("", command=("/bin/sh", "-c", "sleep 20 & echo done; sleep 0.1"))
    assert time.monotonic() - began < 10
    assert (folder / "stdout.log").read_text() == "done\n"


def test_usual_files_are_collected(start):
    """metrics.csv and summary.json are taken unasked if the program wrote them."""
    code = (
        "open('metrics.csv', 'w').write('step,loss\\n0,2.5\\n1,nan\\n')\n"
        "open('summary.json', 'w').write('{\"test/acc\": 0.5}')"
    )
    _, folder = start(code)
    assert rows(folder)["loss"][0] == 2.5
    assert read_run(folder).summary == {"test/acc": 0.5}


def test_stale_file_is_not_taken(start):
    """A metrics.csv from before the run is another run's: it is left alone."""
    Path("metrics.csv").write_text("step,loss\n0,9.0\n")
    assert rows(start("pass")[1]) == {}


def test_stale_file_that_was_asked_for_is_an_error(start):
    """Asking for a file that the program did not write says so."""
    Path("metrics.csv").write_text("step,loss\n0,9.0\n")
    with pytest.raises(DataError, match=r"metrics\.csv was not written by this run"):
        start("pass", what=Collect(csv="metrics.csv"))


def test_stale_is_judged_without_a_clock(start):
    """A file from before stays another run's when its time lies in the future."""
    Path("metrics.csv").write_text("step,loss\n0,9.0\n")
    os.utime("metrics.csv", (time.time() + 3600,) * 2)
    assert rows(start("pass")[1]) == {}


def test_own_file_with_an_old_time_is_taken(start):
    """A file that the program wrote is its own when the clock was set back meanwhile."""
    code = "open('metrics.csv', 'w').write('step,loss\\n0,1.0\\n'); import os; os.utime('metrics.csv', (5, 5))"
    assert rows(start(code)[1]) == {"loss": [1.0]}


def test_appended_file_is_told(start):
    """A program that appends to an older file mixes runs: an event says so."""
    Path("metrics.csv").write_text("step,loss\n0,9.0\n")
    _, folder = start("open('metrics.csv', 'a').write('1,1.0\\n')")
    assert "begins with what lay there before" in told(folder)[0]


def test_stdout_pattern(start):
    """Lines of the output that match a pattern with named groups are rows."""
    code = "for i in range(3): print(f'step {i} loss {2.0 - i}')"
    what = Collect(stdout=r"step (?P<step>\d+) loss (?P<loss>[-\d.]+)")
    assert rows(start(code, what=what)[1]) == {"loss": [2.0, 1.0, 0.0]}


def test_bad_pattern_is_refused_before_the_start(start):
    """A pattern that cannot be used is a mistake before anything is computed."""
    with pytest.raises(ConfigError):
        start("open('ran', 'w')", what=Collect(stdout="loss (.*"))
    assert not Path("ran").exists()


TENSORBOARD = (
    "import struct\n"
    "def crc(data):\n"
    "    table = []\n"
    "    for i in range(256):\n"
    "        c = i\n"
    "        for _ in range(8): c = (c >> 1) ^ 0x82F63B78 if c & 1 else c >> 1\n"
    "        table.append(c)\n"
    "    c = 0xFFFFFFFF\n"
    "    for b in data: c = table[(c ^ b) & 0xFF] ^ (c >> 8)\n"
    "    c ^= 0xFFFFFFFF\n"
    "    return (((c >> 15) | (c << 17)) + 0xA282EAD8) & 0xFFFFFFFF\n"
    "def event(step, tag, value):\n"
    "    v = b'\\x0a' + bytes([len(tag)]) + tag + b'\\x15' + struct.pack('<f', value)\n"
    "    s = b'\\x0a' + bytes([len(v)]) + v\n"
    "    body = b'\\x09' + struct.pack('<d', 1.0) + b'\\x10' + bytes([step]) + b'\\x2a' + bytes([len(s)]) + s\n"
    "    head = struct.pack('<Q', len(body))\n"
    "    return head + struct.pack('<I', crc(head)) + body + struct.pack('<I', crc(body))\n"
    "import sys, os\n"
    "os.makedirs('tb', exist_ok=True)\n"
    "name, value = sys.argv[1], float(sys.argv[2])\n"
    "open(f'tb/events.out.tfevents.{name}', 'wb').write(event(1, b'loss', value))\n"
)


@pytest.mark.filterwarnings("ignore")
def test_only_own_event_files_are_taken(start):
    """Of a TensorBoard folder that earlier runs wrote to, only this run's files are taken."""
    pytest.importorskip("tensorboard")
    Path("tb.py").write_text(TENSORBOARD)
    words = (sys.executable, "tb.py")
    what = Collect(tensorboard="tb")
    start("", command=(*words, "1", "9.0"), what=what)
    _, folder = start("", command=(*words, "2", "0.5"), what=what)
    assert rows(folder) == {"loss": [0.5]}


def test_out_is_filled_in_and_exported(start, tmp_path):
    """`{out}` in a command and $ASSAY_OUT are the run's output folder."""
    code = "import os, sys; assert sys.argv[1] == os.environ['ASSAY_OUT']; open(sys.argv[1] + '/x', 'w')"
    error, _ = start("", command=(sys.executable, "-c", code, "{out}"), out=tmp_path / "out")
    assert error is None
    assert (tmp_path / "out" / "x").exists()


def test_stale_file_of_an_earlier_attempt_is_not_taken(start, tmp_path):
    """What an earlier attempt left in the output folder is not this attempt's result."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.csv").write_text("step,loss\n0,9.0\n")
    with pytest.raises(DataError, match="was not written by this run"):
        start("pass", what=Collect(csv="metrics.csv"), out=out)


def test_program_that_cannot_start(start):
    """A file that is no program is an error with the way out."""
    Path("notes").write_text("\0\0no program")
    Path("notes").chmod(0o755)
    with pytest.raises(LaunchError, match="first line"):
        start("", command=("./notes",))


def ask(stop: Stop, *, times: int) -> None:
    def wait() -> None:
        for _ in range(times):
            time.sleep(0.5)
            stop.ask(signal.SIGINT, None)

    threading.Thread(target=wait).start()


def test_stop_is_passed_on_as_the_same_signal(start):
    """Ctrl-C reaches the program as SIGINT, so that it can clean up."""
    stop = Stop()
    ask(stop, times=1)
    code = "import time\ntry: time.sleep(30)\nexcept KeyboardInterrupt: print('cleaned up')"
    _, folder = start(code, stop=stop)
    assert (folder / "stdout.log").read_text() == "cleaned up\n"


def test_second_stop_kills(start):
    """A program that does not heed Ctrl-C dies of the second one."""
    stop = Stop()
    ask(stop, times=2)
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(30)"
    began = time.monotonic()
    assert "SIGKILL" in start(code, stop=stop)[0]
    assert time.monotonic() - began < 10
