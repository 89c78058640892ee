"""What is hidden: as often as the objective says, never padding, and decided by the text's key alone."""

import numpy as np
import pytest
import torch
from concepts_helpers import TEXTS, rows_of
from tokenizers import processors

from assay.core.errors import ConfigError
from assay.engines.concepts.collators import Example, Texts, collator, padded
from assay.engines.concepts.tokens import Blocks, Cut, blocks, train_tokenizer

OBJECTIVES = ("mlm", "whole-word", "span", "tsdae", "diffusion", "prefix")
LENGTHS = (12, 40, 33, 64)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


def examples(lengths, seed=1, epoch=0, first=0, words=False):
    """Texts of some lengths."""
    return [
        Example(ids, np.arange(len(ids)) % 2 == 0 if words else None, (seed, epoch, first + i))
        for i, ids in enumerate(rows_of(lengths))
    ]


def batch_of(tokenizer, objective, lengths, rate=0.3, t_min=0.1, **which):
    words = objective == "whole-word"
    return collator(objective, tokenizer, rate=rate, t_min=t_min)(
        examples(lengths, words=words, **which)
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_hidden_depends_on_the_text_alone(tokenizer, objective):
    """Not on those beside it: a text alone, and among others, in any place."""
    together = batch_of(tokenizer, objective, LENGTHS)
    for index in range(4):
        alone = batch_of(tokenizer, objective, [LENGTHS[index]], first=index)
        for name, value in alone.items():
            other = together[name][index]
            part = other[: value.shape[1]] if other.dim() else other
            assert torch.equal(value[0], part), name
    again = batch_of(tokenizer, objective, LENGTHS)
    assert all(torch.equal(again[name], together[name]) for name in again)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_epoch_and_seed_hides_other_tokens(tokenizer, objective):
    one, epoch, seed = (
        batch_of(tokenizer, objective, [60] * 4, **which)
        for which in ({}, {"epoch": 1}, {"seed": 2})
    )
    seen = "attention_mask" if objective == "tsdae" else "labels"
    for other in (epoch, seed):
        assert one[seen].shape != other[seen].shape or not torch.equal(one[seen], other[seen])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_padding_and_special_tokens_are_neither_hidden_nor_asked_for(tokenizer, objective):
    """But under tsdae, where the whole text is asked for, its special tokens too."""
    made = batch_of(tokenizer, objective, [10, 31, 64])
    seen = made.get("decoder_attention_mask", made["attention_mask"]).bool()
    asked = made["labels"] != -100
    assert not bool((asked & ~seen).any())
    if objective != "tsdae":
        assert not bool(torch.isin(made["labels"], torch.tensor([0, 1, 2, 3])).any())
    assert made["input_ids"].shape[1] % 8 == 0


def test_masking_is_berts(tokenizer):
    """A share is chosen; of those 80 % hidden, 10 % as they are (and a few drawn to themselves)."""
    made = batch_of(tokenizer, "mlm", [200] * 100, rate=0.15)
    asked = made["labels"] != -100
    assert abs(asked.float().mean() * 200 / 198 - 0.15) < 0.008
    hidden = made["input_ids"][asked] == tokenizer.mask_token_id
    same = made["input_ids"][asked] == made["labels"][asked]
    assert abs(hidden.float().mean() - 0.8) < 0.03
    assert abs(same.float().mean() - 0.1) < 0.03
    original = padded(rows_of([200] * 100), tokenizer).ids_BN
    assert torch.equal(made["input_ids"][~asked], original[~asked])
    assert torch.equal(made["labels"][asked], original[asked])


def test_whole_words_are_hidden_whole(tokenizer):
    """Words of two tokens each, as the helper marks them: both or neither, and nothing but hidden."""
    made = batch_of(tokenizer, "whole-word", [62] * 60, rate=0.2)
    asked = made["labels"] != -100
    body = asked[:, 2:60].unflatten(1, (-1, 2))
    assert torch.equal(body[..., 0], body[..., 1])
    assert 0.15 < body.float().mean() < 0.25
    assert bool((made["input_ids"][asked] == tokenizer.mask_token_id).all())


def test_words_of_real_text_are_told_apart_by_their_spaces(tokenizer):
    found = blocks(TEXTS[:1], tokenizer, Cut(length=64, packed=False, words=True))
    tokens = tokenizer.convert_ids_to_tokens(found.ids[0])
    begins = [t for t, first in zip(tokens, found.words[0], strict=True) if first]
    assert begins[0] == "[CLS]"
    assert begins[-1] == "[SEP]"
    words = begins[1:-1]
    assert len(words) == len(TEXTS[0].split())
    assert all(word.startswith("Ġ") for word in words[1:])


def test_words_are_the_same_where_a_token_counts_its_space():
    """As of tokenizers whose post-processor leaves offsets as they are: all of a text would be one word."""
    texts = [*TEXTS[:3], "two  spaces\n\na line, of – dashes\tand tabs "]
    trimmed, whole = train_tokenizer(TEXTS, 300), train_tokenizer(TEXTS, 300)
    ids = [(token, whole.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    whole.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ids
    )
    cut = Cut(length=500, packed=False, words=True)
    found, other = blocks(texts, trimmed, cut), blocks(texts, whole, cut)
    for (text, words), others in zip(
        zip(texts, found.words, strict=True), other.words, strict=True
    ):
        assert words.tolist() == others.tolist()
        assert words.sum() >= len(text.split())


def test_the_first_token_stays_where_there_is_no_cls(tokenizer):
    """Else the model would take a text that lost it for one that is filled up on the left."""
    ids = [Example(each.ids[1:], None, each.key) for each in examples([60] * 20)]
    made = collator("tsdae", tokenizer, rate=0.9, t_min=0.1)(ids)
    assert bool((made["attention_mask"][:, 0] == 1).all())
    assert made["attention_mask"][:, 1:-1].float().mean() < 0.2


def test_spans_are_long_and_fill_the_share(tokenizer):
    made = batch_of(tokenizer, "span", [102] * 50, rate=0.3)
    asked = made["labels"] != -100
    assert set(asked.sum(1).tolist()) == {30}
    ends = (asked[:, :-1] & ~asked[:, 1:]).sum()
    assert 30 * 50 / ends > 4  # between 3 and 10 long; neighbours join, borders cut
    assert bool((made["input_ids"][asked] == tokenizer.mask_token_id).all())


def test_deletion_keeps_places_and_at_least_one_token(tokenizer):
    made = batch_of(tokenizer, "tsdae", [102] * 50, rate=0.6)
    kept = made["attention_mask"][:, 1:101].float().mean()
    assert abs(kept - 0.4) < 0.02
    assert bool((made["decoder_input_ids"] == tokenizer.mask_token_id).all())
    assert torch.equal(made["labels"], padded(rows_of([102] * 50), tokenizer).ids_BN)
    nearly = batch_of(tokenizer, "tsdae", [10] * 200, rate=0.99)
    body = nearly["attention_mask"][:, 1:9].sum(1)
    assert int(body.min()) == 1


def test_diffusion_hides_the_share_that_it_says(tokenizer):
    made = batch_of(tokenizer, "diffusion", [502] * 200, t_min=0.3)
    share = (made["labels"] != -100).float().mean(1) * made["labels"].shape[1] / 500
    assert float(made["time"].min()) >= 0.3
    assert float((share - made["time"]).abs().max()) < 0.1
    assert abs(float(made["time"].mean()) - 0.65) < 0.04
    assert torch.equal(made["input_ids"], padded(rows_of([502] * 200), tokenizer).ids_BN)


def test_prefix_and_suffix_share_nothing_and_miss_nothing(tokenizer):
    """Ids rise by one in these texts, so that a cut can be seen."""
    made = batch_of(tokenizer, "prefix", [102] * 20)
    whole = padded(rows_of([102]), tokenizer).ids_BN[0]
    for row in range(20):
        read = made["input_ids"][row][made["attention_mask"][row].bool()]
        seen = made["decoder_attention_mask"][row].bool()
        labels, shown = made["labels"][row][seen], made["decoder_input_ids"][row][seen]
        rest = torch.where(labels == -100, shown, labels)
        assert read[0] == 1
        assert read[-1] == 2
        assert torch.equal(torch.cat([read[:-1], rest]), whole[:-1])
        assert 30 <= len(read) - 2 <= 50


def test_texts_tell_their_epoch(tokenizer):
    texts = Texts(Blocks(rows_of([8, 8])), 7)
    assert texts[1].key == (7, 0, 1)
    texts.set_epoch(3)
    assert texts[1].key == (7, 3, 1)
    assert len(texts) == 2


def test_a_tokenizer_without_a_mask_is_refused(tokenizer):
    bare = train_tokenizer(TEXTS, 300)
    bare.mask_token = None
    with pytest.raises(ConfigError, match="must have a mask token"):
        collator("mlm", bare, rate=0.1, t_min=0.1)
