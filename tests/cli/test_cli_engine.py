"""An engine of the project's own: `module:NAME`."""

import shutil

import pytest
from project import Project

ENGINE = """
import random
from dataclasses import dataclass

from assay.core.engine import Engine, Metric, Task
from helper import SHIFT


@dataclass(frozen=True)
class Coin:
    bias: float = 0.5


def toss(configs, contexts):
    for config, context in zip(configs, contexts):
        draw = random.Random(context.seeds["toss"])
        context.summary({"heads": config.bias + SHIFT + 0.01 * draw.random()})


ENGINE = Engine(name="coin", tasks={"toss": Task(
    name="toss", config=Coin, seeds=("toss",), run=toss,
    metrics={"heads": Metric(says="Heads.", goal="max")})})
"""
STUDY = """
[study]
id = "coin"
question = "?"
engine = "coin:ENGINE"
factor = "bias"
seeds = { toss = [1, 2, 3] }
[arms.fair]
bias = 0.5
[arms.loaded]
bias = 0.6
[claims.more]
says = "More heads."
criterion = 'diff("heads", "loaded", "fair") > 0'
phase = "pilot"
"""


ONE_ARM = STUDY.replace("[arms.loaded]\nbias = 0.6\n", "").split("[claims")[0]


@pytest.mark.parametrize("version_control", [True, False])
def test_a_changed_helper_of_a_project_engine_confounds(tmp_path, version_control):
    """An arm that was computed with another version of an imported file is told by name."""
    project = Project(tmp_path)
    if not version_control:
        shutil.rmtree(project.root / ".git")
        project.write("assay.toml", "")
    project.write("coin.py", ENGINE)
    project.write("helper.py", "SHIFT = 0.0\n")
    project.write("studies/coin.toml", ONE_ARM)
    project("run", "coin")
    project.write("helper.py", "SHIFT = 0.1\n")
    project.write("studies/coin.toml", STUDY)
    project("run", "coin")
    verdict = project("verdict", "coin", code=4)
    assert "Confounded: code." in verdict.stdout
