"""Killed, interrupted and resumed runs equal the uninterrupted run, bit for bit."""

import json
import os
import random
import signal
import subprocess
import time

import pytest
from project import ADDITION_STUDY, Project, attempts, kill, wait_for, workers

QUICK = ["worker", "runner", "both"]
LONG = [f"{i}-{QUICK[i % 3]}" for i in range(50)]


def addition(folder) -> Project:
    project = Project(folder)
    project.write("studies/add.toml", ADDITION_STUDY)
    project.commit()
    return project


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Results of the uninterrupted run, and how long it took."""
    project = addition(tmp_path_factory.mktemp("reference"))
    began = time.monotonic()
    project("run", "add")
    return project.results("add"), time.monotonic() - began


def finish(project: Project, study: str = "add") -> None:
    """`assay run` until nothing is left, as a user would."""
    wait_for(lambda: not workers(project))
    project("run", study)
    assert {r["status"] for r in project.json("ls", study)} == {"completed"}


def kill_at(project: Project, who: str, ready) -> None:
    """Start `assay run`, wait until it is ready, and kill the worker, the runner or both."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    runner = project.start("run", "add", **quiet)
    ready(runner)
    found = [pid for pid in workers(project) if pid != runner.pid]
    if who in ("runner", "both"):
        kill(runner.pid)
    if who in ("worker", "both"):
        for pid in found:
            kill(pid)
    runner.wait()


def num_rows(project: Project) -> int:
    return min(
        [f.read_bytes().count(b"\n") for f in project.runs.glob("add/*/*/*/metrics-0-1.jsonl")]
        or [0]
    )


def check(project: Project, reference) -> None:
    acknowledged = {f: f.read_bytes() for f in project.runs.glob("add/*/*/*/metrics-*.jsonl")}
    wait_for(lambda: not workers(project))
    finish(project)
    assert project.results("add") == reference[0]
    for path, before in acknowledged.items():
        assert path.read_bytes().startswith(before), "an acknowledged row was lost"


@pytest.mark.parametrize("who", QUICK)
def test_killed_in_the_middle(tmp_path, reference, who):
    """SIGKILL of worker, runner or both, in the middle: final weights and metrics are the same."""
    project = addition(tmp_path)
    rows = random.Random(who).randint(1, 8)
    kill_at(project, who, lambda _: wait_for(lambda: num_rows(project) >= rows))
    check(project, reference)
    if who != "runner":
        assert len(attempts(project.folders()[0])) == 1, "killed attempts have no end"
        assert (project.folders()[0] / "end-2.json").exists()


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("moment", LONG)
def test_killed_at_any_moment(tmp_path, reference, moment):
    """SIGKILL at 50 random moments, start and end included: nothing differs, nothing is lost."""
    number, who = moment.split("-")
    project = addition(tmp_path)
    wait_s = random.Random(int(number)).uniform(0, 1.1 * reference[1])
    kill_at(project, who, lambda runner: time.sleep(wait_s))
    check(project, reference)


@pytest.fixture(scope="module")
def toy_reference(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("toy")).toy(steps="200")
    project("run", "toy")
    return project.results("toy")


def interrupt(project: Project, *, times: int = 1, study: str = "toy", **options):
    """Start `assay run toy` as a shell does, and press Ctrl-C once rows are being written."""
    runner = project.start("run", study, start_new_session=True, **options)
    wait_for(lambda: len(list(project.runs.glob("toy/*/*/*/metrics-0-1.jsonl"))) == 6)
    for _ in range(times):
        time.sleep(0.3)
        os.killpg(runner.pid, signal.SIGINT)
    out, err = runner.communicate(timeout=60)
    assert runner.returncode == 130, (out, err)
    return out


def test_interrupted_run_stops_cleanly_and_goes_on(tmp_path, toy_reference):
    """Ctrl-C: exit code 130, checkpoints, no process left; the next `assay run` goes on."""
    project = Project(tmp_path).toy(steps="200", step_s="0.02")
    out = interrupt(project)
    assert "`assay run toy` goes on from the checkpoints" in out
    assert workers(project) == []
    assert {r["status"] for r in project.json("ls", "toy")} == {"interrupted"}
    assert "step " in project("run", "toy", "--dry-run").stdout
    finish(project, "toy")
    for folder in project.folders():
        assert "from 0" not in (folder / "stdout-2.log").read_text()
    assert project.results("toy") == toy_reference


def test_a_study_outside_the_project_s_folder_goes_on_by_its_file(tmp_path):
    """Its id alone finds nothing: what is said after Ctrl-C is what works."""
    project = Project(tmp_path).toy(steps="200", step_s="0.02")
    (project.root / "studies/toy.toml").rename(project.root / "elsewhere.toml")
    assert "`assay run elsewhere.toml` goes on" in interrupt(project, study="elsewhere.toml")
    finish(project, "elsewhere.toml")


def test_cohort_with_unequal_checkpoints_regroups(tmp_path, toy_reference):
    """Seeds whose checkpoints differ go on apart, each from its own, to the same results."""
    project = Project(tmp_path).toy(steps="200", step_s="0.02")
    interrupt(project)
    low = [f for f in project.folders() if "/low/" in str(f)]
    (low[1] / "checkpoint").unlink()
    plan = project("run", "toy", "--dry-run", "--jobs", "1").stdout
    assert "6 to do in 3 cohort(s)" in plan
    finish(project, "toy")
    assert "from 0" in (low[1] / "stdout-2.log").read_text()
    assert "from 0" not in (low[0] / "stdout-2.log").read_text()
    assert project.results("toy") == toy_reference


STUBBORN_STUDY = """
[study]
id = "toy"
question = "Does it die?"
seeds = { init = [1, 2, 3, 4, 5, 6] }
cmd = "python stubborn.py {seed.init}"
[arms.only]
"""
STUBBORN = """
import signal, time, assay
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
run = assay.init()
run.log({"val/x": 1.0}, step=0)
time.sleep(60)
"""


def test_second_interrupt_kills_everything(tmp_path):
    """A second Ctrl-C ends programs that heed no signal; none of their processes is left."""
    project = Project(tmp_path)
    project.write("stubborn.py", STUBBORN)
    project.write("studies/toy.toml", STUBBORN_STUDY)
    began = time.monotonic()
    interrupt_jobs(project)
    assert time.monotonic() - began < 40
    wait_for(lambda: not workers(project), seconds=5)


def interrupt_jobs(project: Project) -> None:
    runner = project.start("run", "toy", "--jobs", 2, start_new_session=True)
    wait_for(lambda: len(list(project.runs.glob("toy/*/*/*/metrics-0-1.jsonl"))) == 2)
    for _ in range(2):
        os.killpg(runner.pid, signal.SIGINT)
        time.sleep(0.5)
    out, err = runner.communicate(timeout=20)
    assert runner.returncode == 130, (out, err)


def test_killed_worker_takes_its_program_along(tmp_path):
    """SIGKILL of the worker alone leaves no program behind that would write into the run."""
    project = Project(tmp_path)
    project.write("stubborn.py", STUBBORN)
    project.write("studies/toy.toml", STUBBORN_STUDY.replace("1, 2, 3, 4, 5, 6", "1"))
    runner = project.start("run", "toy")
    wait_for(lambda: list(project.runs.glob("toy/*/*/*/metrics-0-1.jsonl")))
    folder = project.folder("toy")
    events = (folder / "events.jsonl").read_text().splitlines()
    (worker,) = [e["details"]["pid"] for e in map(json.loads, events) if e["kind"] == "started"]
    kill(worker)
    out, err = runner.communicate(timeout=30)
    assert runner.returncode == 2, (out, err)
    assert "1 run(s) were stopped" in out
    wait_for(lambda: not workers(project), seconds=5)


def test_orphaned_worker_keeps_its_runs(tmp_path):
    """While a worker whose runner was killed goes on, nobody else computes its runs."""
    project = Project(tmp_path).toy(step_s="0.5")
    runner = project.start("run", "toy", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list(project.runs.glob("toy/*/*/*/metrics-0-1.jsonl"))) == 6)
    kill(runner.pid)
    runner.wait()
    assert "6 run(s) were taken by another" in project("run", "toy").stdout
    wait_for(lambda: not workers(project))
    assert [attempts(folder) for folder in project.folders()] == [["completed"]] * 6


def test_hangup_that_is_ignored_stays_ignored(tmp_path):
    """Under nohup, the end of the terminal does not stop `assay run`."""
    project = Project(tmp_path).toy(step_s="0.1")
    runner = project.start(
        "run", "toy", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    wait_for(lambda: len(project.folders()) == 6)
    runner.send_signal(signal.SIGHUP)
    out, err = runner.communicate(timeout=60)
    assert runner.returncode == 0, (out, err)
