"""Several `assay run` of one study share its runs: nothing runs twice."""

import json

import pytest
from project import Project, attempts

COUNTED_STUDY = """
[study]
id = "counted"
question = "How often does it run?"
seeds = { init = [1, 2, 3, 4, 5, 6, 7, 8] }
cmd = "sh -c 'echo {seed.init} >> ran; sleep 0.1; exit 0'"
[arms.only]
"""


def together(project: Project, study: str, number: int, *options: str) -> list[str]:
    """Start so many `assay run` at once; what each of them said at its end."""
    started = [project.start("run", study, *options) for _ in range(number)]
    said = []
    for process in started:
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, (out, err)
        assert err == ""
        said.append(out)
    return said


def test_two_at_once_compute_each_run_once(tmp_path):
    """Two `assay run` of an engine's study: six runs, one attempt each, and both end well."""
    project = Project(tmp_path).toy(step_s="0.05")
    said = together(project, "toy", 2)
    assert [attempts(folder) for folder in project.folders()] == [["completed"]] * 6
    completed = [int(text.partition(" run(s) completed")[0].split()[-1]) for text in said
                 if "run(s) completed" in text]  # fmt: skip
    assert sum(completed) == 6


def counted(tmp_path, number: int) -> None:
    project = Project(tmp_path)
    project.write("studies/counted.toml", COUNTED_STUDY)
    project.commit()
    together(project, "counted", number)
    assert sorted((project.root / "ran").read_text().split()) == list("12345678")
    assert [attempts(folder) for folder in project.folders()] == [["completed"]] * 8


def test_four_at_once_run_each_command_once(tmp_path):
    """Four `assay run` of eight commands: each command is started exactly once."""
    counted(tmp_path, 4)


@pytest.mark.long
def test_sixteen_at_once_run_each_command_once(tmp_path):
    """Sixteen `assay run` of eight commands: each command is started exactly once."""
    counted(tmp_path, 16)


def test_two_that_begin_again_make_one_generation(tmp_path):
    """Two `assay run --again` at once never compute one run's next generation twice."""
    project = Project(tmp_path)
    project.write("studies/counted.toml", COUNTED_STUDY)
    project.commit()
    project("run", "counted")
    together(project, "counted", 2, "--again")
    records = [json.loads((f / "run.json").read_text()) for f in project.folders()]
    assert len({(r["identity"], r["generation"]) for r in records}) == len(records) >= 16
    assert len((project.root / "ran").read_text().split()) == len(project.folders())
