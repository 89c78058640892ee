"""Exact match by one teacher-forced forward, the greedy decoder that proves it, and prediction.

All 11 digits are the likeliest token under teacher forcing if and only if greedy decoding yields
the right sum: as long as every earlier digit is right, both see the same prefix. So one forward
replaces twelve. Only the exact match carries over, not the share of right digits.

Suffixes, this file: B = examples, T = positions, N = pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from assay.core.errors import DataError
from assay.engines.addition.backend import Backend, Judgement
from assay.engines.addition.block import tokens
from assay.engines.addition.checkpoint import Model
from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.data import LIMIT, Pairs, holdout
from assay.engines.addition.model import Parameters, model_logits
from assay.engines.addition.prompt import NUM_DIGITS, format_of

SUM_DIGITS = NUM_DIGITS + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a model does on a set of pairs.

    Attributes:
        num_examples: Pairs.
        errors: Pairs of which not all 11 digits are right.
        wrong_digits: Wrong digits by place, units first, under teacher forcing.
        loss_sum_nats: Cross-entropy summed over all supervised tokens of all pairs.
        num_rows: Supervised tokens of a pair.
    """

    num_examples: int
    errors: int
    wrong_digits: tuple[int, ...]
    loss_sum_nats: float
    num_rows: int

    @property
    def exact_match(self) -> float:
        """Share of pairs with all 11 digits right."""
        return 1 - self.errors / self.num_examples

    @property
    def token_accuracy(self) -> float:
        """Share of right digits under teacher forcing."""
        return 1 - sum(self.wrong_digits) / (self.num_examples * SUM_DIGITS)

    @property
    def loss_nats(self) -> float:
        """Mean cross-entropy of a supervised token."""
        return self.loss_sum_nats / (self.num_examples * self.num_rows)


def summarise(config: AdditionConfig, judged: Judgement) -> Score:
    """A judgement as counts."""
    wrong = judged.wrong_N.to(torch.int64)
    return Score(
        num_examples=len(wrong),
        errors=int((wrong != 0).sum()),
        wrong_digits=tuple(int(((wrong >> k) & 1).sum()) for k in range(SUM_DIGITS)),
        loss_sum_nats=judged.loss_sum_nats,
        num_rows=format_of(config.prompt).num_rows,
    )


def score(parameters: Parameters, index: int, pairs: Pairs, backend: Backend) -> Score:
    """Evaluate one seed of a stack on pairs."""
    return summarise(parameters.config, backend.judge(parameters, index, pairs))


def score_test_sets(
    config: AdditionConfig, parameters: Parameters, index: int, backend: Backend
) -> dict[int, Score]:
    """Scores of one seed on every test set of a configuration, by holdout seed."""
    sets = {s: holdout(s, config.val_size, config.test_size).test for s in config.test_seeds}
    return {seed: score(parameters, index, pairs, backend) for seed, pairs in sets.items()}


def total(scores: Sequence[Score]) -> Score:
    """Several sets as one."""
    digits = zip(*(s.wrong_digits for s in scores), strict=True)
    return Score(
        num_examples=sum(s.num_examples for s in scores),
        errors=sum(s.errors for s in scores),
        wrong_digits=tuple(map(sum, digits)),
        loss_sum_nats=sum(s.loss_sum_nats for s in scores),
        num_rows=scores[0].num_rows,
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


def decode(parameters: Parameters, pairs: Pairs) -> Tensor:
    """Greedy steps over all tokens, recomputing everything: predicted tokens [B, num_rows].

    Args:
        parameters: A stack of one seed.
        pairs: What to add.
    """
    form = format_of(parameters.config.prompt)
    token = tokens(form, pairs.a[None], pairs.b[None])[:, :, : form.prompt_length]
    with torch.no_grad():
        for _ in range(form.num_rows):
            logits_1B1V = model_logits(parameters, token, 1)
            token = torch.cat((token, logits_1B1V.argmax(-1)), 2)
    return token[0, :, form.prompt_length :]


def number(predicted: Sequence[int]) -> int:
    """Decoded tokens as a number: units first, up to the first that is no digit."""
    value = 0
    for place, token in enumerate(predicted[:SUM_DIGITS]):
        if token >= 10:
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
    pairs = Pairs(
        a=torch.tensor([a], dtype=torch.float64), b=torch.tensor([b], dtype=torch.float64)
    )
    return number(decode(model.parameters, pairs)[0].tolist())
