"""Online training: a net that learns from estimated credit while the estimator learns too."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from assay.core.engine import RunContext
from assay.core.errors import ConfigError
from assay.engines.credit import data as data_module
from assay.engines.credit import diagnostics, exploit
from assay.engines.credit.cohort import begin, generator, shared
from assay.engines.credit.config import STACKABLE, TrainConfig
from assay.engines.credit.data import Data, Part
from assay.engines.credit.estimators.base import Setting, credit_of, fitted, gradients_of
from assay.engines.credit.estimators.fixed import DirectFeedback
from assay.engines.credit.firewall import View
from assay.engines.credit.loop import compute
from assay.engines.credit.net import Net, Shape, Trajectory, count
from assay.engines.credit.optim import beside, clip_each, cosine_pace
from assay.engines.credit.surrogates import cosine, gradients, lesson_of

WARMUP_STREAM, ORDER_STREAM, LAST_STREAM = 2, 3, 4
AUGMENT_STREAM = 1 << 32
ROWS = 4096


def train(configs: Sequence[TrainConfig], contexts: Sequence[RunContext]) -> None:
    """Train one cohort to the end, or until it is asked to stop.

    Args:
        configs: One a run; they may differ in the settings named by `STACKABLE`.
        contexts: One a run.
    """
    compute(Training, configs, contexts, stackable=STACKABLE, state_bytes=state_bytes(configs[0]))


def state_bytes(config: TrainConfig) -> int:
    """Bytes of one run's hidden states of one batch."""
    return 4 * (config.depth + 1) * config.batch * config.width


class Training:
    """A cohort and its data: of runs, of which several may be measured on one row of the stack.

    Args:
        configs: One a run.
        contexts: One a run.
    """

    alike: frozenset[str] = frozenset()
    """Settings that change nothing of the training: runs that differ in no other share a row."""

    def __init__(self, configs: Sequence[TrainConfig], contexts: Sequence[RunContext]) -> None:
        self.configs, self.contexts, self.config = configs, contexts, configs[0]
        groups = shared(configs, contexts, self.alike)
        row = {place: number for number, group in enumerate(groups) for place in group}
        self.rows = [row[place] for place in range(len(contexts))]
        own = [(configs[group[0]], contexts[group[0]]) for group in groups]
        self.data = [data_module.load(a, b.data_dir, b.seeds["data"]) for a, b in own]
        if self.config.augment and self.data[0].image is None:
            raise ConfigError(
                f"augment needs colour images, [N, height, width, 3]; those of {self.config.data!r} are not."
            )
        self.shape = shape_of(self.config, self.data[0])
        self.seeds = [context.seeds["init"] for _, context in own]
        self.learners = begin(
            self.shape,
            [config for config, _ in own],
            self.seeds,
            alpha=[config.alpha for config, _ in own],
            gain=[config.gain for config, _ in own],
            optimizer=self.config.optimizer,
            weight_decay=[config.weight_decay for config, _ in own],
            rows=self.rows,
        )
        self.orders = [
            Order(len(d.train), self.config.batch, context.seeds["data"])
            for d, (_, context) in zip(self.data, own, strict=True)
        ]
        self.steps = self.config.epochs * self.orders[0].batches
        self.net_steps = self.steps
        self.step = 0
        self.loss_S = torch.full((len(configs),), math.nan)
        self.fit: dict[str, Tensor] = {}
        setting = self.learners.estimator.setting
        self.lr_S = setting.each("lr")
        # In float64 and rounded: 0.6 of 25 steps are 15, not what float32 makes of it.
        self.warm_steps_S = torch.tensor([round(c.warmup * self.steps) for c, _ in own])
        # Drawn from streams of their own, so that a warm-up changes nothing else.
        self.warm = DirectFeedback(
            Setting(
                self.shape,
                [config for config, _ in own],
                [generator(s, WARMUP_STREAM) for s in self.seeds],
            )
        )
        self.last_feedback_SCD: Tensor | None = None
        if self.config.last == "dfa":
            size = (self.shape.classes, self.shape.width)
            drawn = [torch.randn(size, generator=generator(s, LAST_STREAM)) for s in self.seeds]
            self.last_feedback_SCD = torch.stack(drawn) / self.shape.classes**0.5

    @property
    def net(self) -> Net:
        """Of all rows."""
        return self.learners.net

    def restore(self) -> None:
        """Go on from checkpoints, where there are any."""
        self.step = self.learners.restore(self.contexts)

    def save(self) -> None:
        """Checkpoints of all runs."""
        self.learners.save(self.contexts, self.step)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Inputs [S, B, I] and labels [S, B] of the next step."""
        chosen = [order.at(self.step) for order in self.orders]
        parts = [d.train for d in self.data]
        size = (len(parts), len(chosen[0]))
        x_SBI = parts[0].x_NI.new_empty(*size, self.shape.inputs)
        y_SB = parts[0].y_N.new_empty(size)
        for x, y, part, taken in zip(x_SBI, y_SB, parts, chosen, strict=True):
            torch.index_select(part.x_NI, 0, taken, out=x)
            torch.index_select(part.y_N, 0, taken, out=y)
        if self.config.augment:
            stream = AUGMENT_STREAM + self.step
            for x, d, order in zip(x_SBI, self.data, self.orders, strict=True):
                assert d.image is not None
                x.copy_(data_module.augmented(x, d.image, generator(order.seed, stream)))
        return x_SBI, y_SB

    def advance(self) -> None:
        """One step of every run: the estimator's, then the net's."""
        estimator, net = self.learners.estimator, self.net
        trajectory = net.trajectory(*self.batch())
        view = View(net, estimator.name, estimator.derivatives)
        for _ in range(self.config.est_steps):
            self.fit = fitted(estimator, trajectory, view)
        credit = self.credit(trajectory, view)
        own = gradients_of(estimator, trajectory, view) or {}
        config, is_warming = self.config, self.is_warming()
        for number in range(config.surrogate_steps):
            found = gradients(
                net, trajectory, credit, config.surrogate, config.target_eta, again=number > 0
            )
            for name, g in own.items():
                found[name] = torch.where(beside(is_warming, g), found[name], g)
            self.update(found)
        self.loss_S = trajectory.loss_SB.mean(1)[self.rows]
        self.step += 1

    def is_warming(self) -> Tensor:
        """Which runs' nets learn from DFA's credit in the coming step, [S]."""
        return self.step < self.warm_steps_S

    def credit(self, trajectory: Trajectory, view: View) -> Tensor:
        """What the blocks learn from: of h_0 … h_L, warm-up and normalisation included."""
        guessed = credit_of(self.learners.estimator, trajectory, view)
        is_warming = self.is_warming()
        if is_warming.any():
            warm = self.warm.credit(trajectory, view)
            guessed = torch.where(is_warming.view(-1, 1, 1, 1), warm, guessed)
        return lesson_of(guessed, trajectory, self.last_feedback_SCD, self.config.normalise)

    def update(self, found: dict[str, Tensor]) -> None:
        """Clip, and advance the nets."""
        if self.config.clip:
            found = clipped(found, self.config.clip)
        lr_S = self.lr_S
        if self.config.schedule == "cosine":
            lr_S = lr_S * cosine_pace(self.step, self.net_steps)
        self.learners.optimizer.step(found, lr_S)

    def at_evaluation(self) -> bool:
        """Whether this step ends an epoch that is evaluated."""
        epoch, rest = divmod(self.step, self.orders[0].batches)
        return rest == 0 and (epoch % self.config.eval_interval == 0 or self.step == self.steps)

    def evaluate(self) -> None:
        """Measure on the validation part, log, save."""
        found = self.measured("val")
        for run, context in enumerate(self.contexts):
            values = {"train/loss_nats": float(self.loss_S[run])} | found[run]
            row = self.rows[run]
            values |= {f"train/{name}_loss": float(v[row]) for name, v in self.fit.items()}
            context.log(values, step=self.step)
            if not math.isfinite(values["train/loss_nats"]):
                context.event("diverged", f"the training loss is no number at step {self.step}")
        self.save()

    def measured(self, split: str) -> list[dict[str, float]]:
        """Loss, accuracy and credit of each run on a held-out part, by metric name."""
        parts = [d.val if split == "val" else d.test for d in self.data]
        scored = scores(self.net, parts)
        shown = min(self.config.measured, len(parts[0]))
        x = torch.stack([part.x_NI[:shown] for part in parts])
        y = torch.stack([part.y_N[:shown] for part in parts])
        credit = diagnostics.report(self.net, self.learners.estimator, x, y, self.seeds)
        agreement = self.update_cosine(exploit.Batch(x, y))
        return [
            {
                f"{split}/{name}": value
                for name, value in {**scored[row], **credit[row], "update_cosine": own}.items()
            }
            for row, own in zip(self.rows, agreement, strict=True)
        ]

    def update_cosine(self, batch: exploit.Batch) -> list[float]:
        """Cosine of each run's local gradients of encoder and blocks with the true gradient."""
        exact = self.net.to(torch.float64)
        wide = exploit.Batch(batch.x_SBI.double(), batch.y)
        trajectory = exact.trajectory(wide.x_SBI, wide.y)
        truth = gradients(exact, trajectory, exact.costates(trajectory))
        rules = [rule_of(config) for config in self.configs]
        found: dict[exploit.Rule, Tensor] = {}
        for rule in dict.fromkeys(rules):
            with_last = replace(rule, last_SCD=self.last_feedback_SCD)
            with diagnostics.in_float64(self.learners.estimator) as estimator:
                ours = exploit.update(exact, estimator, wide, with_last)
            found[rule] = cosine(ours, {name: truth[name] for name in ours})
        return [float(found[rule][row]) for rule, row in zip(rules, self.rows, strict=True)]

    def finish(self, seconds_per_step: float) -> None:
        """Judge on the test part; hand over weights and results."""
        found = self.measured("test")
        for run, context in enumerate(self.contexts):
            context.save("last.safetensors", self.learners.dump(run))
            context.summary(
                found[run]
                | {
                    "net/parameters": float(count(self.shape)),
                    "speed/seconds_per_step": seconds_per_step,
                }
            )
            context.spent(steps=self.step, samples=self.step * self.orders[0].batch)


def rule_of(config: TrainConfig) -> exploit.Rule:
    """How a run's credit becomes an update, before it is clipped."""
    return exploit.Rule(
        normalise=config.normalise, surrogate=config.surrogate, eta=config.target_eta
    )


def shape_of(config: TrainConfig, data: Data) -> Shape:
    """The nets that a configuration and its data ask for."""
    return Shape(
        inputs=data.inputs,
        width=config.width,
        depth=config.depth,
        classes=data.classes,
        block=config.block,
        activation=config.activation,
    )


def clipped(found: dict[str, Tensor], most: float) -> dict[str, Tensor]:
    """Gradients of which no block's, nor the encoder's, nor the head's is longer, in any run."""
    out: dict[str, Tensor] = {}
    for part, axes in (("encoder.", 1), ("blocks.", 2), ("head.", 1)):
        own = {name: g for name, g in found.items() if name.startswith(part)}
        if own:
            out |= clip_each(own, most, axes)
    return out


@torch.no_grad()
def scores(net: Net, parts: Sequence[Part]) -> list[dict[str, float]]:
    """Loss, accuracy and share of the commonest label of each run on its own samples, in pieces."""
    total = len(parts[0])
    loss, right = torch.zeros(len(parts)), torch.zeros(len(parts))
    for at in range(0, total, ROWS):
        x = torch.stack([part.x_NI[at : at + ROWS] for part in parts])
        y = torch.stack([part.y_N[at : at + ROWS] for part in parts])
        trajectory = net.trajectory(x, y)
        loss += trajectory.loss_SB.sum(1)
        right += (trajectory.logits_SBC.argmax(-1) == y).sum(1)
    return [
        {
            "loss_nats": float(a) / total,
            "accuracy": float(b) / total,
            "majority_rate": float(part.y_N.bincount().max()) / total,
        }
        for a, b, part in zip(loss, right, parts, strict=True)
    ]


class Order:
    """Which samples a step takes: a new order each epoch, from the seed and the epoch alone.

    Args:
        samples: How many there are.
        batch: How many a step takes.
        seed: Of the order.
    """

    def __init__(self, samples: int, batch: int, seed: int) -> None:
        self.batch = min(batch, samples)
        self.batches = samples // self.batch
        self.samples, self.seed = samples, seed
        self._epoch, self._order = -1, torch.empty(0)

    def at(self, step: int) -> Tensor:
        """Indices of the samples of the step that follows `step` steps."""
        epoch, place = divmod(step, self.batches)
        if epoch != self._epoch:
            drawn = generator(self.seed, 1000 * ORDER_STREAM + epoch)
            self._order = torch.randperm(self.samples, generator=drawn)
            self._epoch = epoch
        return self._order[place * self.batch : (place + 1) * self.batch]
