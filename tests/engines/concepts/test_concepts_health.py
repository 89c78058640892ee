"""Every rule of health finds the fault that it is for, once, and nothing in a model that is well."""

import pytest
import torch

from assay.engines.concepts.analysis import measure
from assay.engines.concepts.configuration import ConceptConfig
from assay.engines.concepts.health import answers, concepts, health, slots, weights
from assay.engines.concepts.masked import IGNORED
from assay.engines.concepts.models import (
    ConceptForMaskedLM,
    ConceptForSequenceClassification,
    ConceptModel,
)

CLASSES = [ConceptModel, ConceptForMaskedLM, ConceptForSequenceClassification]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model(kind=ConceptForMaskedLM, **settings):
    sizes = {
        "vocab_size": 40, "concept_num": 4, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 8, "max_position_embeddings": 12, "initializer_range": 0.3,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(ConceptConfig(**(sizes | settings)))


def batches(labels=True):
    ids = torch.randint(4, 40, (6, 8), generator=torch.Generator().manual_seed(1))
    asked = ids.masked_fill(torch.arange(8) % 3 != 0, IGNORED)
    return [{"input_ids": ids[part], "labels": asked[part]} if labels else {"input_ids": ids[part]}
            for part in (slice(0, 3), slice(3, 6))]  # fmt: skip


@torch.no_grad()
def with_(found, name, change):
    """A model whose parameter was changed in place."""
    change(found.get_parameter(name))
    return found


@pytest.mark.parametrize("decoder", ["perceiver", "position", "weighted", "diffusion"])
@pytest.mark.parametrize("position", ["none", "sinusoidal", "learned"])
def test_a_new_model_is_well(decoder, position):
    """Zero biases, zero gates, norms and weights of losses are as they began, and are not blamed."""
    fresh = model(
        decoder_type=decoder,
        concept_position_type=position,
        concept_losses=["variance", "uniformity"],
        weighting="kendall-gal",
        tie_word_embeddings=True,
        bidirectional=True,
    )
    assert health(fresh, batches()) == []


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_can_be_asked(kind):
    """With and without labels; the mode is left as it was."""
    fresh = model(kind, num_labels=8).train()
    rows = batches(labels=kind is ConceptForMaskedLM)
    assert health(fresh, rows) == []
    assert fresh.training


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite(bad):
    """How many, where; of any parameter, and of a tied one once."""
    broken = with_(model(tie_word_embeddings=True), "encoder.embedding.tokens.weight", lambda w: w[3, :2].fill_(bad))  # fmt: skip
    (found,) = weights(broken)
    assert found.name == "encoder.embedding.tokens.weight"
    assert found.rule == "weights are finite"
    assert found.value == "2 of 480 are NaN or infinite"
    (found,) = weights(with_(model(), "encoder.last_norm.bias", lambda w: w[0].fill_(bad)))
    assert found.name == "encoder.last_norm.bias"
    assert found.advice


def test_weights_that_ran_away():
    """One number beyond 1000, also of a bias; exactly 1000 is not."""
    name = "encoder.layers.0.read.key.bias"
    (found,) = weights(with_(model(), name, lambda w: w[1].fill_(-1001)))
    assert (found.name, found.value) == (name, "1001")
    assert weights(with_(model(), name, lambda w: w[1].fill_(-1000))) == []


def test_weights_that_are_too_wide():
    """A deviation above 100, where no single number is beyond 1000."""
    name = "head.weight"
    spread = torch.linspace(-300, 300, 480).view(40, 12)
    (found,) = weights(with_(model(), name, lambda w: w.copy_(spread)))
    assert found.name == name
    assert found.rule == "the deviation of a matrix is at most 100"
    assert float(found.value) == pytest.approx(float(spread.std()), rel=1e-3)


def test_weights_that_are_all_the_same():
    """A matrix of one number, zero or not; but not gates that began at zero."""
    name = "encoder.layers.0.feed.out.weight"
    for number in (0.0, 0.5):
        (found,) = weights(with_(model(), name, lambda w, number=number: w.fill_(number)))
        assert found.name == name
        assert found.rule == "the deviation of a matrix is at least 1e-06"
    gates = "decoder.layers.0.modulation.weight"
    assert weights(model(decoder_type="diffusion")) == []
    for change in (
        model(decoder_type="diffusion", modulation="normal"),
        with_(model(decoder_type="diffusion"), gates, lambda w: w.fill_(0.5)),
    ):
        (found,) = weights(with_(change, gates, lambda w: w.fill_(float(w.abs().max() > 0.49))))
        assert found.name == gates


def test_biases_and_norms_may_stay_as_they_are():
    """All zero, all one, or all the same number."""
    same = model()
    for name in ("encoder.last_norm.weight", "encoder.layers.0.read.out.bias"):
        with_(same, name, lambda w: w.fill_(0.25))
    assert weights(same) == []


def test_slots_that_are_one():
    """Mean cosine above 0.9, with what is added to the slots; one slot alone is well."""
    one = with_(model(), "encoder.slots.weight", lambda w: w.copy_(w[:1] + 0.01 * w))
    (found,) = slots(one)
    assert (found.name, found.rule[:15]) == ("slots", "the mean cosine")
    assert float(found.value) > 0.99
    assert health(one) == [found]
    placed = model(concept_position_type="learned")
    assert len(slots(with_(placed, "encoder.slots.places", lambda w: w.fill_(9)))) == 1
    assert slots(with_(model(), "encoder.slots.weight", lambda w: w[2].mul_(-1))) == []
    assert slots(model(concept_num=1)) == []


def test_losses_out_of_range():
    """Above 100, or NaN; told with the number of batches."""
    loud = with_(model(), "head.weight", lambda w: w.mul_(1000))
    (found,) = [each for each in answers(loud, batches()) if each.name == "loss"]
    assert found.rule == "the loss is in [0, 100]"
    assert float(found.value.split()[0]) > 100
    assert found.value.endswith("in 2 of 2 batches")
    broken = with_(model(), "head.weight", lambda w: w[0, 0].fill_(torch.nan))
    found = {each.name: each.value for each in answers(broken, batches())}
    assert set(found) == {"loss", "predictions"}
    assert found["loss"].startswith("nan in 2 of 2")
    assert found["predictions"].endswith("numbers are NaN or infinite")


def test_one_prediction_for_everything():
    """One token, one class, or one number, over all batches; of one text alone nothing is said."""
    token = with_(model(), "head.weight", lambda w: w.mul_(1e-3))
    mute = with_(token, "decoder.feed.out.bias", lambda w: w.fill_(5))
    with_(mute, "head.weight", lambda w: w[7].fill_(1))
    (found,) = answers(mute, batches())
    assert (found.name, found.value) == ("predictions", "7 in all 18 places")
    for labels in (2, 1):
        fresh = model(ConceptForSequenceClassification, num_labels=labels)
        if labels == 1:
            assert answers(fresh, batches(labels=False)) == []
        deaf = with_(fresh, "classifier.weight", lambda w: w.mul_(0))
        with_(deaf, "classifier.bias", lambda w: w[-1].fill_(3))
        (found,) = answers(deaf, batches(labels=False))
        assert found.value == ("1 in all 6 places" if labels == 2 else "3 in all 6 places")
    assert answers(deaf, [{"input_ids": batches()[0]["input_ids"][:1]}]) == []


def test_concepts_that_are_not_finite():
    """An encoder alone has its concepts looked at."""
    broken = with_(model(ConceptModel), "last_norm.bias", lambda w: w[0].fill_(torch.nan))
    (found,) = answers(broken, batches(labels=False))
    assert (found.name, found.value) == ("concepts", "24 of 288 numbers are NaN or infinite")


@pytest.mark.parametrize(
    ("between", "within", "found"),
    [(0.0, 0.02, 1), (0.0, 2.0, 0), (2.0, 0.02, 0)],
    ids=["one-vector", "texts-differ", "slots-differ"],
)
def test_a_dependence_of_next_to_nothing_is_told(between, within, found):
    """Slots that are all one vector but for a little noise have a high dependence: told. Others are not blamed."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(16, generator=generator)
    slots_CH = between * torch.randn(6, 16, generator=generator)
    noise_TCH = within * torch.randn(40, 6, 16, generator=generator)
    measures = measure(common + slots_CH + noise_TCH)
    assert (measures["input_dependence"] > 0.5) == (between == 0)
    told = concepts(measures)
    assert len(told) == found
    assert all("nearly one vector" in each.advice for each in told)
