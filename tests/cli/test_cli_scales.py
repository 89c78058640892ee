"""Laws of scales on the command line: `--scale NAME` runs a study of its own, `ID.NAME`."""

import pytest
from project import TOY_STUDY, Project

SCALED = (
    TOY_STUDY.replace("[config]", 'scale = "10 of 20 steps"\n[config]')
    + """
[scales.full]
says = "all 20 steps"
seeds = { init = [4, 5, 6, 7] }
config = { steps = 20 }
"""
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose toy study has run at its own scale and at the full one."""
    project = Project(tmp_path_factory.mktemp("scales")).toy(SCALED)
    dry = project("run", "studies/toy.toml", "--dry-run", "--scale", "full").stdout
    assert "toy.full: " in dry
    assert "scale full: all 20 steps" in dry
    assert "8 runs, 0 done, 8 to do" in dry
    assert not project.folders()
    project("run", "toy")
    project("run", "studies/toy.toml", "--scale", "full")
    return project


def test_a_scale_has_runs_of_its_own(project):
    """The runs of a scale lie in its own directory, with its seeds and settings."""
    assert len(project.folders("toy")) == 6
    assert len(project.folders("toy.full")) == 8
    runs = project.json("ls", "toy.full")
    assert {run["config"]["steps"] for run in runs} == {20}
    assert {run["seed_label"] for run in runs} == {"4", "5", "6", "7"}
    assert "8 done, 0 to do" in project("run", "toy.full", "--dry-run").stdout
    assert "8 done, 0 to do" in project("run", "toy", "--scale", "full", "--dry-run").stdout
    listed = {row["study"]: row["runs"] for row in project.json("ls")}
    assert listed == {"toy": 6, "toy.full": 8}


def test_every_command_knows_a_scale_by_its_id(project):
    """`table`, `verdict`, `show` and `freeze` take `toy.full` as any other study."""
    rows = project("table", "toy.full", "test/score", "--csv").stdout
    assert len(rows.strip().splitlines()) == 1 + 8
    assert "(scale full: all 20 steps)" in project("verdict", "toy.full", code=None).stdout
    assert "(scale: 10 of 20 steps)" in project("verdict", "toy", code=None).stdout
    judged = project.json("verdict", "toy.full", code=None)
    assert (judged["study"], judged["scale"]) == ("toy.full", "scale full: all 20 steps")
    run = project.json("ls", "toy.full")[0]["id"]
    assert "toy.full / " in project("show", run).stdout
    struck = project("invalidate", run, "--because", "try").stdout
    assert "`assay log` writes it into the log of toy.full." in struck
    project("restore", run, "--because", "it was well")
    project.commit()
    project("freeze", "toy.full")
    assert "phase frozen" in project("run", "toy.full", "--dry-run").stdout
    assert "phase pilot" in project("run", "toy", "--dry-run").stdout


def test_log_of_a_scale(project):
    """The log has a section for each scale that ran, bound numbers reach it, and it holds."""
    (run,) = (
        r for r in project.json("ls", "toy.full") if (r["arm"], r["seed_label"]) == ("low", "4")
    )
    metrics = {row["name"]: row["value"] for row in project.json("show", run["id"])["metrics"]}
    value = metrics["test/score"]
    bound = f"{value:.3f}<!--assay:toy.full/low test/score seed=4-->"
    note = project.write("notes/toy.full.md", f"It ends at {bound}.\n")
    project("log")
    text = (project.root / "EXPERIMENTS.md").read_text("utf-8")
    assert "(scale full: all 20 steps)\n" in text.partition("## toy.full: ")[2]
    assert bound in text
    project("log", "--check")
    note.write_text("It ends at 0.123456<!--assay:toy.full/low test/score seed=4-->.\n", "utf-8")
    assert "toy.full" in project("log", "--check", code=1).stdout
    note.unlink()


def test_mistakes_about_scales_are_told(project):
    """An unknown scale, one too many, and one for a program: a paragraph with the way out."""
    assert "no scale 'ful'. Scales: full." in project.refused("run", "toy", "--scale", "ful")
    assert "toy.full" in project.refused("table", "toy.ful")
    assert "leave out --scale" in project.refused("run", "toy.full", "--scale", "full")
    assert "no scale ''" in project.refused("run", "toy", "--scale", "")
    assert "--scale is for a study" in project.refused("run", "--scale", "full", "--", "true")


def test_a_study_with_the_id_of_a_scale_is_refused(tmp_path):
    """A file whose id is another file's at a scale would mix their runs: refused by id and path."""
    project = Project(tmp_path).toy(SCALED)
    other = TOY_STUDY.replace('id = "toy"', 'id = "toy.full"')
    project.write("studies/other.toml", other)
    for words in (
        ("run", "studies/toy.toml", "--scale", "full", "--dry-run"),
        ("run", "studies/other.toml", "--dry-run"),
        ("table", "toy.full"),
        ("log",),
    ):
        told = project.refused(*words)
        assert all(part in told for part in ("'toy.full'", "other.toml", "toy.toml", "scale full"))


def test_a_scale_that_the_task_refuses_is_seen_before_it_is_needed(tmp_path):
    """A scale's configuration is planned whenever its file is read, at whichever scale."""
    project = Project(tmp_path).toy(SCALED.replace("steps = 20 }", "stepps = 20 }"))
    for words in (("run", "toy", "--dry-run"), ("table", "toy"), ("log",)):
        told = project.refused(*words)
        assert "toy.toml [scales.full], arm 'low'" in told
        assert "'stepps'" in told
