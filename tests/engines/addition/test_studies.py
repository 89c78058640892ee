"""The published studies: each can be planned at every scale, and starts."""

from pathlib import Path

import pytest

from assay.core.config import build
from assay.core.plan import expand
from assay.core.study import load_scales
from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.train import train

from .helpers import MemoryContext

STUDIES = sorted((Path(__file__).parents[3] / "studies" / "addition").glob("*.toml"))
SCALED = ("d8", "e08-763p", "e18-frozen-residual", "grok-456p")


def trained(study):
    return [run for run in expand(study) if study.table.task == "train"]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_starts_at_every_scale(path):
    """One run an arm takes its first steps, asks for a checkpoint when stopped, and is finite."""
    for study in load_scales(path).values():
        assert study.at_scale, "a published study says its scale"
        for run in {run.arm: run for run in trained(study)}.values():
            config = build(AdditionConfig, run.config, where=study.id)
            context = MemoryContext(1, stop_after=0)
            train([config], [context])
            (step, content) = context.checkpoint
            assert 0 < step <= config.steps
            assert content


@pytest.mark.parametrize("name", SCALED)
def test_a_reduced_study_keeps_the_scale_of_its_source(name):
    """`--scale full` is longer, and differs in nothing but steps, warm-up and curriculum."""
    found = load_scales(next(path for path in STUDIES if path.stem == name))
    base, full = expand(found[""])[0].config, expand(found["full"])[0].config
    assert full["steps"] > base["steps"]
    for config in (base, full):
        assert config["curriculum"][-1][-1] == config["steps"], "no phase is cut off"
    changed = {key for key in full if full[key] != base[key]}
    assert changed <= {"steps", "warmup_steps", "curriculum"}
