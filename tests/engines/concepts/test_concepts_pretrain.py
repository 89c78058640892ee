"""Pretraining through the lab: recorded, resumed, the same alone and in a cohort, stored with its tokenizer."""

import io
import logging
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from concepts_helpers import TEXTS, Context
from transformers import AutoModelForMaskedLM, AutoTokenizer

from assay.core.errors import ConfigError, DataError
from assay.engines.concepts.collators import collator
from assay.engines.concepts.config import AMONG_SLOTS, PretrainConfig
from assay.engines.concepts.corpus import corpus, digest
from assay.engines.concepts.engine import ENGINE, check
from assay.engines.concepts.held import Held, by_frequency
from assay.engines.concepts.masked import IGNORED
from assay.engines.concepts.prepare import prepare
from assay.engines.concepts.pretrain import check_shared, packed, train, unpacked
from assay.engines.concepts.reanalysis import (
    MODEL,
    RANKS,
    SHAPES,
    STORED,
    attention,
    health,
    ranks,
    shapes,
)
from assay.engines.concepts.regularisers import OVER_TEXTS, REGULARISERS
from assay.engines.concepts.tokens import Blocks, train_tokenizer

TASK = ENGINE.tasks["pretrain"]
TINY = {
    "corpus": "texts.txt", "vocab_size": 300, "seq_len": 32, "held_blocks": 8, "hidden": 32, "heads": 2,
    "layers": 1, "inner": 32, "slots": 4, "batch": 4, "steps": 12, "eval_interval": 5, "warmup": 2, "lr": 3e-3,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder with one small text."""
    place = tmp_path_factory.mktemp("data")
    order = np.random.default_rng(0).permutation(len(TEXTS) * 2) % len(TEXTS)
    (place / "texts.txt").write_text("\n".join(TEXTS[i] for i in order))
    return place


def trained(folder, seeds=(1,), contexts=None, **settings):
    """Runs of one configuration."""
    contexts = contexts or [Context(seed, folder) for seed in seeds]
    train([PretrainConfig(**TINY | settings)] * len(contexts), contexts)
    return contexts


def without_speed(values):
    return {name: value for name, value in values.items() if not name.startswith("speed/")}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"slots": 1},
        {
            "objective": "whole-word",
            "concept_losses": ("combined", "vicreg"),
            "weighting": "kendall-gal",
        },
        {"objective": "tsdae", "decoder": "position", "mask_rate": 0.6, "packed": False},
        {
            "objective": "prefix",
            "decoder": "diffusion",
            "time_weight": "elbo",
            "label_smoothing": 0.1,
        },
        {"architecture": "bert", "objective": "span"},
        {
            "recursive": True,
            "iterations": 2,
            "bidirectional": True,
            "decoder": "weighted",
            "tied": False,
        },
    ],
)
def test_everything_that_is_logged_is_declared_and_every_step_is(folder, settings):
    (run,) = trained(folder, **settings)
    named = {name for row in run.rows.values() for name in row} | set(run.final)
    assert {n for n in named if not n.startswith("spent/")} <= set(TASK.metrics)
    assert sorted(run.rows) == list(range(12))
    evaluated = [step for step, row in run.rows.items() if "val/loss_nats" in row]
    assert evaluated == [4, 9, 11]
    assert run.final["spent/steps"] == 12
    assert run.final["train/grad_norm_max"] == max(
        row["train/grad_norm"] for row in run.rows.values()
    )
    if settings.get("concept_losses"):
        assert {"weight/task", "weight/combined", "train/vicreg_loss"} <= named


def test_it_learns(folder):
    """Better than knowing how often each token is, by far: on a text of few sentences."""
    settings = TINY | {"steps": 400, "lr": 1e-2, "mask_rate": 0.3, "dropout": 0.0, "packed": False}
    settings |= {"init_range": 0.1, "eval_interval": 400}
    config = PretrainConfig(**settings)
    data = prepare(config, folder)
    counts = np.bincount(np.concatenate(data.train.ids), minlength=len(data.tokenizer)) + 1.0
    often = -np.log(counts / counts.sum())
    (run,) = trained(folder, **settings)
    labels = np.concatenate(data.test.ids)
    assert run.final["test/loss_nats"] < 0.75 * often[labels[labels > 3]].mean()
    assert run.final["test/loss_nats"] < 0.75 * run.final["test/unigram_nats"]


def test_guessing_by_frequency_is_what_reading_nothing_reaches():
    """Special tokens, of which every text has some, are guessed only where they are asked for."""
    tokenizer = train_tokenizer(["a b c d e f g h " * 9] * 9, 300)
    special = tokenizer.all_special_ids
    a, b, c = [i for i in range(len(tokenizer)) if i not in special][:3]
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    train = Blocks([np.array([cls, a, a, b, sep]), np.array([cls, a, sep])])
    size = len(tokenizer)
    nats, right = by_frequency(train, np.array([a, b, c, a]), tokenizer)
    open_ = 4 + size - len(special)
    assert nats == pytest.approx(-np.log(np.array([4, 2, 1, 4]) / open_).mean())
    assert right == 0.5
    nats, right = by_frequency(train, np.array([cls, a, sep, sep]), tokenizer)
    with_two = open_ + 4 + 2
    assert nats == pytest.approx(-np.log(np.array([3, 4, 3, 3]) / with_two).mean())
    assert right == 0.25


@pytest.mark.parametrize("objective", ["mlm", "tsdae"])
def test_guessing_is_of_what_the_objective_asks(folder, objective):
    """By an honest count of the labels of the texts trained on; half of what TSDAE asks of short texts are specials."""
    settings = TINY | {"objective": objective, "packed": False, "seq_len": 16}
    settings |= {"decoder": {"mlm": "perceiver", "tsdae": "position"}[objective]}
    config = PretrainConfig(**settings)
    data = prepare(config, folder)
    corrupt = collator(objective, data.tokenizer, rate=0.5, t_min=0.9)
    held = Held(data, corrupt, 4)
    own = Held(replace(data, test=data.train), corrupt, 4)
    labels = [torch.cat([b["labels"].flatten() for b in h.batches["test"]]) for h in (own, held)]
    train, wanted = (each[each != IGNORED].numpy() for each in labels)
    counts = np.bincount(train, minlength=len(data.tokenizer)) + 1.0
    counts[np.setdiff1d(data.tokenizer.all_special_ids, wanted)] = 0
    honest = -np.log(counts[wanted] / counts.sum()).mean()
    assert held.guessed("test")["test/unigram_nats"] == pytest.approx(honest, abs=0.1)


def test_a_seed_alone_is_the_seed_in_a_cohort(folder):
    """Bit for bit, in any place; other seeds are others."""
    cohort = trained(folder, seeds=(1, 2, 3))
    for index, seed in ((2, 3), (1, 2)):
        (alone,) = trained(folder, seeds=(seed,))
        assert alone.rows == cohort[index].rows
        assert without_speed(alone.final) == without_speed(cohort[index].final)
        assert alone.files == cohort[index].files
    assert cohort[0].rows != cohort[1].rows


@pytest.mark.parametrize("architecture", ["concepts", "bert"])
def test_going_on_misses_no_weights(folder, caplog, monkeypatch, architecture):
    """Tied ones are stored once."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    first = Context(1, folder, stop_after=3)
    trained(folder, contexts=[first], architecture=architecture)
    trained(
        folder,
        contexts=[Context(1, folder, checkpoint=first.checkpoint)],
        architecture=architecture,
    )
    assert "missing keys" not in caplog.text


@pytest.mark.parametrize("stop_after", [3, 5, 8])
def test_going_on_is_as_if_nothing_had_happened(folder, stop_after):
    """Bit for bit: rows, final values and the stored model, wherever it was stopped; with dropout."""
    settings = {"concept_losses": ("variance",), "weighting": "learned", "schedule": "cosine"}
    (whole,) = trained(folder, **settings)
    first = Context(1, folder, stop_after=stop_after)
    trained(folder, contexts=[first], **settings)
    assert first.checkpoint[0] == stop_after
    assert not first.final
    second = Context(1, folder, checkpoint=first.checkpoint)
    trained(folder, contexts=[second], **settings)
    assert sorted(second.rows) == list(range(stop_after, 12))
    assert first.rows | second.rows == whole.rows
    assert without_speed(second.final) == without_speed(whole.final)
    assert second.files == whole.files


def test_the_stored_model_can_be_loaded_with_its_tokenizer(folder, tmp_path):
    (run,) = trained(folder)
    with zipfile.ZipFile(io.BytesIO(run.files["model.zip"])) as archive:
        archive.extractall(tmp_path)
    model, tokenizer = (
        AutoModelForMaskedLM.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    found = tokenizer(["The big [MASK] of Paris"], return_tensors="pt")
    assert tokenizer.mask_token_id in found["input_ids"]
    with torch.no_grad():
        logits = model.eval()(found["input_ids"], found["attention_mask"]).logits
    assert logits.shape == (1, found["input_ids"].shape[1], len(tokenizer))


def test_gradients_are_clipped_and_their_true_length_told(folder):
    """A limit far below their length slows training down and changes no length of the first step."""
    (free,), (held,) = trained(folder, clip=0.0), trained(folder, clip=1e-6)
    assert free.rows[0] == held.rows[0]
    assert free.rows[11]["train/loss_nats"] != held.rows[11]["train/loss_nats"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"slots": 64}, "slots must be at most seq_len"),
        ({"objective": "diffusion"}, 'needs decoder = "diffusion"'),
        ({"objective": "tsdae"}, 'needs decoder = "position"; got "perceiver"'),
        ({"decoder": "diffusion"}, 'mlm needs decoder = "perceiver" or "position" or "weighted"'),
        ({"time_weight": "elbo"}, "time_weight weighs by the share"),
        ({"weighting": "learned"}, "needs concept_losses"),
        (
            {"concept_losses": ("orthogonality",), "slots": 32, "hidden": 16},
            "orthogonality needs slots ≤ hidden",
        ),
        ({"hidden": 30, "heads": 4}, "hidden must be a multiple of heads"),
        ({"architecture": "bert", "recursive": True}, "has no recursive"),
        ({"architecture": "bert", "objective": "tsdae"}, "objective mlm, whole-word or span"),
        ({"mask_rate": 1.0}, r"mask_rate must be in \[0, 1\)"),
        ({"held_blocks": 2}, "held_blocks must be 4 or more"),
        ({"iterations": 2}, "give recursive = true"),
        ({"token_dim": 8}, "tied needs token_dim 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        PretrainConfig(**TINY | settings)


def test_corpora_that_are_not_there_or_no_text_are_refused(folder):
    def refused(told, **settings):
        with pytest.raises(ConfigError, match=told):
            check([PretrainConfig(**TINY | settings)], folder)

    (folder / "empty.txt").write_text("\n\n")
    (folder / "bytes.txt").write_bytes(b"ab\xff\xfe")
    (folder / "one.txt").write_text("a single line")
    refused("has no line of it", corpus="empty.txt")
    refused("must be UTF-8 text.*at byte 2", corpus="bytes.txt")
    (folder / "wide.txt").write_bytes("a text of wide letters\n".encode("utf-16-le") * 50)
    refused("must be UTF-8 text.*wide.txt has zero bytes", corpus="wide.txt")
    refused("two documents or more", corpus="one.txt")
    refused("got 'nowhere'", corpus="nowhere")
    refused("path inside the data folder", corpus=str(folder / "texts.txt"))
    with pytest.raises(ConfigError, match=r"fills [0-9]+\. Set held_blocks"):
        trained(folder, held_blocks=4000)
    (folder / "short.txt").write_text("one line that is told\n" * 60)
    with pytest.raises(
        ConfigError, match=r"fills [0-3]\. Take shorter texts \(seq_len\), or a lon"
    ):
        trained(folder, corpus="short.txt")
    with pytest.raises(ConfigError, match="vocab_size must be 260 or more"):
        trained(folder, vocab_size=100)


@pytest.mark.parametrize("architecture", ["concepts", "bert"])
def test_bfloat16_learns_the_same_to_its_precision(folder, architecture):
    """Other numbers (so it is on), close ones, and weights that are stored as float32."""
    (exact,), (coarse,) = (
        trained(folder, precision=name, architecture=architecture)
        for name in ("float32", "bfloat16")
    )
    both = [
        [row["train/loss_nats"] for _, row in sorted(run.rows.items())] for run in (exact, coarse)
    ]
    assert both[0] != both[1]
    assert both[0] == pytest.approx(both[1], rel=0.01)
    with zipfile.ZipFile(io.BytesIO(coarse.files["model.zip"])) as archive:
        assert '"dtype": "float32"' in archive.read("config.json").decode()


@pytest.mark.parametrize("settings", [{}, {"objective": "diffusion", "decoder": "diffusion"}])
def test_a_model_trained_in_bfloat16_is_measured_in_float32(folder, tmp_path, settings):
    """What is recorded is what the stored weights do."""
    (run,) = trained(folder, precision="bfloat16", **settings)
    unpacked(io.BytesIO(run.files["model.zip"]), tmp_path)
    config = PretrainConfig(**TINY | settings)
    data = prepare(config, folder)
    corrupt = collator(config.objective, data.tokenizer, rate=config.mask_rate, t_min=config.t_min)
    held = Held(data, corrupt, config.batch)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path)
    again = held.measure(model, "test") | held.probe(model, prefix=False)
    assert {name: run.final[name] for name in again} == pytest.approx(again, rel=1e-6)


def test_a_constant_rate_is_warmed_up(folder):
    """As a linear one: while it rises they are the same."""
    runs = [trained(folder, schedule=kind, warmup=12)[0] for kind in ("constant", "linear")]
    assert runs[0].rows == runs[1].rows


def test_the_texts_of_an_epoch_are_counted(folder):
    """All that the corpus has, where it has fewer than are asked for."""
    (run,) = trained(folder, steps=1, train_blocks=10**6)
    config = PretrainConfig(**TINY | {"train_blocks": 10**6})
    assert run.final["train/blocks"] == len(prepare(config, folder).train) < 10**6


def test_a_whole_path_needs_no_data_folder(folder):
    path = str(folder / "texts.txt")
    assert corpus(path, None).train == corpus("texts.txt", folder).train
    assert digest(path, None) == digest("texts.txt", folder)


def test_a_run_that_diverges_ends_as_one(folder):
    """Its loss and its largest gradient say so; of concepts that are no numbers there is no measure."""
    (run,) = trained(folder, lr=1e30, warmup=0, clip=0.0)
    assert not np.isfinite(run.final["test/loss_nats"])
    assert run.final["train/grad_norm_max_late"] == np.inf
    assert not any("rank" in name for name in run.final if not name.startswith("untrained/"))
    assert STORED not in run.files


def test_the_largest_gradient_of_the_second_half(folder):
    (run,) = trained(folder)
    late = [run.rows[step]["train/grad_norm"] for step in range(6, 12)]
    assert run.final["train/grad_norm_max_late"] == max(late)


def test_speed_is_of_this_attempt(folder, monkeypatch):
    """After a resume the steps of the attempt before do not count."""
    clock = iter(range(0, 10_000, 10))
    first = Context(1, folder, stop_after=8)
    trained(folder, contexts=[first])
    monkeypatch.setattr("assay.engines.concepts.pretrain.time.perf_counter", lambda: next(clock))
    second = Context(1, folder, checkpoint=first.checkpoint)
    trained(folder, contexts=[second])
    steps = 12 - first.checkpoint[0]
    assert 0 < steps < 12
    assert second.final["speed/seconds_per_step"] == pytest.approx(10 / steps)


def test_too_few_texts_for_a_batch_are_told(folder):
    """The library would train on nothing, and the run could be continued for ever."""
    with pytest.raises(ConfigError, match=r"must fill a batch of 4; 'texts.txt' gives 3 of 32"):
        trained(folder, train_blocks=3)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"batch": 3}, "multiple of the 2 processes"),
        ({"concept_losses": ("combined",)}, "Concept loss combined is of all texts"),
        ({"evaluate": ("mrpc",)}, "evaluate is for one process"),
    ],
)
def test_what_processes_cannot_share_is_told(settings, told):
    config = PretrainConfig(**TINY | settings)
    check_shared(config, 1)
    with pytest.raises(ConfigError, match=told):
        check_shared(config, 2)


def test_losses_that_are_not_means_over_texts_are_known():
    """By their values on a batch and on its halves, which of them processes could share."""
    concepts = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(0)).double()
    for name, loss in REGULARISERS.items():
        halves = (loss(concepts[:3]) + loss(concepts[3:])) / 2
        assert bool(torch.isclose(loss(concepts), halves, rtol=1e-9)) == (name not in OVER_TEXTS)


@pytest.mark.parametrize("loss", AMONG_SLOTS)
def test_one_slot_has_none_to_be_compared_with(loss):
    with pytest.raises(ValueError, match="compares slots"):
        PretrainConfig(**TINY | {"slots": 1, "concept_losses": (loss,)})
    assert not REGULARISERS[loss](torch.randn(3, 1, 8)).isfinite()


def test_stored_concepts_are_measured_again_as_they_were(folder, tmp_path):
    """An analysis of the artifact gives the run's own numbers, all texts being stored here."""
    (run,) = trained(folder, held_blocks=16)
    (tmp_path / STORED).write_bytes(run.files[STORED])
    (tmp_path / MODEL).write_bytes(run.files[MODEL])
    artifacts = {STORED: tmp_path / STORED, MODEL: tmp_path / MODEL}
    found = ranks(artifacts, {}) | shapes(artifacts, {}) | attention(artifacts, {})
    read = {name for name in run.final if name.startswith("test/attention_")}
    assert len(read) == 8
    names = {f"test/{name}" for name in (*RANKS, *SHAPES)} | read
    assert {name.replace("concepts/", "test/") for name in found} == names
    for name, value in found.items():
        assert value == pytest.approx(run.final[name.replace("concepts/", "test/")], rel=1e-6)


def test_a_run_without_concepts_is_told(folder, tmp_path):
    (run,) = trained(folder, architecture="bert")
    assert STORED not in run.files
    with pytest.raises(DataError, match="must have stored concepts as"):
        ranks({STORED: tmp_path / STORED}, {})


@pytest.mark.parametrize("architecture", ["concepts", "bert"])
def test_the_health_of_a_stored_model(folder, tmp_path, architecture):
    """Findings are counted; a weight that ran away is one."""
    (run,) = trained(folder, architecture=architecture)
    place = tmp_path / MODEL
    place.write_bytes(run.files[MODEL])
    assert set(health({MODEL: place}, {}).values()) == {0.0}
    unpacked(place, tmp_path / "model")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        next(iter(model.parameters())).view(-1)[0] = 2e3
    model.save_pretrained(tmp_path / "model")
    place.write_bytes(packed(tmp_path / "model"))
    assert health({MODEL: place}, {})["health/weight_findings"] == 1.0
    place.write_bytes(b"nothing")
    with pytest.raises(DataError, match="must have stored its model"):
        health({MODEL: place}, {})
