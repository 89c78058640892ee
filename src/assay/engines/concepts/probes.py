"""What concepts know, and what training feels: probes of a trained model."""

import copy
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from transformers import PreTrainedTokenizerFast

from assay.engines.concepts.collators import Noise, Texts, padded
from assay.engines.concepts.frozen import mean_state
from assay.engines.concepts.labels import TIMES
from assay.engines.concepts.masked import loss_divisor
from assay.engines.concepts.modes import evaluating
from assay.engines.concepts.tokens import Blocks

SWAPPED = 0.5
"""Chance with which a token changes places with its right neighbour."""
DIGITS = 9
"""Of a probe's features, whose root mean square is 1."""


def word_order(
    encoder: nn.Module,
    taught: Blocks,
    judged: Blocks,
    tokenizer: PreTrainedTokenizerFast,
    batch: int = 32,
) -> float:
    """How well a linear probe tells texts from the same texts with neighbours swapped.

    Only the order of tokens differs: an encoder that sees a bag of them gives 0.5.

    Args:
        encoder: Frozen.
        taught: Held-out blocks that teach the probe, with their swapped forms.
        judged: Others on which it is judged; swaps are the same for every encoder.
        tokenizer: Of the model.
        batch: Texts at once.
    """
    # In float64, and rounded far above its last bits: the same sum in another order is not another
    # sum, and a probe of scaled features would see the difference.
    exact = copy.deepcopy(encoder).double()
    device = next(exact.parameters()).device
    draw = np.random.default_rng(0)
    pairs = [(ids, swapped(ids, draw)) for texts in (taught, judged) for ids in texts.ids]
    found = []
    with evaluating(exact), torch.no_grad():
        for first in range(0, len(pairs), batch):
            rows = [ids for pair in pairs[first : first + batch] for ids in pair]
            made = padded(rows, tokenizer)
            ids, mask = made.ids_BN.to(device), made.mask_BN.long().to(device)
            found.append(mean_state(exact, ids, mask).cpu())
    features = torch.cat(found).numpy()
    features = (features / np.sqrt(np.mean(features**2))).round(DIGITS)
    labels = np.tile([0, 1], len(pairs))
    end = 2 * len(taught)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    probe.fit(features[:end], labels[:end])
    return float(probe.score(features[end:], labels[end:]))


def swapped(ids_N: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A text with pairs of neighbours exchanged; its first and last token stay."""
    out = ids_N.copy()
    place = 1
    while place + 2 < len(out):
        if draw.random() < SWAPPED:
            out[[place, place + 1]] = out[[place + 1, place]]
            place += 1
        place += 1
    return out


def gradient_by_time(
    model: Any, texts: Blocks, tokenizer: PreTrainedTokenizerFast, *, prefix: bool, batch: int = 32
) -> dict[float, float]:
    """Length of the gradient of texts of which a share t is hidden, mean over batches of held-out texts.

    Their losses are summed, weighted by the time as in training, and divided by what a batch of texts with
    every t in turn would be divided by: so lengths at different t can be compared, and tell what each part of
    such a batch counts.

    Args:
        model: With the diffusion decoder.
        texts: Held-out blocks.
        tokenizer: Of the model.
        prefix: The encoder reads the beginning alone.
        batch: Texts at once.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    source = Texts(texts, 0)
    examples = [source[i] for i in range(len(source))]
    lengths: dict[float, list[float]] = {time: [] for time in TIMES}
    with evaluating(model):
        for first in range(0, len(examples), batch):
            divisors, made = [], {}
            for time in TIMES:
                found = Noise(tokenizer, time, time, prefix=prefix)(examples[first : first + batch])
                made[time] = {name: value.to(model.device) for name, value in found.items()}
                divisors.append(
                    loss_divisor(
                        model.config.time_weight,
                        made[time]["labels"],
                        made[time]["decoder_attention_mask"],
                        made[time]["time"],
                    )
                )
            divisor = torch.stack(divisors).mean()
            for time, texts_of_it in made.items():
                loss = model(**texts_of_it, divisor=divisor).loss
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                square = sum(float(g.square().sum()) for g in gradients if g is not None)
                lengths[time].append(square**0.5)
    return {time: float(np.mean(found)) for time, found in lengths.items()}
