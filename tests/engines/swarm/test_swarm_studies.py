"""The studies in `studies/swarm`: each is valid, and starts at full scale too."""

from dataclasses import replace
from pathlib import Path

import pytest
from test_swarm_train import Context

from assay.core.config import build
from assay.core.plan import expand
from assay.core.study import load_scales, load_study
from assay.engines import memory
from assay.engines.swarm.config import SwarmConfig
from assay.engines.swarm.idle import refuse_idle
from assay.engines.swarm.train import begin

STUDIES = sorted((Path(__file__).parents[3] / "studies" / "swarm").glob("*.toml"))
REDUCED = [path for path in STUDIES if "full" in load_scales(path)]


def arms(study):
    """Arm → configuration of its first seed."""
    found = {}
    for planned in expand(study):
        found.setdefault(planned.arm, build(SwarmConfig, planned.config, where=planned.arm))
    return found


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_says_its_scale(path):
    """Arms differ in what they declare; whoever trains less than the source says so, and holds the rest."""
    study = load_study(path)
    assert len(arms(study)) == len(study.arms)
    assert study.claims
    reduced = any(config.model != "nanogpt-34m" for config in arms(study).values())
    assert bool(study.table.scale) is reduced is (path in REDUCED)


@pytest.mark.parametrize(
    ("path", "scale"), [(path, scale) for path in STUDIES for scale in (None, *load_scales(path))],
    ids=lambda value: getattr(value, "stem", value),
)  # fmt: skip
def test_a_study_sets_nothing_idle(path, scale):
    """Every setting of a study does something in one of its arms, at every scale."""
    refuse_idle(list(arms(load_study(path, scale)).values()))


@pytest.mark.long
@pytest.mark.parametrize("path", REDUCED, ids=lambda path: path.stem)
def test_full_scale_starts(path):
    """A round of the first arm, of the widest and of the narrowest clients, at the full scale."""
    memory.keep()
    configs = arms(load_study(path, "full"))
    for config in list(configs.values())[:2]:
        assert config.model == "nanogpt-34m"
        session = begin(replace(config, store=()), Context())
        metrics = session.round()
        for tier in set(config.tiers):
            assert 10 < metrics[f"train/loss_nats_tier{tier}"] < 12
