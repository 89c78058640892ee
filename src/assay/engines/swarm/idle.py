"""Settings that would do nothing: refused, since whoever sets them expects something of them.

A setting at its default is never idle. In a study one is idle only if it is in every arm that sets
it: what arms share stands in [config], also where only some of them have a use for it. How updates are
encoded is not looked at: "local-adamw" is what the same command does without an exchange.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import NamedTuple

from assay.core.config import to_plain
from assay.core.errors import ConfigError
from assay.engines.swarm.config import SwarmConfig


class Rule(NamedTuple):
    """What some settings need to do anything."""

    names: tuple[str, ...]
    acts: Callable[[SwarmConfig], bool]
    needs: str


def _helps(config: SwarmConfig) -> bool:
    return any(config.helpers(client) for client in range(len(config.tiers)))


def _exchanges(config: SwarmConfig) -> bool:
    return config.mode != "local-adamw"


def _travels(config: SwarmConfig) -> bool:
    return _exchanges(config) and len(config.tiers) > 1


def _gates(config: SwarmConfig) -> bool:
    """Whether any client has neurons of its own behind the core tier."""
    return any(
        tier < config.gate_tier or (tier == config.gate_tier and config.helpers(client) > 0)
        for client, tier in enumerate(config.tiers)
    )


RULES = (
    Rule(("helper_fractions",), lambda c: _helps(c) or not any(c.helper_fractions),
         "a client of tier 1 or narrower whose share makes at least one neuron"),
    Rule(("helper_interval",), _helps, "clients with helper neurons: helper_fractions"),
    Rule(("gate_tier", "gate_start", "gate_warmup"), lambda c: c.suffix_gate != "off",
         "suffix_gate 'linear' or 'cosine'"),
    Rule(("suffix_gate",), lambda c: c.suffix_gate == "off" or _gates(c),
         "a client that is wider than gate_tier"),
    Rule(("distill", "distill_k", "distill_temperature", "distill_start", "distill_warmup"),
         lambda c: c.distill_beta > 0, "distill_beta above 0"),
    Rule(("distill_beta",), lambda c: _exchanges(c) and c.distill_start < c.steps,
         "a mode that exchanges something, and distill_start below steps"),
    Rule(("width_power", "residual_power", "norm_power"), lambda c: any(c.tiers),
         "a client that is narrower than the full model"),
    Rule(("cold_rounds",), lambda c: _exchanges(c) and 0 < c.epoch_rounds < c.steps,
         "later epochs, with which clients join: epoch_rounds from 1 to below steps"),
    Rule(("latency_ms", "loss", "corrupt", "bandwidth"), _travels,
         "at least two clients, and a mode in which they exchange something"),
    Rule(("support",), _travels, "at least two clients, and a mode in which they exchange something"),
    Rule(("final_lr", "schedule_steps"), lambda c: c.schedule != "constant",
         "a schedule with an end; 'constant' has none"),
    Rule(("store",), lambda c: _exchanges(c) or not {"payloads", "updates"} & {*c.store},
         "a mode that exchanges something: 'local-adamw' has neither payloads nor updates"),
    Rule(("store_steps",), lambda c: bool({*c.store} - {"model"}),
         "store with something of each round: 'payloads', 'gradients' or 'updates'"),
)  # fmt: skip


def refuse_idle(configs: Sequence[SwarmConfig]) -> None:
    """Refuse a setting that does nothing wherever it is set.

    Args:
        configs: Of all runs that are planned together.

    Raises:
        ConfigError: With the setting, its value, and what it needs.
    """
    default = {field.name: field.default for field in fields(SwarmConfig)}
    for rule in RULES:
        for name in rule.names:
            found = [config for config in configs if getattr(config, name) != default[name]]
            if found and not any(map(rule.acts, found)):
                value = json.dumps(to_plain(found[0])[name])
                raise ConfigError(
                    f"{name} = {value} does nothing here: it needs {rule.needs}. Set that, or leave "
                    f"{name} out."
                )
