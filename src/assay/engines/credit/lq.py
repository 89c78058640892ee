"""Toy task: estimators alone on fixed linear dynamics, where the costate is known in closed form."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from assay.core.engine import RunContext
from assay.engines.credit import diagnostics
from assay.engines.credit.cohort import Learners, begin, generator
from assay.engines.credit.config import LQ_STACKABLE, LqConfig
from assay.engines.credit.estimators.base import fitted
from assay.engines.credit.firewall import View
from assay.engines.credit.loop import compute
from assay.engines.credit.net import Shape
from assay.engines.credit.optim import cosine_pace

HELD_STREAM, BATCH_STREAM = 5, 6


def run(configs: Sequence[LqConfig], contexts: Sequence[RunContext]) -> None:
    """Train the estimators of one cohort to the end, or until it is asked to stop.

    Args:
        configs: One a run; they may differ in the settings named by `LQ_STACKABLE`.
        contexts: One a run.
    """
    # The estimator's rows are many times wider than the states.
    wide = 4 * (configs[0].depth + 1) * configs[0].batch * configs[0].est_width
    compute(Toy, configs, contexts, stackable=LQ_STACKABLE, state_bytes=wide)


class Toy:
    """A cohort of estimators, each run with dynamics of its own.

    Args:
        configs: One a run.
        contexts: One a run.
    """

    def __init__(self, configs: Sequence[LqConfig], contexts: Sequence[RunContext]) -> None:
        self.contexts, self.config = contexts, configs[0]
        width = self.config.width
        shape = Shape(
            inputs=width,
            width=width,
            depth=self.config.depth,
            classes=width,
            block="linear",
            loss="quadratic",
        )
        self.seeds = [context.seeds["init"] for context in contexts]
        self.learners: Learners = begin(
            shape,
            configs,
            self.seeds,
            alpha=[1.0] * len(configs),
            gain=[config.gain for config in configs],
        )
        self.steps, self.step = self.config.steps, 0
        self.loss_S = torch.full((len(configs),), math.nan)
        self.fit: dict[str, Tensor] = {}

    def batch(self, stream: int, count: int) -> tuple[Tensor, Tensor]:
        """States h_0 and targets [S, B, D], each run's from the data seed and a stream alone."""
        drawn = torch.stack(
            [
                torch.randn(
                    2, count, self.config.width, generator=generator(c.seeds["data"], stream)
                )
                for c in self.contexts
            ],
            1,
        )
        return drawn[0], drawn[1]

    def advance(self) -> None:
        """One batch."""
        learners, config = self.learners, self.config
        x, y = self.batch(1000 * BATCH_STREAM + self.step, config.batch)
        trajectory = learners.net.trajectory(x, y)
        estimator = learners.estimator
        view = View(learners.net, estimator.name, estimator.derivatives)
        if config.schedule == "cosine":
            estimator.pace = cosine_pace(self.step, self.steps)
        for _ in range(config.est_steps):
            self.fit = fitted(estimator, trajectory, view)
        self.loss_S = trajectory.loss_SB.mean(1)
        self.step += 1

    def measured(self, split: str) -> list[dict[str, float]]:
        """Credit of each run on samples that it never learned from."""
        x, y = self.batch(HELD_STREAM + (split == "test"), self.config.measured)
        found = diagnostics.report(self.learners.net, self.learners.estimator, x, y, self.seeds)
        return [{f"{split}/{name}": value for name, value in each.items()} for each in found]

    def at_evaluation(self) -> bool:
        """Every eval_interval steps, and after the last."""
        return self.step % self.config.eval_interval == 0 or self.step == self.steps

    def evaluate(self) -> None:
        """Measure, log, save."""
        for run_, (context, found) in enumerate(
            zip(self.contexts, self.measured("val"), strict=True)
        ):
            fit = {f"train/{name}_loss": float(value[run_]) for name, value in self.fit.items()}
            context.log(fit | found, step=self.step)
        self.save()

    def save(self) -> None:
        """Checkpoints of all runs."""
        self.learners.save(self.contexts, self.step)

    def restore(self) -> None:
        """Go on from checkpoints, where there are any."""
        self.step = self.learners.restore(self.contexts)

    def finish(self, seconds_per_step: float) -> None:
        """Final values."""
        for run_, (context, found) in enumerate(
            zip(self.contexts, self.measured("test"), strict=True)
        ):
            context.save("last.safetensors", self.learners.dump(run_))
            context.summary(found | {"speed/seconds_per_step": seconds_per_step})
            context.spent(steps=self.step, samples=self.step * self.config.batch)
