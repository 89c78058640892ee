"""The studies in `studies/concepts`: each is valid at every scale, and starts at the smallest."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from concepts_helpers import TEXTS, Context
from evaluation_helpers import write_task

from assay.core.config import build
from assay.core.plan import expand
from assay.core.study import load_scales, load_study
from assay.engines.concepts.config import CostConfig, PretrainConfig
from assay.engines.concepts.cost import measure
from assay.engines.concepts.pretrain import train
from assay.engines.concepts.tasks import TASKS

STUDIES = sorted((Path(__file__).parents[3] / "studies" / "concepts").glob("*.toml"))
COMMANDS = [path for path in STUDIES if path.stem == "ddp"]
RUN = {PretrainConfig: train, CostConfig: measure}
SCALES = [(path, scale) for path in STUDIES for scale in (None, *load_scales(path))]


def configs(study):
    """Arm and cell → configuration."""
    return {
        (planned.arm, str(planned.cell)): build(
            study.task.config, planned.config, where=planned.arm
        )
        for planned in expand(study)
    }


@pytest.mark.parametrize(("path", "scale"), SCALES, ids=lambda value: getattr(value, "stem", value))
def test_a_study_is_valid_at_every_scale(path, scale):
    """Its configurations can be built, and say at which scale they are."""
    study = load_study(path, scale)
    assert study.claims
    assert study.table.scale
    if path not in COMMANDS:
        assert all(type(config) in RUN for config in configs(study).values())


def test_every_study_has_a_smoke_and_a_full_scale():
    """And comparisons are judged on three seeds at least, but for the smoke runs."""
    assert STUDIES
    for path in STUDIES:
        assert {"smoke", "full"} <= set(load_scales(path))
        for scale in (None, "full"):
            assert len({tuple(p.seeds.items()) for p in expand(load_study(path, scale))}) >= 3


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", [p for p in STUDIES if p not in COMMANDS], ids=lambda p: p.stem)
def test_smoke_runs(path):
    """Every arm and cell, to the end."""
    for config in configs(load_study(path, "smoke")).values():
        context = Context(0)
        RUN[type(config)]([config], [context])
        assert "model/parameters" in context.final


SMALL = {
    "corpus": "texts.txt", "tokenizer": "", "vocab_size": 300, "seq_len": 32, "hidden": 32, "inner": 32,
    "batch": 4, "held_blocks": 16, "steps": 2, "eval_interval": 1, "warmup": 1, "tune_batch": 8,
}  # fmt: skip
"""What stands for the hub's texts and tokenizer, and for a GPU's sizes."""


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", [p for p in STUDIES if p not in COMMANDS], ids=lambda p: p.stem)
def test_full_scale_starts(path, tmp_path):
    """Every arm's and cell's own settings but for texts, sizes and steps: depth, precision, padding, schedule, tasks."""
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS * 4))
    started = []
    for config in configs(load_study(path, "full")).values():
        if isinstance(config, CostConfig):
            small = replace(config, hidden=32, inner=32, slots=4, tokens=32)
        else:
            asked = tuple(name.removeprefix("hub:") for name in config.evaluate)
            for name in asked:
                write_task(tmp_path, TASKS[name])
            least = min(1, config.tune_epochs)
            small = replace(
                config, slots=min(4, config.slots), evaluate=asked, tune_epochs=least, **SMALL
            )
            assert small.precision == "bfloat16"
            assert not small.packed
        if small in started:
            continue
        started.append(small)
        context = Context(0, tmp_path)
        RUN[type(config)]([small], [context])
        assert "model/parameters" in context.final
        assert all(
            f"{name}/majority_" in str(context.final) for name in getattr(small, "evaluate", ())
        )


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_commands_smoke_runs(path, tmp_path):
    """Every arm's own command, as the lab gives it, in a clean environment."""
    place = Path(sys.executable).parent
    environment = {"PATH": f"{place}:{os.defpath}", "HOME": str(tmp_path)}
    for planned in expand(load_study(path, "smoke")):
        words = [word.replace("{out}", planned.arm) for word in planned.cmd]
        done = subprocess.run(
            words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
