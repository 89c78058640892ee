"""Finishing stages only improve, see no test pair, and are repeatable."""

import pytest
import torch

from assay.core.errors import ConfigError
from assay.engines.addition.backend import choose
from assay.engines.addition.data import Pairs
from assay.engines.addition.evaluate import score
from assay.engines.addition.finish import Finisher
from assay.engines.addition.state import Cohort
from assay.engines.addition.train import Examples, advance, evaluate, train

from .helpers import MemoryContext, small

EASY = {
    "d_model": 8,
    "d_ff": 28,
    "init": "scaled",
    "steps": 400,
    "warmup_steps": 40,
    "lr": 0.02,
    "batch_size": 128,
    "eval_interval": 100,
    "val_size": 300,
    "curriculum": ((1, 10, 400),),
    "finish_steps": 200,
}
"""Seconds of training: far from the goal, so that every stage has something to improve."""


def trained(**changes):
    config = small(**{**EASY, **changes})
    cohort = Cohort.start([config], [MemoryContext(3)])
    backend = choose(config, device="cpu", threads=1)
    with torch.no_grad():
        advance(cohort, backend, Examples(), until=config.steps)
        evaluate(cohort, backend)
    return cohort, backend


def loss_on(parameters, backend, run):
    return score(parameters, 0, run.held.val, backend).loss_nats


LENGTH = {"low-lr": 200, "lbfgs": 20, "cma-es": 12, "hard-negatives": 200}


@pytest.mark.parametrize("stage", LENGTH)
def test_a_stage_improves_or_keeps(stage):
    """Validation never gets worse, and each stage finds something better here."""
    cohort, backend = trained(finish=(stage,), finish_steps=LENGTH[stage])
    run = cohort.runs[0]
    before = (run.best_val, -loss_on(cohort.best, backend, run))
    row = cohort.best.rows_SP.clone()
    with torch.no_grad():
        spent = Finisher(run, cohort.best, backend).work()
    after = (run.best_val, -loss_on(cohort.best, backend, run))
    assert after > before
    assert not torch.equal(row, cohort.best.rows_SP)
    assert spent > 0
    assert [kind for kind, _ in run.context.events] == ["finish"]


def test_a_worse_proposal_is_refused():
    """Weights that are worse on the validation pairs, or no numbers, do not replace the best."""
    cohort, backend = trained()
    finisher = Finisher(cohort.runs[0], cohort.best, backend)
    kept = cohort.best.rows_SP.clone()
    worse = cohort.best.select([0])
    worse.rows_SP.mul_(0.5)
    broken = cohort.best.select([0])
    broken.rows_SP[0, 3] = float("nan")
    with torch.no_grad():
        finisher._offer(worse)
        finisher._offer(broken)
    assert torch.equal(cohort.best.rows_SP, kept)


def test_stages_are_repeatable_and_change_no_other_run():
    """A run with stages, in a cohort or alone, twice: the same bits."""
    config = small(**{**EASY, "steps": 60, "warmup_steps": 6, "eval_interval": 20})
    staged = small(
        **{
            **EASY,
            "steps": 60,
            "warmup_steps": 6,
            "eval_interval": 20,
            "finish": ("hard-negatives", "cma-es", "low-lr"),
            "finish_steps": 8,
        }
    )
    contexts = [MemoryContext(1), MemoryContext(2)]
    train([staged, staged], contexts)
    alone, plain = MemoryContext(2), MemoryContext(2)
    train([staged], [alone])
    train([config], [plain])
    assert alone.files["best.safetensors"] == contexts[1].files["best.safetensors"]
    assert alone.rows == plain.rows  # training itself is the same
    assert alone.files["best.safetensors"] != plain.files["best.safetensors"]
    assert alone.budget["examples"] > plain.budget["examples"]


def test_hard_negatives_are_errors_of_the_training_stream():
    """What is trained on was added wrong, and is no validation or test pair."""
    cohort, backend = trained()
    run = cohort.runs[0]
    finisher = Finisher(run, cohort.best, backend)
    with torch.no_grad():
        errors = finisher._errors(cohort.best)
        assert len(errors) > 0
        assert bool((backend.judge(cohort.best, 0, errors).wrong_N != 0).all())
    held = {
        pair
        for part in (run.held.val, run.held.test)
        for pair in zip(part.a.tolist(), part.b.tolist(), strict=True)
    }
    assert held.isdisjoint(zip(errors.a.tolist(), errors.b.tolist(), strict=True))


def test_without_errors_hard_negatives_end():
    """Nothing to repair: the stage stops after its search."""
    cohort, backend = trained()
    finisher = Finisher(cohort.runs[0], cohort.best, backend)
    nothing = Pairs(a=torch.empty(0, dtype=torch.float64), b=torch.empty(0, dtype=torch.float64))
    finisher._errors = lambda parameters: nothing  # type: ignore[method-assign]
    with torch.no_grad():
        assert finisher._descend(0.001, hard=True) < finisher.config.finish_steps + 200


def test_unknown_stages_are_refused():
    """A misspelt stage is an error, not a stage that does nothing."""
    with pytest.raises(ConfigError, match="finish lists stages"):
        small(finish=("low-rl",))
    with pytest.raises(ConfigError, match="finish_lr must be above 0"):
        small(finish_lr=0.0)
