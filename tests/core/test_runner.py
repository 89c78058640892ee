"""Laws of the runner that need no command line: locks, late claims, and what happens on errors."""

import dataclasses
import os
import time
from pathlib import Path

import pytest

from assay.core.errors import LaunchError, ProvenanceError
from assay.core.launch import local
from assay.core.plan import expand
from assay.core.run import next_attempt, read_run
from assay.core.runner import Runner, _lock
from assay.core.settings import Settings
from assay.core.study import load_study
from assay.core.survey import survey

STUDY = """
[study]
id = "shell"
question = "Does it run?"
seeds = {{ init = [{seeds}] }}
cmd = "sh -c '{script}'"
[environment]
{environment}
[arms.only]
"""


class Watcher:
    def __init__(self) -> None:
        self.states = []

    def started(self, states) -> None: ...

    def progress(self, message) -> None: ...

    def finished(self, state) -> None:
        self.states.append(state)

    def tick(self) -> None: ...


@pytest.fixture
def lab(tmp_path):
    """A runner of a study of shell commands, and its cohorts."""

    def make(script: str, *, seeds: str = "1, 2", environment: str = "", jobs: int = 2):
        path = tmp_path / "shell.toml"
        path.write_text(STUDY.format(script=script, seeds=seeds, environment=environment))
        env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        settings = Settings(root=tmp_path, cache_dir=tmp_path / "cache", environment=env)
        study = load_study(path)
        runner = Runner(
            study=study, settings=settings, observer=Watcher(), phase="pilot", jobs=jobs
        )
        found = survey(expand(study), settings.runs_dir, phase="pilot")
        return runner, found.cohorts()

    return make


def test_all_are_computed(lab):
    """Every pending run is completed, and its observer told."""
    runner, cohorts = lab("exit 0")
    result = runner.execute(cohorts)
    assert [s.status for s in result.finished] == ["completed"] * 2
    assert runner.observer.states == result.finished


def test_locked_runs_are_somebody_elses(lab):
    """A run that another process holds is left to it."""
    runner, cohorts = lab("exit 0")
    lock = _lock(runner.settings.runs_dir, cohorts[0][0].planned)
    result = runner.execute(cohorts)
    os.close(lock)
    assert [r.seed_label for r in result.elsewhere] == ["1"]
    assert len(result.finished) == 1


def test_what_was_finished_meanwhile_is_not_computed_again(lab):
    """A plan made before another process finished computes nothing twice."""
    runner, cohorts = lab("exit 0")
    runner.execute(cohorts)
    result = runner.execute(cohorts)
    assert len(result.elsewhere) == 2
    assert not result.finished


def test_what_failed_meanwhile_is_not_retried_by_an_old_plan(lab):
    """A plan made before another process failed leaves the retry to the next `assay run`."""
    runner, cohorts = lab("exit 3")
    runner.execute(cohorts)
    assert len(runner.execute(cohorts).elsewhere) == 2


def test_old_plan_does_not_begin_a_further_generation(lab):
    """Two that plan the second generation at once make one second generation."""
    runner, cohorts = lab("exit 0")
    runner.execute(cohorts)
    again = dataclasses.replace(runner, again=True)
    plan = survey(
        [r.planned for c in cohorts for r in c], runner.settings.runs_dir, phase="pilot", again=True
    ).cohorts()
    assert len(again.execute(plan).finished) == 2
    assert len(again.execute(plan).elsewhere) == 2


def test_unset_variable_starts_nothing(lab):
    """A variable that cannot be passed on is told before any directory is made."""
    runner, cohorts = lab("exit 0", environment="NOT_SET = true")
    with pytest.raises(ProvenanceError, match="NOT_SET"):
        runner.execute(cohorts)
    assert not runner.settings.runs_dir.exists()


def test_error_at_a_start_stops_the_others(lab, monkeypatch):
    """When a worker cannot be started, those that run are stopped and locked no longer."""
    runner, cohorts = lab("sleep 30")
    started = []

    class Second(local.LocalWorker):
        def __init__(self, *args, **kwargs) -> None:
            if started:
                time.sleep(1.5)
                raise LaunchError("no more processes")
            started.append(self)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr("assay.core.runner.LocalWorker", Second)
    began = time.monotonic()
    with pytest.raises(LaunchError):
        runner.execute(cohorts)
    assert time.monotonic() - began < 20
    assert started[0].process.returncode is not None
    for cohort in cohorts:
        lock = _lock(runner.settings.runs_dir, cohort[0].planned)
        assert lock is not None
        os.close(lock)


def test_stopped_program_is_interrupted_not_failed(lab):
    """A program that was asked to stop and died of it has not failed."""
    runner, cohorts = lab("sleep 30", seeds="1")

    class Stopper(Watcher):
        def started(self, states) -> None:
            self.folder = Path(states[0].path)

        def tick(self) -> None:
            if (self.folder / "stdout.log").exists() and (self.folder / "provenance.json").exists():
                os.kill(os.getpid(), 15)
                self.tick = lambda: None

    result = dataclasses.replace(runner, observer=Stopper()).execute(cohorts)
    assert result.interrupted
    assert [s.status for s in result.finished] == ["interrupted"]


def test_locks_are_free_after_the_end_is_written(lab, monkeypatch):
    """Who locks a run after a worker's death finds how that attempt ended."""
    runner, cohorts = lab("kill -9 $PPID", seeds="1")
    seen = []
    release = __import__("assay.core.runner", fromlist=["_release"])._release

    def spy(locks) -> None:
        (folder,) = runner.settings.runs_dir.glob("shell/*/*/1-*")
        seen.append([e.kind for e in read_run(folder).events])
        assert next_attempt(folder) == 2
        release(locks)

    monkeypatch.setattr("assay.core.runner._release", spy)
    runner.execute(cohorts)
    assert seen == [["started", "killed"]]
