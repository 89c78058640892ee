"""Models: sizes as the specification counts them, stored and loaded as they were, right first weights."""

import logging
import math

import numpy as np
import pytest
import torch
from concepts_helpers import SMALL, batch, model_with
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from assay.core.errors import ConfigError
from assay.engines.concepts.configuration import ConceptConfig
from assay.engines.concepts.encoder import ConceptLayer
from assay.engines.concepts.models import (
    ConceptForMaskedLM,
    ConceptForSequenceClassification,
    ConceptModel,
    unmask,
)

TABLE = {
    "vocab_size": 50368,
    "concept_num": 128,
    "hidden_size": 512,
    "max_position_embeddings": 512,
}
L2 = TABLE | {"num_hidden_layers": 2, "intermediate_size": 1024}
L6 = TABLE | {"num_hidden_layers": 6, "intermediate_size": 2048}
DECODERS = ("perceiver", "position", "weighted", "diffusion")
HEADS = ("cls-query", "weighted", "mean", "decoder", "pair")


def count(kind, **settings):
    """Parameters, counted without making them."""
    with torch.device("meta"):
        return sum(p.numel() for p in kind(ConceptConfig(**settings)).parameters())


@pytest.mark.parametrize(
    ("kind", "settings", "millions"),
    [
        (ConceptLayer, L2, 3.680),
        (ConceptLayer, L6, 5.255),
        (ConceptLayer, L2 | {"bidirectional": True}, 4.731),
        (ConceptLayer, L6 | {"bidirectional": True}, 6.306),
        (ConceptModel, L2, 33.48),
        (ConceptModel, L6, 57.65),
        (ConceptModel, L2 | {"bidirectional": True}, 35.58),
        (ConceptModel, L6 | {"bidirectional": True}, 63.95),
        (ConceptForMaskedLM, L2, 61.63),
        (ConceptForMaskedLM, L6, 86.85),
        (ConceptForMaskedLM, L2 | {"decoder_type": "weighted"}, 59.59),
        (ConceptForMaskedLM, L6 | {"decoder_type": "weighted"}, 83.76),
        (ConceptForMaskedLM, L2 | {"decoder_type": "diffusion"}, 94.77),
        (ConceptForMaskedLM, L6 | {"decoder_type": "diffusion"}, 122.09),
        (ConceptForSequenceClassification, L2 | {"head": "cls-query"}, 35.58),
        (ConceptForSequenceClassification, L6 | {"head": "cls-query"}, 60.80),
        (ConceptForSequenceClassification, L2 | {"head": "decoder"}, 35.84),
        (ConceptForSequenceClassification, L6 | {"head": "decoder"}, 61.06),
    ],
)
def test_parameters_are_as_the_specification_counts(kind, settings, millions):
    digits = len(str(millions).partition(".")[2])
    assert round(count(kind, **settings) / 1e6, max(digits, 2)) == millions


def test_the_source_classifier_is_matched_exactly():
    """The one number of which the source gives every digit."""
    assert count(ConceptForSequenceClassification, **L2, head="cls-query") == 35_581_954


def test_tied_and_recursive_models_are_as_the_specification_counts():
    """Tied weights are one; meta tensors are not tied, so the embedding is taken off."""
    embedding = 50368 * 512
    assert round((count(ConceptForMaskedLM, **L2) - embedding) / 1e6, 2) == 35.84
    assert round((count(ConceptForMaskedLM, **L6) - embedding) / 1e6, 2) == 61.06
    assert round((count(ConceptForMaskedLM, **L6, recursive=True) - embedding) / 1e6, 2) == 34.79
    body = count(ConceptForMaskedLM, **L2, decoder_type="weighted") - embedding
    assert round(body / 1e6, 2) == 33.81


SETTINGS = {
    "token_embedding_dim": 16, "concept_position_type": "sinusoidal", "bidirectional": True,
    "decoder_layers": 3, "modulation": "plain", "t_min": 0.3, "time_weight": "elbo", "label_smoothing": 0.1,
    "concept_losses": ["combined", "vicreg"], "concept_weight": 0.3, "weighting": "learned", "head": "pair",
    "classifier_dropout": 0.2, "dense_head": True, "time_scale": 10.0, "initializer_range": 0.05,
    "recursive": True, "num_iterations": 3,
}  # fmt: skip


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_stored_model_is_the_same_model(tmp_path, decoder, tied):
    """With every setting: by the Auto class, tensor by tensor, in safetensors."""
    settings = SETTINGS | {"token_embedding_dim": None} if tied else SETTINGS
    model = model_with(decoder_type=decoder, tie_word_embeddings=tied, **settings)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert isinstance(again, ConceptForMaskedLM)
    assert again.config.to_diff_dict() | {"transformers_version": ""} == (
        model.config.to_diff_dict() | {"transformers_version": ""}
    )
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert (again.head.weight is again.encoder.embedding.tokens.weight) == tied
    ids, mask, labels = batch()
    time = torch.tensor([0.3, 0.5, 0.9])
    assert torch.equal(
        model(ids, mask, labels, time=time).loss, again(ids, mask, labels, time=time).loss
    )
    assert AutoConfig.from_pretrained(tmp_path).t_min == 0.3


@pytest.mark.parametrize(
    "kind", [ConceptModel, ConceptForMaskedLM, ConceptForSequenceClassification]
)
@pytest.mark.parametrize("places", [16, 512])
def test_a_checkpoint_of_another_kind_is_no_concept_model(tmp_path, kind, places):
    """The library would load it with a warning, all weights random."""
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    other = BertConfig(vocab_size=300, max_position_embeddings=places, **small)
    BertForMaskedLM(other).save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError, match=f"{kind.__name__} loads .*'concept_encoder'; .* of type 'bert'"
    ):
        kind.from_pretrained(tmp_path)


@pytest.mark.parametrize("head", HEADS)
def test_a_classifier_takes_over_what_was_pretrained(tmp_path, head):
    """By names alone; and a stored classifier is the same classifier."""
    model = model_with()
    model.save_pretrained(tmp_path / "mlm")
    found = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "mlm", head=head, num_labels=3
    ).eval()
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, found.encoder.state_dict()[name])
    if head == "decoder":
        for name, value in model.decoder.state_dict().items():
            assert torch.equal(value, found.decoder.state_dict()[name])
    found.save_pretrained(tmp_path / "cls")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "cls").eval()
    ids, mask, _ = batch()
    second = (
        {"input_ids_b": ids.flip(0), "attention_mask_b": mask.flip(0)} if head == "pair" else {}
    )
    labels = torch.tensor([0, 2, 1])
    one, two = (m(ids, mask, labels, **second) for m in (found, again))
    assert torch.equal(one.logits, two.logits)
    assert one.logits.shape == (3, 3)
    wanted = torch.nn.functional.cross_entropy(one.logits, labels)
    assert torch.equal(one.loss, wanted)


def test_the_encoder_alone_is_loaded_from_a_pretrained_model(tmp_path):
    model = model_with()
    model.save_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(encoder, ConceptModel)
    ids, mask, labels = batch()
    assert torch.equal(encoder(ids, mask).last_hidden_state, model(ids, mask, labels).concepts)


WHOLE = {
    "concept_losses": ["combined"], "weighting": "kendall-gal", "concept_position_type": "learned",
}  # fmt: skip


def loaded(kind, place, **settings):
    """What the library says of names that it found or missed."""
    _, told = kind.from_pretrained(place, output_loading_info=True, **settings)
    return told["unexpected_keys"], told["missing_keys"]


@pytest.mark.parametrize("head", HEADS)
def test_parts_of_a_stored_model_are_loaded_without_complaints(tmp_path, head):
    """The encoder from all models, and a classifier from a pretrained one, of which its new head alone is told."""
    model_with(tie_word_embeddings=False, **WHOLE).save_pretrained(tmp_path / "mlm")
    assert loaded(AutoModel, tmp_path / "mlm") == (set(), set())
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "mlm", head=head)
    unread, new = loaded(AutoModelForSequenceClassification, tmp_path / "mlm", head=head)
    assert not unread
    assert {"classifier.weight", "classifier.bias"} <= new
    assert not any(name.startswith(("encoder.", "decoder.")) for name in new)
    found.save_pretrained(tmp_path / "cls")
    assert loaded(AutoModel, tmp_path / "cls") == (set(), set())


def test_foreign_weights_are_still_told(tmp_path):
    """Of a part that is left unread no model may leave some unread that it has itself."""
    model_with(decoder_type="diffusion", decoder_layers=2).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    strange = {"encoder.strange": torch.ones(2), "header.weight": torch.ones(2)}
    save_file(weights | strange, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert loaded(AutoModel, tmp_path)[0] == strange.keys()
    unread, _ = loaded(AutoModelForMaskedLM, tmp_path, decoder_layers=1)
    assert strange.keys() < unread
    assert {name.startswith("decoder.layers.1.") for name in unread - strange.keys()} == {True}
    unread, _ = loaded(
        AutoModelForSequenceClassification, tmp_path, decoder_layers=1, head="decoder"
    )
    assert any(name.startswith("decoder.layers.1.") for name in unread)


def batch_rows(texts):
    """A batch as the library's Trainer takes it, a text at a time."""
    names = ("input_ids", "attention_mask", "labels")
    return [dict(zip(names, row, strict=True)) for row in zip(*batch(texts=texts), strict=True)]


def trainer_of(model, folder, changes=None, **settings):
    """The library's own, on six texts."""
    rows = batch_rows(6)
    usual = {"per_device_train_batch_size": 2, "max_steps": 4, "save_steps": 2}
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True,
        per_device_eval_batch_size=2, **usual | (changes or {}),
    )  # fmt: skip
    return Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows, **settings)


@pytest.mark.parametrize("tied", [True, False])
def test_training_goes_on_without_missing_a_tied_weight(tmp_path, caplog, monkeypatch, tied):
    """By the library's Trainer, to the same weights as at once; an untied last layer is stored and found."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    ends = []
    for resume in (False, str(tmp_path / "checkpoint-2")):
        model = model_with(tie_word_embeddings=tied)
        trainer_of(model, tmp_path).train(resume_from_checkpoint=resume)
        assert (model.head.weight is model.encoder.embedding.tokens.weight) == tied
        ends.append(model.state_dict())
    assert "missing keys" not in caplog.text
    stored = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert ("head.weight" in stored) != tied
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_batches_that_are_added_up_give_their_mean_gradient(tmp_path):
    """By the library's Trainer, which would take their sum if the model claimed to divide by itself."""
    lengths = []
    for pieces in (1, 3):
        model = model_with(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        cut = {"per_device_train_batch_size": 6 // pieces, "gradient_accumulation_steps": pieces}
        trainer = trainer_of(model, tmp_path, cut | {"max_steps": 1, "logging_steps": 1})
        trainer.train()
        lengths.append(trainer.state.log_history[0]["grad_norm"])
    assert lengths[1] == pytest.approx(lengths[0], rel=0.3)


def test_a_last_layer_that_was_untied_is_stored(tmp_path):
    """The settings still say tied: what the model has counts."""
    model = model_with(tie_word_embeddings=True)
    model.set_output_embeddings(torch.nn.Linear(32, 300, bias=False))
    model.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(again.head.weight, model.head.weight)
    assert not torch.equal(again.head.weight, again.encoder.embedding.tokens.weight)


def test_the_librarys_evaluation_sees_the_logits_alone(tmp_path):
    """As its examples have them: logits of every place beside labels; and what comes after a tuple's loss."""
    model = model_with(dense_head=True)
    ids, mask, labels = batch(texts=6)
    out = model(ids, mask, labels)
    assert torch.equal(out.to_tuple()[1], out.logits)
    seen = []

    def measured(found):
        seen.append(found.predictions)
        asked = found.label_ids != -100
        right = found.predictions.argmax(-1)[asked] == found.label_ids[asked]
        return {"accuracy": right.mean()}

    told = trainer_of(model, tmp_path, compute_metrics=measured).evaluate()
    assert isinstance(seen[0], np.ndarray)
    torch.testing.assert_close(torch.from_numpy(seen[0]), out.logits, rtol=1e-4, atol=1e-5)
    asked = labels != -100
    wanted = (out.logits.argmax(-1)[asked] == labels[asked]).double().mean()
    assert told["eval_accuracy"] == pytest.approx(float(wanted))
    # Of asked-for tokens alone they stand in the order of the labels.
    sparse = trainer_of(model_with(), tmp_path).predict(batch_rows(6)).predictions
    torch.testing.assert_close(torch.from_numpy(sparse), out.logits[asked], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [ConceptModel, ConceptForMaskedLM])
def test_texts_that_are_filled_up_on_the_left_are_refused(kind):
    """Their places would be others, and so would their concepts; a row of padding alone is no text."""
    model = kind(model_with().config)
    ids, mask, _ = batch()
    with pytest.raises(ConfigError, match=r"text 1 of the batch .*\.padding_side = "):
        model(ids.flip(1), mask.flip(1))
    mask[2] = 0
    model(ids, mask)


def test_gates_begin_at_zero_and_stay_so_through_the_library(tmp_path):
    """The source's were drawn anew by the library (specification, section 0, item 2)."""
    model = model_with(decoder_type="diffusion", modulation="zero", initializer_range=0.1)
    for layer in model.decoder.layers:
        assert not bool(layer.modulation.weight.any())
        assert not bool(layer.modulation.bias.any())
    ids, mask, _ = batch()
    other = model.encoder(ids.flip(0)).last_hidden_state
    # Layers that begin as nothing cannot know the concepts.
    assert torch.equal(model(ids, mask).logits, model(concepts=other, decoder_input_ids=ids).logits)
    drawn = model_with(decoder_type="diffusion", modulation="normal", initializer_range=0.1)
    assert abs(drawn.decoder.layers[0].modulation.weight.detach().std() - 0.1) < 0.01


def test_first_weights_have_the_deviation_of_the_settings():
    model = model_with(
        hidden_size=64, vocab_size=2000, initializer_range=0.05, decoder_type="weighted"
    )
    assert abs(model.encoder.embedding.tokens.weight.detach().std() - 0.05) < 0.002
    assert abs(model.encoder.slots.weight.detach().std() - 0.1) < 0.02
    assert abs(model.decoder.mixture.detach().std() - 8**-0.5) < 0.05
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            assert not bool(value.any()), name
    first = model(*batch()).loss.item()
    assert abs(first - math.log(2000)) < 0.2


def test_padding_changes_nothing():
    """Neither what concepts are, nor what is rebuilt."""
    for decoder in DECODERS:
        model = model_with(
            decoder_type=decoder, bidirectional=decoder == "perceiver", modulation="plain"
        )
        ids, mask, _ = batch()
        short = ids[1:2, :13]
        one, two = model(short), model(ids, mask)
        assert int(mask[1].sum()) == 13
        torch.testing.assert_close(one.concepts[0], two.concepts[1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.logits[0], two.logits[1, :13], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("decoder", "modulation"),
    [*((decoder, "normal") for decoder in DECODERS), ("diffusion", "plain")],
)
def test_asking_for_few_tokens_gives_the_loss_and_gradients_of_asking_for_all(decoder, modulation):
    """Rows and logits of asked-for tokens alone against all of them, in float64."""
    found = []
    for dense in (False, True):
        model = model_with(
            decoder_type=decoder, dense_head=dense, time_weight="elbo", modulation=modulation
        )
        model = model.double()
        ids, mask, labels = batch()
        out = model(ids, mask, labels, time=torch.tensor([0.2, 0.6, 1.0]).double())
        out.loss.backward()
        found.append(
            (out.loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        )
        assert out.logits.dim() == (3 if dense else 2)
    (one, ones), (two, twos) = found
    torch.testing.assert_close(one, two, rtol=1e-12, atol=0)
    assert ones.keys() == twos.keys()
    for name in ones:
        torch.testing.assert_close(ones[name], twos[name], rtol=1e-9, atol=1e-14)


def test_losses_are_weighted_by_time_as_their_formulas_say():
    """Against sums written out, float64."""
    ids, mask, labels = batch()
    time = torch.tensor([0.05, 0.5, 0.9]).double()
    each = model_with().double()(ids, mask, labels)
    wanted = labels[labels != -100]
    nats = torch.nn.functional.cross_entropy(each.logits, wanted, reduction="none")
    text = (labels != -100).nonzero()[:, 0]
    sums = {
        "none": nats.mean(),
        "clamped": sum(n / max(float(time[b]), 0.1) for n, b in zip(nats, text, strict=True))
        / sum(1 / max(float(time[b]), 0.1) for b in text),
        "elbo": sum(n / float(time[b]) for n, b in zip(nats, text, strict=True)) / mask.sum(),
    }
    for kind, value in sums.items():
        model = model_with(time_weight=kind).double()
        torch.testing.assert_close(
            model(ids, mask, labels, time=time).loss, value, rtol=1e-12, atol=0
        )
    with pytest.raises(ValueError, match="weighs by the time"):
        model_with(time_weight="elbo")(ids, mask, labels)


def test_concept_losses_are_added_in_training_alone():
    """And so are the weights of losses; smoothing too."""
    ids, mask, labels = batch()
    kept = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    plain = model_with(**kept)
    model = model_with(concept_losses=["combined"], concept_weight=0.5, label_smoothing=0.1, **kept)
    assert torch.equal(model(ids, mask, labels).loss, plain(ids, mask, labels).loss)
    out = model.train()(ids, mask, labels)
    assert not torch.equal(out.task_loss, plain(ids, mask, labels).loss)
    wanted = out.task_loss + 0.5 * out.concept_losses["combined"]
    torch.testing.assert_close(out.loss.detach(), wanted)


def test_recursion_uses_one_layer_and_can_go_deeper_later():
    model = model_with(recursive=True, num_iterations=3)
    assert len(model.encoder.layers) == 1
    ids, mask, _ = batch()
    three = model.encoder(ids, mask, output_hidden_states=True)
    assert len(three.hidden_states) == 4
    model.encoder.config.num_iterations = 5
    assert len(model.encoder(ids, mask, output_hidden_states=True).hidden_states) == 6


@pytest.mark.parametrize("kind", [ConceptModel, ConceptForMaskedLM])
def test_recursion_begins_with_the_first_layer_of_another_model(tmp_path, kind):
    """As the source warmed it up: the layers after it are left without a word, and nothing else is."""
    model = model_with(num_hidden_layers=3)
    model.save_pretrained(tmp_path)
    found, told = kind.from_pretrained(
        tmp_path, recursive=True, num_iterations=4, output_loading_info=True
    )
    assert not told["unexpected_keys"]
    assert not told["missing_keys"]
    encoder = getattr(found, "encoder", found)
    assert len(encoder.layers) == 1
    first = model.encoder.layers[0].state_dict()
    assert all(torch.equal(first[k], v) for k, v in encoder.layers[0].state_dict().items())
    assert torch.equal(encoder.slots.weight, model.encoder.slots.weight)


def test_attentions_are_shares_of_the_tokens_that_are_there():
    """The source gave empty tuples."""
    model = model_with(bidirectional=True)
    ids, mask, _ = batch()
    found = model.encoder(ids, mask, output_attentions=True).attentions
    assert [a.shape for a in found] == [(3, 4, 8, 20)] * 2
    torch.testing.assert_close(found[1].sum(-1), torch.ones(3, 4, 8))
    assert not bool(found[0][1, :, :, 13:].any())


@pytest.mark.parametrize("kind", [ConceptForMaskedLM, ConceptForSequenceClassification])
def test_models_give_what_their_encoder_is_asked_for(kind):
    model = kind(ConceptConfig(**SMALL)).eval()
    ids, mask, _ = batch()
    asked = {"output_attentions": True, "output_hidden_states": True}
    whole, alone = model(ids, mask, **asked), model.encoder(ids, mask, **asked)
    for name in ("attentions", "hidden_states"):
        for mine, its in zip(whole[name], alone[name], strict=True):
            assert torch.equal(mine, its)
    assert "attentions" not in model(ids, mask)


@pytest.mark.parametrize(
    "kind", [ConceptModel, ConceptForMaskedLM, ConceptForSequenceClassification]
)
def test_outputs_are_tuples_if_asked(tmp_path, kind):
    """By the call, or by the settings, as the library's models do; so are states and attentions."""
    model = kind(ConceptConfig(**SMALL)).eval()
    ids, mask, _ = batch()
    wanted = model(ids, mask, output_hidden_states=True, output_attentions=True)
    found = model(ids, mask, output_hidden_states=True, output_attentions=True, return_dict=False)
    assert isinstance(found, tuple)
    assert torch.equal(found[0], wanted[0])
    assert len(found) == len(wanted)
    model.save_pretrained(tmp_path)
    again = kind.from_pretrained(
        tmp_path, return_dict=False, output_hidden_states=True, output_attentions=True
    ).eval()
    assert len(again(ids, mask)) == len(wanted)
    assert isinstance(again(ids, mask), tuple)
    assert again(ids, mask, return_dict=True).keys() == wanted.keys()


def test_numbers_may_stand_in_a_column():
    """As the library's own models take them; compared each with each they would teach the mean."""
    model = ConceptForSequenceClassification(ConceptConfig(**SMALL, num_labels=1)).eval()
    ids, mask, _ = batch()
    numbers = torch.tensor([0.0, 1.0, 5.0])
    assert model(ids, mask, numbers[:, None]).loss == model(ids, mask, numbers).loss


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_can_be_made_larger(tmp_path, decoder, tied):
    """Old tokens keep their vectors, new ones are read and asked for, and the model can be stored."""
    model = model_with(decoder_type=decoder, tie_word_embeddings=tied)
    ids, mask, labels = batch()
    before = model(ids, mask, labels, time=torch.full((3,), 0.5)).logits
    model.resize_token_embeddings(310)
    after = model(ids, mask, labels, time=torch.full((3,), 0.5)).logits
    torch.testing.assert_close(after[:, :300], before)
    new = torch.randint(300, 310, (3, 20), generator=torch.Generator().manual_seed(0))
    loss = model(new, None, new, time=torch.full((3,), 0.5)).loss
    model.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert again(new, None, new, time=torch.full((3,), 0.5)).loss == loss


def test_a_classifier_that_decodes_can_have_a_larger_vocabulary():
    config = ConceptConfig(**SMALL, head="decoder", decoder_type="diffusion")
    model = ConceptForSequenceClassification(config).eval()
    model.resize_token_embeddings(310)
    assert model(torch.full((2, 5), 305)).logits.isfinite().all()


def test_position_and_weighted_decoders_do_not_see_the_text():
    ids, mask, _ = batch()
    for decoder, sees in (("position", False), ("weighted", False), ("perceiver", True)):
        model = model_with(decoder_type=decoder)
        concepts = model.encoder(ids, mask).last_hidden_state
        one = model(concepts=concepts, decoder_input_ids=ids).logits
        two = model(concepts=concepts, decoder_input_ids=ids.flip(1)).logits
        assert torch.equal(one, two) != sees


def test_tokens_read_concepts_only_when_bidirectional():
    """A second layer of the plain encoder reads the tokens as they came in."""
    for bidirectional in (False, True):
        set_seed(0)
        layer = ConceptLayer(ConceptConfig(**SMALL, bidirectional=bidirectional)).eval()
        c, t = torch.randn(2, 8, 32), torch.randn(2, 20, 32)
        assert torch.equal(layer(c, t, None)[1], t) != bidirectional


def test_unmasking_writes_every_token_and_keeps_to_its_steps():
    model = model_with(decoder_type="diffusion", modulation="normal")
    ids, mask, _ = batch()
    concepts = model.encoder(ids, mask).last_hidden_state
    for steps in (1, 4, 30):
        written = unmask(model, concepts=concepts, length=12, steps=steps)
        assert written.shape == (3, 12)
        assert not bool((written == 3).any())
    draw = [
        unmask(model, concepts=concepts, length=12, temperature=1.0, top_k=50,
               generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    ]  # fmt: skip
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    with pytest.raises(ValueError, match="steps and length"):
        unmask(model, concepts=concepts, length=12, steps=0)
    nameless = model_with(decoder_type="diffusion", mask_token_id=None)
    with pytest.raises(ValueError, match="mask_token_id"):
        unmask(nameless, concepts=concepts, length=12)


def test_unmasking_writes_the_texts_whose_concepts_a_trained_model_is_given():
    model = model_with(decoder_type="diffusion", modulation="plain", initializer_range=0.1)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 300, (4, 8), generator=draw)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(160):
        time = 0.1 + 0.9 * torch.rand(4, generator=draw)
        hidden = torch.rand(ids.shape, generator=draw) < time[:, None]
        hidden[:, 0] = True
        loss = model(
            ids, None, ids.masked_fill(~hidden, -100),
            decoder_input_ids=ids.masked_fill(hidden, 3), time=time,
        ).loss  # fmt: skip
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    concepts = model.encoder(ids).last_hidden_state
    for steps in (1, 3, 8):
        assert torch.equal(unmask(model, concepts=concepts, length=8, steps=steps), ids)
    swapped = unmask(model, concepts=concepts.flip(0), length=8, steps=3)
    assert torch.equal(swapped, ids.flip(0))


def test_texts_that_do_not_fit_are_refused():
    model = model_with()
    with pytest.raises(ConfigError, match="at most max_position_embeddings = 64 tokens; got 65"):
        model(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(ConfigError, match=r"below vocab_size = 300; got 300.*tokenizer"):
        model(torch.full((1, 4), 300))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"hidden_size": 30}, "hidden_size must be a multiple of num_attention_heads"),
        ({"concept_num": 0}, "concept_num must be 1 or more; got 0"),
        (
            {"concept_num": 17, "max_position_embeddings": 16},
            "squeeze nothing; got 17 and 16. Give fewer",
        ),
        ({"num_iterations": 2}, "num_iterations is of the recursive encoder"),
        ({"tie_word_embeddings": True, "token_embedding_dim": 8}, "tie_word_embeddings needs"),
        ({"decoder_type": "fast"}, "expected one of"),
        ({"concept_losses": ["vicreg", "vicreg"]}, "concept_losses must differ"),
        ({"t_min": 1.0}, r"t_min must be in \[0, 1\)"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, told):
    with pytest.raises(Exception, match=told):
        ConceptConfig(**SMALL | settings)
