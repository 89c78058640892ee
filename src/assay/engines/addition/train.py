"""The training loop of the addition engine: one cohort of runs.

A cohort is a stack of parameter rows. Each run has its own generators, batches, optimizer state
and learning rate; runs take turns of some steps, so that a run's working set stays in the cache.
Nothing passes between runs: seed s in a cohort equals seed s alone, and an interrupted run equals
an uninterrupted one, bit for bit on the CPU. One process computes on one thread; the lab divides
a cohort among processes to use more cores.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from assay.core.config import canonical, to_plain
from assay.core.engine import RunContext
from assay.core.errors import CheckpointError, ConfigError
from assay.engines.addition.checkpoint import dump, dump_model, parse
from assay.engines.addition.config import (
    PUBLIC_TEST_SEEDS,
    STACKABLE,
    AdditionConfig,
    num_parameters,
    phase_at,
)
from assay.engines.addition.data import Exclusion, Sampler, holdout
from assay.engines.addition.evaluate import (
    Score,
    Workspace,
    report,
    score,
    score_test_sets,
    total,
)
from assay.engines.addition.layout import layout
from assay.engines.addition.model import Parameters, loss_and_grad
from assay.engines.addition.optim import AdamW, learning_rate

CHUNK_STEPS = 20
"""Steps of one run before the next has its turn."""


class Run:
    """One run of the cohort: all that it needs to go on."""

    def __init__(self, config: AdditionConfig, context: RunContext, stack: "Stack", index: int):
        self.config, self.context = config, context
        data_seed = context.seeds["data"]
        self.held = holdout(data_seed, config.val_size, config.test_size)
        tests = [holdout(s, config.val_size, config.test_size).test for s in config.test_seeds]
        # The source leaves out the run's own pairs only; here no test pair can be trained on.
        self.sampler = Sampler(data_seed, Exclusion(self.held.val, self.held.test, *tests))
        self.p, self.row = stack.parameters.seed(index), stack.parameters.rows_SP[index]
        self.g, self.grad = stack.gradients.seed(index), stack.gradients.rows_SP[index]
        self.best = stack.best.rows_SP[index]
        self.best_p = stack.best.seed(index)
        self.optimizer = AdamW(self.row)
        self.step = 0
        self.best_val, self.best_step = -1.0, 0
        self.grok_step = 0
        self.loss, self.grad_norm = torch.tensor(math.nan), torch.tensor(math.nan)
        self.val: Score | None = None
        self.scores: dict[int, Score] = {}
        self.is_finite = True

    def advance(self, work: Workspace, *, until: int) -> None:
        """Train up to `until` updates."""
        config = self.config
        while self.step < until:
            a, b = self.sampler.draw(config.batch_size, *phase_at(config, self.step))
            batch = work.encoder.encode(a, b)
            self.loss = loss_and_grad(self.p, self.g, self.grad, batch, work.kernel)
            self.grad_norm = self.optimizer.step(self.grad, step=self.step, config=config)
            self.step += 1

    def evaluate(self, work: Workspace) -> None:
        """Measure on the validation pairs and keep the weights if they are the best so far."""
        self.val = score(self.p, self.held.val, work)
        if self.val.exact_match > self.best_val:
            self.best_val, self.best_step = self.val.exact_match, self.step
            self.best.copy_(self.row)
        if not self.grok_step and self.val.exact_match >= self.config.grok_threshold:
            self.grok_step = self.step

    def record(self) -> None:
        """Log the state after an evaluation and save it."""
        assert self.val is not None
        values = {
            "train/loss_nats": float(self.loss),
            "train/grad_norm": float(self.grad_norm),
            "train/lr": learning_rate(self.config, self.step - 1),
            "val/loss_nats": self.val.loss_nats,
            "val/exact_match": self.val.exact_match,
            "val/token_accuracy": self.val.token_accuracy,
        }
        self.context.log(values, step=self.step)
        if self.is_finite and not math.isfinite(values["train/loss_nats"]):
            self.is_finite = False
            self.context.event("diverged", f"the training loss is no number at step {self.step}")
        self.save()

    def save(self) -> None:
        """Hand over everything from which the run can go on."""
        tensors = {
            "row": self.row,
            "mean": self.optimizer.mean_P,
            "square": self.optimizer.square_P,
            "best": self.best,
            "sampler": self.sampler.generator.get_state(),
        }
        about = {
            "kind": "training state",
            "config": to_plain(self.config),
            "seeds": dict(self.context.seeds),
            "step": self.step,
            "best_val": self.best_val,
            "best_step": self.best_step,
            "grok_step": self.grok_step,
        }
        # The row of this step is logged by now: a resumed run logs the next one.
        self.context.save_checkpoint(self.step + 1, dump(tensors, about))

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one.

        Raises:
            CheckpointError: It belongs to another configuration or to other seeds.
        """
        found = self.context.load_checkpoint()
        if found is None:
            return
        tensors, about = parse(found[1], where=f"checkpoint of step {found[0]}")
        own = {"config": to_plain(self.config), "seeds": dict(self.context.seeds)}
        for name, now in own.items():
            then = about.get(name) or {}
            changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
            if changed:
                was = ", ".join(f"{key} = {canonical(then.get(key))}" for key in changed)
                is_now = ", ".join(f"{key} = {canonical(now.get(key))}" for key in changed)
                raise CheckpointError(
                    f"a run goes on only with its own {name}; its checkpoint of step {found[0]} has "
                    f"{was}, now it is {is_now}. Give the changed run a folder of its own, or "
                    "delete the checkpoint."
                )
        places = {
            "row": self.row,
            "mean": self.optimizer.mean_P,
            "square": self.optimizer.square_P,
            "best": self.best,
        }
        if set(tensors) != {*places, "sampler"} or any(
            tensors[name].shape != place.shape for name, place in places.items()
        ):
            raise CheckpointError(
                f"the checkpoint of step {found[0]} must hold the rows {', '.join(places)} of "
                f"{len(self.row)} numbers and the sampler; it does not. It is damaged: delete it, "
                "and the run starts again."
            )
        for name, place in places.items():
            place.copy_(tensors[name])
        self.sampler.generator.set_state(tensors["sampler"])
        self.step, self.grok_step = about["step"], about["grok_step"]
        self.best_val, self.best_step = about["best_val"], about["best_step"]

    def test(self, work: Workspace) -> None:
        """Judge the best weights on the test sets."""
        self.scores = score_test_sets(self.config, self.best_p, work)

    def finish(self) -> None:
        """Hand over weights and results."""
        config, context, scores = self.config, self.context, self.scores
        whole = total(list(scores.values()))
        about = {"seeds": dict(context.seeds), "step": self.step, "val_exact_match": self.best_val}
        context.save("last.safetensors", dump_model(config, self.p, about))
        about["step"] = self.best_step
        context.save("best.safetensors", dump_model(config, self.best_p, about))
        final = {
            "model/parameters": float(num_parameters(config)),
            "test/exact_match": whole.exact_match,
            "test/errors": float(whole.errors),
            "val/best_exact_match": self.best_val,
            "val/best_step": float(self.best_step),
        }
        final |= {
            f"test/exact_match_set_{seed}": s.exact_match
            for seed, s in scores.items()
            if seed in PUBLIC_TEST_SEEDS
        }
        if self.grok_step:
            final["val/grok_step"] = float(self.grok_step)
        plain = {
            "config": to_plain(config),
            "seeds": dict(context.seeds),
            "parameters": layout(config).count(),
            "steps": self.step,
            "best_step": self.best_step,
            "best_val_exact_match": self.best_val,
            "grok_step": self.grok_step or None,
            "multi_seed_validation": report(scores),
        }
        context.save("summary.json", canonical(plain).encode())
        context.summary(final)
        context.spent(steps=self.step, examples=self.step * config.batch_size)


class Stack:
    """Parameters, gradients and best weights of a cohort, stacked by run."""

    def __init__(self, config: AdditionConfig, init_seeds: Sequence[int]) -> None:
        self.parameters = Parameters.initial(config, init_seeds)
        self.gradients = Parameters.zeros(config, len(init_seeds))
        self.best = Parameters.zeros(config, len(init_seeds))


def train(configs: Sequence[AdditionConfig], contexts: Sequence[RunContext]) -> None:
    """Train one cohort to the end, or until it is asked to stop.

    Args:
        configs: One a run; they may differ in the settings named by `STACKABLE`.
        contexts: One a run.
    """
    _check_cohort(configs, contexts)
    stack = Stack(configs[0], [context.seeds["init"] for context in contexts])
    pairs = zip(configs, contexts, strict=True)
    runs = [Run(config, context, stack, i) for i, (config, context) in enumerate(pairs)]
    for run in runs:
        run.resume()
    with _one_thread():
        work = Workspace(configs[0], configs[0].batch_size)
        pace = Pace(runs)
        while (step := min(run.step for run in runs)) < configs[0].steps:
            until = _boundary(configs[0], step)
            behind = [run for run in runs if run.step < until]
            for run in behind:
                run.advance(work, until=until)
            if until % configs[0].eval_interval == 0 or until == configs[0].steps:
                for run in behind:
                    run.evaluate(work)
                    run.record()
            pace.show(runs)
            if any(context.should_stop() for context in contexts):
                for run in behind:
                    run.save()
                return
        for run in runs:
            run.test(work)
            run.finish()
        pace.close(runs)


def _boundary(config: AdditionConfig, step: int) -> int:
    """Where to look up from training next: a chunk further, an evaluation, or the end."""
    chunk = (step // CHUNK_STEPS + 1) * CHUNK_STEPS
    evaluation = (step // config.eval_interval + 1) * config.eval_interval
    return min(chunk, evaluation, config.steps)


def _check_cohort(configs: Sequence[AdditionConfig], contexts: Sequence[RunContext]) -> None:
    first = configs[0]
    for config in configs:
        alike = replace(config, **{name: getattr(first, name) for name in STACKABLE})
        if alike != first:
            raise ConfigError(
                "the runs of a cohort may differ only in their seeds and in "
                f"{', '.join(sorted(STACKABLE))}; got {config} beside {first}. Train them apart."
            )
    for context in contexts:
        if context.device != "cpu":
            raise ConfigError(
                f"device must be 'cpu' for the addition engine; got {context.device!r}. It has no "
                "kernel for other devices yet."
            )


class Pace:
    """Speed of the cohort, and when to tell the live display."""

    INTERVAL_S = 0.5

    def __init__(self, runs: Sequence[Run]) -> None:
        self._start = self._shown = time.perf_counter()
        self._before = self._last = sum(run.step for run in runs)
        self._speed = math.nan

    def show(self, runs: Sequence[Run]) -> None:
        """Pass progress on, at most every half second."""
        now = time.perf_counter()
        if now - self._shown < self.INTERVAL_S:
            return
        done = sum(run.step for run in runs)
        self._speed = (done - self._last) / (now - self._shown)
        self._shown, self._last = now, done
        for run in runs:
            shown = {"loss": float(run.loss), "model-steps/s": self._speed}
            if run.val is not None:
                shown["exact match"] = run.val.exact_match
            run.context.progress(run.step, run.config.steps, shown)

    def close(self, runs: Sequence[Run]) -> None:
        """Record the speed of this attempt, if it trained at all."""
        steps = sum(run.step for run in runs) - self._before
        speed = steps / (time.perf_counter() - self._start)
        for run in runs:
            run.context.progress(run.step, run.config.steps, {"exact match": run.best_val})
            if steps:
                run.context.summary({"speed/model_steps_per_s": speed})


@contextmanager
def _one_thread() -> Iterator[None]:
    """Every operation on the calling thread, without autograd.

    A second thread gained 1.0 to 1.2 times (operations this small hold the interpreter), and one
    process in sixty then differed in the last bits from the others.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)
