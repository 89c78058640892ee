"""Laws of `assay run STUDY`: what reaches a run, what is kept of it, and what failure does."""

import json

import pytest
from project import TOY_STUDY, Project, attempts

LOOK = """
import json, os, sys
from pathlib import Path
out = Path(sys.argv[1])
run = Path(os.environ["ASSAY_RUN_DIR"])
seen = {
    "env": dict(os.environ),
    "argv": sys.argv[1:],
    "files": sorted(p.name for p in run.iterdir()),
    "cwd": os.getcwd(),
}
(out / "seen.json").write_text(json.dumps(seen))
print("hello from seed", sys.argv[2])
"""

LOOK_STUDY = """
[study]
id = "look"
question = "What does a program see?"
seeds = { init = [7] }
cmd = "python look.py {out} {seed.init} --lr={lr} {{literal}}"
[config]
lr = 0.25
[environment]
DECLARED = "written out"
PASSED = true
OMP_NUM_THREADS = "3"
[arms.only]
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What the program of a study's command saw; the run's directory."""
    project = Project(tmp_path_factory.mktemp("look"))
    project.write("look.py", LOOK)
    project.write("studies/look.toml", LOOK_STUDY)
    # Modules of the project that must not stand in for Python's own.
    project.write("queue.py", "raise ImportError('the wrong queue')")
    project.write("msgspec.py", "raise ImportError('the wrong msgspec')")
    project.commit()
    project("run", "look", HIDDEN="x", PASSED="from the shell", PYTHONPATH="/nowhere")
    folder = project.folder("look")
    return json.loads((folder / "out/seen.json").read_text()), folder


def test_shell_variables_do_not_reach_a_run(seen):
    """A variable that nobody declared stays in the shell."""
    assert not {"HIDDEN", "PYTHONPATH"} & seen[0]["env"].keys()


def test_declared_variables_reach_a_run(seen):
    """Declared variables have the study's value, or the shell's where the study says so."""
    env = seen[0]["env"]
    assert (env["DECLARED"], env["PASSED"]) == ("written out", "from the shell")


def test_declared_threads_win(seen):
    """A thread variable that the study declares is not overwritten by the launcher."""
    assert seen[0]["env"]["OMP_NUM_THREADS"] == "3"


def test_placeholders_are_filled(seen):
    """{config}, {seed.role} and {out} in a command are filled; doubled braces are literal."""
    folder = seen[1]
    assert seen[0]["argv"] == [str(folder / "out"), "7", "--lr=0.25", "{literal}"]
    assert seen[0]["env"]["ASSAY_OUT"] == str(folder / "out")


def test_provenance_is_there_before_the_program(seen):
    """A program finds the record of what it is when it starts."""
    assert {"run.json", "provenance.json", "env.json"} <= set(seen[0]["files"])


def test_provenance_does_not_tell_runs_apart_by_their_folder(seen):
    """The recorded command keeps {out}, so that arms do not differ in where they write."""
    argv = json.loads((seen[1] / "provenance.json").read_text())["argv"]
    assert argv[:3] == ["python", "look.py", "{out}"]


def test_output_is_kept(seen):
    """What a program prints is in stdout.log."""
    assert (seen[1] / "stdout.log").read_text() == "hello from seed 7\n"


def test_unset_variable_is_told_before_anything_starts(tmp_path):
    """Passing on a variable that is not set is a mistake that leaves nothing behind."""
    project = Project(tmp_path)
    project.write("look.py", LOOK)
    project.write("studies/look.toml", LOOK_STUDY)
    assert "PASSED is not set" in project.refused("run", "look")
    assert "PASSED is not set" in project.refused("run", "look", "--dry-run")
    assert not project.runs.exists()


MIXED_STUDY = """
[study]
id = "mixed"
question = "Do the others go on?"
factor = "script"
seeds = { init = [1] }
cmd = "python {script}.py"
[arms.bad]
script = "bad"
[arms.good]
script = "good"
"""


@pytest.fixture
def mixed(tmp_path):
    project = Project(tmp_path)
    project.write("good.py", "import assay\nassay.init()\nassay.log({'val/x': 1.5}, step=3)\n")
    project.write("bad.py", "raise RuntimeError('no luck')")
    project.write("studies/mixed.toml", MIXED_STUDY)
    return project


def test_one_failure_does_not_stop_the_others(mixed):
    """A failed run ends `assay run` with 2, and the others are completed."""
    mixed("run", "mixed", "--jobs", 1, code=2)
    assert {r["arm"]: r["status"] for r in mixed.json("ls", "mixed")} == {
        "bad": "failed",
        "good": "completed",
    }


def test_init_inside_a_study_joins_its_run(mixed):
    """A program that calls assay.init() in a study's command records into that study's run."""
    mixed("run", "mixed", code=2)
    assert len(mixed.folders()) == 2
    (good,) = [r for r in mixed.json("ls", "mixed") if r["arm"] == "good"]
    assert {m["name"]: m["value"] for m in mixed.json("show", good["id"])["metrics"]} == {
        "val/x": 1.5
    }


def test_failure_of_an_engine_is_recorded_and_retried(tmp_path):
    """A failed run keeps its traceback; the next `assay run` tries it again, as attempt 2."""
    project = Project(tmp_path).toy(mishap='"raise"')
    done = project("run", "toy", code=2)
    assert "ValueError: the toy is broken" in done.stdout
    folders = project.folders("toy")
    error = json.loads((folders[0] / "end.json").read_text())["error"]
    assert error.startswith("Traceback")
    assert "ValueError: the toy is broken" in error
    project.write("mended", "")
    project("run", "toy")
    assert project.folders("toy") == folders
    assert [attempts(folder) for folder in folders] == [["failed", "completed"]] * 6


@pytest.mark.parametrize(("mishap", "said"), [("exit", "exit code 7"), ("segv", "SIGSEGV")])
def test_worker_that_dies_is_a_failure(tmp_path, mishap, said):
    """A worker that ends without a word has failed, by that code or signal."""
    project = Project(tmp_path).toy(mishap=f'"{mishap}"')
    done = project("run", "toy", code=2)
    assert "6 failed" in done.stdout
    assert said in json.loads((project.folders()[0] / "end.json").read_text())["error"]


def test_nonsense_as_progress_ends_nothing(tmp_path):
    """Progress is for the eye: a message that cannot be read harms no run."""
    project = Project(tmp_path).toy(mishap='"nonsense"')
    assert "6 run(s) completed" in project("run", "toy").stdout


def test_threads_follow_from_the_plan(tmp_path):
    """A run that is made good later has as many threads as its fellows had."""
    project = Project(tmp_path).toy()
    project("run", "toy")
    before = [run["id"] for run in project.json("ls", "toy") if run["arm"] == "high"]
    project("invalidate", before[0], "--because", "a test")
    project("run", "toy")
    threads = {
        json.loads((folder / "provenance.json").read_text())["threads"]
        for folder in project.folders("toy")
    }
    assert len(project.folders("toy")) == 7
    assert len(threads) == 1


def test_dry_run_writes_nothing(tmp_path):
    """--dry-run tells what there is to do and leaves no trace."""
    project = Project(tmp_path).toy()
    before = project.git("status", "--short", "--ignored")
    assert "6 to do in 2 cohort(s)" in project("run", "toy", "--dry-run").stdout
    assert project.git("status", "--short", "--ignored") == before


def test_done_is_not_done_again_unless_asked(tmp_path):
    """A second `assay run` computes nothing; --again adds a generation and keeps the old one."""
    project = Project(tmp_path).toy()
    project("run", "toy")
    assert "6 done, 0 to do" in project("run", "toy").stdout
    assert len(project.folders()) == 6
    project("run", "toy", "--again")
    generations = [
        json.loads((f / "run.json").read_text())["generation"] for f in project.folders()
    ]
    assert sorted(generations) == [1] * 6 + [2] * 6


def test_question_is_no_markup(tmp_path):
    """Brackets in what a person wrote are printed as they are."""
    project = Project(tmp_path).toy()
    assert "matter [a, b]?" in project("run", "toy", "--dry-run").stdout
    assert "[a, b]" in TOY_STUDY
