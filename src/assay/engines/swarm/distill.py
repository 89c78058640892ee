"""In-place distillation: small clients learn from the full one's most likely tokens and a tail.

The teacher sends, for each token, its k largest logits, their ids and logZ, the logarithm of the sum
over all of them at temperature T. What is left of its probability is one further class, the tail
(specs/swarm.md §1).

Suffixes, this file: B = sequences, T = tokens, K = kept classes.
"""

from dataclasses import dataclass

from torch import Tensor

LEAST = 1e-8
"""Smallest probability of the tail that is taken the logarithm of."""
LEAST_MASS = 0.05
"""Smallest mass by which a loss is divided."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What a teacher sends: values and ids of its k largest logits, and logZ, at a temperature."""

    values_BTK: Tensor
    ids_BTK: Tensor
    logz_BT: Tensor
    temperature: float

    @property
    def bytes(self) -> int:
        """What crosses the network: values and logZ in 4 bytes each, ids in 4."""
        return 8 * self.values_BTK.numel() + 4 * self.logz_BT.numel()


def targets(logits_BTV: Tensor, k: int, temperature: float) -> Targets:
    """The teacher's side."""
    scaled = logits_BTV.detach() / temperature
    top = scaled.topk(min(k, scaled.shape[-1]), dim=-1)
    return Targets(top.values, top.indices, scaled.logsumexp(dim=-1), temperature)


def distillation_loss(logits_BTV: Tensor, given: Targets) -> Tensor:
    """Kullback-Leibler divergence from the teacher over its k classes and the tail, in nats.

    T² x mean over tokens of Σ q_i (log q_i - log p_i), the tail being one class, divided by the mean
    mass Σ q_i of the kept classes (at least 0.05): a teacher that is sure of little weighs no less.

    Args:
        logits_BTV: The student's.
        given: The teacher's.
    """
    log_q = given.values_BTK - given.logz_BT[..., None]
    scaled = logits_BTV / given.temperature
    log_p = scaled.gather(-1, given.ids_BTK) - scaled.logsumexp(dim=-1, keepdim=True)
    q, p = log_q.exp(), log_p.exp()
    mass = q.sum(dim=-1)
    q_tail = (1 - mass).clamp(min=LEAST)
    p_tail = (1 - p.sum(dim=-1)).clamp(min=LEAST)
    kept = (q * (log_q - log_p)).sum(dim=-1)
    divergence = (kept + q_tail * (q_tail.log() - p_tail.log())).mean()
    return given.temperature**2 * divergence / mass.mean().clamp(LEAST_MASS, 1.0)


def mixed(cross_entropy: Tensor, divergence: Tensor, beta: float, *, add: bool) -> Tensor:
    """CE + β KD, or (1 - β) CE + β KD."""
    return (cross_entropy if add else (1 - beta) * cross_entropy) + beta * divergence


def beta_at(step: int, start: int, warmup: int, most: float) -> float:
    """The weight of a round: 0 until `start`, then a linear ramp to `most`."""
    if step <= start:
        return 0.0
    return most * (min(1.0, (step - start) / warmup) if warmup else 1.0)
