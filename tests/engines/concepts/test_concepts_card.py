"""Names as the source's registry had them, and cards that the hub can read."""

from datetime import UTC, datetime

import pytest
from huggingface_hub import ModelCard

from assay.core.errors import ConfigError
from assay.engines.concepts.card import Trained, model_card, upload
from assay.engines.concepts.config import PretrainConfig
from assay.engines.concepts.names import concept_losses, run_name

WHEN = datetime(2026, 2, 19, 10, 15, 0, tzinfo=UTC)
SIZES = {"hidden": 512, "layers": 6, "slots": 128}


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "perceiver_mlm_H512L6C128"),
        ({"decoder": "position"}, "perceiver_posonly_mlm_H512L6C128"),
        ({"decoder": "weighted", "token_dim": 64, "tied": False}, "weighted_mlm_H512L6C128_T64"),
        ({"slot_places": "sinusoidal"}, "perceiver_mlm_H512L6C128_possinusoidal"),
        ({"recursive": True}, "recursive_mlm_H512L6C128"),
        ({"objective": "diffusion", "decoder": "diffusion"}, "diffusion_H512L6C128D2"),
        (
            {"objective": "tsdae", "decoder": "position", "bidirectional": True},
            "tsdae_posonly_BiXTH512L6C128",
        ),
    ],
)
def test_runs_are_called_as_in_the_source(settings, name):
    assert run_name(PretrainConfig(**SIZES | settings), WHEN) == f"{name}_20260219_101500"


def test_a_plain_encoder_is_called_by_the_layers_that_it_has():
    """They are not those of the setting, and are not known before it is made."""
    config = PretrainConfig(**SIZES, architecture="bert", objective="whole-word")
    assert run_name(config, WHEN, 9) == "bert_whole_word_H512L9_20260219_101500"
    assert run_name(config, WHEN) == "bert_whole_word_H512_20260219_101500"


def card_of(config, final=None, *, licence=None, data=None):
    """A card of a run with usual facts."""
    run = Trained(
        config=config,
        final=final or {},
        model={"num_hidden_layers": 1, "vocab_size": 4096},
        seeds={"init": 3, "data": 4},
        data=data or {},
    )
    return model_card(run, place="me/small", licence=licence)


def test_concept_losses_in_a_word():
    assert concept_losses(PretrainConfig()) == "none"
    assert concept_losses(PretrainConfig(concept_losses=("combined",))) == "combined (fixed 0.1)"
    both = PretrainConfig(concept_losses=("vicreg", "spread"), weighting="kendall-gal")
    assert concept_losses(both) == "vicreg+spread (kendall-gal)"


def test_a_card_can_be_read_again_with_its_results(tmp_path):
    """By the hub's own library; values are those that were measured, on the data sets by their names there."""
    final = {
        "test/loss_nats": 2.5,
        "test/unigram_nats": 2.4,
        "mrpc/f1": 0.8125,
        "mrpc/majority_f1": 0.8122,
        "stsb/spearman": 0.61,
        "speed/x": 1.0,
    }
    config = PretrainConfig(corpus="hub:JeanKaddour/minipile")
    card_of(config, final).save(tmp_path / "README.md")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.datasets == ["JeanKaddour/minipile"]
    found = {
        (r.dataset_type, r.dataset_config, r.metric_type): r.metric_value
        for r in card.data.eval_results
    }
    assert found == {
        ("nyu-mll/glue", "mrpc", "f1"): 0.8125,
        ("nyu-mll/glue", "stsb", "spearman"): 0.61,
    }
    assert 'from_pretrained("me/small")' in card.text
    assert "| mrpc/majority_f1 | 0.8122 |" in card.text
    assert "| test/unigram_nats | 2.4 |" in card.text, "what guessing costs stands beside the loss"
    assert "speed/x" not in card.text


def test_a_plain_encoders_card_needs_nothing_of_ours():
    text = card_of(PretrainConfig(architecture="bert")).text
    assert "concept vectors" not in text
    assert "import assay" not in text
    assert "make setup" not in text
    assert 'AutoModel.from_pretrained("me/small")' in text


def test_a_card_keeps_the_folders_of_its_owner_to_itself():
    corpus, tokenizer = "/home/me/secret/notes.txt", "/home/me/secret/words"
    text = card_of(
        PretrainConfig(corpus=corpus, tokenizer=tokenizer), data={f"corpus {corpus}": "12ab"}
    ).text
    assert "pretrained on notes.txt by" in text
    assert "| tokenizer | words, 4,096 tokens |" in text
    assert "| corpus, sha256 | 12ab |" in text
    assert "secret" not in text


def test_a_corpus_of_the_hub_is_named_as_the_hub_does():
    """Its configuration is no part of the name."""
    card = card_of(PretrainConfig(corpus="hub:me/texts:small"))
    assert card.data.datasets == ["me/texts"]


def test_a_card_says_layers_that_the_model_has():
    """The setting, 2, is of the concept encoder whose size the plain one has."""
    text = card_of(PretrainConfig(architecture="bert", layers=2)).text
    assert "A BERT of 1 layer of 128 numbers" in text
    assert "| architecture | bert_mlm_H128L1 |" in text


def test_a_card_says_what_is_needed_to_train_it_again():
    text = card_of(PretrainConfig(mask_rate=0.2), {"model/parameters": 1234567.0}).text
    assert "make setup" in text
    assert "| seeds | data 4, init 3 |" in text
    assert "| parameters | 1,234,567, those of decoder and head too |" in text
    assert "| tokenizer | trained on the corpus, 4,096 tokens |" in text
    assert "| objective | mlm, mask_rate 0.2, decoder perceiver |" in text
    timed = PretrainConfig(objective="diffusion", decoder="diffusion", label_smoothing=0.1)
    assert (
        "| objective | diffusion, t_min 0.05, time_weight none, decoder diffusion, label_smoothing 0.1 |"
        in card_of(timed).text
    )


def test_a_licence_is_an_identifier():
    assert card_of(PretrainConfig(), licence="openrail++").data.license == "openrail++"
    for wrong in ("", "Apache 2.0", "MIT", "mit\n"):
        with pytest.raises(ConfigError, match="identifier of the hub"):
            card_of(PretrainConfig(), licence=wrong)


class Hub:
    """What `upload` needs of the hub's library; refuses if it is told to."""

    endpoint = "https://hub.example"

    def __init__(self, refuses=False):
        self.told, self.refuses = [], refuses

    def create_repo(self, name, **options):
        if self.refuses:
            raise OSError("no network")
        self.told.append((name, options))

    def upload_folder(self, **options):
        self.told.append(options)


def test_uploading_needs_a_model_and_tells_what_the_hub_says(tmp_path):
    with pytest.raises(ConfigError, match=r"must have model\.safetensors"):
        upload(tmp_path, "me/small", private=True, api=Hub())
    for name in ("model.safetensors", "config.json", "README.md"):
        (tmp_path / name).write_text("")
    hub = Hub()
    assert upload(tmp_path, "me/small", private=True, api=hub) == "https://hub.example/me/small"
    assert hub.told == [
        ("me/small", {"private": True, "exist_ok": True}),
        {"folder_path": tmp_path, "repo_id": "me/small"},
    ]
    with pytest.raises(ConfigError, match="did not take 'me/small': OSError: no network"):
        upload(tmp_path, "me/small", private=True, api=Hub(refuses=True))
