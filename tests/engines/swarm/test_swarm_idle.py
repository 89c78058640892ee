"""Settings that would do nothing are refused; those that do something in one arm are not."""

from dataclasses import replace

import pytest
from test_swarm_train import CONFIG

from assay.core.errors import ConfigError
from assay.engines.swarm.config import SwarmConfig
from assay.engines.swarm.engine import check
from assay.engines.swarm.idle import refuse_idle

ALONE = {"mode": "local-adamw", "tiers": (0, 0)}


@pytest.mark.parametrize(
    ("settings", "does", "message"),
    [
        ({"cold_rounds": 3}, {"epoch_rounds": 3}, "epoch_rounds from 1"),
        ({"cold_rounds": 3, "epoch_rounds": 7}, {"epoch_rounds": 6}, "below steps"),
        ({"helper_interval": 4}, {"helper_fractions": (0.0, 0.25)}, "helper_fractions"),
        ({"helper_fractions": (0.5, 0.0, 0.0)}, {"helper_fractions": (0.5, 0.1)}, "tier 1 or narrower"),
        ({"gate_start": 4}, {"suffix_gate": "linear"}, "suffix_gate 'linear'"),
        ({"gate_tier": 2}, {"suffix_gate": "linear"}, "suffix_gate 'linear'"),
        ({"gate_warmup": 4}, {"suffix_gate": "cosine"}, "suffix_gate 'linear'"),
        ({"suffix_gate": "linear", "gate_tier": 0}, {"gate_tier": 1}, "wider than gate_tier"),
        ({"distill": "mix", "batches": "same"}, {"distill_beta": 0.5}, "distill_beta above 0"),
        ({"distill_k": 4, "batches": "same"}, {"distill_beta": 0.5}, "distill_beta above 0"),
        ({"distill_beta": 0.5, "batches": "same", "distill_start": 7}, {"distill_start": 6}, "below steps"),
        ({"width_power": 0.5, "tiers": (0, 0)}, {"tiers": (0, 1)}, "narrower"),
        ({"loss": 0.2, **ALONE}, {"mode": "assay"}, "exchange"),
        ({"loss": 0.2, "tiers": (0,)}, {"tiers": (0, 1)}, "two clients"),
        ({"bandwidth": 1e5, **ALONE}, {"mode": "assay"}, "exchange"),
        ({"support": "leader", "tiers": (0,)}, {"tiers": (0, 1)}, "two clients"),
        ({"schedule": "constant", "final_lr": 1e-4}, {"schedule": "wsd"}, "'constant' has none"),
        ({"store": ("updates",), **ALONE}, {"mode": "assay"}, "neither payloads nor updates"),
        ({"store": ("model",), "store_steps": 4}, {"store": ("gradients",)}, "of each round"),
    ],
)  # fmt: skip
def test_what_does_nothing(settings, does, message):
    """Told with what it needs; with that it is accepted, and so it is if one arm of several has that."""
    idle = replace(CONFIG, final_lr=4e-5)
    idle = replace(idle, **settings)
    acts = replace(idle, **does)
    with pytest.raises(ConfigError, match=f"(?s)does nothing here.*{message}"):
        check([idle], None)
    refuse_idle([acts])
    refuse_idle([idle, acts])


def test_a_default_is_never_idle():
    """Not even where nothing is exchanged, by one client."""
    for config in (
        SwarmConfig(),
        SwarmConfig(mode="local-adamw", tiers=(0,)),
        SwarmConfig(schedule="constant"),
        replace(CONFIG, mode="local-adamw", top_k=4),
    ):
        refuse_idle([config])


def test_an_idle_arm_beside_one_that_leaves_it_out():
    """What acts in another arm does not excuse an arm in which the setting is idle."""
    idle = replace(CONFIG, distill_k=4, batches="same")
    acts = replace(CONFIG, distill_beta=0.5, batches="same")
    with pytest.raises(ConfigError, match="distill_k = 4 does nothing"):
        refuse_idle([idle, acts])
