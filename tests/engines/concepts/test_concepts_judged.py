"""What a run measures at its end: labelled tasks beside their baselines, order of words, gradients by time."""

import numpy as np
import polars as pl
import pytest
import torch
from concepts_helpers import TEXTS, Context, model_with, rows_of

from assay.core.errors import ConfigError
from assay.engines.concepts.config import PretrainConfig
from assay.engines.concepts.engine import ENGINE, check
from assay.engines.concepts.finetune import share_cut
from assay.engines.concepts.labels import METRICS
from assay.engines.concepts.parts import load
from assay.engines.concepts.prepare import prepare
from assay.engines.concepts.pretrain import train
from assay.engines.concepts.probes import gradient_by_time, swapped, word_order
from assay.engines.concepts.tokens import Blocks, Cut, blocks, train_tokenizer

TASK = ENGINE.tasks["pretrain"]
TINY = {
    "corpus": "texts.txt", "vocab_size": 300, "seq_len": 32, "held_blocks": 8, "hidden": 32, "heads": 2,
    "layers": 1, "inner": 32, "slots": 4, "batch": 4, "steps": 3, "eval_interval": 3, "warmup": 1,
    "evaluate": ("stsb", "mrpc"), "tune_epochs": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder with a text and two labelled tasks."""
    place = tmp_path_factory.mktemp("data")
    (place / "texts.txt").write_text("\n".join(TEXTS * 2))
    draw = np.random.default_rng(0)
    for part, count in (("train", 80), ("validation", 30)):
        pairs = draw.permutation(len(TEXTS))[: 2 * count]
        texts = {
            "sentence1": [TEXTS[i] for i in pairs[:count]],
            "sentence2": [TEXTS[i] for i in pairs[count:]],
        }
        for task, labels in (
            ("stsb", draw.random(count) * 5),
            ("mrpc", draw.integers(0, 2, count)),
        ):
            where = place / "glue" / task
            where.mkdir(parents=True, exist_ok=True)
            pl.DataFrame({**texts, "label": labels}).write_parquet(
                where / f"{part}-00000-of-00001.parquet"
            )
    return place


def run_of(folder, **settings):
    context = Context(1, folder)
    train([PretrainConfig(**TINY | settings)], [context])
    return context


def test_every_way_of_answering_is_measured_and_declared(folder):
    found = run_of(folder).final
    of_tasks = {name for name in found if name.startswith(("stsb/", "mrpc/"))}
    assert of_tasks == {name for name in METRICS if name.startswith(("stsb/", "mrpc/"))}
    assert of_tasks <= set(TASK.metrics)
    assert "probe/word_order_accuracy" in found
    assert not any(name.startswith("gradient/") for name in found)


def test_a_run_that_diverged_is_not_judged(folder):
    """It ends as one; its events and its loss say so."""
    final = run_of(folder, lr=1e30, warmup=0, clip=0.0).final
    assert not np.isfinite(final["test/loss_nats"])
    assert not any(name.startswith(("stsb/", "mrpc/")) for name in final)


def test_it_is_the_same_every_time_and_the_seed_matters(folder):
    one, two = run_of(folder).final, run_of(folder).final
    for name, value in one.items():
        assert value == two[name] or name.startswith("speed/"), name


def test_frozen_measures_alone(folder):
    found = run_of(folder, tune_epochs=0, architecture="bert").final
    assert "stsb/zero_shot_spearman" in found
    assert "stsb/spearman" not in found


def test_texts_that_are_cut_are_counted(folder):
    """Read one by one where nothing is fine-tuned, and otherwise as one."""
    apart, joined = (run_of(folder, tune_epochs=epochs).final for epochs in (0, 1))
    tokenizer = prepare(PretrainConfig(**TINY), folder).tokenizer
    for final, one_by_one in ((apart, True), (joined, False)):
        part = load("stsb", folder).reported[""]
        cut = share_cut(tokenizer, part, TINY["seq_len"], apart=one_by_one)
        assert final["stsb/share_cut"] == cut
    assert 0 < joined["stsb/share_cut"] <= 1
    assert apart["stsb/share_cut"] < joined["stsb/share_cut"]


def test_chance_is_the_majority_of_the_same_metric():
    """So that the lab sees a model that always says the same."""
    assert METRICS["mrpc/f1"].chance == "mrpc/majority_f1"
    assert METRICS["mnli/accuracy_mm"].chance == "mnli/majority_accuracy_mm"
    assert METRICS["mrpc/majority_f1"].chance is None
    assert "mrpc/zero_shot_f1" not in METRICS


def test_the_fingerprint_names_what_was_read(folder):
    config = PretrainConfig(**TINY)
    found = TASK.fingerprint(config, {"init": 0, "data": 0}, folder)
    assert sorted(found) == ["corpus texts.txt", "task mrpc", "task stsb"]
    fewer = TASK.fingerprint(
        PretrainConfig(**TINY | {"tune_examples": 40}), {"init": 0, "data": 0}, folder
    )
    assert fewer["task mrpc"] != found["task mrpc"]
    with pytest.raises(ConfigError, match="rte"):
        check([PretrainConfig(**TINY | {"evaluate": ("rte",)})], folder)


class Bag(torch.nn.Module):
    """An encoder that sees a bag of tokens."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(300, 16)

    def forward(self, ids, attention_mask):
        return type("Output", (), {"last_hidden_state": self.table(ids)})


class Ordered(Bag):
    """One that also sees whether ids rise from one token to the next."""

    def forward(self, ids, attention_mask):
        rising = (ids[:, 1:] > ids[:, :-1]).float()
        rising = torch.nn.functional.pad(rising, (0, 1))[..., None]
        return type("Output", (), {"last_hidden_state": rising.expand(-1, -1, 16)})


def test_a_bag_of_tokens_does_not_know_their_order_and_another_encoder_does():
    tokenizer = train_tokenizer(TEXTS, 300)
    rows = rows_of([24] * 40)
    taught, judged = Blocks(rows[:20]), Blocks(rows[20:])
    assert word_order(Bag(), taught, judged, tokenizer) == 0.5
    assert word_order(Ordered(), taught, judged, tokenizer) > 0.9


def test_swapping_exchanges_neighbours_and_nothing_else():
    ids = rows_of([60])[0]
    other = swapped(ids, np.random.default_rng(0))
    assert sorted(other) == sorted(ids)
    assert other[0] == ids[0]
    assert other[-1] == ids[-1]
    moved = np.flatnonzero(other != ids)
    assert 20 < len(moved) < 58
    assert int(np.abs(other.astype(int) - ids).max()) == 1


@pytest.mark.parametrize(
    ("kind", "ratio", "least"),
    [("none", 0.9 / 0.1, 0.5), ("elbo", 1.0, 1.0), ("clamped", 1.0, 0.5)],
)
def test_gradients_grow_with_the_share_that_is_asked_for_unless_divided_by_it(kind, ratio, least):
    """Of an untrained model all tokens' gradients are alike, so their sum grows as their number.

    The source's weights end to grow at 0.1, and are divided by their sum: that of the batch, in which
    every share is.
    """
    tokenizer = train_tokenizer(TEXTS, 300)
    texts = blocks(TEXTS, tokenizer, Cut(length=32, most=64))
    model = model_with(decoder_type="diffusion", modulation="zero", time_weight=kind)
    found = gradient_by_time(model, texts, tokenizer, prefix=False)
    assert list(found) == [0.05, 0.1, 0.3, 0.5, 0.7, 0.9]
    # Fewer tokens also average less well: their noise is part of the length.
    assert found[0.9] / found[0.1] == pytest.approx(ratio, rel=0.45)
    assert found[0.05] / found[0.1] == pytest.approx(least, rel=0.25)
