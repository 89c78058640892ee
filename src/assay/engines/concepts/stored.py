"""Models as they were stored with their tokenizer, and texts as they are given to them to be looked at."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from assay.core.errors import ConfigError
from assay.engines.concepts.corpus import LEAST_CHARACTERS, batches
from assay.engines.concepts.encoder import ConceptPreTrainedModel
from assay.engines.concepts.masked import IGNORED
from assay.engines.concepts.models import (
    ConceptConfig,
    ConceptForMaskedLM,
    ConceptForSequenceClassification,
    ConceptModel,
)
from assay.engines.concepts.modes import quiet
from assay.engines.concepts.tokens import check_fits, fetch_tokenizer

CLASSES: Mapping[str, type[ConceptPreTrainedModel]] = {
    kind.__name__: kind
    for kind in (ConceptModel, ConceptForMaskedLM, ConceptForSequenceClassification)
}
AT_ONCE = 16
"""Texts of a batch, as in the source log."""
CHARACTERS = 32
"""Of a token, far more than any text has on average."""
HIDDEN = 7
"""Every such token is hidden where a model is asked to rebuild: about the 15 % of training."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A checkpoint, loaded.

    Attributes:
        model: Of the class that it was stored as, ready to be used.
        tokenizer: Stored along with it.
    """

    model: ConceptPreTrainedModel
    tokenizer: PreTrainedTokenizerFast

    @property
    def encoder(self) -> ConceptModel:
        """The part that makes concepts."""
        found: Any = self.model if isinstance(self.model, ConceptModel) else self.model.encoder
        assert isinstance(found, ConceptModel)
        return found


def load(folder: Path) -> Stored:
    """A model and its tokenizer, from a folder that `save_pretrained` of both wrote.

    Raises:
        ConfigError: It is no checkpoint, of another kind of model, lacks weights or a tokenizer, or its
            tokenizer has more tokens than the model.
    """
    kind = _kind(folder)
    try:
        # Sizes that do not fit are told below; the library would tell them in its log alone.
        with quiet():
            loaded: Any = kind.from_pretrained(
                folder,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                return_dict=True,
            )
    except Exception as error:
        raise ConfigError(
            f"A checkpoint must have the weights that its config.json describes; those of {folder} cannot be "
            f"loaded: {type(error).__name__}: {' '.join(str(error).split())} Store it again with save_pretrained."
        ) from error
    model, told = loaded
    for name, there, wanted in sorted(told["mismatched_keys"])[:1]:
        raise ConfigError(
            f"A checkpoint must have the weights that its config.json describes; in {folder} {name} is "
            f"{tuple(there)}, and by config.json {tuple(wanted)}. Restore that file, or store both again."
        )
    # Weights that are missing were drawn at random: what is measured would be of chance.
    if missing := sorted(told["missing_keys"]):
        raise ConfigError(
            f"A checkpoint must have all weights of its class {kind.__name__}; {folder} lacks {len(missing)}, "
            f"among them {', '.join(missing[:3])}. Store it again with save_pretrained, or correct "
            '"architectures" in its config.json.'
        )
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(
            f"A checkpoint must have its tokenizer, with which texts become the ids that it was trained on; "
            f"{folder} has no tokenizer.json. Store it there: tokenizer.save_pretrained({str(folder)!r})."
        )
    tokenizer = fetch_tokenizer(folder, beside_model=True)
    check_fits(tokenizer, model.config, folder)
    return Stored(model.eval(), tokenizer)


def _kind(folder: Path) -> type[ConceptPreTrainedModel]:
    """The class that a folder's config.json names."""
    path = folder / "config.json"
    try:
        settings = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"A checkpoint must be a folder that save_pretrained wrote, with config.json and weights; {path} cannot "
            f"be read: {error}. Give such a folder."
        ) from error
    told = settings.get("model_type") if isinstance(settings, dict) else None
    if told != ConceptConfig.model_type:
        raise ConfigError(
            f'A checkpoint must be of model_type "{ConceptConfig.model_type}"; {folder} is of "{told}". Only models of '
            "assay.engines.concepts have concepts to look at."
        )
    names = settings.get("architectures") or [None]
    if names[0] not in CLASSES:
        raise ConfigError(
            f"A checkpoint must be of one of {', '.join(CLASSES)}; the architectures of {path} are "
            f"{settings.get('architectures')}. Store it with save_pretrained of one of them."
        )
    return CLASSES[names[0]]


def read_texts(path: Path) -> list[str]:
    """The texts of a file, one a line; lines of less than two characters are none.

    Raises:
        ConfigError: It cannot be read, is not UTF-8, or has no text.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"Texts must be a file of UTF-8 text, a line a text; {path} cannot be read: {error}. Give another."
        ) from error
    found = [line for line in lines if len(line.strip()) >= LEAST_CHARACTERS]
    if not found:
        raise ConfigError(f"There must be texts; {path} has no line of text. Give another file.")
    return found


def spread(texts: Sequence[str], count: int) -> list[str]:
    """So many texts, from all over a corpus at even distances; all where it has no more."""
    size = len(texts)
    if size <= count:
        return [texts[i] for i in range(size)]
    return [texts[math.floor(i * size / count)] for i in range(count)]


def encoded(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, length: int
) -> Iterator[dict[str, Tensor]]:
    """Batches of `input_ids` and `attention_mask`, texts cut off at `length` tokens.

    Of a text no more than `length` · 32 characters are looked at: whole documents take seconds to encode.
    """
    for batch in batches(texts, AT_ONCE):
        heads = [text[: length * CHARACTERS] for text in batch]
        found = tokenizer(
            heads, truncation=True, max_length=length, padding=True, return_tensors="pt"
        )
        yield {name: found[name] for name in ("input_ids", "attention_mask")}


def questions(stored: Stored, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch as the model's own class is asked: with hidden tokens to rebuild, or with a second text.

    A decoder that rebuilds gets every seventh token hidden, always the same ones. Classifiers get no
    labels; one that reads pairs gets each text with the next.
    """
    config, asked = stored.model.config, dict(batch)
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    if isinstance(stored.model, ConceptForSequenceClassification):
        if config.head == "pair":
            asked |= {f"{name}_b": value.roll(1, 0) for name, value in batch.items()}
        return asked
    if not isinstance(stored.model, ConceptForMaskedLM):
        return asked
    hidden = real & (torch.arange(ids.shape[1]) % HIDDEN == HIDDEN // 2)
    seen = ids.masked_fill(hidden, int(stored.tokenizer.mask_token_id))
    asked["labels"] = ids.masked_fill(~hidden, IGNORED)
    if config.decoder_type == "diffusion":
        # The encoder reads the whole text; under `prefix` it reads a beginning in training.
        asked |= {"decoder_input_ids": seen, "decoder_attention_mask": batch["attention_mask"]}
        asked["time"] = hidden.sum(1) / real.sum(1)
        return asked
    return asked | {"input_ids": seen}
