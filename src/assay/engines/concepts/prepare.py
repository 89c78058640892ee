"""From a run's configuration: tokenizer, texts and model."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from transformers import BertForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

from assay.core.errors import ConfigError
from assay.engines.concepts.baselines import bert_like
from assay.engines.concepts.config import LEAST_HELD, PretrainConfig
from assay.engines.concepts.configuration import ConceptConfig
from assay.engines.concepts.corpus import corpus
from assay.engines.concepts.models import ConceptForMaskedLM
from assay.engines.concepts.tokens import Blocks, Cut, blocks, fetch_tokenizer, train_tokenizer


@dataclass(frozen=True, slots=True)
class Prepared:
    """Tokenizer and texts of a run.

    Attributes:
        tokenizer: Of the model.
        train: To train on.
        val: Held out; looked at while training.
        test: Held out; looked at once, at the end.
    """

    tokenizer: PreTrainedTokenizerFast
    train: Blocks
    val: Blocks
    test: Blocks


def prepare(config: PretrainConfig, data_dir: Path | None) -> Prepared:
    """Read, and cut into blocks; runs of one process that read the same share it.

    Raises:
        ConfigError: The corpus or the tokenizer is not there, or there is too little text.
    """
    tokenizer = _tokenizer(config.corpus, config.tokenizer, config.vocab_size, data_dir)
    cut = Cut(
        length=config.seq_len,
        packed=config.packed,
        most=config.train_blocks,
        words=config.objective == "whole-word",
    )
    return _prepared(config.corpus, tokenizer, cut, config.held_blocks, data_dir)


@lru_cache(maxsize=2)
def _tokenizer(
    name: str, place: str, vocab_size: int, data_dir: Path | None
) -> PreTrainedTokenizerFast:
    return (
        fetch_tokenizer(place)
        if place
        else train_tokenizer(corpus(name, data_dir).train, vocab_size)
    )


@lru_cache(maxsize=2)
def _prepared(
    name: str, tokenizer: PreTrainedTokenizerFast, cut: Cut, held: int, data_dir: Path | None
) -> Prepared:
    texts = corpus(name, data_dir)
    train = blocks(texts.train, tokenizer, cut)
    kept = blocks(
        texts.held, tokenizer, Cut(length=cut.length, packed=cut.packed, most=held, words=cut.words)
    )
    if len(kept) < held:
        way = (
            "Set held_blocks to that, or take"
            if len(kept) >= LEAST_HELD
            else "Take shorter texts (seq_len), or"
        )
        raise ConfigError(
            f"The held-out part of {name!r} must fill held_blocks = {held} texts of {cut.length} tokens; it fills "
            f"{len(kept)}. {way} a longer corpus."
        )
    half = held // 2
    return Prepared(tokenizer, train, _part(kept, 0, half), _part(kept, half, held))


def _part(found: Blocks, first: int, last: int) -> Blocks:
    words = None if found.words is None else found.words[first:last]
    return Blocks(found.ids[first:last], words)


def model_of(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """The model that a configuration describes, with first weights from the global generator."""
    own = concept_config(config, tokenizer)
    if config.architecture == "concepts":
        return ConceptForMaskedLM(own)
    plain = bert_like(own).config
    plain.tie_word_embeddings = own.tie_word_embeddings
    made = BertForMaskedLM(plain)
    # Stored once, since they are others' weights; the library's Trainer would miss them on going on.
    made._keys_to_ignore_on_save = set(made.all_tied_weights_keys)
    return made


def concept_config(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> ConceptConfig:
    """The model's own settings."""
    return ConceptConfig(
        vocab_size=len(tokenizer),
        concept_num=config.slots,
        hidden_size=config.hidden,
        token_embedding_dim=config.token_dim or None,
        num_hidden_layers=config.layers,
        num_attention_heads=config.attention_heads,
        intermediate_size=config.inner,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        max_position_embeddings=config.seq_len,
        concept_position_type=config.slot_places,
        initializer_range=config.init_range,
        bidirectional=config.bidirectional,
        recursive=config.recursive,
        num_iterations=config.iterations,
        decoder_type=config.decoder,
        decoder_layers=config.decoder_layers,
        modulation=config.modulation,
        t_min=config.t_min,
        time_weight=config.time_weight,
        label_smoothing=config.label_smoothing,
        concept_losses=list(config.concept_losses),
        concept_weight=config.concept_weight,
        weighting=config.weighting,
        dense_head=config.dense_head,
        pad_token_id=tokenizer.pad_token_id,
        mask_token_id=tokenizer.mask_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        tie_word_embeddings=config.tied,
    )
