"""Every mistake ends in one paragraph on stderr that says the rule, the value and the way out."""

import pytest
from project import ADDITION_STUDY, TOY_STUDY, Project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return Project(tmp_path_factory.mktemp("mistakes")).toy()


STUDY_MISTAKES = {
    "unknown key": ("rate = 0.75", "rat = 0.75", "rat"),
    "unknown table": ("[config]", "[configuration]", "configuration"),
    "wrong type": ("steps = 10", 'steps = "ten"', "steps"),
    "no arms": ("[arms.low]\nrate = 0.25\n[arms.high]\nrate = 0.75", "", "[arms] is missing"),
    "equal arms": ("rate = 0.75", "rate = 0.25", "do not differ"),
    "not the factor": ("rate = 0.75", "rate = 0.75\nsteps = 20", "not the factor"),
    "unknown metric": ('diff("test/score"', 'diff("test/scores"', "test/scores"),
    "unknown arm": ('"high", "low")', '"higher", "low")', "higher"),
    "repeated seeds": ("[1, 2, 3]", "[1, 2, 2]", "each once"),
    "no seeds": ("{ init = [1, 2, 3] }", "{}", "seeds"),
    "criterion": ('"low") > 0', '"low" > 0', "criterion"),
    "criterion reaches out": ('diff("test/score", "high", "low") > 0', "__import__(1)", "__import__"),
    "no TOML": ("[study]", "[study", "TOML"),
    "unknown engine": ("toy:ENGINE", "toys", "toys"),
    "broken engine": ("toy:ENGINE", "toy:NOTHING", "NOTHING"),
    "unset variable": ("[arms.low]", "[environment]\nNOT_SET = true\n[arms.low]", "NOT_SET"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", STUDY_MISTAKES)
def test_mistake_in_a_study(project, mistake):
    """A study that breaks a rule is refused, and nothing is written."""
    old, new, said = STUDY_MISTAKES[mistake]
    assert old in TOY_STUDY
    path = project.write("wrong.toml", TOY_STUDY.replace(old, new))
    assert said in project.refused("run", path)
    assert not project.runs.exists()


def test_value_that_an_engine_refuses(project):
    """A configuration that breaks an engine's rule is refused before any run is made."""
    path = project.write("wrong.toml", ADDITION_STUDY.replace("d_model = 4", "d_model = 0"))
    said = project.refused("run", path)
    assert "d_model must be at least 1; got 0" in said
    assert not project.runs.exists()


EVALUATE_STUDY = """
[study]
id = "released"
question = "How good is it?"
engine = "addition"
task = "evaluate"
seeds = { data = [1, 2] }
[config]
sha256 = "%s"
[arms.theirs]
checkpoint = "theirs.pt"
"""


def test_data_that_an_engine_misses(project):
    """A file that every run would read is missed once, by the dry run too, before any run is made."""
    path = project.write("wrong.toml", EVALUATE_STUDY % ("0" * 64))
    for words in (("run", path, "--dry-run"), ("run", path)):
        said = project.refused(*words)
        assert "wrong.toml: theirs.pt: the file must be in the data folder" in said
    assert not project.runs.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "missing.toml"], "There is no study file at missing.toml"),
        (["run", "tyo"], "Did you mean 'toy'?"),
        (["run", "toy", "--jobs", "0"], "--jobs must be at least 1; got 0"),
        (["run", "toy", "--jobs", "two"], "two"),
        (["run", "toy", "--jobs", "1.5"], "--jobs: it takes a whole number; got 1.5."),
        (["concepts", "pretrain", "x", "--slots", "3.5"], "--slots: it takes a whole number"),
        (["credit", "probe", "x", "--samples", "2.0"], "--samples: it takes a whole number"),
        (["run", "toy", "--dryrun"], "--dryrun"),
        (["frobnicate"], "frobnicate"),
        (["ls", "tyo"], "Did you mean 'toy'?"),
        (["show"], "run"),
        (["show", "01ZZ"], "No run with the id '01ZZ'"),
        (["diff", "01ZZ", "01YY"], "No run with the id '01ZZ'"),
        (["verdict", "tyo"], "Did you mean 'toy'?"),
        (["table", "tyo"], "Did you mean 'toy'?"),
        (["freeze", "tyo"], "Did you mean 'toy'?"),
        (["invalidate", "01ZZ", "--because", "x"], "01ZZ"),
        (["invalidate", "toy", "--because", " "], "needs a reason"),
        (["invalidate", "toy"], "because"),
        (["restore", "toy", "--because", "x"], "Nothing"),
        (["log", "--check", "missing.md"], "missing.md"),
    ],
)
def test_mistake_on_the_command_line(project, words, said):
    """A wrong word on the command line is answered by one paragraph."""
    assert said in project.refused(*words)
    assert not (project.root / "ledger").exists()


def test_folder_that_is_missing(project):
    """ASSAY_DATA and ASSAY_ROOT must name folders."""
    assert "ASSAY_DATA must name an existing folder" in project.refused("ls", ASSAY_DATA="/nowhere")


def test_two_studies_of_one_id(tmp_path):
    """Two files with one id would mix their runs: both are named."""
    project = Project(tmp_path).toy()
    project.write("studies/copy.toml", TOY_STUDY)
    said = project.refused("run", "toy")
    assert "copy.toml" in said
    assert "toy.toml" in said


def test_log_does_not_leave_a_broken_study_out(tmp_path):
    """A study file that cannot be read makes `assay log` an error, not a shorter log."""
    project = Project(tmp_path).toy()
    project.write("studies/broken.toml", "[study\n")
    assert "broken.toml" in project.refused("log")
    assert not (project.root / "EXPERIMENTS.md").exists()
    assert "6 to do" in project("run", "toy", "--dry-run").stdout
