"""What a model's vectors hold as they are: similarity without training, and a linear model on top."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from assay.core.errors import ConfigError
from assay.engines.concepts.encoder import ConceptModel
from assay.engines.concepts.linear import Measured, fit_linear, reported_scores
from assay.engines.concepts.modes import evaluating
from assay.engines.concepts.parts import Examples, Parts
from assay.engines.concepts.scores import Values

AT_ONCE = 64
"""Texts of a batch."""
DIGITS = 10
"""Of a cosine."""


def mean_state(base: Any, ids_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """The mean of each text's concepts, or of the states of its tokens, [B, H].

    Args:
        base: A concept encoder, or a model that gives a state for each token.
        ids_BN: Tokens.
        mask_BN: 1 where there is one, 0 where the text is filled up.
    """
    states: Tensor = base(ids_BN, attention_mask=mask_BN).last_hidden_state
    if isinstance(base, ConceptModel):
        return states.mean(1)
    share = mask_BN[..., None].to(states.dtype)
    return (states * share).sum(1) / share.sum(1).clamp(min=1)


@torch.no_grad()
def vectors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    max_length: int = 128,
) -> Values:
    """One vector for each text, float64 [n, H]: the mean of its concepts, or of its tokens.

    Args:
        model: A concept model, or any whose base model gives a state for each token (BERT): there
            the mean is over tokens that are no padding. Heads are not used.
        tokenizer: Of the model.
        texts: What to read, one by one.
        max_length: Tokens of a text at most; the rest is cut off.
    """
    base: Any = model.base_model
    # By length, so that little is padded; the vector of a text does not depend on its neighbours.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found: dict[int, Any] = {}
    with evaluating(base):
        for start in range(0, len(order), AT_ONCE):
            rows = order[start : start + AT_ONCE]
            batch = tokenizer(
                [texts[i] for i in rows], truncation=True, max_length=max_length, padding=True,
                return_tensors="pt", return_token_type_ids=False,
            )  # fmt: skip
            batch = batch.to(base.device)
            means = mean_state(base, batch["input_ids"], batch["attention_mask"])
            found |= dict(zip(rows, means.double().cpu().numpy(), strict=True))
    return np.stack([found[i] for i in range(len(texts))])


def zero_shot(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    parts: Parts,
    *,
    max_length: int = 128,
) -> dict[str, float]:
    """Pearson and Spearman of the cosine of two texts' vectors with how related people find them.

    Nothing is learned or chosen, so this is on `reported` alone.

    Args:
        model: As for `vectors`.
        tokenizer: Of the model.
        parts: Of a task of pairs with a number: stsb, sick-r.
        max_length: Tokens of a text at most.

    Raises:
        ConfigError: The task is another.
    """
    task = parts.task
    if not (task.is_pair and task.is_regression):
        raise ConfigError(
            f"Similarity without training is measured on pairs with a number (stsb, sick-r); got task '{task.name}'. "
            "Take one of these, or the linear probe."
        )

    def cosines(examples: Examples) -> Values:
        first = vectors(model, tokenizer, examples.first, max_length=max_length)
        second = vectors(model, tokenizer, examples.second or (), max_length=max_length)
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        found = (first * second).sum(1) / np.maximum(lengths, np.finfo(float).tiny)
        # Rounded, so that pairs of equal texts tie in rank.
        return np.asarray(found.round(DIGITS))

    return reported_scores(parts, cosines)


def linear_probe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    parts: Parts,
    *,
    max_length: int = 128,
) -> Measured:
    """A linear model on the frozen vectors of texts, its regularisation chosen on `chosen`.

    Of a pair a and b: a, b, |a − b| and a ⊙ b, each text read by itself (Conneau et al. 2017), so
    that what is measured is what one vector holds. Features have mean 0 and deviation 1 on `train`.

    Args:
        model: As for `vectors`; it is not changed.
        tokenizer: Of the model.
        parts: Of any task.
        max_length: Tokens of a text at most.
    """

    def features(examples: Examples) -> Values:
        first = vectors(model, tokenizer, examples.first, max_length=max_length)
        if examples.second is None:
            return first
        second = vectors(model, tokenizer, examples.second, max_length=max_length)
        return np.hstack([first, second, np.abs(first - second), first * second])

    train = features(parts.train)
    scale = StandardScaler().fit(train)

    def scaled(examples: Examples) -> Values:
        rows = train if examples is parts.train else features(examples)
        return np.asarray(scale.transform(rows))

    return fit_linear(parts, scaled)
