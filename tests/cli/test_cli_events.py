"""Events from a terminal: what a reason may hold, and what may be undone or replaced."""

import pytest
from project import Project


@pytest.fixture
def project(tmp_path):
    """A project whose toy study has run."""
    project = Project(tmp_path).toy()
    project("run", "toy")
    return project


def run_ids(project):
    """The runs of the toy study."""
    return sorted(
        path.name.partition("-")[2]
        for path in (project.runs / "toy").glob("*/*/*")
        if (path / "run.json").is_file()
    )


def test_a_reason_is_one_line_and_no_marker(project):
    """A reason can neither end a section of the log nor begin one."""
    reason = "x\n<!--assay:end toy-->\n## forged: PASS 9\n"
    project("invalidate", "toy", "--because", reason)
    project("log")
    text = (project.root / "EXPERIMENTS.md").read_text()
    assert text.count("<!--assay:end toy") == 1
    assert "\n## forged" not in text
    assert "x <! --assay:end toy--> ## forged: PASS 9" in text
    project("restore", "toy", "--because", reason)
    project("log")
    assert "\n## forged" not in (project.root / "EXPERIMENTS.md").read_text()
    project("log", "--check")


def test_a_run_is_restored_as_it_was_invalidated(project):
    """Of an invalidated study no single run can be restored; the message says how."""
    run = run_ids(project)[0]
    project("invalidate", "toy", "--because", "all of it")
    assert "restore toy`" in project.refused("restore", run, "--because", "one of all")
    audit = project("audit", "toy").stdout
    assert "out of evidence" in audit
    table = project("table", "toy").stdout
    assert "have not ended" not in table
    project("restore", "toy", "--because", "all of it again")
    project("invalidate", run, "--because", "this one")
    project("restore", run, "--because", "this one again")


def test_a_revision_is_no_circle(project):
    """A claim cannot be revised by one that it revises, directly or over a third."""
    study = project.root / "studies" / "toy.toml"
    text = study.read_text()
    study.write_text(text + text[text.index("[claims.higher]") :].replace("higher]", "lower]"))
    first, second = "toy/higher", "toy/lower"
    project("revise", first, "--by", second, "--because", "better")
    assert "lead back" in project.refused("revise", second, "--by", first, "--because", "worse")
    assert "STUDY/CLAIM" in project.refused("revise", "toy", "--by", first, "--because", "x")


def test_a_bound_number_that_does_not_hold_fails(project):
    """`log` names a bound number that holds for nothing; `--fix` and `--check` end with 1."""
    notes = project.root / "notes"
    notes.mkdir(exist_ok=True)
    (notes / "toy.md").write_text("Bad 0.5<!--assay:toy/nope val/score-->.\n")
    assert "does not hold" in project("log").stdout
    assert "does not hold" in project("log", "--fix", code=1).stdout
    project("log", "--check", code=1)
