"""Names as the source's registry had them, and cards that the hub can read."""

from datetime import UTC, datetime

import pytest
from huggingface_hub import ModelCard

from assay.core.errors import ConfigError
from assay.engines.concepts.card import model_card, upload
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
        ({"architecture": "bert", "objective": "whole-word"}, "bert_whole_word_H512L6"),
    ],
)
def test_runs_are_called_as_in_the_source(settings, name):
    assert run_name(PretrainConfig(**SIZES | settings), WHEN) == f"{name}_20260219_101500"


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
    model_card(config, final, place="me/small").save(tmp_path / "README.md")
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
    text = model_card(PretrainConfig(architecture="bert"), {}, place="me/small").text
    assert "concept vectors" not in text
    assert "import assay" not in text
    assert 'AutoModel.from_pretrained("me/small")' in text


def test_a_card_keeps_the_folders_of_its_owner_to_itself():
    text = model_card(PretrainConfig(corpus="/home/me/secret/notes.txt"), {}, place="me/small").text
    assert "pretrained on notes.txt by" in text
    assert "secret" not in text


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
