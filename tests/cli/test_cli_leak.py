"""S0's leaked environment variable, replayed through the command line.

`PSYCHE_DONT_SHARE_PREFIX` was set for one client and reached all of them, so that two arms were
one and their perfect agreement was an artifact.
"""

import json

import pytest
from project import Project

CLIENT = """
import os, random, sys, assay
share = os.environ.get("PSYCHE_DONT_SHARE_PREFIX") != "1"
run = assay.init()
noise = random.Random(f"{share} {sys.argv[1]}").random()
run.summary({"test/agreement": (0.9 if share else 0.1) + 0.01 * noise})
run.finish()
"""

STUDY = """
[study]
id = "psyche"
question = "Do clients agree more when they share the prefix?"
factor = "env.PSYCHE_DONT_SHARE_PREFIX"
baseline = "sharing"
seeds = { data = [1, 2] }
cmd = "sh client.sh {seed.data}"
[arms.sharing]
env = { PSYCHE_DONT_SHARE_PREFIX = "0" }
[arms.apart]
env = { PSYCHE_DONT_SHARE_PREFIX = "1" }
[metrics."test/agreement"]
says = "Share of equal signs."
goal = "max"
[claims.apart-agrees-less]
says = "Without the prefix, agreement is lower by more than one half."
criterion = 'diff("test/agreement", "apart", "sharing") < -0.5'
phase = "pilot"
min_seeds = 2
"""


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path)
    project.write("client.py", CLIENT)
    project.write("studies/psyche.toml", STUDY)
    return project


def run(project: Project, wrapper: str, **exported: str) -> None:
    project.write("client.sh", wrapper + "\nexec python client.py $1\n")
    project.commit()
    project("run", "psyche", **exported)


def test_exported_variable_does_not_reach_the_arms(project):
    """A variable exported in the shell changes no arm: the arms differ as declared, and PASS."""
    run(project, "", PSYCHE_DONT_SHARE_PREFIX="1", PSYCHE_FORCE_SAME_BATCH="1")
    verdict = project.json("verdict", "psyche")
    (judgement,) = verdict["judgements"]
    assert judgement["verdict"] == "PASS"
    assert judgement["estimate"] == pytest.approx(-0.8, abs=0.02)
    assert not [f for f in verdict["findings"] if f["blocks"]]
    for folder in project.folders("psyche"):
        env = json.loads((folder / "env.json").read_text())
        assert "PSYCHE_FORCE_SAME_BATCH" not in env["digests"]


def test_variable_leaked_into_all_arms_is_a_no_op(project):
    """A wrapper that sets the factor's variable for every arm makes the study a no-op: exit 4."""
    run(project, "export PSYCHE_DONT_SHARE_PREFIX=1")
    done = project("verdict", "psyche", code=4)
    assert "INVALID" in done.stdout
    assert "No-op arm: apart and sharing" in done.stdout
    assert "PSYCHE_DONT_SHARE_PREFIX" in done.stdout


def test_variable_leaked_into_one_arm_confounds_by_name(project):
    """An undeclared variable that only one arm's program gets is named as the confound."""
    run(project, 'test "$PSYCHE_DONT_SHARE_PREFIX" = 1 && export PSYCHE_FORCE_SAME_BATCH=1')
    done = project("verdict", "psyche", code=4)
    assert "INVALID" in done.stdout
    assert "Confounded: env.PSYCHE_FORCE_SAME_BATCH" in done.stdout
