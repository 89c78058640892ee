"""The state of a cohort: stacked numbers, and what each run remembers beside them.

Suffixes, this file: S = seeds, P = numbers of a flat row.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from assay.core.config import canonical, to_plain
from assay.core.engine import RunContext
from assay.core.errors import CheckpointError
from assay.engines.addition.checkpoint import dump, parse
from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.data import Exclusion, Sampler, holdout
from assay.engines.addition.evaluate import Score
from assay.engines.addition.model import Parameters
from assay.engines.addition.optim import AdamW

KEPT = ("step", "best_val", "best_loss", "best_step", "grok_step")
"""Attributes of a `Run` that a checkpoint holds."""


class Run:
    """One run of the cohort: its data, and what it remembers."""

    def __init__(self, config: AdditionConfig, context: RunContext) -> None:
        self.config, self.context = config, context
        data_seed = context.seeds["data"]
        self.held = holdout(data_seed, config.val_size, config.test_size)
        tests = [holdout(s, config.val_size, config.test_size).test for s in config.test_seeds]
        # The source leaves out the run's own pairs only; here no test pair can be trained on.
        excluded = Exclusion(self.held.val, self.held.test, *tests)
        self.sampler = Sampler(config, data_seed, excluded)
        self.step = 0
        self.best_val, self.best_loss, self.best_step = -1.0, math.inf, 0
        self.grok_step = 0
        self.loss, self.grad_norm = math.nan, math.nan
        self.val: Score | None = None
        self.is_finite = True
        self.is_dead = False

    def judge(self, val: Score) -> bool:
        """Take note of an evaluation; whether it is the best so far (of equal ones, by loss)."""
        self.val = val
        if not self.grok_step and val.exact_match >= self.config.grok_threshold:
            self.grok_step = self.step
        is_better = val.exact_match > self.best_val or (
            val.exact_match == self.best_val and val.loss_nats < self.best_loss
        )
        if is_better:
            self.best_val = val.exact_match
            self.best_loss = val.loss_nats if math.isfinite(val.loss_nats) else math.inf
            self.best_step = self.step
        dead_at = self.config.stop_dead_at
        self.is_dead = dead_at == self.step and self.best_val < self.config.stop_dead_below
        return is_better


class Cohort:
    """Runs that are trained together, and their numbers stacked in the same order."""

    def __init__(self, runs: Sequence[Run], parameters: Parameters, best: Parameters) -> None:
        self.runs = list(runs)
        self.parameters, self.best = parameters, best
        self.optimizer = AdamW(parameters.rows_SP, [run.config for run in runs])

    @classmethod
    def start(cls, configs: Sequence[AdditionConfig], contexts: Sequence[RunContext]) -> "Cohort":
        """Fresh runs, or where a context has a checkpoint, the run from there."""
        runs = [Run(*pair) for pair in zip(configs, contexts, strict=True)]
        seeds = [context.seeds["init"] for context in contexts]
        parameters = Parameters.initial(configs[0], seeds)
        best = parameters.select(range(len(runs)))
        cohort = cls(runs, parameters, best)
        for index in range(len(runs)):
            cohort._resume(index)
        device = contexts[0].device
        return cohort if device == "cpu" else cohort._on(device)

    def select(self, indices: Sequence[int]) -> "Cohort":
        """Some of the runs, with copies of their numbers."""
        chosen = Cohort(
            [self.runs[i] for i in indices],
            self.parameters.select(indices),
            self.best.select(indices),
        )
        chosen.optimizer = self.optimizer.select(indices, chosen.parameters.rows_SP)
        return chosen

    def by_step(self) -> list["Cohort"]:
        """Cohorts of runs that stand at the same step."""
        steps = sorted({run.step for run in self.runs})
        if len(steps) == 1:
            return [self]
        return [
            self.select([i for i, run in enumerate(self.runs) if run.step == step])
            for step in steps
        ]

    def save(self, index: int) -> None:
        """Hand over everything from which a run can go on."""
        run = self.runs[index]
        tensors = {name: place[index].cpu() for name, place in self._places().items()}
        about: dict[str, Any] = {
            "kind": "training state",
            "config": to_plain(run.config),
            "seeds": dict(run.context.seeds),
            **{name: getattr(run, name) for name in KEPT},
        }
        if math.isinf(run.best_loss):  # JSON has no infinity
            about["best_loss"] = None
        # The row of this step is logged by now: a resumed run logs the next one.
        run.context.save_checkpoint(run.step + 1, dump(tensors, about))

    def _places(self) -> dict[str, Tensor]:
        return {
            "row": self.parameters.rows_SP,
            "frozen": self.parameters.frozen_SP,
            "best": self.best.rows_SP,
            **{name: getattr(self.optimizer, name) for name in AdamW.STATE},
        }

    def _on(self, device: str) -> "Cohort":
        moved = Cohort(self.runs, self.parameters.to(device), self.best.to(device))
        for name in AdamW.STATE:
            setattr(moved.optimizer, name, getattr(self.optimizer, name).to(device))
        return moved

    def _resume(self, index: int) -> None:
        """Take over the last checkpoint of a run, if there is one.

        Raises:
            CheckpointError: It belongs to another configuration or to other seeds, or is damaged.
        """
        run = self.runs[index]
        found = run.context.load_checkpoint()
        if found is None:
            return
        where = f"checkpoint of step {found[0]}"
        tensors, about = parse(found[1], where=where)
        _check_same(run, about, where)
        places = self._places()
        fits = set(tensors) == set(places) and all(
            tensors[name].shape == place[index].shape for name, place in places.items()
        )
        if not fits or any(name not in about for name in KEPT):
            raise CheckpointError(
                f"the {where} must hold {', '.join(places)} of this configuration and "
                f"{', '.join(KEPT)}; it does not. It is damaged, or from another version of the "
                "engine: delete it, and the run starts again."
            )
        for name, place in places.items():
            place[index].copy_(tensors[name])
        for name in KEPT:
            value = about[name]
            setattr(run, name, math.inf if value is None else value)


def _check_same(run: Run, about: dict[str, Any], where: str) -> None:
    own = {"config": to_plain(run.config), "seeds": dict(run.context.seeds)}
    for name, now in own.items():
        then = about.get(name) or {}
        changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        if changed:
            was = ", ".join(f"{key} = {canonical(then.get(key))}" for key in changed)
            is_now = ", ".join(f"{key} = {canonical(now.get(key))}" for key in changed)
            raise CheckpointError(
                f"a run goes on only with its own {name}; its {where} has {was}, now it is "
                f"{is_now}. Give the changed run a folder of its own, or delete the checkpoint."
            )


def boundary(config: AdditionConfig, step: int, block: int) -> int:
    """Where to look up from training next: the end of a block, an evaluation, or the end."""
    ends = [(step // every + 1) * every for every in (block, config.eval_interval)]
    return min(*ends, config.steps)


def device_error(device: str) -> str:
    """Why torch cannot compute on a device; empty if it can."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return str(error).splitlines()[0]
    return ""
