"""What a result has to be better than: one answer for all, the words without their order, a BERT of that size."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import BertConfig, BertModel

from assay.core.errors import ConfigError
from assay.engines.concepts.configuration import ConceptConfig
from assay.engines.concepts.encoder import ConceptModel
from assay.engines.concepts.linear import Measured, fit_linear
from assay.engines.concepts.parts import Examples, Parts
from assay.engines.concepts.scores import scores

WORDS = r"(?u)\b\w+\b"
"""Words of one letter too: "a" and "I" tell good English from bad."""
AS_LARGE = 0.001
"""Sizes that differ by less than this share count as equal."""


def majority(parts: Parts) -> dict[str, float]:
    """Each metric on `reported`, for the constant answer that has most of it on `train`.

    For accuracy that is the most frequent class. For F1 it is "yes" to all, also where "no" is more
    frequent: "no" to all has F1 = 0, which every model would exceed. For MCC and correlations it
    is 0, by definition of those of a constant.
    """
    labels, task = parts.train.labels, parts.task
    answers = np.array([labels.mean()]) if task.is_regression else np.arange(task.classes)
    found = {}
    for metric in task.metrics:
        on_train = [scores((metric,), np.full(len(labels), a), labels)[metric] for a in answers]
        # Of equally good ones the most frequent: MCC tells constants not apart.
        counts = [int((labels == a).sum()) for a in answers]
        best = max(range(len(answers)), key=lambda i: (on_train[i], counts[i]))
        for suffix, part in parts.reported.items():
            constant = np.full(len(part), answers[best])
            found[metric + suffix] = scores((metric,), constant, part.labels)[metric]
    return found


def bag_of_words(parts: Parts) -> Measured:
    """A linear model on which words and pairs of neighbouring words a text has.

    TF-IDF (scikit-learn; words fitted on `train` only). For pairs: those of both texts, what both
    have, what one has, and three numbers: their cosine, the share of words in both, and how much
    they differ in length.

    Raises:
        ConfigError: The training texts have no word.
    """
    words = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, token_pattern=WORDS, lowercase=True
    )
    try:
        words.fit([*parts.train.first, *(parts.train.second or ())])
    except ValueError as error:
        raise ConfigError(
            f"Task '{parts.task.name}': a bag of words needs words; its {len(parts.train)} training texts have "
            "none. Look at the text columns of its file."
        ) from error
    return fit_linear(parts, lambda examples: _features(words, examples))


def _features(words: TfidfVectorizer, examples: Examples) -> Any:
    first = words.transform(examples.first)
    if examples.second is None:
        return first
    second = words.transform(examples.second)
    both = first.multiply(second)
    has, has_too = first.astype(bool).astype(float), second.astype(bool).astype(float)
    common, counts = _sums(has.multiply(has_too)), (_sums(has), _sums(has_too))
    numbers = [
        _sums(both),
        common / np.maximum(counts[0] + counts[1] - common, 1),
        np.abs(counts[0] - counts[1]) / np.maximum(np.maximum(*counts), 1),
    ]
    parts = [first, second, both, abs(first - second), np.stack(numbers, axis=1)]
    return sparse.hstack(parts, format="csr")


def _sums(rows: Any) -> Any:
    return np.asarray(rows.sum(axis=1)).ravel()


@dataclass(frozen=True, slots=True)
class SameSize:
    """A BERT to compare a concept encoder with.

    Attributes:
        config: Of the BERT: same vocabulary, places and hidden size; layers and inner size chosen.
        ours: Parameters of the concept encoder.
        theirs: Parameters of the BERT, without a pooler.
    """

    config: BertConfig
    ours: int
    theirs: int


def bert_like(config: ConceptConfig) -> SameSize:
    """The BERT whose parameter count is nearest that of a concept encoder.

    Of shapes that differ from it by less than 0.1 % it is the one whose inner size is nearest to
    the usual 4 H. Where the encoder's token embeddings have fewer than H numbers, the smallest
    BERT may be larger than it: look at both counts.

    Args:
        config: Of the concept encoder.
    """
    with torch.device("meta"):
        ours = ConceptModel(config).num_parameters()
    size = config.hidden_size
    one, wider, two = (_size(_bert(config, *shape)) for shape in ((1, 1), (1, 2), (2, 1)))
    of_inner, each = wider - one, two - one - (wider - one)
    rest = one - each - of_inner
    shapes = []
    for layers in range(1, max(2, (ours - rest) // each + 2)):
        wide = max(1, round((ours - rest - layers * each) / (layers * of_inner)))
        gap = abs(rest + layers * (each + wide * of_inner) - ours)
        shapes.append((gap, abs(np.log(wide / (4 * size))), layers, wide))
    equal = [shape for shape in shapes if shape[0] <= AS_LARGE * ours]
    _, _, layers, wide = min(equal, key=lambda shape: shape[1]) if equal else min(shapes)
    found = _bert(config, layers, wide)
    return SameSize(config=found, ours=ours, theirs=_size(found))


def _bert(config: ConceptConfig, layers: int, inner: int) -> BertConfig:
    return BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=inner,
        hidden_dropout_prob=config.hidden_dropout_prob,
        attention_probs_dropout_prob=config.attention_probs_dropout_prob,
        max_position_embeddings=config.max_position_embeddings,
        initializer_range=config.initializer_range,
        pad_token_id=config.pad_token_id,
    )


def _size(config: BertConfig) -> int:
    with torch.device("meta"):
        return int(BertModel(config, add_pooling_layer=False).num_parameters())
