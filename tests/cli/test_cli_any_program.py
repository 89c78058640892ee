"""Laws of `assay run -- CMD`: any program as one run."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from project import Project, wait_for, workers


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_everything_after_the_dashes_is_the_programs(project):
    """Options after -- belong to the program, also those that `assay run` has itself."""
    words = ["--jobs", "3", "--help", "--", "-x"]
    done = project("run", "--", "python", "-c", "import sys; print(sys.argv[1:])", *words)
    assert done.stdout == f"{words}\n"
    assert (project.folder() / "stdout.log").read_text() == done.stdout


def test_program_has_its_callers_environment(project):
    """An ad-hoc command sees the shell's variables: nothing was declared."""
    done = project("run", "--", "sh", "-c", "echo $MINE", MINE="from the shell")
    assert done.stdout == "from the shell\n"


def test_failure_ends_with_two_and_is_kept(project):
    """A failing program: exit code 2, its code in one paragraph, and the run recorded."""
    done = project("run", "--", "sh", "-c", "echo before; exit 7", code=2)
    assert done.stdout == "before\n"
    assert "sh ended with exit code 7. The run is kept" in done.stderr
    assert json.loads((project.folder() / "end.json").read_text())["status"] == "failed"


def test_numbers_are_collected(project):
    """metrics.csv in the current folder, and what a pattern finds, are metrics of the run."""
    code = "open('metrics.csv', 'w').write('step,loss\\n0,2.5\\n'); print('final 0.25')"
    project("run", "--stdout", r"final (?P<final>[\d.]+)", "--", "python", "-c", code)
    (run,) = project.json("ls", "scratch")
    metrics = {m["name"]: m["value"] for m in project.json("show", run["id"])["metrics"]}
    assert metrics == {"loss": 2.5, "final": 0.25}


def test_stale_file_that_was_asked_for_fails_the_run(project):
    """Asking for a metrics.csv that the program did not write: exit 2, and told why."""
    project.write("metrics.csv", "step,loss\n0,9.0\n")
    done = project("run", "--csv", "metrics.csv", "--", "true", code=2)
    assert "metrics.csv was not written by this run" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--", "no-such-program"], "must be an executable file; 'no-such-program' is none"),
        (["--stdout", "loss (.*", "--", "true"], "must be a regular expression"),
        (["--"], "Say what to run"),
        (["python", "train.py"], "Say what to run"),
        (["--jobs", "2", "--", "true"], "--jobs is for a study, and a program was given"),
        (["--csv", "x.csv", "toy"], "--csv is for a program, and a study was given"),
    ],
)
def test_mistake_leaves_nothing_behind(project, words, said):
    """A command that cannot be run is one paragraph, and no run is made."""
    assert said in project.refused("run", *words)
    assert not project.runs.exists()


def test_study_named_like_a_program_is_a_study(project):
    """`assay run true` means the study `true`, not /bin/true."""
    assert "unknown study 'true'" in project.refused("run", "true")


def test_binary_output_passes_through(project):
    """Bytes that are no text reach the terminal and the file unchanged."""
    code = "import sys; sys.stdout.buffer.write(bytes(range(256)))"
    runner = project.start("run", "--", "python", "-c", code, text=False)
    out, _ = runner.communicate(timeout=60)
    assert out == bytes(range(256))


def test_closed_reader_does_not_end_the_program(project):
    """`assay run -- CMD | head -1`: the program goes on to its end, and is recorded."""
    code = "import time\nfor i in range(20): print(i, flush=True); time.sleep(0.02)"
    runner = project.start("run", "--", "python", "-c", code)
    assert runner.stdout.readline() == "0\n"
    runner.stdout.close()
    assert runner.wait(60) == 0
    runner.stderr.close()
    assert (project.folder() / "stdout.log").read_text().split() == list(map(str, range(20)))


def test_interrupt_reaches_the_program_and_keeps_its_rows(project):
    """Ctrl-C: the program gets SIGINT, what it wrote is collected, and the exit code is 130."""
    code = (
        "import time\nopen('metrics.csv', 'w').write('step,loss\\n0,2.5\\n')\n"
        "try: time.sleep(60)\nexcept KeyboardInterrupt: print('tidied')"
    )
    runner = project.start("run", "--", "python", "-c", code, start_new_session=True)
    wait_for(lambda: (project.root / "metrics.csv").exists())
    time.sleep(0.3)
    os.killpg(runner.pid, signal.SIGINT)
    out, err = runner.communicate(timeout=30)
    assert (runner.returncode, out) == (130, "tidied\n"), err
    (run,) = project.json("ls", "scratch")
    assert run["status"] == "interrupted"
    assert project.json("show", run["id"])["metrics"][0]["value"] == 2.5


def test_killed_recorder_leaves_no_program(project):
    """SIGKILL of `assay run` ends the program that it records."""
    runner = project.start("run", "--", "sleep", "60")
    wait_for(lambda: len(workers(project)) == 2)
    runner.kill()
    runner.communicate()
    wait_for(lambda: not workers(project))


def test_tensorboard_folder_is_collected(project):
    """Event files that the program writes are metrics of the run."""
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    assert writer
    project.write("tb.py", (
        "from tensorboard.compat.proto.event_pb2 import Event\n"
        "from tensorboard.compat.proto.summary_pb2 import Summary\n"
        "from tensorboard.summary.writer.event_file_writer import EventFileWriter\n"
        "w = EventFileWriter('tb')\n"
        "value = Summary.Value(tag='loss', simple_value=0.5)\n"
        "w.add_event(Event(step=3, summary=Summary(value=[value])))\n"
        "w.close()\n"
    ))  # fmt: skip
    project("run", "--tensorboard", "tb", "--", "python", "tb.py")
    (run,) = project.json("ls", "scratch")
    (metric,) = project.json("show", run["id"])["metrics"]
    assert (metric["name"], metric["value"], metric["last_step"]) == ("loss", 0.5, 3)


ORPHAN = """
import os, subprocess, time
from assay.core import program

class Slow:
    def __init__(self, *_, **__):
        self.library = library(None)
    def prctl(self, *words):
        time.sleep(1)
        return self.library.prctl(*words)

library = program.ctypes.CDLL
program.ctypes.CDLL = Slow
print("ready", flush=True)
subprocess.Popen(["sleep", "60"], preexec_fn=program._dies_with_parent())
"""


def test_a_program_whose_recorder_died_first_ends_too(project):
    """Killed between the fork and the program's wish to die with it, the recorder is missed all the same."""
    recorder = subprocess.Popen(
        [sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, env=project.environment()
    )
    assert recorder.stdout.readline() == b"ready\n"
    wait_for(lambda: len(workers(project)) == 2)
    recorder.kill()
    recorder.wait()
    recorder.stdout.close()
    wait_for(lambda: not workers(project), 20)
