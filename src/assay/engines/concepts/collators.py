"""Batches of corrupted texts: what the encoder reads, what the decoder sees, what is asked for.

What is hidden in a text is drawn by a generator of its own, from the seed, the epoch and the text's
number. So it depends on nothing else: not on the texts beside it, nor on the process that reads it, nor
on how often training was interrupted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from assay.core.errors import ConfigError
from assay.engines.concepts.config import Objective
from assay.engines.concepts.masked import IGNORED
from assay.engines.concepts.tokens import Blocks

SPANS = (3, 10)
"""Shortest and longest span, tokens."""
PREFIX = (0.3, 0.5)
"""Smallest and largest share of a text that the encoder reads under "prefix"."""
MULTIPLE = 8
"""Padded texts are as long as a multiple of this."""


@dataclass(frozen=True, slots=True)
class Example:
    """A text to be corrupted.

    Attributes:
        ids: Its tokens.
        words: Where a word begins, if the objective asks.
        key: Seed, epoch and number: what decides everything that is drawn for it.
    """

    ids: np.ndarray
    words: np.ndarray | None
    key: tuple[int, int, int]

    def generator(self) -> torch.Generator:
        """Draws for this text in this epoch, and nothing else."""
        state = np.random.SeedSequence(self.key).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state >> np.uint64(1)))


class Texts(Dataset[Example]):
    """Blocks, of which each epoch hides other tokens.

    Args:
        blocks: Texts as ids.
        seed: Of what is hidden.
    """

    def __init__(self, blocks: Blocks, seed: int) -> None:
        self.blocks, self.seed, self.epoch = blocks, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the library before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> Example:
        words = None if self.blocks.words is None else self.blocks.words[index]
        return Example(self.blocks.ids[index], words, (self.seed, self.epoch, index))


Batch = dict[str, Tensor]


class Collator(Protocol):
    """Examples → a batch for `ConceptForMaskedLM`."""

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """One batch."""


@dataclass(frozen=True, slots=True)
class Padded:
    """Texts of a batch, filled up to one length.

    Attributes:
        ids_BN: Tokens.
        mask_BN: True where there is one.
        open_BN: True where there is one that is not special.
    """

    ids_BN: Tensor
    mask_BN: Tensor
    open_BN: Tensor


def padded(rows: Sequence[np.ndarray], tokenizer: PreTrainedTokenizerFast) -> Padded:
    """Fill texts up with padding to the longest, and to a multiple of 8 if they differ."""
    longest = max(map(len, rows))
    if min(map(len, rows)) != longest:
        longest = -(-longest // MULTIPLE) * MULTIPLE
    ids = np.full((len(rows), longest), tokenizer.pad_token_id, np.int64)
    mask = np.zeros(ids.shape, bool)
    for row, (into, seen) in zip(rows, zip(ids, mask, strict=True), strict=True):
        into[: len(row)], seen[: len(row)] = row, True
    special = np.isin(ids, np.array(tokenizer.all_special_ids))
    found = [torch.from_numpy(a) for a in (ids, mask, mask & ~special)]
    return Padded(*found)


class Masking:
    """BERT's objective, by the library's collator: 80 % of the chosen tokens hidden, 10 % others, 10 % as they are.

    Args:
        tokenizer: Of the model.
        rate: Share of tokens that are chosen.
        words: Choose whole words; then all of them are hidden.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, rate: float, *, words: bool = False
    ) -> None:
        self.tokenizer, self.words = tokenizer, words
        self.library = DataCollatorForLanguageModeling(
            tokenizer,
            whole_word_mask=words,
            mlm_probability=rate,
            mask_replace_prob=1.0 if words else 0.8,
            random_replace_prob=0.0 if words else 0.1,
        )

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """`input_ids`, `attention_mask`, `labels`."""
        texts = padded([e.ids for e in examples], self.tokenizer)
        ids, labels = texts.ids_BN.clone(), torch.full_like(texts.ids_BN, IGNORED)
        for row, example in enumerate(examples):
            own = slice(0, len(example.ids))
            hidden, asked = self._hidden(example, texts.ids_BN[row, own], texts.open_BN[row, own])
            ids[row, own], labels[row, own] = hidden, asked
        return {"input_ids": ids, "attention_mask": texts.mask_BN.long(), "labels": labels}

    def _hidden(self, example: Example, ids_N: Tensor, open_N: Tensor) -> tuple[Tensor, Tensor]:
        places = _places(example.words) if self.words else None
        self.library.generator = example.generator()
        ids, labels = self.library.torch_mask_tokens(ids_N[None].clone(), ~open_N[None], places)
        return ids[0], labels[0]


def _places(words: np.ndarray | None) -> np.ndarray:
    """Begin and end of each token in a text whose words have a gap between, as the library's collator reads them."""
    if words is None:
        raise ValueError("whole words need blocks that know where words begin: Cut(words=True)")
    begins = np.arange(len(words)) + np.cumsum(words)
    return np.stack([begins, begins + 1], axis=-1)[None]


class Spans:
    """Contiguous spans of 3 to 10 tokens are hidden until a share of the text is.

    After SpanBERT (Joshi et al. 2020), lengths even instead of geometric.

    Args:
        tokenizer: Of the model.
        rate: Share of tokens that are hidden.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rate: float) -> None:
        self.tokenizer, self.rate = tokenizer, rate

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """`input_ids`, `attention_mask`, `labels`."""
        texts = padded([e.ids for e in examples], self.tokenizer)
        hidden = torch.stack(
            [self._chosen(e, may) for e, may in zip(examples, texts.open_BN, strict=True)]
        )
        return {
            "input_ids": texts.ids_BN.masked_fill(hidden, _mask_id(self.tokenizer)),
            "attention_mask": texts.mask_BN.long(),
            "labels": texts.ids_BN.masked_fill(~hidden, IGNORED),
        }

    def _chosen(self, example: Example, may_N: Tensor) -> Tensor:
        generator = example.generator()
        hidden = torch.zeros_like(may_N)
        wanted = max(1, round(self.rate * int(may_N.sum()))) if bool(may_N.any()) else 0
        while (missing := wanted - int(hidden.sum())) > 0:
            draws = torch.rand(2, generator=generator)
            length = min(SPANS[0] + int(draws[0] * (SPANS[1] - SPANS[0] + 1)), missing)
            first = int(draws[1] * len(example.ids))
            hidden[first : first + length] = True
            hidden &= may_N
        return hidden


class Deletion:
    """TSDAE (Wang et al. 2021), the source's form: most tokens are kept from the encoder, all are asked for.

    Places stay as they are, where the paper takes words out; the decoder sees places alone.

    Args:
        tokenizer: Of the model.
        rate: Share of tokens that are deleted; at least one stays, and the first where there is no [CLS].
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rate: float) -> None:
        self.tokenizer, self.rate = tokenizer, rate

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """`input_ids`, `attention_mask`, `decoder_input_ids`, `decoder_attention_mask`, `time`, `labels`."""
        texts = padded([e.ids for e in examples], self.tokenizer)
        draws = _drawn([e.generator() for e in examples], texts.mask_BN)
        draws = draws.masked_fill(~texts.open_BN, torch.inf)
        kept = (draws >= self.rate) & texts.mask_BN
        survivor = draws.masked_fill(~texts.open_BN, -1).argmax(1, keepdim=True)
        kept |= torch.zeros_like(kept).scatter_(1, survivor, texts.open_BN.any(1, keepdim=True))
        # Places are counted from a text's beginning, which is a token of the text where there is no [CLS].
        kept[:, 0] = texts.mask_BN[:, 0]
        return {
            "input_ids": texts.ids_BN,
            "attention_mask": kept.long(),
            **_all_hidden(texts.ids_BN, texts.mask_BN, _mask_id(self.tokenizer)),
        }


class Noise:
    """Masked diffusion (Sahoo et al. 2024): a share t of the tokens is hidden from the decoder.

    Args:
        tokenizer: Of the model.
        t_min: Smallest t.
        t_max: Largest; drawn evenly between them for each text.
        prefix: The encoder reads the beginning alone, the decoder rebuilds the rest, counting places
            from there: nothing that is asked for can be copied. Otherwise the encoder reads the whole
            text, what is asked for included.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        t_min: float,
        t_max: float = 1.0,
        *,
        prefix: bool = False,
    ) -> None:
        self.tokenizer, self.prefix = tokenizer, prefix
        self.t_min, self.t_max = t_min, t_max

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """As `Deletion`."""
        generators = [e.generator() for e in examples]
        if self.prefix:
            parts = [self._cut(e.ids, g) for e, g in zip(examples, generators, strict=True)]
            read = padded([part[0] for part in parts], self.tokenizer)
            texts = padded([part[1] for part in parts], self.tokenizer)
        else:
            read = texts = padded([e.ids for e in examples], self.tokenizer)
        time = torch.stack([torch.rand((), generator=g) for g in generators])
        time = self.t_min + (self.t_max - self.t_min) * time
        draws = _drawn(generators, texts.mask_BN)
        hidden = (draws < time[:, None]) & texts.open_BN
        return {
            "input_ids": read.ids_BN,
            "attention_mask": read.mask_BN.long(),
            "decoder_input_ids": texts.ids_BN.masked_fill(hidden, _mask_id(self.tokenizer)),
            "decoder_attention_mask": texts.mask_BN.long(),
            "time": time,
            "labels": texts.ids_BN.masked_fill(~hidden, IGNORED),
        }

    def _cut(self, ids: np.ndarray, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        low, high = PREFIX
        share = low + (high - low) * float(torch.rand((), generator=generator))
        last = ids[-1:] if ids[-1] == self.tokenizer.sep_token_id else ids[:0]
        begins = int(ids[0] == self.tokenizer.cls_token_id)
        body = ids[begins : len(ids) - len(last)]
        cut = min(max(1, round(share * len(body))), max(1, len(body) - 1))
        return np.concatenate([ids[:begins], body[:cut], last]), body[cut:] if len(
            body
        ) > 1 else body


def _mask_id(tokenizer: PreTrainedTokenizerFast) -> int:
    return int(tokenizer.mask_token_id)


def _all_hidden(ids_BN: Tensor, mask_BN: Tensor, mask_id: int) -> Batch:
    return {
        "decoder_input_ids": torch.full_like(ids_BN, mask_id),
        "decoder_attention_mask": mask_BN.long(),
        "time": torch.ones(len(ids_BN)),
        "labels": ids_BN.masked_fill(~mask_BN, IGNORED),
    }


def _drawn(generators: Sequence[torch.Generator], mask_BN: Tensor) -> Tensor:
    """Even numbers in [0, 1) for the tokens of each text; how far it is filled up does not matter."""
    draws = torch.ones(mask_BN.shape)
    for row, (generator, length) in enumerate(
        zip(generators, mask_BN.sum(1).tolist(), strict=True)
    ):
        draws[row, :length] = torch.rand(length, generator=generator)
    return draws


def collator(
    objective: Objective, tokenizer: PreTrainedTokenizerFast, *, rate: float, t_min: float
) -> Collator:
    """The collator of an objective.

    Args:
        objective: Which.
        tokenizer: Of the model.
        rate: Share of tokens that are hidden or deleted, where the objective has one.
        t_min: Of the diffusion objectives.

    Raises:
        ConfigError: The tokenizer has no token for what is hidden.
    """
    if tokenizer.mask_token_id is None:
        raise ConfigError("The tokenizer must have a mask token; it has none. Take another.")
    made: Mapping[str, Any] = {
        "mlm": lambda: Masking(tokenizer, rate),
        "whole-word": lambda: Masking(tokenizer, rate, words=True),
        "span": lambda: Spans(tokenizer, rate),
        "tsdae": lambda: Deletion(tokenizer, rate),
        "diffusion": lambda: Noise(tokenizer, t_min),
        "prefix": lambda: Noise(tokenizer, t_min, prefix=True),
    }
    return made[objective]()
