"""Is the credit right? Measures of it against the truth, in float64, on samples held out.

All are means over layers 0 … L - 1; h_L is left out, since its credit needs no estimate.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from assay.engines.credit.estimators.base import Estimator, credit_of
from assay.engines.credit.firewall import View
from assay.engines.credit.net import Net, Trajectory
from assay.engines.credit.surrogates import normalised

MEASURING = 1 << 40
"""Added to a generator's seed while its estimator is measured."""
LEAST = 1e-12
"""Samples whose true costate is shorter have no direction, and are left out and counted."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A net's batch in float64, with an estimator's credit and the truth.

    Attributes:
        net: In float64.
        trajectory: Of the batch.
        credit_SLBD: Guessed, of h_0 … h_{L - 1}.
        truth_SLBD: Exact.
    """

    net: Net
    trajectory: Trajectory
    credit_SLBD: Tensor
    truth_SLBD: Tensor


@contextmanager
def in_float64(estimator: Estimator, draw: int = 0) -> Iterator[Estimator]:
    """The estimator in float64, with other random numbers; afterwards it is as it was, bit for bit.

    What each run draws meanwhile depends on its own generator's seed and `draw` alone. So whatever is
    measured for one of several runs that share a row is measured within a context of its own: else what
    the one draws would depend on what was measured for the others.

    Args:
        estimator: In float32.
        draw: Another number gives other random numbers.
    """
    generators = estimator.setting.generators
    states = [g.get_state() for g in generators]
    for g in generators:
        g.manual_seed(g.initial_seed() + MEASURING + draw)
    estimator.to(torch.float64)
    try:
        yield estimator
    finally:
        estimator.to(torch.float32)
        for g, state in zip(generators, states, strict=True):
            g.set_state(state)


def measured(net: Net, estimator: Estimator, x_SBI: Tensor, y: Tensor) -> Measured:
    """Credit and truth of a batch, in float64.

    Args:
        net: Of all runs, in any precision.
        estimator: Not changed.
        x_SBI: Inputs.
        y: Labels, or targets.
    """
    exact = net.to(torch.float64)
    y = y.double() if y.is_floating_point() else y
    trajectory = exact.trajectory(x_SBI.double(), y)
    with in_float64(estimator) as wide:
        view = View(exact, wide.name, wide.derivatives)
        credit = credit_of(wide, trajectory, view)
    return Measured(exact, trajectory, credit, exact.costates(trajectory)[:, :-1])


def cosines(credit: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine of each row with the truth, and which rows count; NaN where they do not.

    Credit that is exactly 0 has no direction and counts as 0.
    """
    lengths = truth.norm(dim=-1)
    inner = (credit * truth).sum(-1)
    own = credit.norm(dim=-1)
    counts = lengths > LEAST
    cosine = inner / (own * lengths)
    cosine = torch.where(own > 0, cosine, torch.zeros_like(cosine))
    return torch.where(counts, cosine, torch.full_like(cosine, torch.nan)), counts


def gamma(found: Measured) -> tuple[Tensor, Tensor]:
    """Cosine of guessed and true costate: mean over samples, [S, L]; and the share that counts, [S]."""
    cosine, counts = cosines(found.credit_SLBD, found.truth_SLBD)
    return cosine.nanmean(-1), counts.double().flatten(1).mean(1)


def rho(
    found: Measured, generator: torch.Generator, draws: int = 4, size: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Correlation of predicted and real loss changes under small random changes of h_l, [S, L].

    As the changes become small this is the cosine of all samples' costates taken as one vector: it
    weighs samples by their costates' lengths, which gamma does not.

    Args:
        found: Of the batch.
        generator: Draws the changes: normal, `size` times the root mean square of each layer.
        draws: Changes of each sample.
        size: Of a change.

    Returns:
        Over all samples and changes; and within samples (each sample's means taken off first).
        0 where the credit predicts no change at all.
    """
    h = found.trajectory.h_SLBD[:, :-1]
    runs, depth, samples, width = h.shape
    scale = size * h.square().mean((2, 3), keepdim=True).sqrt()
    shape = (depth, draws, samples, width)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    change = scale.unsqueeze(2) * drawn
    predicted = (found.credit_SLBD.unsqueeze(2) * change).sum(-1)
    after = _losses_at(found, h.unsqueeze(2) + change)
    real = after - found.trajectory.loss_SB.view(runs, 1, 1, samples)
    within = [each - each.mean(2, keepdim=True) for each in (predicted, real)]
    return _pearson(predicted, real), _pearson(*within)


def _pearson(a_SLKB: Tensor, b_SLKB: Tensor) -> Tensor:
    a, b = a_SLKB.flatten(2), b_SLKB.flatten(2)
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    lengths = a.norm(dim=-1) * b.norm(dim=-1)
    return torch.where(lengths > 0, (a * b).sum(-1) / lengths, torch.zeros_like(lengths))


def _losses_at(found: Measured, states_SLKBD: Tensor) -> Tensor:
    """Losses [S, L, K, B] where the states of each layer are replaced, one layer at a time."""
    view = View(found.net, "diagnostics", frozenset({"tail"}))
    layers = range(states_SLKBD.shape[1])
    return view.tail(list(layers), states_SLKBD.unbind(1), found.trajectory.y)


def nudge(found: Measured, size: float = 0.01) -> Tensor:
    """Mean loss change, nats, of a step of root mean square `size` against the credit, [S, L]."""
    h = found.trajectory.h_SLBD[:, :-1]
    moved = h - size * normalised(found.credit_SLBD, "per-sample")
    after = _losses_at(found, moved.unsqueeze(2)).squeeze(2)
    return (after - found.trajectory.loss_SB.unsqueeze(1)).mean(-1)


def copy_ceiling(found: Measured) -> Tensor:
    """Gamma [S, L] of copying the credit of h_L: what a net near the identity gives for nothing."""
    copied = found.trajectory.last_SBD.unsqueeze(1).expand_as(found.truth_SLBD)
    return cosines(copied, found.truth_SLBD)[0].nanmean(-1)


def report(
    net: Net, estimator: Estimator, x_SBI: Tensor, y: Tensor, seeds: Sequence[int]
) -> list[dict[str, float]]:
    """All measures of each run, by metric name.

    Args:
        net: Of all runs.
        estimator: Not changed.
        x_SBI: Held-out inputs.
        y: Labels, or targets.
        seeds: Of each run: of the changes that rho draws.
    """
    found = measured(net, estimator, x_SBI, y)
    gammas, valid = gamma(found)
    nudges, copies = nudge(found), copy_ceiling(found)
    out = []
    for run, seed in enumerate(seeds):
        one = _only(found, run)
        all_, within = rho(one, torch.Generator().manual_seed(seed))
        rms = one.trajectory.h_SLBD.square().mean((0, 2, 3)).sqrt()
        out.append(
            {
                "gamma": float(gammas[run].mean()),
                "gamma_first": float(gammas[run, 0]),
                "rho": float(all_.mean()),
                "rho_within": float(within.mean()),
                "nudge_nats": float(nudges[run].mean()),
                "copy_gamma": float(copies[run].mean()),
                "valid_rate": float(valid[run]),
                "rms_growth": float(rms[-1] / rms[0]),
            }
        )
    return out


def _only(found: Measured, run: int) -> Measured:
    """One run of it."""
    part = slice(run, run + 1)
    net, t = found.net, found.trajectory
    alone = Net(
        net.shape, net.alpha_S[part], {name: value[part] for name, value in net.parameters.items()}
    )
    trajectory = Trajectory(
        t.x_SBI[part],
        t.y[part],
        t.h_SLBD[part],
        t.logits_SBC[part],
        t.loss_SB[part],
        t.error_SBC[part],
        t.last_SBD[part],
        [[each[part] for each in kept] for kept in t.kept],
    )
    return Measured(alone, trajectory, found.credit_SLBD[part], found.truth_SLBD[part])
