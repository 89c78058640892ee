"""Frozen task: backpropagation trains a net, then an estimator learns on it as it stands.

What the credit is worth is measured twice: against the true costates, and by what local updates do
to the loss, beside the same measures of the true credit (`method = "bp"`) and of credit with its
sign turned round (`negated`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from assay.core.engine import RunContext
from assay.core.errors import ConfigError
from assay.engines.credit import exploit
from assay.engines.credit.config import STACKABLE, FrozenConfig
from assay.engines.credit.diagnostics import in_float64
from assay.engines.credit.estimators.base import Estimator, fitted
from assay.engines.credit.exploit import Batch, Rule
from assay.engines.credit.firewall import View
from assay.engines.credit.loop import compute
from assay.engines.credit.net import Net
from assay.engines.credit.surrogates import gradients
from assay.engines.credit.train import Training, scores, state_bytes

LOCAL_STEPS = 5


def run(configs: Sequence[FrozenConfig], contexts: Sequence[RunContext]) -> None:
    """Snapshot, estimator, measures; or until it is asked to stop.

    Args:
        configs: One a run; they may differ in the settings named by `STACKABLE`.
        contexts: One a run.
    """
    compute(Frozen, configs, contexts, stackable=STACKABLE, state_bytes=state_bytes(configs[0]))


class Frozen(Training):
    """First the net's epochs, then the estimator's; steps count both.

    Args:
        configs: One a run.
        contexts: One a run.
    """

    def __init__(self, configs: Sequence[FrozenConfig], contexts: Sequence[RunContext]) -> None:
        super().__init__(configs, contexts)
        self.frozen = configs[0]
        least = min(len(self.data[0].train), len(self.data[0].val), len(self.data[0].test))
        if self.frozen.exploit_batch > least:
            raise ConfigError(
                f"exploit_batch must be at most the samples of the smallest part of {self.config.data!r}, "
                f"{least}; got {self.frozen.exploit_batch}."
            )
        self.net_steps = self.frozen.snapshot_epochs * self.orders[0].batches
        self.steps += self.net_steps

    def advance(self) -> None:
        """One step of the net by backpropagation, or one of the estimator."""
        trajectory = self.net.trajectory(*self.batch())
        if self.step < self.net_steps:
            self.update(gradients(self.net, trajectory, self.net.costates(trajectory)))
        else:
            estimator = self.learners.estimator
            view = View(self.net, estimator.name, estimator.derivatives)
            for _ in range(self.config.est_steps):
                self.fit = fitted(estimator, trajectory, view)
        self.loss_S = trajectory.loss_SB.mean(1)
        self.step += 1

    def measured(self, split: str) -> list[dict[str, float]]:
        """The same as online once the estimator learns, and at the end what its credit can be used for."""
        if self.step <= self.net_steps:
            scored = scores(self.net, [d.val if split == "val" else d.test for d in self.data])
            return [{f"{split}/{name}": v for name, v in each.items()} for each in scored]
        found = super().measured(split)
        if split == "test":
            for values, more in zip(found, self.exploited(), strict=True):
                values |= more
        return found

    def exploited(self) -> list[dict[str, float]]:
        """Loss changes of five local steps and of line searches, means over batches; by metric name."""
        sums: dict[str, Tensor] = {}
        count, net = self.frozen.exploit_batches, self.net.to(torch.float64)
        with in_float64(self.learners.estimator) as estimator:
            for number in range(count):
                three = exploit.triple(self.data, number, self.frozen.exploit_batch)
                for name, value in self._one(net, estimator, three).items():
                    sums[name] = sums.get(name, 0) + value / count
        return [
            {name: float(value[run]) for name, value in sums.items()}
            for run in range(len(self.contexts))
        ]

    def _one(
        self, net: Net, estimator: Estimator, three: tuple[Batch, Batch, Batch]
    ) -> dict[str, Tensor]:
        config, (same, _, held) = self.frozen, three
        sign = -1.0 if config.negated else 1.0
        rule = Rule(
            normalise=config.normalise,
            surrogate=config.surrogate,
            eta=config.target_eta,
            clamp=config.clamp,
            sign=sign,
        )
        after = exploit.after_steps(
            net,
            estimator,
            same,
            rule,
            steps=LOCAL_STEPS,
            eta=config.exploit_lr,
            anew=config.exploit_anew,
        )
        found = {
            f"exploit/steps_{name}_nats": exploit.loss(after, batch) - exploit.loss(net, batch)
            for name, batch in (("same", same), ("held", held))
        }
        for (where, kind), changes in exploit.searches(net, estimator, three, rule).items():
            found |= {f"exploit/{where}_{kind}_{name}_nats": v for name, v in changes.items()}
        return found
