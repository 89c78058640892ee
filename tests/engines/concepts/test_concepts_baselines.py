"""What a result must be better than: numbers by hand, and what a model's vectors hold as they are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation_helpers import (
    TEXTS,
    bert_checkpoint,
    checkpoint,
    concept_config,
    parts_of,
    related,
    sentiment,
    tokenizer,
)
from scipy import stats
from transformers import AutoModel, BertModel

from assay.core.errors import ConfigError
from assay.engines.concepts.baselines import bag_of_words, bert_like, majority
from assay.engines.concepts.encoder import ConceptModel
from assay.engines.concepts.frozen import linear_probe, vectors, zero_shot
from assay.engines.concepts.parts import Examples


def labelled(*labels):
    """Examples with these answers."""
    return Examples(tuple(TEXTS[: len(labels)]), tuple(TEXTS[: len(labels)]), np.array(labels))


@pytest.fixture(scope="module")
def concepts(tmp_path_factory):
    """The encoder of a stored concept model."""
    return AutoModel.from_pretrained(checkpoint(tmp_path_factory.mktemp("concepts")))


def test_majority_is_the_answer_that_training_has_most():
    """Of `train`, not of what is reported: 2 of 5 there, though 1 would have 3."""
    parts = parts_of("sick-e", labelled(2, 2, 1, 0), labelled(1), labelled(1, 1, 1, 2, 2))
    assert majority(parts) == {"accuracy": 0.4}


def test_majority_of_f1_says_yes():
    """Also where "no" is more frequent: F1 = 2p / (1 + p) with a share p of yes, accuracy 1 − p."""
    parts = parts_of("qqp", labelled(0, 0, 0, 1), labelled(0), labelled(0, 0, 0, 1, 1))
    assert majority(parts) == {"accuracy": 0.6, "f1": pytest.approx(2 * 0.4 / 1.4, rel=1e-12)}


def test_majority_has_no_correlation():
    """One number, or one class, for all."""
    numbers = labelled(1.0, 2.0, 4.0)
    assert majority(parts_of("stsb", numbers, numbers, numbers)) == {"pearson": 0, "spearman": 0}
    classes = labelled(0, 1, 1)
    assert majority(parts_of("cola", classes, classes, classes)) == {"mcc": 0, "accuracy": 2 / 3}


def test_majority_is_told_of_each_reported_part():
    """By the suffix that its metrics have."""
    parts = parts_of("mnli", labelled(0, 0, 1), labelled(0), labelled(0, 1))
    parts = replace(parts, reported={"": labelled(0, 1), "_mm": labelled(0, 0, 0, 2)})
    assert majority(parts) == {"accuracy": 0.5, "accuracy_mm": 0.75}


def test_words_are_learned():
    """A class that one word decides, on texts that were not seen."""
    found = bag_of_words(parts_of("sst2", sentiment(64, 0), sentiment(20, 1), sentiment(50, 2)))
    assert found.reported == {"accuracy": 1.0}


def test_words_that_two_texts_share_are_learned():
    """A number that is how many words a pair shares, whatever the words."""
    found = bag_of_words(parts_of("sick-r", related(200, 0), related(40, 1), related(80, 2)))
    assert found.reported["pearson"] > 0.9


@pytest.mark.parametrize("way", ["words", "probe"])
def test_reported_answers_choose_nothing(concepts, way):
    """Turned round they change what is reported, to its opposite, and nothing else."""
    reported = sentiment(40, 2)
    turned = Examples(reported.first, None, 1 - reported.labels)
    found = []
    for part in (reported, turned):
        parts = parts_of("sst2", sentiment(64, 0), sentiment(20, 1), part)
        found.append(
            bag_of_words(parts) if way == "words" else linear_probe(concepts, tokenizer(), parts)
        )
    assert found[0].settings == found[1].settings
    assert found[0].chosen == found[1].chosen
    assert found[0].reported["accuracy"] == pytest.approx(1 - found[1].reported["accuracy"])


def test_the_strength_is_the_best_on_chosen():
    """Where `chosen` contradicts `train`, the weakest fit is best; where it agrees, closer ones."""
    noisy = sentiment(64, 0, share=0.8)
    against = sentiment(30, 1, share=0.5)
    against = Examples(against.first, None, np.ones_like(against.labels))
    parts = parts_of("sst2", noisy, against, sentiment(20, 2))
    assert bag_of_words(parts).settings == {"strength": 0.01}
    parts = parts_of("sst2", noisy, sentiment(30, 1), sentiment(20, 2))
    assert bag_of_words(parts).settings["strength"] > 0.01


def test_training_with_one_answer_gives_that_answer():
    """There is nothing else to learn, and no error."""
    one = Examples(tuple(TEXTS[:9]), None, np.ones(9, np.int64))
    found = bag_of_words(parts_of("sst2", one, one, sentiment(20, 0)))
    assert found.reported == {"accuracy": 0.5}


def test_texts_without_words_are_told():
    """With the task and the way out."""
    empty = Examples(("…", "!?"), None, np.array([0, 1]))
    with pytest.raises(ConfigError, match="'sst2': a bag of words needs words; its 2 training"):
        bag_of_words(parts_of("sst2", empty, empty, empty))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_hidden_layers": 6, "intermediate_size": 96},
        {"hidden_size": 64, "num_hidden_layers": 3, "bidirectional": True, "vocab_size": 4096},
        {
            "hidden_size": 48,
            "num_hidden_layers": 12,
            "concept_num": 64,
            "max_position_embeddings": 64,
        },
    ],
)
def test_a_bert_of_that_size(changes):
    """Counts are those of the real models, within a permille; what is shared is equal."""
    config = concept_config(**changes)
    found = bert_like(config)
    assert found.ours == sum(p.numel() for p in ConceptModel(config).parameters())
    model = BertModel(found.config, add_pooling_layer=False)
    assert found.theirs == sum(p.numel() for p in model.parameters())
    assert found.theirs == pytest.approx(found.ours, rel=1e-3)
    for name in ("vocab_size", "hidden_size", "max_position_embeddings", "num_attention_heads"):
        assert getattr(found.config, name) == getattr(config, name)


def test_no_bert_shape_is_nearer():
    """Against all shapes, by formula, where none is within a permille; both counts are given."""
    config = concept_config(token_embedding_dim=4)
    found = bert_like(config)
    h, v, p = 32, config.vocab_size, 32
    rest = (v + p + 2) * h + 2 * h
    sizes = [
        rest + n * (4 * (h * h + h) + 4 * h + 2 * h * i + i + h)
        for n in range(1, 9)
        for i in range(1, 400)
    ]
    assert abs(found.theirs - found.ours) == min(abs(size - found.ours) for size in sizes)


def test_vectors_of_concepts_are_their_mean(concepts):
    """Of each text by itself: neither its neighbours nor their length change it."""
    texts = ["anna sings", "ben walks here and there", "c"]
    found = vectors(concepts, tokenizer(), texts)
    for text, vector in zip(texts, found, strict=True):
        ids = tokenizer()(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            wanted = concepts.eval()(ids).last_hidden_state.mean(1)[0]
        np.testing.assert_allclose(vector, wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_vectors_of_bert_are_the_mean_of_its_tokens(tmp_path):
    """Of all that are no padding, special ones included."""
    model = AutoModel.from_pretrained(bert_checkpoint(tmp_path))
    texts = ["anna sings", "ben walks here and there"]
    found = vectors(model, tokenizer(), texts)
    for text, vector in zip(texts, found, strict=True):
        ids = tokenizer()(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            wanted = model.eval()(ids).last_hidden_state.mean(1)[0]
        np.testing.assert_allclose(vector, wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_measuring_vectors_changes_no_model(concepts):
    """Neither weights nor whether it is in training."""
    concepts.train()
    before = {name: value.clone() for name, value in concepts.state_dict().items()}
    linear_probe(
        concepts, tokenizer(), parts_of("sst2", *(sentiment(20, seed) for seed in range(3)))
    )
    assert concepts.training
    assert all(torch.equal(value, before[name]) for name, value in concepts.state_dict().items())


def test_zero_shot_is_the_correlation_of_cosines(concepts):
    """By hand, on `reported` alone."""
    reported = related(30, 2)
    found = zero_shot(
        concepts, tokenizer(), parts_of("sick-r", related(9, 0), related(9, 1), reported)
    )
    a, b = (torch.tensor(vectors(concepts, tokenizer(), texts)) for texts in
            (reported.first, reported.second))  # fmt: skip
    cosines = torch.cosine_similarity(a, b).numpy().round(10)
    assert found == {
        "pearson": pytest.approx(np.corrcoef(cosines, reported.labels)[0, 1], rel=1e-9),
        "spearman": pytest.approx(stats.spearmanr(cosines, reported.labels)[0], rel=1e-9),
    }
    parts = parts_of("sst2", *(sentiment(9, seed) for seed in range(3)))
    with pytest.raises(ConfigError, match=r"pairs with a number .*got task 'sst2'"):
        zero_shot(concepts, tokenizer(), parts)


def test_a_probe_of_pairs_reads_both_texts(concepts):
    """What two vectors share is found by a linear model on both, above chance."""
    parts = parts_of("sick-r", related(150, 0), related(40, 1), related(60, 2))
    found = linear_probe(concepts, tokenizer(), parts)
    assert found.reported["pearson"] > 0.5
