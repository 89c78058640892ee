import itertools
import math

import pytest
from lab import SCORE, STUDY, Project, add_run, attempt, edit, run_id

from assay.core.evidence import StudyEvidence, by_phase
from assay.core.ledger import record
from assay.core.survey import survey


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def values(project, arm="a", metric=SCORE, phase="debug", cell=None):
    return dict(
        StudyEvidence(project.study, project.select(), phase).values(metric, arm, cell or {})
    )


def strike(project, target, **more):
    body = {"target": target, "because": "env leaked", **more}
    return record(project.settings.ledger_dir, "invalidate", "s", body)


def test_values_by_seed_in_planned_order(project):
    """Values come by seed label, in the order of the study file; a run not made is absent."""
    project.add("a", 3, 0.3)
    project.add("a", 1, 0.1)
    assert list(values(project).items()) == [("1", 0.1), ("3", 0.3)]


def test_failed_run_stays_in_the_count(project):
    """A failed run is there as None, even if it recorded a value."""
    project.add("a", 1, 0.1)
    project.add("a", 2, 0.9, status="failed", error="Boom")
    assert values(project) == {"1": 0.1, "2": None}


def test_run_without_the_metric_is_none(project):
    """A completed run that has no such value is told from one that was not made."""
    project.add("a", 1, None)
    assert values(project) == {"1": None}


@pytest.mark.parametrize("status", [None, "interrupted"])
def test_unfinished_run_is_absent(project, status):
    """A live, killed or interrupted run says nothing yet, and is missing."""
    project.add("a", 1, 0.9, status=status)
    assert values(project) == {}
    assert len(project.select().missing) == 6


def test_non_finite_values_stay(project):
    """NaN and infinities are values: they are shown, not dropped."""
    project.fill(a=[math.nan, math.inf, -math.inf])
    found = values(project)
    assert math.isnan(found["1"])
    assert (found["2"], found["3"]) == (math.inf, -math.inf)


def test_invalidated_run_is_out_and_kept_in_view(project):
    """An invalidated run does not count, is listed with its event, and is missing in the plan."""
    folder = project.add("a", 1, 0.1)
    event = strike(project, run_id(folder))
    selection = project.select()
    assert values(project) == {}
    assert [(run.id, e) for run, e in selection.invalid] == [(run_id(folder), event)]
    assert len(selection.missing) == 6


def test_restored_run_counts_again(project):
    """Restoring brings back the value."""
    event = strike(project, run_id(project.add("a", 1, 0.1)))
    body = {"target": "x", "because": "?"}
    record(project.settings.ledger_dir, "restore", "s", body, follows=[event.digest])
    assert values(project) == {"1": 0.1}


def test_generation_decides_not_the_clock(project):
    """The higher generation counts although it was made earlier; the other is superseded."""
    new = project.add("a", 1, 0.7, generation=2)
    old = project.add("a", 1, 0.1, generation=1)
    selection = project.select()
    assert values(project) == {"1": 0.7}
    assert [run.id for run in selection.counting.values()] == [run_id(new)]
    assert [run.id for run in selection.superseded] == [run_id(old)]


def test_invalid_repetition_gives_way_to_the_earlier_run(project):
    """If the repetition is struck, the earlier generation counts again."""
    project.add("a", 1, 0.1)
    strike(project, run_id(project.add("a", 1, 0.7, generation=2)))
    assert values(project) == {"1": 0.1}


def test_repetition_that_failed_supersedes(project):
    """Running again until it works does not hide the failure of the latest run."""
    project.add("a", 1, 0.1)
    project.add("a", 1, None, generation=2, status="failed")
    assert values(project) == {"1": None}


def test_runs_of_one_generation_from_two_machines(project):
    """Of two equal runs the one whose id sorts first counts, once."""
    ids = sorted(run_id(project.add("a", 1, v)) for v in (0.1, 0.2, 0.3))
    selection = project.select()
    assert [run.id for run in selection.counting.values()] == ids[:1]
    assert sorted(run.id for run in selection.superseded) == ids[1:]


def test_a_lower_phase_never_supersedes(project):
    """A pilot run made after the frozen one takes nothing from it; its value stays in view."""
    frozen = project.add("a", 1, 0.7, phase="frozen")
    pilot = project.add("a", 1, 0.1, phase="pilot", generation=2)
    selection = project.select()
    assert values(project, phase="frozen") == {"1": 0.7}
    assert [run.id for run in selection.counting.values()] == [run_id(frozen)]
    assert [run.id for run in selection.superseded] == [run_id(pilot)]
    assert selection.values[run_id(pilot)][SCORE].value == 0.1


STATES = list(itertools.product(["pilot", "frozen"], [1, 2], [None, "failed", "completed"]))


@pytest.mark.parametrize("first", range(len(STATES)))
def test_assay_run_and_the_evidence_agree_which_run_counts(project, first):
    """Of any two runs of one place, the one that is done for `assay run` is the one that counts."""
    for number in range(first, len(STATES)):
        folders = []
        for phase, generation, status in (STATES[first], STATES[number]):
            more = {"phase": phase, "generation": generation, "status": status}
            folders.append(project.add("a", 1, 0.5, **more))
        (counts,) = project.select().counting.values()
        plan = project.plan("a", "1")
        found = survey(plan, project.runs, phase=counts.phase)
        served = [s.path for _, s in found.done] or [p.folder for p in found.pending]
        assert served == [project.runs / counts.path]
        for folder in folders:
            folder.rename(project.root / folder.name)


def test_frozen_failure_counts_as_failed(project):
    """A frozen run that failed is there without a value, also beside a pilot run that worked."""
    project.add("a", 1, 0.9, phase="frozen", status="failed", error="Boom")
    project.add("a", 1, 0.9, phase="pilot", generation=2)
    assert values(project, phase="frozen") == {"1": None}
    assert values(project) == {"1": None}


def test_retried_failure_stays_on_record(project):
    """A pilot run that failed and was tried again has its value, and its failure."""
    attempt(project.add("a", 1, None, status="failed", error="Boom"), {SCORE: 0.4})
    (run,) = project.select().counting.values()
    assert values(project) == {"1": 0.4}
    assert run.failures == ["attempt 1 failed: Boom"]


def test_changed_configuration_makes_runs_stale(project):
    """A run of another configuration than the file now asks for does not count."""
    project.fill(a=[0.1, 0.2, 0.3], b=[0.4, 0.5, 0.6])
    project.write(edit(STUDY, ('method = "b"', 'method = "c"')))
    selection = project.select()
    assert values(project, "b") == {}
    assert len(values(project, "a")) == 3
    assert len(selection.stale) == 3


def test_removed_seed_makes_its_run_stale(project):
    """A seed that is no longer in the file does not count."""
    project.fill(a=[0.1, 0.2, 0.3])
    project.write(edit(STUDY, ("[1, 2, 3]", "[1, 2]")))
    assert values(project) == {"1": 0.1, "2": 0.2}
    assert len(project.select().stale) == 1


def test_runs_stay_when_a_further_role_gets_seeds(project):
    """Seeds of a second role rename the places, and lose no run that is still asked for."""
    text = edit(STUDY, ('data = "init"', "data = 0"))
    project.write(text)
    project.fill(a=[0.1, 0.2, 0.3])
    project.write(edit(text, ("data = 0", "data = [0, 1]")))
    assert values(project) == {"data=0,init=1": 0.1, "data=0,init=2": 0.2, "data=0,init=3": 0.3}
    assert project.select().stale == ()


def test_a_claim_rests_on_its_phase_or_a_later_one(project):
    """Debug and pilot runs support no frozen claim; frozen runs support any."""
    for seed, phase in ((1, "debug"), (2, "pilot"), (3, "frozen")):
        project.add("a", seed, seed / 10, phase=phase)
    evidence = by_phase(project.study, project.select())
    seen = {phase: list(e.values(SCORE, "a", {})) for phase, e in evidence.items()}
    assert seen == {"debug": ["1", "2", "3"], "pilot": ["2", "3"], "frozen": ["3"]}


def test_invalidated_study_strikes_the_runs_it_lists(project):
    """Runs made after a study was invalidated count, where the event lists its runs."""
    old = project.fill(a=[0.1, 0.2])
    strike(project, "s", runs=[run_id(f) for f in old.values()])
    project.add("a", 1, 0.7, generation=2)
    assert values(project) == {"1": 0.7}


def test_invalidated_study_without_a_list_strikes_all(project):
    """An event that lists no runs strikes all of them, also later ones."""
    project.fill(a=[0.1, 0.2])
    strike(project, "s")
    project.add("a", 3, 0.7)
    assert values(project) == {}
    assert len(project.select().invalid) == 3


def test_cells_are_apart(project):
    """A value belongs to its cell, whatever the order of the grid's keys."""
    text = STUDY.partition("[claims")[0]
    grid = "[grid]\nlr = [0.1, 0.2]\nalpha = [0.0, 1.0]\n[config]"
    project.write(edit(text, ("[config]", grid)))
    for number, planned in enumerate(project.plan("a", "1")):
        add_run(project.runs, planned, summary={SCORE: number / 10})
    assert values(project, cell={"alpha": 1.0, "lr": 0.1}) == {"1": 0.1}
    assert values(project, cell={"lr": 0.2, "alpha": 0.0}) == {"1": 0.2}


def test_known_metrics_are_declared_or_logged(project):
    """Metrics of runs that count are known besides declared ones."""
    project.add("a", 1, 0.5, series={"extra/x": [1.0]})
    metrics = StudyEvidence(project.study, project.select()).metrics
    assert metrics == {SCORE, "extra/x", "train/loss_nats", "model/parameters"}


def test_broken_run_is_not_counted(project):
    """A directory that cannot be read leaves its place missing."""
    folder = project.add("a", 1, 0.5)
    (folder / "end.json").unlink()
    (folder / "end.json").write_bytes(b"{")
    assert values(project) == {}
    assert [path for path, _ in project.select().broken] == [f"s/a/all/{folder.name}"]
    assert len(project.select().missing) == 6
