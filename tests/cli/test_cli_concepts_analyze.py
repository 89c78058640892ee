"""`assay concepts analyze`, from a terminal, on tiny models as `save_pretrained` stores them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from project import Project

from assay.cli.concepts_analyze import analyze
from assay.core.errors import ConfigError
from assay.engines.concepts.analysis import collect, measure
from assay.engines.concepts.analysis_metrics import METRICS
from assay.engines.concepts.checkpoints import classifier
from assay.engines.concepts.configuration import ConceptConfig
from assay.engines.concepts.models import (
    ConceptForMaskedLM,
    ConceptForSequenceClassification,
    ConceptModel,
)
from assay.engines.concepts.stored import encoded, load, questions, read_texts, spread
from assay.engines.concepts.tasks import TASKS
from assay.engines.concepts.tokens import train_tokenizer, vocabulary_digest

LINES = [f"the {noun} {verb} {place}" for noun in ("cat", "old dog", "bird")
         for verb in ("sat on", "ran far from") for place in ("the mat", "a very big house by the sea")]  # fmt: skip


def stored(folder, kind, **settings):
    """A tiny model of a class and its tokenizer, in a folder."""
    tokenizer = train_tokenizer(LINES, 300)
    sizes = {
        "vocab_size": len(tokenizer), "concept_num": 4, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 24, "initializer_range": 0.4,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(ConceptConfig(**(sizes | settings)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with a checkpoint and a file of texts."""
    project = Project(tmp_path_factory.mktemp("concepts"))
    stored(project.root / "lm", ConceptForMaskedLM)
    project.write("texts.txt", "\n".join([*LINES, "", " "]) + "\n")
    return project


def test_a_checkpoint_whose_settings_ask_for_tuples(tmp_path):
    """It is read like any other: what its outputs look like is the user's, not ours."""
    stored(tmp_path, ConceptForMaskedLM, return_dict=False)
    loaded = load(tmp_path)
    batch = next(iter(encoded(LINES, loaded.tokenizer, 24)))
    assert loaded.encoder(**batch).last_hidden_state.shape == (len(LINES), 4, 16)
    assert classifier(tmp_path, TASKS["sst2"])(**batch).logits.shape == (len(LINES), 2)


def test_analyze_tells_everything(project):
    """Every measure with its value, level and meaning; where texts came from; health; a figure."""
    done = project("concepts", "analyze", "lm", "--texts", "texts.txt", "--figure", "lm.png")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ConceptForMaskedLM of lm: 4 slots of 16 numbers, 2 layer(s), ")
    assert lines[1] == "12 texts of texts.txt, of 24 tokens at most"
    rows = {line.split()[0]: line for line in lines if line}
    loaded = load(project.root / "lm")
    batches = list(encoded(LINES, loaded.tokenizer, 24))
    found = collect(loaded.encoder, batches, attentions="all")
    for name, value in measure(found.concepts_TCH, found.attention).items():
        assert float(rows[name].split()[1]) == pytest.approx(value, rel=1e-3, abs=1e-9), name
        assert METRICS[name].says[:20] in rows[name]
    assert rows["rank_mean_share"].split()[2:4] in (["good", "*"], ["ok", "*"])
    assert " * " not in rows["input_dependence"]
    assert "health: nothing found" in lines
    assert done.stderr == ""
    assert (project.root / "lm.png").stat().st_size > 10_000


def test_json_has_every_slot(project, capsys):
    """One document: measures with levels, values of slots, of layers and of places."""
    analyze(project.root / "lm", texts=project.root / "texts.txt", count=5, json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["texts"], found["slots"], found["class"]) == (5, 4, "ConceptForMaskedLM")
    assert set(found["measures"]) == set(METRICS)
    assert len(found["slot"]["input_dependence"]) == 4
    assert len(found["layer"]) == 2
    assert sum(found["layer"][1]["attention_share"]) == pytest.approx(1)
    assert found["measures"]["rank_mean"]["level"] is None
    assert found["measures"]["rank_mean_share"]["level"] in ("ok", "good")
    assert found["health"] == []


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (ConceptModel, {}),
        (ConceptForSequenceClassification, {"num_labels": 9}),
        (ConceptForSequenceClassification, {"num_labels": 1, "head": "pair"}),
        (
            ConceptForMaskedLM,
            {"decoder_type": "diffusion", "time_weight": "elbo", "recursive": True},
        ),
        (ConceptForMaskedLM, {"decoder_type": "weighted", "concept_num": 1}),
    ],
)
def test_every_class_can_be_analysed(tmp_path, kind, settings):
    """From its folder alone, by the class that it names; the weights are those that were stored."""
    model = stored(tmp_path / "it", kind, **settings)
    loaded = load(tmp_path / "it")
    assert type(loaded.model) is kind
    for name, values in model.state_dict().items():
        assert torch.equal(values, loaded.model.state_dict()[name]), name
    (batch,) = encoded(LINES, loaded.tokenizer, 24)
    found = collect(loaded.encoder, [batch], attentions="all")
    assert measure(found.concepts_TCH, found.attention)["input_dependence"] > 0
    with torch.no_grad():
        out = loaded.model(**questions(loaded, batch))
    if kind is ConceptForMaskedLM:
        assert 0 < float(out.loss) < 100


def test_hidden_tokens_are_hidden(tmp_path):
    """A decoder is asked for tokens that it does not see; the encoder of diffusion sees the whole text."""
    for decoder in ("perceiver", "diffusion"):
        stored(tmp_path / decoder, ConceptForMaskedLM, decoder_type=decoder)
        loaded = load(tmp_path / decoder)
        (batch,) = encoded(LINES, loaded.tokenizer, 24)
        asked = questions(loaded, batch)
        labels, real = asked["labels"] != -100, batch["attention_mask"].bool()
        assert labels.any()
        assert not (labels & ~real).any()
        assert torch.equal(asked["labels"][labels], batch["input_ids"][labels])
        seen = asked["decoder_input_ids" if decoder == "diffusion" else "input_ids"]
        assert torch.equal(seen == loaded.tokenizer.mask_token_id, labels)
        if decoder == "diffusion":
            assert torch.equal(asked["input_ids"], batch["input_ids"])
            assert asked["time"].tolist() == pytest.approx((labels.sum(1) / real.sum(1)).tolist())


def test_findings_are_shown_and_end_with_1(project, tmp_path, capsys):
    """A model that broke: nothing is measured, what is wrong is told; exit code 1."""
    model = stored(tmp_path / "it", ConceptForMaskedLM)
    with torch.no_grad():
        model.encoder.last_norm.bias[3] = torch.nan
    model.save_pretrained(tmp_path / "it")
    words = ("concepts", "analyze", tmp_path / "it", "--texts", "texts.txt")
    done = project(*words, "--figure", "no.png", code=1)
    assert "Nothing is measured: concepts are not finite." in done.stdout
    assert "encoder.last_norm.bias" in done.stdout
    assert "1 of 16 are NaN or infinite" in done.stdout
    assert "health: 3 finding(s)" in done.stdout
    assert not (project.root / "no.png").exists()
    with pytest.raises(SystemExit, match="1"):
        analyze(tmp_path / "it", texts=project.root / "texts.txt", json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["measures"] is None
    assert [each["name"] for each in found["health"]] == ["encoder.last_norm.bias", "predictions", "loss"]  # fmt: skip


def refused(*words, **options):
    """What the command says of a mistake; in this process, since each process loads torch anew."""
    with pytest.raises(ConfigError) as error:
        analyze(*words, **options)
    told = str(error.value)
    assert "\n" not in told
    return told


def test_what_is_no_checkpoint_is_refused(project, tmp_path, monkeypatch):
    """No folder, another kind of model, another class, missing weights, other sizes: each by its name."""
    monkeypatch.chdir(project.root)
    told = project.refused("concepts", "analyze", "nowhere", "--texts", "texts.txt")
    assert "nowhere/config.json cannot be read" in told
    it, texts = tmp_path / "it", Path("texts.txt")
    stored(it, ConceptModel)
    config = json.loads((it / "config.json").read_text())
    for values, says in (
        ({"model_type": "bert"}, 'is of "bert"'),
        ({"architectures": ["Other"]}, "['Other']"),
        ({"architectures": ["ConceptForMaskedLM"]}, ", among them decoder."),
        ({"concept_num": 5}, "slots.weight is (4, 16), and by config.json (5, 16)"),
        ({"concept_num": 0}, "concept_num must be 1 or more"),
    ):
        (it / "config.json").write_text(json.dumps(config | values))
        assert says in refused(it, texts=texts)
    (it / "config.json").write_text(json.dumps(config))
    analyze(it, texts=texts, json=True)
    (it / "model.safetensors").unlink()
    assert "cannot be loaded" in refused(it, texts=texts)
    (it / "config.json").write_text("[]")
    assert 'is of "None"' in refused(it, texts=texts)


def test_texts_that_cannot_be_taken_are_refused(project, monkeypatch):
    """From two places, from none, no text, one text, no UTF-8, too long; a figure that cannot be written."""
    monkeypatch.chdir(project.root)
    it, texts = Path("lm"), Path("texts.txt")
    assert "one place" in refused(it, texts=texts, texts_from="python")
    for name, content, says in (
        ("empty.txt", b"\n \n", "no line of text"),
        ("one.txt", b"alone\n", "one.txt has 1."),
        ("latin.txt", b"na\xefve text\n", "cannot be read"),
    ):
        (project.root / name).write_bytes(content)
        assert says in refused(it, texts=Path(name))
    assert "cannot be read" in refused(it, texts=Path("missing.txt"))
    assert "max_position_embeddings = 24; got 25" in refused(it, texts=texts, length=25)
    assert "got 'nowhere'" in refused(it, texts_from="nowhere")
    assert "must end in .svg" in refused(it, texts=texts, figure=Path("x.gif"))
    assert "no such does not" in refused(it, texts=texts, figure=Path("no such/x.png"))


def test_tokenizers_that_do_not_fit_are_refused(project, tmp_path):
    """One with more tokens than the model, one with as many others, and none."""
    it, texts = tmp_path / "it", project.root / "texts.txt"
    shutil.copytree(project.root / "lm", it)
    larger = train_tokenizer(LINES, 300)
    larger.add_tokens(["<new>", "<newer>"])
    larger.save_pretrained(it)
    assert f"has {len(larger)}." in refused(it, texts=texts)
    digest = vocabulary_digest(train_tokenizer(LINES, 300))
    settings = json.loads((it / "config.json").read_text())
    (it / "config.json").write_text(json.dumps(settings | {"vocabulary_digest": digest}))
    train_tokenizer([line[::-1] for line in LINES], 300).save_pretrained(it)
    assert "its tokens are not those of the model's config.json" in refused(it, texts=texts)
    (it / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refused(it, texts=texts)


def test_texts_are_taken_from_all_over(tmp_path):
    """At even distances, the first among them; all where there are no more; lines without text are none."""
    assert spread("abcdefghij", 4) == ["a", "c", "f", "h"]
    assert spread("abc", 5) == spread("abc", 3) == ["a", "b", "c"]
    (tmp_path / "x").write_text("one text\n\n  \nx\ntwo\n")
    assert read_texts(tmp_path / "x") == ["one text", "two"]
