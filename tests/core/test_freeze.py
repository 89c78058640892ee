import subprocess
from dataclasses import replace

import pytest
from lab import STUDY, Project, edit, run_id

from assay.core.errors import StudyError
from assay.core.freeze import compare_with_itself, freeze, phase_of
from assay.core.ledger import invalidations, last_freeze
from assay.core.plan import expand

ENV = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}


def git(root, *words):
    command = ["git", "-c", "user.name=n", "-c", "user.email=e@e", "-c", "init.defaultBranch=main"]
    subprocess.run([*command, *words], cwd=root, env=ENV, check=True, capture_output=True)


def commit(project, message="more"):
    git(project.root, "add", "-A")
    git(project.root, "commit", "-q", "--allow-empty", "-m", message)


@pytest.fixture
def project(tmp_path):
    """A study with pilot runs, in a clean commit."""
    made = Project(tmp_path / "p", environment=ENV)
    git(made.root, "init", "-q")
    (made.root / ".gitignore").write_text(".cache\nruns\n")
    commit(made)
    made.fill(a=[0.1, 0.2, 0.35], b=[0.80, 0.91, 0.99])
    return made


def lock(project):
    return freeze(project.study, project.select(), project.settings, project.events())


def phase(project):
    return phase_of(project.study, expand(project.study), project.settings, project.events())


def refused(project):
    with pytest.raises(StudyError) as caught:
        lock(project)
    assert last_freeze(project.events(), "s") is None, "nothing is recorded"
    return str(caught.value)


def test_freeze_records_file_code_and_criteria(project):
    """A freeze locks study file, tree and claims, and names the runs that were there."""
    event, checks = lock(project)
    assert event.body["version"] == 1
    assert event.body["study_digest"] == project.study.digest
    assert len(event.body["commit"]) == 40
    assert event.body["criteria"] == {"better": project.study.claims["better"].criterion}
    assert event.body["runs_before"] == sorted(
        run_id(f) for f in project.runs.glob("*/*/*/*") if f.is_dir()
    )
    assert [(c.claim, c.deals) for c in checks] == [("better", 200)]
    assert phase(project)[0] == "frozen"


def test_before_freezing_runs_have_the_phase_of_the_file(project):
    """A study that is not frozen runs as a pilot, and says why."""
    assert phase(project) == ("pilot", "phase pilot: the study is not frozen")


def test_committing_the_ledger_does_not_end_the_freeze(project):
    """What the lab itself writes (ledger, log, runs) is no change of the code."""
    lock(project)
    (project.root / "EXPERIMENTS.md").write_text("log")
    assert phase(project)[0] == "frozen"
    commit(project)
    assert phase(project)[0] == "frozen"


def test_freezing_needs_a_clean_commit(project):
    """Uncommitted code is refused, with the way out."""
    (project.root / "train.py").write_text("x = 1")
    assert "uncommitted changes" in refused(project)
    assert "Commit first" in refused(project)
    commit(project)
    lock(project)


def test_freezing_needs_a_repository(tmp_path):
    """Without version control nothing can be locked."""
    project = Project(tmp_path / "p", environment=ENV)
    assert "not in a git repository" in refused(project)


def test_freezing_needs_a_first_commit(tmp_path):
    """A repository without a commit has nothing to lock."""
    project = Project(tmp_path / "p", environment=ENV)
    git(project.root, "init", "-q")
    assert "no commit yet" in refused(project)


def test_freezing_needs_claims(project):
    """Without claims there is nothing to freeze."""
    project.write(STUDY.partition("[claims")[0])
    commit(project)
    assert "no claims" in refused(project)


CANNOT_SAY_NO = {
    "bare rates": 'rate("test/score", "b", at_least=0.0) >= 0.5 and rate("test/score", "a", at_least=0.0) >= 0.5',
    "wide margin": 'mean("test/score", "a") - mean("test/score", "b") > -1',
    "difference margin": 'diff("test/score", "b", "a") > -100',
}  # fmt: skip


@pytest.mark.parametrize("name", CANNOT_SAY_NO)
def test_a_criterion_that_cannot_say_no_is_refused(project, name):
    """A criterion that passes when the baseline is compared with itself is refused by name."""
    criterion = CANNOT_SAY_NO[name]
    project.write(edit(STUDY, ('diff("test/score", "b", "a") > 0', criterion)))
    if name == "bare rates":
        project.write(edit(project.text, ("[1, 2, 3]", "[1, 2, 3, 4, 5, 6, 7, 8]")))
    commit(project)
    told = refused(project)
    assert "s.toml [claims.better]" in told
    assert "cannot say no" in told


def test_a_criterion_that_can_say_no_passes_the_check(project):
    """An interval against zero passes for the baseline itself about as often as alpha says."""
    (check,) = compare_with_itself(project.study, project.select())
    assert check.deals == 200
    assert check.rate <= 0.10


def test_self_comparison_is_reproducible(project):
    """The deals do not depend on a random state."""
    selection = project.select()
    assert compare_with_itself(project.study, selection) == compare_with_itself(
        project.study, selection
    )


def test_without_pilot_runs_the_check_is_not_possible(tmp_path):
    """No runs of the baseline: nothing is dealt, and that is said by deals = 0."""
    project = Project(tmp_path)
    (check,) = compare_with_itself(project.study, project.select())
    assert (check.deals, check.rate) == (0, 0.0)


def test_a_claim_about_one_arm_is_not_dealt(project):
    """A threshold on one arm compares no arms."""
    project.write(
        edit(STUDY, ('diff("test/score", "b", "a") > 0', 'mean("test/score", "b") > 0.5'))
    )
    assert compare_with_itself(project.study, project.select()) == []


def test_changed_study_file_ends_the_phase(project):
    """A changed file falls back to pilot and says so; a second version freezes again."""
    first, _ = lock(project)
    project.write(edit(STUDY, ("> 0", "> 0.001")))
    name, why = phase(project)
    assert (name, "study file changed since version 1" in why) == ("pilot", True)
    commit(project)
    second, _ = lock(project)
    assert second.body["version"] == 2
    assert second.follows == (first.digest,)
    assert phase(project)[0] == "frozen"


def test_study_file_outside_git_is_locked_by_its_digest(project):
    """A study file that git ignores is locked all the same."""
    (project.root / ".gitignore").write_text(".cache\nruns\nstudies\n")
    git(project.root, "rm", "-q", "-r", "--cached", "studies")
    commit(project)
    lock(project)
    assert phase(project)[0] == "frozen"
    project.write(edit(STUDY, ("> 0", "> 0.001")))
    assert phase(project)[0] == "pilot"


def test_dirty_tree_ends_the_phase(project):
    """Uncommitted code falls back to pilot; undoing it is enough."""
    lock(project)
    (project.root / "train.py").write_text("x = 1")
    assert phase(project)[0] == "pilot"
    assert "uncommitted changes" in phase(project)[1]
    (project.root / "train.py").unlink()
    assert phase(project)[0] == "frozen"


def test_committed_code_ends_the_phase(project):
    """Other code needs another version."""
    lock(project)
    (project.root / "train.py").write_text("x = 1")
    commit(project)
    assert phase(project)[0] == "pilot"
    assert "code changed since version 1" in phase(project)[1]
    assert lock(project)[0].body["version"] == 2


def test_freezing_twice_is_refused(project):
    """Nothing changed: no second version."""
    lock(project)
    with pytest.raises(StudyError, match="frozen as version 1 already"):
        lock(project)
    assert invalidations(project.events()) == {}
    assert len(project.events()) == 1


def test_other_data_end_the_freeze(project):
    """Data that changed under their name are noticed before a run is called frozen."""
    lock(project)
    task = replace(project.study.task, fingerprint=lambda config, seeds: {"set": "another sha256"})
    study = replace(project.study, task=task)
    found, why = phase_of(study, expand(study), project.settings, project.events())
    assert found == "pilot"
    assert "the data changed since version 1" in why
