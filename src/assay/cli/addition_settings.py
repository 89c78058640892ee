"""Settings of the addition engine on the command line: --set name=value, and what there is to set."""

import ast
import inspect
import json
import math
from collections.abc import Sequence
from dataclasses import fields

from assay.cli.options import assigned, checked
from assay.core.errors import ConfigError
from assay.engines.addition import config as schema
from assay.engines.addition.config import AdditionConfig


def config_from(settings: Sequence[str]) -> AdditionConfig:
    """A configuration from name=value texts; the schedule follows `steps` where it is not given."""
    values = assigned(settings, "d_model=8")
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"--set {name} must be a finite number; got {json.dumps(value)}.")
    steps = values.get("steps")
    if isinstance(steps, int) and steps > 0:
        default = AdditionConfig()
        share = steps / default.steps
        values.setdefault("warmup_steps", round(default.warmup_steps * share))
        ends = [max(1, round(end * share)) for *_, end in default.curriculum]
        phases = [[*phase[:2], end] for phase, end in zip(default.curriculum, ends, strict=True)]
        # In a very short run several phases would end at one step: the last of them stays.
        kept = [p for p, after in zip(phases, [*ends[1:], math.inf], strict=True) if p[2] < after]
        values.setdefault("curriculum", kept)
    return checked(AdditionConfig, values, listing="assay addition settings")


def settings() -> None:
    """List every setting of --set and of a study's [config], with its default and meaning.

    With --set steps=N alone, warm-up (5 % of the steps) and curriculum follow the steps.
    """
    tree = ast.parse(inspect.getsource(schema))
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "AdditionConfig")
    says: dict[str, str] = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr):
            assert isinstance(before.target, ast.Name)
            assert isinstance(after.value, ast.Constant)
            says[before.target.id] = " ".join(str(after.value.value).split())
    for field in fields(AdditionConfig):
        print(f"{field.name} = {json.dumps(field.default)}\n    {says[field.name]}")
