"""Fine-tuning: it learns, is repeatable, chooses without the reported part, and tells what is wrong."""

import csv
import json
import shutil
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_helpers import (
    FAST,
    bert_checkpoint,
    checkpoint,
    parts_of,
    related,
    sentiment,
    tokenizer,
)
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from assay.core.errors import ConfigError
from assay.engines.concepts.checkpoints import classifier
from assay.engines.concepts.evaluate import evaluate, write_report
from assay.engines.concepts.finetune import (
    FineTuneConfig,
    _answers,
    _Collator,
    _rows,
    fine_tune,
    share_cut,
    with_length,
)
from assay.engines.concepts.parts import Examples
from assay.engines.concepts.tasks import TASKS, task_of
from assay.engines.concepts.tokens import fetch_tokenizer

NOW = datetime.fromisoformat("2026-02-26T21:05:00+01:00")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A concept model and a BERT, of first weights."""
    folder = tmp_path_factory.mktemp("places")
    return {
        "concepts": checkpoint(folder / "concepts"),
        "bert": bert_checkpoint(folder / "bert"),
    }


@pytest.fixture(scope="module")
def parts():
    """A class that one word decides."""
    return parts_of("sst2", sentiment(64, 0), sentiment(24, 1), sentiment(40, 2))


def tuned(place, parts, *, head=None, seed=0, **changes):
    """A training of a few steps."""
    config = FineTuneConfig(**({"epochs": 2} | FAST | changes))
    return fine_tune(
        partial(classifier, place, parts.task, head), tokenizer(), parts, config, seed=seed
    )


@pytest.mark.parametrize("model", ["concepts", "bert"])
def test_a_word_is_learned(places, parts, model):
    """Far above the majority's half, from first weights, by either kind of model."""
    found = tuned(places[model], parts, epochs=8, lr=0.01)
    assert found.majority == {"accuracy": 0.5}
    assert found.reported["accuracy"] >= 0.9
    assert found.answers == 2


@pytest.mark.parametrize("head", ["cls-query", "weighted", "mean", "decoder", "pair"])
def test_every_head_is_trained_on_pairs(places, head):
    """The loss of training falls; a number is reported for each metric."""
    parts = parts_of("sick-r", related(64, 0), related(16, 1), related(16, 2))
    found = tuned(places["concepts"], parts, head=head, epochs=3)
    losses = [row["train_loss"] for row in found.history]
    assert losses[-1] < losses[0]
    assert set(found.reported) == set(found.majority) == {"pearson", "spearman"}
    assert all(set(row) > {"train_loss", "loss", "pearson"} for row in found.history)


def test_the_same_seed_gives_the_same_numbers(places, parts):
    """To the last bit, whatever was drawn before; another seed gives others."""
    first = tuned(places["concepts"], parts, seed=3)
    torch.rand(7)
    again = tuned(places["concepts"], parts, seed=3)
    other = tuned(places["concepts"], parts, seed=4)
    assert first == again
    assert [row["loss"] for row in first.history] != [row["loss"] for row in other.history]


def test_reported_answers_choose_nothing(places, parts):
    """Turned round they turn what is reported, and neither the epoch nor its history."""
    reported = parts.reported[""]
    turned = replace(parts, reported={"": Examples(reported.first, None, 1 - reported.labels)})
    first = tuned(places["concepts"], parts, epochs=4)
    second = tuned(places["concepts"], turned, epochs=4)
    assert (first.epoch, first.history) == (second.epoch, second.history)
    assert first.reported["accuracy"] == pytest.approx(1 - second.reported["accuracy"])


def test_the_weights_are_those_of_the_chosen_epoch(places, parts):
    """Where `chosen` contradicts `train`, an early epoch is best; `reported`, made equal, agrees with it."""
    against = Examples(parts.chosen.first, None, 1 - parts.chosen.labels)
    parts = replace(parts, chosen=against, reported={"": against})
    found = tuned(places["concepts"], parts, epochs=6, lr=0.01)
    values = [row["accuracy"] for row in found.history]
    assert found.epoch < 6
    assert values[-1] < values[found.epoch - 1] == max(values)
    assert found.epoch == values.index(max(values)) + 1
    assert found.reported["accuracy"] == values[found.epoch - 1]


def test_the_first_metric_chooses(places):
    """Of MRPC accuracy, though F1 is reported too, and has another best epoch.

    Nearly all of training is yes, so the model begins with yes to all; it ends with no to "bad". Of
    texts with "bad", of which 4 of 10 are yes, the first has F1 = 0.57, the second more accuracy.
    """
    train, bad = sentiment(160, 0, share=0.8), sentiment(20, 1, share=0.0)
    chosen = Examples(bad.first, bad.first, np.array([1, 1, 0, 0, 0] * 4))
    parts = parts_of("mrpc", Examples(train.first, train.first, train.labels), chosen, chosen)
    found = tuned(places["concepts"], parts, epochs=8, lr=0.01)
    accuracy, f1 = ([row[name] for row in found.history] for name in ("accuracy", "f1"))
    assert f1.index(max(f1)) != accuracy.index(max(accuracy))
    assert found.epoch == accuracy.index(max(accuracy)) + 1


def test_numbers_that_differ_by_rounding_are_one_answer():
    """A correlation of float32's rounding is none; a small range that is real stays."""
    noise = 1 + np.arange(6, dtype=np.float32)[:, None] * np.float32(2e-7)
    assert np.ptp(noise) > 0
    assert np.ptp(_answers(noise, TASKS["stsb"])) == 0
    real = 1 + np.arange(6, dtype=np.float32)[:, None] * np.float32(1e-4)
    assert len(set(_answers(real, TASKS["stsb"]))) == 6


def test_pairs_are_one_text_or_two():
    """[CLS] a [SEP] b [SEP] together; apart, each in its own [CLS] … [SEP], and filled up by itself."""
    tok = tokenizer()
    part = Examples(("anna sings", "ben"), ("here", "there and outside"), np.array([0.5, 1.0]))
    ids = {text: tok(text)["input_ids"] for text in (*part.first, *part.second)}
    joined = _rows(tok, part, 24, apart=False)
    assert joined[0]["input_ids"] == ids["anna sings"] + ids["here"][1:]
    apart = _rows(tok, part, 24, apart=True)
    batch = _Collator(tok)(apart)
    for row in range(2):
        for suffix, texts in (("", part.first), ("_b", part.second)):
            wanted = ids[texts[row]]
            mask = batch["attention_mask" + suffix][row].bool()
            assert batch["input_ids" + suffix][row][mask].tolist() == wanted
    assert batch["input_ids"].shape[1] != batch["input_ids_b"].shape[1]
    assert batch["labels"].tolist() == [0.5, 1.0]
    assert max(len(row["input_ids"]) for row in _rows(tok, part, 5, apart=False)) == 5


def test_pretrained_weights_are_loaded(places):
    """All of the body, of the decoder too for the head that goes on with it."""
    stored = load_file(Path(places["concepts"]) / "model.safetensors")
    found = classifier(places["concepts"], TASKS["mnli"], "decoder").state_dict()
    bodies = [name for name in stored if name.startswith(("encoder.", "decoder."))]
    assert len(bodies) > 20
    assert all(torch.equal(stored[name], found[name]) for name in bodies)
    assert found["classifier.weight"].shape[0] == 3


@pytest.mark.parametrize("lost", ["encoder.slots.weight", "decoder."])
def test_a_body_without_weights_is_refused(places, tmp_path, lost):
    """It would be measured as a pretrained one. The decoder may lack them where no head needs it."""
    shutil.copytree(places["concepts"], tmp_path / "lost")
    path = tmp_path / "lost" / "model.safetensors"
    kept = {k: v for k, v in load_file(path).items() if not k.startswith(lost)}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"must hold the weights of a pretrained body; \d+ are"):
        classifier(path.parent, TASKS["sst2"], "decoder")
    if lost == "decoder.":
        classifier(path.parent, TASKS["sst2"], "weighted")


def test_models_that_do_not_fit_are_told(places, tmp_path):
    """Unknown head, a head for pairs on one text, a head of BERT, no checkpoint, too long texts."""
    task = TASKS["sst2"]
    with pytest.raises(ConfigError, match=r"must be one of cls-query, .*pair; got 'best'"):
        classifier(places["concepts"], task, "best")
    with pytest.raises(ConfigError, match="reads two texts one by one; task 'sst2' has one"):
        classifier(places["concepts"], task, "pair")
    with pytest.raises(ConfigError, match=r"Heads are of concept models; .*bert.*got 'mean'"):
        classifier(places["bert"], task, "mean")
    with pytest.raises(ConfigError, match=r"there is no folder .*write hub:"):
        classifier(tmp_path / "nowhere", task)
    with pytest.raises(ConfigError, match=r"cannot be loaded: .*config\.json"):
        classifier(tmp_path, task)
    (tmp_path / "config.json").write_text((Path(places["concepts"]) / "config.json").read_text())
    with pytest.raises(ConfigError, match=r"cannot be loaded for task 'sst2': .*pretrained model"):
        classifier(tmp_path, task)
    parts = parts_of("sst2", *(sentiment(8, seed) for seed in range(3)))
    with pytest.raises(ConfigError, match="at most the model's 32 places; got 64"):
        tuned(places["concepts"], parts, max_length=64)
    model = classifier(places["concepts"], task)
    assert with_length(model, FineTuneConfig()).max_length == 32
    assert with_length(model, FineTuneConfig(max_length=8)).max_length == 8


def test_a_folder_without_a_tokenizer_is_told(places, tmp_path):
    """The library makes one up that has special tokens alone: every text would be the same."""
    classifier(places["bert"], task_of("sst2")).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="it has special ones alone"):
        fetch_tokenizer(tmp_path)


def test_a_stored_model_needs_its_tokenizer(places, tmp_path):
    """Of a corpus it may be left out, and the error says so; of a model it may not."""
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="leave it out: one is trained on the corpus"):
        fetch_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="Store the one that the model was trained with there"):
        fetch_tokenizer(tmp_path, beside_model=True)


def test_a_model_that_diverged_is_told_before_it_is_measured(places, tmp_path):
    """By its weights, not as a fine-tuning that diverged."""
    model = classifier(places["concepts"], TASKS["sst2"])
    with torch.no_grad():
        model.encoder.last_norm.bias[0] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"finite numbers; 1 of .*encoder\.last_norm\.bias: its"):
        classifier(tmp_path, TASKS["sst2"])


@pytest.mark.parametrize(("apart", "share"), [(False, 0.75), (True, 0.25)])
def test_the_share_that_is_cut(apart, share):
    """Of pairs: joined both share the places, read one by one each has them for itself."""
    first, second = ["a", "a b c", "a b c d e f g h", "a b c"], ["b", "b c d", "b", "b c d"]
    pairs = Examples(tuple(first), tuple(second), np.zeros(4))
    assert share_cut(tokenizer(), pairs, 8, apart=apart) == share
    texts = Examples(tuple(first), None, np.zeros(4))
    assert share_cut(tokenizer(), texts, 8, apart=apart) == 0.25


def test_texts_are_filled_up_on_the_right_whatever_the_tokenizer_says(tmp_path):
    """Tokenizers of some decoders fill up before the text; stored again, they do so no more."""
    tokenizer().save_pretrained(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"padding_side": "left"}))
    assert AutoTokenizer.from_pretrained(tmp_path).padding_side == "left"
    found = fetch_tokenizer(tmp_path)
    assert found(["a", "a b c d e"], padding=True)["attention_mask"][0][0] == 1
    found.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).padding_side == "right"


def test_a_model_of_another_task_is_told(places, tmp_path):
    """Its last layer has another number of classes."""
    classifier(places["concepts"], TASKS["mnli"]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="not one that was trained for another task"):
        classifier(tmp_path, TASKS["sst2"])


def test_divergence_is_told(places):
    """Not reported as a score."""
    parts = parts_of("stsb", *(related(16, seed) for seed in range(3)))
    with pytest.raises(ConfigError, match=r"'stsb': .*the training diverged. Lower lr"):
        tuned(places["concepts"], parts, lr=1e38)


@pytest.mark.parametrize("name", ["lr", "batch", "epochs", "warmup", "weight_decay", "clip"])
def test_impossible_settings_are_told(name):
    """Which, the rule, and the value."""
    with pytest.raises(ConfigError, match=rf"Fine-tuning: {name} must be .*; got -1"):
        FineTuneConfig(**{name: -1})


def test_a_report_holds_every_number(places, tmp_path):
    """Named as the source's; a row for each way, metric and seed; a second one overwrites nothing."""
    parts = parts_of("sick-r", related(48, 0), related(16, 1), related(16, 2))
    config = FineTuneConfig(epochs=1, **FAST)
    told = []
    report = evaluate(
        places["concepts"], parts, config, [0, 1], head="mean", frozen=True, tell=told.append
    )
    ways = {"majority": 1, "bag of words": 1, "zero-shot": 1, "linear probe": 1,
            "zero-shot, untrained": 2, "linear probe, untrained": 2, "fine-tuned": 2}  # fmt: skip
    assert {way: len(values["pearson"]) for way, values in report.rows.items()} == ways
    pretrained, bare = (report.rows["zero-shot" + end]["pearson"] for end in ("", ", untrained"))
    assert len({*pretrained, *bare}) == 3
    assert [run.reported["pearson"] for run in report.runs] == report.rows["fine-tuned"]["pearson"]
    results, summary, metadata, plain = write_report(tmp_path / "new", report, NOW)
    size = f"{report.runs[0].parameters / 1e6:.2g}"
    assert results.name == f"bench-sick-r-concepts-{size}M-20260226_2105-results.csv"
    rows = list(csv.DictReader(results.read_text().splitlines()))
    assert len(rows) == 2 * sum(ways.values())
    for row in rows:
        values = report.rows[row["way"]][row["metric"]]
        assert float(row["value"]) == values[int(row["seed"] or 0)]
    means = list(csv.DictReader(summary.read_text().splitlines()))
    assert [int(row["n"]) for row in means] == [n for n in ways.values() for _ in range(2)]
    for row in means:
        values = report.rows[row["way"]][row["metric"]]
        assert float(row["mean"]) == pytest.approx(np.mean(values))
        assert (row["std"] == "") == (len(values) == 1)
        assert len(values) == 1 or float(row["std"]) == pytest.approx(np.std(values, ddof=1))
    names = dict(csv.reader(metadata.read_text().splitlines()))
    assert (names["head"], names["sizes.train"], names["config.lr"]) == ("mean", "48", "0.003")
    assert json.loads(plain.read_text()) == json.loads(json.dumps(report.plain()))
    again = write_report(tmp_path / "new", report, NOW)
    assert again[0].name.endswith("_2105-2-results.csv")
    assert len(list((tmp_path / "new").iterdir())) == 8
    glue = replace(report, parts=parts_of("stsb", parts.train, parts.chosen, parts.reported[""]))
    assert write_report(tmp_path, glue, NOW)[0].name.startswith("glue-stsb-concepts-")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"folder that can be written to; .*file cannot"):
        write_report(tmp_path / "file", report, NOW)


def test_what_is_not_above_a_baseline_is_named(places):
    """By the mean of the seeds; equal is not above."""
    parts = parts_of("sst2", sentiment(32, 0), sentiment(16, 1), sentiment(16, 2))
    report = evaluate(places["bert"], parts, FineTuneConfig(epochs=1, **FAST), [0])
    rows = {
        "majority": {"accuracy": [0.5]},
        "bag of words": {"accuracy": [0.4]},
        "fine-tuned": {"accuracy": [0.4, 0.6]},
    }
    made = replace(report, rows=rows)
    assert made.not_above("majority") == ["accuracy"]
    assert made.not_above("bag of words") == []
    assert report.head == ""
