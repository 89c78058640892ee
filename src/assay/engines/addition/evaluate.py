"""Exact match by one teacher-forced forward, the greedy decoder that proves it, and prediction.

All 11 digits are the likeliest token under teacher forcing if and only if greedy decoding yields
the right sum: as long as every earlier digit is right, both see the same prefix. So one forward
replaces twelve. Only the exact match carries over, not the share of right digits.

Suffixes, this file: B = examples, Q = 12 supervised rows, V = vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from assay.core.errors import DataError
from assay.engines.addition.checkpoint import Model
from assay.engines.addition.config import NUM_DIGITS, AdditionConfig
from assay.engines.addition.data import (
    EQUALS,
    LIMIT,
    NUM_ROWS,
    PLUS,
    Encoder,
    Pairs,
    holdout,
    sequences,
)
from assay.engines.addition.kernel import Kernel
from assay.engines.addition.model import reference_logits


class Workspace:
    """The buffers of one thread: an encoder and a kernel of one batch size."""

    def __init__(
        self, config: AdditionConfig, num: int, dtype: torch.dtype = torch.float32
    ) -> None:
        self.num = num
        self.encoder = Encoder(num, dtype)
        self.kernel = Kernel(config, num, dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a model does on a set of pairs.

    Attributes:
        num_examples: Pairs.
        errors: Pairs of which not all 11 digits are right.
        right_digits: Right digits under teacher forcing, of 11 a pair.
        loss_sum_nats: Cross-entropy summed over all 12 supervised tokens of all pairs.
    """

    num_examples: int
    errors: int
    right_digits: int
    loss_sum_nats: float

    @property
    def exact_match(self) -> float:
        """Share of pairs with all 11 digits right."""
        return 1 - self.errors / self.num_examples

    @property
    def token_accuracy(self) -> float:
        """Share of right digits under teacher forcing."""
        return self.right_digits / (self.num_examples * (NUM_ROWS - 1))

    @property
    def loss_nats(self) -> float:
        """Mean cross-entropy of a supervised token."""
        return self.loss_sum_nats / (self.num_examples * NUM_ROWS)


def score(p: Mapping[str, Tensor], pairs: Pairs, work: Workspace) -> Score:
    """Evaluate one seed's parameters on pairs, a block of the workspace's size at a time."""
    errors = digits = 0
    loss = 0.0
    for start in range(0, len(pairs), work.num):
        a = pairs.a[start : start + work.num].to(torch.float64)
        b = pairs.b[start : start + work.num].to(torch.float64)
        num = a.shape[0]
        if num < work.num:  # the buffers have one size; the filling is not counted
            a = torch.cat((a, a.new_zeros(work.num - num)))
            b = torch.cat((b, b.new_zeros(work.num - num)))
        batch = work.encoder.encode(a, b)
        logp_VR = work.kernel.forward(p, batch)
        right = (logp_VR.argmax(0) == batch.target_1R[0]).view(-1, NUM_ROWS)[:num, :-1]
        errors += num - int(right.all(1).sum())
        digits += int(right.sum())
        loss -= float(logp_VR.gather(0, batch.target_1R).view(-1, NUM_ROWS)[:num].sum())
    return Score(num_examples=len(pairs), errors=errors, right_digits=digits, loss_sum_nats=loss)


def score_test_sets(
    config: AdditionConfig, p: Mapping[str, Tensor], work: Workspace
) -> dict[int, Score]:
    """Scores on every test set of a configuration, by holdout seed."""
    return {
        seed: score(p, holdout(seed, config.val_size, config.test_size).test, work)
        for seed in config.test_seeds
    }


def total(scores: Sequence[Score]) -> Score:
    """Several sets as one."""
    return Score(
        num_examples=sum(s.num_examples for s in scores),
        errors=sum(s.errors for s in scores),
        right_digits=sum(s.right_digits for s in scores),
        loss_sum_nats=sum(s.loss_sum_nats for s in scores),
    )


def report(scores: Mapping[int, Score]) -> dict[str, object]:
    """Aggregate and per-seed results as plain values, for JSON."""
    whole = total(list(scores.values()))
    return {
        "total_examples": whole.num_examples,
        "num_test_sets": len(scores),
        "aggregate_exact_match": whole.exact_match,
        "aggregate_errors": whole.errors,
        "per_seed": {
            str(seed): {"exact_match": s.exact_match, "errors": s.errors}
            for seed, s in scores.items()
        },
    }


def decode(config: AdditionConfig, p: Mapping[str, Tensor], pairs: Pairs) -> Tensor:
    """Twelve greedy steps over all 14 tokens, recomputing everything: tokens [B, 12].

    Args:
        config: The model.
        p: Named parameters with a leading axis of one seed, see `Parameters.stacked`.
        pairs: What to add.
    """
    token = sequences(pairs.a, pairs.b)[:, : 2 * NUM_DIGITS + 2]
    with torch.no_grad():
        for _ in range(NUM_ROWS):
            logits_SBTV = reference_logits(config, p, token[None])
            token = torch.cat((token, logits_SBTV[0, :, -1].argmax(-1, keepdim=True)), 1)
    return token[:, 2 * NUM_DIGITS + 2 :]


def number(tokens: Sequence[int]) -> int:
    """Decoded tokens as a number: units first, up to the first that is no digit."""
    value = 0
    for place, token in enumerate(tokens[: NUM_DIGITS + 1]):
        if token >= PLUS:
            break
        value += token * 10**place
    return value


def predict(model: Model, a: int, b: int) -> int:
    """What the model says a + b is.

    Raises:
        DataError: An operand that the model has no tokens for.
    """
    for name, value in (("A", a), ("B", b)):
        if not 0 <= value < LIMIT:
            raise DataError(
                f"operand {name} must be a whole number from 0 to {LIMIT - 1} (10 digits); got "
                f"{value}. The model has exactly 10 digit positions an operand, and no sign."
            )
    pairs = Pairs(a=torch.tensor([a]), b=torch.tensor([b]))
    tokens = decode(model.config, model.parameters.stacked(), pairs)
    return number(tokens[0].tolist())


assert EQUALS == PLUS + 1  # `number` takes every token from PLUS on for a non-digit
