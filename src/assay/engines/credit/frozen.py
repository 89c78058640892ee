"""Frozen task: backpropagation trains a net, then an estimator learns on it as it stands.

What the credit is worth is measured twice: against the true costates, and by what local updates do
to the loss, beside the same measures of the true credit (`method = "bp"`) and of credit with its
sign turned round (`negated`).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from assay.core.engine import RunContext
from assay.core.errors import ConfigError
from assay.engines.credit import exploit
from assay.engines.credit.config import STACKABLE, TRIED, FrozenConfig
from assay.engines.credit.diagnostics import in_float64
from assay.engines.credit.estimators.base import fitted
from assay.engines.credit.exploit import Rule
from assay.engines.credit.firewall import View
from assay.engines.credit.loop import compute
from assay.engines.credit.net import Net
from assay.engines.credit.surrogates import gradients
from assay.engines.credit.train import Training, rule_of, scores, state_bytes

LOCAL_STEPS = 5


def run(configs: Sequence[FrozenConfig], contexts: Sequence[RunContext]) -> None:
    """Snapshot, estimator, measures; or until it is asked to stop.

    Args:
        configs: One a run; they may differ in the settings named by `STACKABLE` and by `TRIED`.
        contexts: One a run.
    """
    compute(
        Frozen,
        configs,
        contexts,
        stackable=STACKABLE | TRIED,
        state_bytes=state_bytes(configs[0]),
        alike=TRIED,
    )


class Frozen(Training):
    """First the net's epochs, then the estimator's; steps count both.

    Args:
        configs: One a run.
        contexts: One a run.
    """

    alike = TRIED

    def __init__(self, configs: Sequence[FrozenConfig], contexts: Sequence[RunContext]) -> None:
        super().__init__(configs, contexts)
        self.frozen = configs
        least = min(len(self.data[0].train), len(self.data[0].val), len(self.data[0].test))
        if (most := max(config.exploit_batch for config in configs)) > least:
            raise ConfigError(
                f"exploit_batch must be at most the samples of the smallest part of {self.config.data!r}, "
                f"{least}; got {most}."
            )
        self.net_steps = configs[0].snapshot_epochs * self.orders[0].batches
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
        self.loss_S = trajectory.loss_SB.mean(1)[self.rows]
        self.step += 1

    def measured(self, split: str) -> list[dict[str, float]]:
        """The same as online once the estimator learns, and at the end what its credit can be used for."""
        if self.step <= self.net_steps:
            scored = scores(self.net, [d.val if split == "val" else d.test for d in self.data])
            return [{f"{split}/{name}": v for name, v in scored[row].items()} for row in self.rows]
        found = super().measured(split)
        if split == "test":
            for values, more in zip(found, self.exploited(), strict=True):
                values |= more
        return found

    def exploited(self) -> list[dict[str, float]]:
        """Loss changes of five local steps and of line searches, means over batches; by metric name, of each run."""
        net = self.net.to(torch.float64)
        found: list[dict[str, float]] = [{} for _ in self.frozen]
        for size, count in dict.fromkeys(map(_batches, self.frozen)):
            mine = [run for run, c in enumerate(self.frozen) if _batches(c) == (size, count)]
            for number in range(count):
                tried = self._tried(net, number, size, mine)
                for run, changes in zip(mine, tried, strict=True):
                    for name, change_S in changes.items():
                        share = float(change_S[self.rows[run]]) / count
                        found[run][name] = found[run].get(name, 0.0) + share
        return found

    def _tried(
        self, net: Net, number: int, size: int, runs: Sequence[int]
    ) -> list[dict[str, Tensor]]:
        """Of each of these runs what one triple of batches tells; what two runs ask alike is computed once."""
        three = exploit.triple(self.data, number, size)
        estimator = self.learners.estimator
        parts = {"same": three[0], "held": three[2]}
        before = {name: exploit.loss(net, batch) for name, batch in parts.items()}
        searched: dict[float, dict[str, Tensor]] = {}
        stepped: dict[tuple[Rule, float, bool], dict[str, Tensor]] = {}
        found = []
        for config in (self.frozen[run] for run in runs):
            rule = replace(
                rule_of(config), clamp=config.clamp, sign=-1.0 if config.negated else 1.0
            )
            # Of the rule a line search keeps no more than its sign.
            if config.line_searches and rule.sign not in searched:
                with in_float64(estimator, number) as wide:
                    along = exploit.searches(net, wide, three, rule)
                searched[rule.sign] = {
                    f"exploit/{where}_{kind}_{name}_nats": change
                    for (where, kind), each in along.items()
                    for name, change in each.items()
                }
            how = rule, config.exploit_lr, config.exploit_anew
            if how not in stepped:
                with in_float64(estimator, number) as wide:
                    after = exploit.after_steps(
                        net,
                        wide,
                        three[0],
                        rule,
                        steps=LOCAL_STEPS,
                        eta=config.exploit_lr,
                        anew=config.exploit_anew,
                    )
                stepped[how] = {
                    f"exploit/steps_{name}_nats": exploit.loss(after, batch) - before[name]
                    for name, batch in parts.items()
                }
            found.append(stepped[how] | (searched[rule.sign] if config.line_searches else {}))
        return found


def _batches(config: FrozenConfig) -> tuple[int, int]:
    """Size and number of the batches on which local updates are tried."""
    return config.exploit_batch, config.exploit_batches
