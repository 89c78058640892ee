"""Tokenizers: trained on a corpus where none can be fetched, and texts as blocks of ids."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from assay.core.errors import ConfigError
from assay.engines.concepts.corpus import batches

PAD, CLS, SEP, MASK = "[PAD]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, CLS, SEP, MASK)
"""Their ids are 0, 1, 2 and 3."""
BYTES = 256
TRAINED_ON = 8_000_000
"""Characters of the corpus from which a tokenizer is trained."""
AT_ONCE = 512


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level byte-pair encoding (Sennrich et al. 2016) of the first 8 million characters.

    Every text can be encoded, and decoded to itself. Texts become [CLS] … [SEP], pairs
    [CLS] … [SEP] … [SEP].

    Args:
        texts: To train on.
        vocab_size: Tokens, the four special ones and 256 bytes included; fewer where the texts
            have no more pairs to join.

    Raises:
        ConfigError: There is no room for the bytes.
    """
    least = len(SPECIAL) + BYTES
    if vocab_size < least:
        raise ConfigError(
            f"vocab_size must be {least} or more, for {BYTES} bytes and {len(SPECIAL)} special tokens; got "
            f"{vocab_size}."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first(texts, TRAINED_ON), trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in (CLS, SEP)]
    # ByteLevel leaves the space before a word out of its place in the text, by which words are told apart.
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single=f"{CLS} $A {SEP}", pair=f"{CLS} $A {SEP} $B {SEP}", special_tokens=ids
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, cls_token=CLS, sep_token=SEP, mask_token=MASK
    )


def fetch_tokenizer(place: str | Path, *, beside_model: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of the hub, or of a folder (such as a checkpoint).

    Args:
        place: A folder, or a name of the hub.
        beside_model: It must be there; else a corpus can do without, and an error says so.

    Raises:
        ConfigError: There is none, or it lacks a token for padding or for what is hidden.
    """
    try:
        found = AutoTokenizer.from_pretrained(str(place))
    except Exception as error:
        way = (
            "Store the one that the model was trained with there, with save_pretrained."
            if beside_model
            else "Correct it, or leave it out: one is trained on the corpus."
        )
        raise ConfigError(
            f"The tokenizer {str(place)!r} must be a folder with tokenizer.json, or a name of the hub; there is "
            f"{'such a folder' if Path(place).is_dir() else 'no such folder'}, and the library says {type(error).__name__}: "
            f"{' '.join(str(error).split()).rstrip('.')}. {way}"
        ) from error
    if not isinstance(found, PreTrainedTokenizerFast):
        raise ConfigError(
            f"The tokenizer {str(place)!r} must be a fast one, with tokenizer.json; it is a {type(found).__name__}. "
            "Store its fast form, or take another."
        )
    if len(found) <= len(set(found.all_special_ids)):
        raise ConfigError(
            f"The tokenizer {str(place)!r} must have tokens; it has special ones alone, so that every text would be the "
            "same. A folder of a model needs tokenizer.json beside it: store it there with save_pretrained."
        )
    for role in ("pad_token", "mask_token"):
        if getattr(found, role) is None:
            raise ConfigError(
                f"A tokenizer must have a {role}; {str(place)!r} has none. Add one (tokenizer.add_special_tokens) "
                "and store it, or take another."
            )
    # Places are counted from a text's beginning; the tokenizers of some decoders fill up before it.
    found.padding_side = "right"
    return found


def vocabulary_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Sha256 of all tokens with their ids."""
    tokens = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(tokens.encode()).hexdigest()


def check_fits(tokenizer: PreTrainedTokenizerFast, settings: Any, place: str | Path) -> None:
    """Whether a tokenizer is the one that a stored model was trained with.

    Args:
        tokenizer: Stored beside the model.
        settings: Of the model. Models that the lab stored say which vocabulary they know; of others the
            number of tokens alone is compared.
        place: Where they lie, for the message.

    Raises:
        ConfigError: It is another.
    """
    told = getattr(settings, "vocabulary_digest", None)
    if len(tokenizer) > settings.vocab_size:
        wrong = f"the model knows vocab_size = {settings.vocab_size} tokens, and the tokenizer has {len(tokenizer)}"
    elif told is not None and told != vocabulary_digest(tokenizer):
        wrong = "its tokens are not those of the model's config.json (vocabulary_digest)"
    else:
        return
    raise ConfigError(
        f"A tokenizer must be the one that the model was trained with; in {place} {wrong}. It is another model's, or "
        "was changed since: store the right one there."
    )


def identity(tokenizer: PreTrainedTokenizerFast) -> str:
    """Sha256 of all that decides its ids."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def _first(texts: Sequence[str], characters: int) -> Iterator[str]:
    left = characters
    for text in texts:
        if left <= 0:
            return
        yield text[:left]
        left -= len(text)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Texts as ids.

    Attributes:
        ids: Of each block, special tokens included.
        words: Where a word begins in each, if it was asked for.
    """

    ids: Sequence[np.ndarray]
    words: Sequence[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How texts become blocks.

    Attributes:
        length: Most ids of a block, special tokens included.
        packed: Documents one after another with a separator between, cut to equal lengths, what is
            left over at the end dropped. Otherwise each document is a block, cut off at `length`.
        most: Blocks at most; 0 for all.
        words: Find where words begin too.
    """

    length: int
    packed: bool = True
    most: int = 0
    words: bool = False


def blocks(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, cut: Cut) -> Blocks:
    """Texts as blocks [CLS] … [SEP].

    Args:
        texts: Documents.
        tokenizer: Of the model.
        cut: How.

    Raises:
        ConfigError: There is not one block, or no room for a token in it.
    """
    ends = (tokenizer.cls_token_id, tokenizer.sep_token_id)
    first, last = (np.array([] if i is None else [i], np.int32) for i in ends)
    room = cut.length - len(first) - len(last)
    if room < 1:
        raise ConfigError(
            f"A block must have room for a token between special ones; length is {cut.length}."
        )
    bodies = (
        _packed(texts, tokenizer, cut, room) if cut.packed else _single(texts, tokenizer, cut, room)
    )
    ids, words = [], []
    for body, begins in bodies:
        ids.append(np.concatenate([first, body, last]))
        if cut.words:
            words.append(np.pad(begins, (len(first), len(last)), constant_values=True))
    if not ids:
        raise ConfigError(
            f"A corpus must fill a block of {cut.length} tokens; its {len(texts)} documents do not. Take a "
            "longer corpus, shorter blocks, or do not pack."
        )
    return Blocks(ids, words if cut.words else None)


Body = tuple[np.ndarray, np.ndarray]


def _single(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, cut: Cut, room: int
) -> Iterator[Body]:
    found = (
        (ids[:room], begins[:room]) for ids, begins in _encoded(texts, tokenizer, words=cut.words)
    )
    return islice(found, cut.most or None)


def _packed(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, cut: Cut, room: int
) -> Iterator[Body]:
    between = [] if tokenizer.sep_token_id is None else [tokenizer.sep_token_id]
    parts: list[Body] = []
    wanted, seen = cut.most * room, 0
    for ids, begins in _encoded(texts, tokenizer, words=cut.words):
        parts.append(
            (
                np.append(ids, np.array(between, np.int32)),
                np.append(begins, np.ones(len(between), bool)),
            )
        )
        seen += len(parts[-1][0])
        if wanted and seen >= wanted:
            break
    if not parts:
        return
    ids = np.concatenate([part[0] for part in parts])
    begins = np.concatenate([part[1] for part in parts]) if cut.words else ids
    for start in range(0, min(len(ids) // room, cut.most or len(ids)) * room, room):
        yield ids[start : start + room], begins[start : start + room]


def _encoded(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, *, words: bool
) -> Iterator[Body]:
    """Ids of each text without special tokens, and where words begin if that is asked for."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    nothing = np.zeros(0, bool)
    for batch in batches(texts, AT_ONCE):
        if words:
            encodings = backend.encode_batch(batch, add_special_tokens=False)
            for text, each in zip(batch, encodings, strict=True):
                offsets = np.array(each.offsets, np.int64).reshape(-1, 2)
                yield np.array(each.ids, np.int32), _begins(text, offsets)
        else:
            for found in backend.encode_batch_fast(batch, add_special_tokens=False):
                yield np.array(found.ids, np.int32), nothing


def _begins(text: str, offsets: np.ndarray) -> np.ndarray:
    """True where a token does not go on where the one before it ended.

    Some tokenizers count the space before a word as part of its first token; here it is part of none.
    """
    spaces = np.char.isspace(np.array([*text, "."], "U1"))
    places = np.arange(len(spaces))
    # The first place from each on that is no space.
    solid = np.minimum.accumulate(np.where(spaces, len(text), places)[::-1])[::-1]
    starts = np.minimum(solid[offsets[:, 0]], offsets[:, 1])
    begins = np.ones(len(offsets), bool)
    begins[1:] = starts[1:] != offsets[:-1, 1]
    return begins
