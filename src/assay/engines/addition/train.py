"""The training loop of the addition engine: one cohort of runs.

Each run has its own examples, optimizer state and learning rate; the numbers of all runs lie
stacked, and a step is one call for all. Nothing passes between runs: seed s in a cohort equals
seed s alone, and an interrupted run equals an uninterrupted one, bit for bit on the CPU. The lab
divides a cohort among processes to use more cores; within one process the kernel can use several
threads, which changes no result.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from assay.core.config import canonical, to_plain
from assay.core.engine import RunContext
from assay.core.errors import ConfigError
from assay.engines.addition.backend import Backend, Eager, choose
from assay.engines.addition.checkpoint import dump_model
from assay.engines.addition.config import PUBLIC_TEST_SEEDS, STACKABLE, AdditionConfig
from assay.engines.addition.data import BLOCK_STEPS
from assay.engines.addition.evaluate import report, score, score_test_sets, total
from assay.engines.addition.finish import Finisher
from assay.engines.addition.layout import layout, num_parameters
from assay.engines.addition.optim import learning_rate
from assay.engines.addition.state import Cohort, Run, boundary, device_error


def train(configs: Sequence[AdditionConfig], contexts: Sequence[RunContext]) -> None:
    """Train one cohort to the end, or until it is asked to stop.

    Args:
        configs: One a run; they may differ in the settings named by `STACKABLE`.
        contexts: One a run.
    """
    _check_cohort(configs, contexts)
    device = contexts[0].device
    with _torch_on_one_thread():
        backend = choose(configs[0], device=device, threads=contexts[0].threads)
        if type(backend) is Eager:
            contexts[0].event("eager", f"computing with {backend.what}: many times slower")
        whole = Cohort.start(configs, contexts)
        pace = Pace(whole.runs)
        for cohort in whole.by_step():
            if not _train_together(cohort, backend, pace):
                return
        pace.close()


def _train_together(cohort: Cohort, backend: Backend, pace: "Pace") -> bool:
    """Train runs that stand at one step to their end; False if asked to stop before."""
    config = cohort.runs[0].config
    examples = Examples()
    while cohort.runs and (step := cohort.runs[0].step) < config.steps:
        until = boundary(config, step, BLOCK_STEPS)
        advance(cohort, backend, examples, until=until)
        if until % config.eval_interval == 0 or until == config.steps:
            evaluate(cohort, backend)
            dead = [i for i, run in enumerate(cohort.runs) if run.is_dead]
            if dead:
                for index in dead:
                    finish(cohort, index, backend)
                cohort = cohort.select([i for i in range(len(cohort.runs)) if i not in dead])
                examples = Examples()
        pace.show()
        if any(run.context.should_stop() for run in cohort.runs):
            for index in range(len(cohort.runs)):
                cohort.save(index)
            return False
    for index in range(len(cohort.runs)):
        finish(cohort, index, backend)
    return True


class Examples:
    """The operands of the current block of steps, stacked by run."""

    def __init__(self) -> None:
        self._index = -1
        self._a_KSB = self._b_KSB = torch.empty(0)

    def at(self, runs: Sequence[Run], step: int) -> tuple[Tensor, Tensor]:
        """Operands [S, B] (float64) of the update that follows `step` updates."""
        index, offset = divmod(step, BLOCK_STEPS)
        if index != self._index:
            drawn = [run.sampler.block(index) for run in runs]
            a_KSB, b_KSB = (np.stack(side, 1) for side in zip(*drawn, strict=True))
            device = runs[0].context.device
            self._a_KSB = torch.from_numpy(a_KSB).to(device)
            self._b_KSB = torch.from_numpy(b_KSB).to(device)
            self._index = index
        return self._a_KSB[offset], self._b_KSB[offset]


def advance(cohort: Cohort, backend: Backend, examples: Examples, *, until: int) -> None:
    """Train up to `until` updates."""
    first = cohort.runs[0].step
    for step in range(first, until):
        a_SB, b_SB = examples.at(cohort.runs, step)
        loss_S, grad_SP = backend.gradient(cohort.parameters, a_SB, b_SB)
        norm_S = cohort.optimizer.step(grad_SP, step=step)
    for run, loss, norm in zip(cohort.runs, loss_S.tolist(), norm_S.tolist(), strict=True):
        run.step, run.loss, run.grad_norm = until, loss, norm


def evaluate(cohort: Cohort, backend: Backend) -> None:
    """Measure every run on its validation pairs, keep its best weights, log and save."""
    for index, run in enumerate(cohort.runs):
        val = score(cohort.parameters, index, run.held.val, backend)
        if run.judge(val):
            cohort.best.rows_SP[index].copy_(cohort.parameters.rows_SP[index])
        values = {
            "train/loss_nats": run.loss,
            "train/grad_norm": run.grad_norm,
            "train/lr": learning_rate(run.config, run.step - 1),
            "val/loss_nats": val.loss_nats,
            "val/exact_match": val.exact_match,
            "val/token_accuracy": val.token_accuracy,
        }
        run.context.log(values, step=run.step)
        if run.is_finite and not math.isfinite(run.loss):
            run.is_finite = False
            run.context.event("diverged", f"the training loss is no number at step {run.step}")
        cohort.save(index)


def finish(cohort: Cohort, index: int, backend: Backend) -> None:
    """Judge the best weights of a run on the test sets; hand over weights and results."""
    run = cohort.runs[index]
    config, context = run.config, run.context
    if run.is_dead:
        context.event(
            "stopped",
            f"given up at step {run.step}: exact match {run.best_val} on the validation pairs is "
            f"below stop_dead_below = {config.stop_dead_below}",
        )
    extra = 0
    if config.finish and not run.is_dead:
        best = cohort.best.select([index])
        extra = Finisher(run, best, backend).work()
        cohort.best.rows_SP[index].copy_(best.rows_SP[0])
    scores = score_test_sets(config, cohort.best, index, backend)
    whole = total(list(scores.values()))
    about = {"seeds": dict(context.seeds), "step": run.step, "val_exact_match": run.best_val}
    context.save("last.safetensors", dump_model(config, cohort.parameters, index, about))
    about["step"] = run.best_step
    context.save("best.safetensors", dump_model(config, cohort.best, index, about))
    final = {
        "model/parameters": float(num_parameters(config)),
        "test/exact_match": whole.exact_match,
        "test/errors": float(whole.errors),
        "val/best_exact_match": run.best_val,
        "val/best_step": float(run.best_step),
    }
    final |= {
        f"test/exact_match_set_{seed}": s.exact_match
        for seed, s in scores.items()
        if seed in PUBLIC_TEST_SEEDS
    }
    if run.grok_step:
        final["val/grok_step"] = float(run.grok_step)
    plain = {
        "config": to_plain(config),
        "seeds": dict(context.seeds),
        "parameters": layout(config).count(),
        "frozen": {slot.name: slot.numel for slot in layout(config).frozen},
        "backend": backend.what,
        "steps": run.step,
        "best_step": run.best_step,
        "best_val_exact_match": run.best_val,
        "grok_step": run.grok_step or None,
        "multi_seed_validation": report(scores),
    }
    context.save("summary.json", canonical(plain).encode())
    context.summary(final)
    context.spent(steps=run.step, examples=(run.step + extra) * config.batch_size)


def _check_cohort(configs: Sequence[AdditionConfig], contexts: Sequence[RunContext]) -> None:
    first = configs[0]
    for config in configs:
        alike = replace(config, **{name: getattr(first, name) for name in STACKABLE})
        if alike != first:
            raise ConfigError(
                "the runs of a cohort may differ only in their seeds and in "
                f"{', '.join(sorted(STACKABLE))}; got {config} beside {first}. Train them apart."
            )
    reason = device_error(contexts[0].device)
    if reason:
        raise ConfigError(
            f"device must be one that torch can use here; got {contexts[0].device!r} ({reason}). "
            "'cpu' is always there."
        )


class Pace:
    """Speed of the cohort, and when to tell the live display."""

    INTERVAL_S = 0.5

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = list(runs)
        self._start = self._shown = time.perf_counter()
        self._before = self._last = self._done()
        self._speed = math.nan

    def _done(self) -> int:
        return sum(run.step for run in self._runs)

    def show(self) -> None:
        """Pass progress on, at most every half second."""
        now = time.perf_counter()
        if now - self._shown < self.INTERVAL_S:
            return
        done = self._done()
        self._speed = (done - self._last) / (now - self._shown)
        self._shown, self._last = now, done
        for run in self._runs:
            shown = {"loss": run.loss, "model-steps/s": self._speed}
            if run.val is not None:
                shown["exact match"] = run.val.exact_match
            run.context.progress(run.step, run.config.steps, shown)

    def close(self) -> None:
        """Record the speed of this attempt, if it trained at all."""
        steps = self._done() - self._before
        speed = steps / (time.perf_counter() - self._start)
        for run in self._runs:
            run.context.progress(run.step, run.config.steps, {"exact match": run.best_val})
            if steps:
                run.context.summary({"speed/model_steps_per_s": speed})


@contextmanager
def _torch_on_one_thread() -> Iterator[None]:
    """Torch operations on the calling thread, without autograd.

    They are too small for a second thread to pay, and with two one process in sixty differed in
    the last bits from the others.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)
