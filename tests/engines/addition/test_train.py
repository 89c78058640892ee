import json
import math

import pytest
import torch

from assay.core.errors import CheckpointError, ConfigError
from assay.engines.addition.checkpoint import parse
from assay.engines.addition.config import STACKABLE
from assay.engines.addition.data import holdout
from assay.engines.addition.engine import ENGINE, METRICS
from assay.engines.addition.ladder import LADDER
from assay.engines.addition.model import Parameters
from assay.engines.addition.state import Run
from assay.engines.addition.train import Pace, train

from .helpers import PUBLIC_456, MemoryContext, small

FULL = {"d_model": 8, "d_ff": 28}


def run(config, *contexts, configs=None):
    train(configs or [config] * len(contexts), contexts)
    return contexts


def same_result(one: MemoryContext, other: MemoryContext) -> None:
    assert one.rows == other.rows
    assert one.files == other.files
    final = [{k: v for k, v in c.final.items() if not k.startswith("speed")} for c in (one, other)]
    assert final[0] == final[1]
    assert one.checkpoint == other.checkpoint


OTHERS = {
    "1128": FULL,
    "456": PUBLIC_456,
    "frozen": {**FULL, "ffn_rank": 3, "fixed_full_rank_mlp": True},
    "36": LADDER["36"],
    "grokfast": {**FULL, "grokfast_lambda": 2.0, "grokfast_from": 10},
    "carry": {**FULL, "carry_share": 0.8, "carry_fade": (10, 40)},
}


@pytest.mark.parametrize("settings", OTHERS.values(), ids=OTHERS)
def test_a_seed_in_a_cohort_equals_the_seed_alone(settings):
    """Bit for bit, in cohorts of 1, 2 and 5, at every place."""
    config = small(**settings)
    (alone,) = run(config, MemoryContext(3))
    assert len(alone.rows) == 3
    for seeds in ((3, 8), (8, 3), (1, 2, 3, 4, 5), (3, 9, 7, 6, 5)):
        cohort = run(config, *(MemoryContext(seed) for seed in seeds))
        same_result(cohort[seeds.index(3)], alone)


def test_a_seed_in_a_cohort_equals_the_seed_alone_at_full_batch():
    """The same at the batch size of the studies, where matrix kernels take other paths."""
    config = small(**FULL, batch_size=512, steps=12, eval_interval=6, warmup_steps=3)
    (alone,) = run(config, MemoryContext(3))
    cohort = run(config, *(MemoryContext(seed) for seed in (1, 2, 4, 5, 3)))
    same_result(cohort[4], alone)


def test_seeds_of_a_cohort_differ():
    """Other seeds give other weights: the stack does not share numbers."""
    first, second = run(small(), MemoryContext(1), MemoryContext(2))
    assert first.files["last.safetensors"] != second.files["last.safetensors"]
    only_init = run(small(), MemoryContext(1, data=0), MemoryContext(2, data=0))
    assert only_init[0].rows != only_init[1].rows


def test_settings_of_a_run_hold_in_a_cohort():
    """Every stackable setting gives each run its own value, as if it were alone."""
    changes = [
        {"lr": 0.005},
        {"weight_decay": 0.2},
        {"warmup_steps": 20},
        {"min_lr_ratio": 0.5},
        {"grad_clip": 0.05},
    ]
    assert {name for change in changes for name in change} == STACKABLE
    assert ENGINE.tasks["train"].stackable == STACKABLE
    configs = [small(**change) for change in changes]
    contexts = [MemoryContext(3) for _ in configs]
    train(configs, contexts)
    for config, context in zip(configs, contexts, strict=True):
        (alone,) = run(config, MemoryContext(3))
        same_result(context, alone)
    assert len({context.files["last.safetensors"] for context in contexts}) == len(configs)


def test_what_cannot_be_stacked_is_refused():
    """Runs of other widths are no cohort."""
    with pytest.raises(ConfigError, match="may differ only in their seeds"):
        train([small(), small(d_ff=15)], [MemoryContext(1), MemoryContext(2)])


@pytest.mark.parametrize("stop_after", [0, 1, 2, 4])
def test_a_stopped_run_goes_on_bit_for_bit(stop_after):
    """Stopping at any look-up point and resuming equals no interruption."""
    config = small(**FULL)
    (whole,) = run(config, MemoryContext(3))
    context = MemoryContext(3, stop_after=stop_after)
    train([config], [context])
    assert "best.safetensors" not in context.files
    assert context.checkpoint[0] < config.steps
    context.stop_after = 10**9
    train([config], [context])
    same_result(context, whole)


def test_a_killed_run_goes_on_bit_for_bit_from_any_checkpoint():
    """Every checkpoint that was ever saved leads to the same end, in company too."""
    config = small(**PUBLIC_456)
    whole = run(config, MemoryContext(3), MemoryContext(4))
    for number, (step, content) in enumerate(whole[0].checkpoints):
        first, second = MemoryContext(3), MemoryContext(4)
        first.checkpoint = (step, content)  # the other run of the cohort starts afresh
        train([config, config], [first, second])
        assert first.files == whole[0].files
        assert first.rows == {s: v for s, v in whole[0].rows.items() if s > step}
        same_result(second, whole[1])
        assert number < 3


def test_a_checkpoint_of_another_run_is_refused():
    """Seeds and settings must be those of the checkpoint."""
    (context,) = run(small(), MemoryContext(3, stop_after=1))
    context.stop_after = 10**9
    other = MemoryContext(4)
    other.checkpoint = context.checkpoint
    with pytest.raises(CheckpointError, match="its own seeds"):
        train([small()], [other])
    with pytest.raises(CheckpointError, match="its own config"):
        train([small(lr=0.001)], [context])


def test_everything_logged_is_declared():
    """No metric without a definition; the last step is always evaluated."""
    config = small()
    (context,) = run(config, MemoryContext(3))
    names = set(context.final) | {name for row in context.rows.values() for name in row}
    assert names <= set(METRICS)
    assert sorted(context.rows) == [25, 50, 60]
    assert context.budget == {"steps": 60, "examples": 60 * 32}
    assert set(context.files) == {"best.safetensors", "last.safetensors", "summary.json"}
    plain = json.loads(context.files["summary.json"])
    assert plain["multi_seed_validation"]["total_examples"] == 100
    assert context.final["model/parameters"] == 763


def test_no_held_out_pair_can_be_trained_on():
    """The run's validation and test pairs, and every test set, are excluded from its stream."""
    config = small()
    run_ = Run(config, MemoryContext(3))
    parts = [holdout(3, 70, 50).val, *(holdout(s, 70, 50).test for s in (3, *config.test_seeds))]
    for part in parts:
        excluded = run_.sampler._excluded.hits(part.a.numpy(), part.b.numpy())
        assert excluded.tolist() == list(range(len(part)))


def test_progress_shows_loss_speed_and_exact_match(monkeypatch):
    """What the live display needs, from the first evaluation on."""
    monkeypatch.setattr(Pace, "INTERVAL_S", 0.0)
    (context,) = run(small(), MemoryContext(3))
    assert set(context.shown[0]) == {"loss", "model-steps/s"}
    assert set(context.shown[-1]) == {"exact match"}
    assert set(context.shown[2]) == {"loss", "model-steps/s", "exact match"}
    assert context.final["speed/model_steps_per_s"] > 0


def test_the_best_weights_are_kept_not_the_last():
    """best.safetensors holds the weights of the best validation result, from its step."""
    (context,) = run(small(grok_threshold=0.0), MemoryContext(3))
    _, about = parse(context.files["best.safetensors"], where="best")
    best = max(row["val/exact_match"] for row in context.rows.values())
    equals = {s: r for s, r in context.rows.items() if r["val/exact_match"] == best}
    chosen = min(equals, key=lambda step: equals[step]["val/loss_nats"])  # of equals, by loss
    assert about["step"] == chosen == context.final["val/best_step"]
    assert about["val_exact_match"] == best
    assert context.final["val/grok_step"] == 25


def test_a_run_learns_one_digit_sums():
    """Guessing costs 2.64 nats; after 400 steps the fixed tokens are known and more."""
    config = small(
        **FULL, init="scaled", steps=400, batch_size=128, lr=0.015, warmup_steps=40,
        eval_interval=50, curriculum=((1, 1, 400),),
    )  # fmt: skip
    (context,) = run(config, MemoryContext(1))
    losses = [row["train/loss_nats"] for row in context.rows.values()]
    assert losses[-1] < 0.22 < losses[0]


def test_a_diverged_run_says_so_and_ends():
    """A loss that is no number is logged as such, with one event, and the run ends."""
    config = small(lr=1e30, warmup_steps=0, weight_decay=0.0)
    (context,) = run(config, MemoryContext(3))
    losses = [row["train/loss_nats"] for row in context.rows.values()]
    assert all(math.isnan(loss) for loss in losses)
    assert [kind for kind, _ in context.events] == ["diverged"]
    assert context.final["test/exact_match"] == 0.0


def test_other_devices_are_refused():
    """No silent fallback from a device that was asked for."""
    context = MemoryContext(1)
    context.device = "cuda"
    with pytest.raises(ConfigError, match="device must be one that torch can use"):
        train([small()], [context])


def test_training_leaves_the_process_as_it_was():
    """Thread count and gradient mode of the caller are restored."""
    torch.set_num_threads(2)
    run(small(steps=20, warmup_steps=2), MemoryContext(1, threads=2))
    assert torch.get_num_threads() == 2
    assert torch.is_grad_enabled()


def test_grokfast_adds_the_slow_part_of_the_gradient():
    """Off it changes nothing before grokfast_from, and something after; it survives a resume."""
    plain, fast = small(**FULL), small(**FULL, grokfast_lambda=2.0, grokfast_from=25)
    (without,) = run(plain, MemoryContext(3))
    (whole,) = run(fast, MemoryContext(3))
    assert without.rows[25] == whole.rows[25]
    assert without.rows[50] != whole.rows[50]
    context = MemoryContext(3, stop_after=3)
    train([fast], [context])
    context.stop_after = 10**9
    train([fast], [context])
    same_result(context, whole)


def test_a_dead_run_is_given_up_and_the_others_do_not_notice():
    """The event, the steps spent, results of the best weights; the others bit for bit."""
    living = small(**FULL)
    dying = small(**FULL, stop_dead_at=25, stop_dead_below=1.0)
    (dead,) = run(dying, MemoryContext(4))
    assert dead.budget["steps"] == 25
    assert sorted(dead.rows) == [25]
    assert "stopped" in [kind for kind, _ in dead.events]
    assert "test/exact_match" in dead.final
    (whole,) = run(living, MemoryContext(3))
    one, other = MemoryContext(3), MemoryContext(4)
    spared = small(**FULL, stop_dead_at=25, stop_dead_below=0.0)
    train([spared, spared], [one, other])
    assert one.rows == whole.rows


def test_one_dead_run_leaves_the_cohort_and_the_rest_goes_on(monkeypatch):
    """Whoever is dropped from the stack, the numbers of those who stay are their own."""
    config = small(**FULL)
    alone = [run(config, MemoryContext(seed))[0] for seed in (3, 5)]
    judge = Run.judge

    def one_dies(self, val):
        better = judge(self, val)
        self.is_dead = self.step == 25 and self.context.seeds["init"] == 4
        return better

    monkeypatch.setattr(Run, "judge", one_dies)
    contexts = run(config, *(MemoryContext(seed) for seed in (3, 4, 5)))
    assert contexts[1].budget["steps"] == 25
    same_result(contexts[0], alone[0])
    same_result(contexts[2], alone[1])


def test_frozen_buffers_are_not_trained():
    """They end as they began, and are part of the saved model."""
    config = small(**OTHERS["frozen"])
    (context,) = run(config, MemoryContext(3))
    tensors, _ = parse(context.files["last.safetensors"], where="last")
    start = Parameters.initial(config, [3]).named()
    for name in ("blocks.0.mlp.fc1.W_fixed", "blocks.0.mlp.fc2.W_fixed"):
        assert torch.equal(tensors[name], start[name][0])
    assert not torch.equal(tensors["ln_f.weight"], start["ln_f.weight"][0])
    assert context.final["model/parameters"] == 896


def test_without_a_kernel_the_eager_way_is_said_once_and_recorded(monkeypatch):
    """No compiler: one event for the cohort, and the reason in every summary."""
    monkeypatch.setattr("assay.engines.addition.fused.unavailable", lambda shape: "no compiler")
    contexts = run(small(steps=20, warmup_steps=2), MemoryContext(1), MemoryContext(2))
    assert [kind for c in contexts for kind, _ in c.events] == ["eager"]
    for context in contexts:
        assert "no compiler" in json.loads(context.files["summary.json"])["backend"]
