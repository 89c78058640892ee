"""What a model does with texts that it was not trained on."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, set_seed

from assay.engines.concepts.analysis import collect, measure
from assay.engines.concepts.analysis_metrics import CHIEF
from assay.engines.concepts.collators import Batch, Collator, Texts, padded
from assay.engines.concepts.config import PretrainConfig
from assay.engines.concepts.health import not_finite
from assay.engines.concepts.masked import IGNORED, ConceptForMaskedLM
from assay.engines.concepts.modes import evaluating, in_own_precision
from assay.engines.concepts.prepare import Prepared, model_of
from assay.engines.concepts.probes import gradient_by_time, word_order
from assay.engines.concepts.tokens import Blocks

HELD_SEED = 0
"""Of what is hidden in held-out texts: the same for every run, so that runs are asked the same."""
COUNTED = 1024
"""Blocks whose tokens are counted at once."""


class Held:
    """Held-out texts, corrupted once.

    Args:
        data: Of the run.
        corrupt: The objective's.
        batch: Texts at once.
    """

    def __init__(self, data: Prepared, corrupt: Collator, batch: int) -> None:
        self.parts = {"val": data.val, "test": data.test}
        self.batches = {name: _batches(part, corrupt, batch) for name, part in self.parts.items()}
        self.data, self.batch = data, batch

    def measure(self, model: Any, split: str) -> dict[str, float]:
        """Loss, and of an encoder with concepts what they are: while training the chief measures alone."""
        found = self._loss(model, split)
        if isinstance(model, ConceptForMaskedLM):
            concepts = self._concepts(model, split)
            names = CHIEF if split == "val" else tuple(concepts)
            found |= {f"{split}/{name}": concepts[name] for name in names if name in concepts}
        return found

    def guessed(self, split: str) -> dict[str, float]:
        """What guessing by the frequencies of the texts trained on reaches, without reading: see `by_frequency`."""
        labels = torch.cat([batch["labels"].flatten() for batch in self.batches[split]])
        nats, right = by_frequency(
            self.data.train, labels[labels != IGNORED].numpy(), self.data.tokenizer
        )
        return {f"{split}/unigram_nats": nats, f"{split}/majority_accuracy": right}

    def probe(self, model: Any, *, prefix: bool) -> dict[str, float]:
        """What the encoder knows of the order of words, and under diffusion gradients by the time."""
        texts, tokenizer = self.parts["test"], self.data.tokenizer
        if not_finite(model):
            return {}
        order = word_order(model.base_model, self.parts["val"], texts, tokenizer, self.batch)
        found = {"probe/word_order_accuracy": order}
        if isinstance(model, ConceptForMaskedLM) and model.config.decoder_type == "diffusion":
            with in_own_precision(model):
                lengths = gradient_by_time(model, texts, tokenizer, prefix=prefix, batch=self.batch)
            found |= {f"gradient/at_{time:g}": length for time, length in lengths.items()}
        return found

    def kept(self, model: ConceptForMaskedLM, most: int) -> dict[str, Tensor]:
        """The first so many texts of the last part, [texts, N], and their concepts, [texts, C, H]."""
        texts = padded(self.parts["test"].ids[:most], self.data.tokenizer)
        concepts = collect(
            model.encoder, self._batches("test", most), attentions="none"
        ).concepts_TCH
        return {"concepts": concepts.contiguous(), "ids": texts.ids_BN.int(), "mask": texts.mask_BN}

    def untrained(self, config: PretrainConfig, seed: int, device: Any) -> dict[str, float]:
        """The chief measures of what the encoder made of the last part before any training.

        Args:
            config: Of the run.
            seed: Of first weights: the global generator is set to it.
            device: Where to compute.
        """
        set_seed(seed)
        model: Any = model_of(config, self.data.tokenizer)
        if not isinstance(model, ConceptForMaskedLM):
            return {}
        found = self._concepts(model.to(device), "test")
        return {f"untrained/{name}": found[name] for name in CHIEF if name in found}

    def _batches(self, split: str, most: int | None = None) -> list[dict[str, Tensor]]:
        rows = self.parts[split].ids[:most]
        made = [
            padded(rows[first : first + self.batch], self.data.tokenizer)
            for first in range(0, len(rows), self.batch)
        ]
        return [{"input_ids": texts.ids_BN, "attention_mask": texts.mask_BN} for texts in made]

    def _concepts(self, model: ConceptForMaskedLM, split: str) -> dict[str, float]:
        batches = self._batches(split)
        collected = collect(model.encoder, batches, attentions="none")
        if not collected.concepts_TCH.isfinite().all():
            # A run that diverged ends as one: its loss says so, and of such concepts there is no measure.
            return {}
        if split == "test":
            collected = collect(model.encoder, batches, attentions="last")
        return measure(collected.concepts_TCH, collected.attention)

    def _loss(self, model: Any, split: str) -> dict[str, float]:
        """On the tokens that are asked for, unweighted and unsmoothed."""
        nats, right, asked = 0.0, 0, 0
        with evaluating(model), in_own_precision(model), torch.no_grad():
            for batch in self.batches[split]:
                placed = {name: value.to(model.device) for name, value in batch.items()}
                logits, wanted = asked_for(model(**placed).logits, placed["labels"])
                nats += float(functional.cross_entropy(logits, wanted, reduction="sum"))
                right += int((logits.argmax(-1) == wanted).sum())
                asked += len(wanted)
        return {f"{split}/loss_nats": nats / asked, f"{split}/accuracy": right / asked}


def asked_for(logits: Tensor, labels_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels of the tokens that have one; models may give the logits of others too."""
    where = labels_BN != IGNORED
    return (logits if logits.dim() == 2 else logits[where]), labels_BN[where]


def by_frequency(
    train: Blocks, wanted: np.ndarray, tokenizer: PreTrainedTokenizerFast
) -> tuple[float, float]:
    """Answers that no text is read for.

    Args:
        train: Texts whose tokens are counted, each once more (Laplace), so that none is impossible; special
            ones where they are asked for, since most objectives never do.
        wanted: Ids that are asked for, [T].
        tokenizer: Of the ids.

    Returns:
        Mean -ln of the share of the wanted tokens, in nats, and how often the most frequent token is right.
    """
    counts = np.ones(len(tokenizer))
    # Many blocks at once: a count of one block alone would touch the whole vocabulary for few tokens.
    for first in range(0, len(train), COUNTED):
        together = np.concatenate(train.ids[first : first + COUNTED])
        counts += np.bincount(together, minlength=len(counts))
    special = np.setdiff1d(tokenizer.all_special_ids, wanted)
    counts[special] = 0
    shares = counts / counts.sum()
    return float(-np.log(shares[wanted]).mean()), float((wanted == counts.argmax()).mean())


def _batches(blocks: Blocks, corrupt: Collator, batch: int) -> list[Batch]:
    texts = Texts(blocks, HELD_SEED)
    firsts = range(0, len(texts), batch)
    return [corrupt([texts[i] for i in range(f, min(f + batch, len(texts)))]) for f in firsts]
