"""Concept losses against their formulas written out, and how losses are weighted."""

import math

import numpy as np
import pytest
import torch
from concepts_helpers import SMALL

from assay.engines.concepts.configuration import ConceptConfig
from assay.engines.concepts.regularisers import REGULARISERS
from assay.engines.concepts.weighting import LossWeights


def drawn(texts=3, slots=4, size=5):
    return torch.randn(texts, slots, size, generator=torch.Generator().manual_seed(3)).double()


def pairs(c):
    """Cosines of different slots, text by text, in plain loops."""
    unit = c / np.linalg.norm(c, axis=-1, keepdims=True)
    slots = c.shape[1]
    return np.array([
        [float(u[i] @ u[j]) for i in range(slots) for j in range(slots) if i != j] for u in unit
    ])  # fmt: skip


def by_hand(name, c):
    rows = c.reshape(-1, c.shape[-1])
    cos = pairs(c)
    hinge = np.maximum(0, 1 - np.sqrt(rows.var(0, ddof=1) + 1e-4)).mean()
    cov = np.cov(rows.T)
    off = (cov**2).sum() - (np.diag(cov) ** 2).sum()
    apart = np.exp(-2 * (2 - 2 * cos)).mean()
    slots = c.shape[1]
    nearest = cos.reshape(len(c), slots, slots - 1).max(-1)
    deviations = np.maximum(0, 1 - np.sqrt(c.var(0, ddof=1) + 1e-4)).mean()
    texts = np.exp(-2 * (2 - 2 * pairs(c.mean(1)[None]))).mean()
    return {
        "orthogonality": (cos**2).mean(),
        "soft-orthogonality": (np.maximum(0, np.abs(cos) - 0.1) ** 2).mean(),
        "uniformity": apart,
        "variance": hinge,
        "covariance": off / c.shape[-1],
        "vicreg": hinge + off / c.shape[-1],
        "combined": hinge + apart,
        "spread": -np.sqrt(2 - 2 * nearest).mean(),
        "input-variance": deviations,
        "input-uniformity": texts,
        "input-combined": deviations + texts,
    }[name]


@pytest.mark.parametrize("name", REGULARISERS)
def test_losses_are_their_formulas(name):
    c = drawn()
    assert float(REGULARISERS[name](c)) == pytest.approx(by_hand(name, c.numpy()), rel=1e-10)


@pytest.mark.parametrize("name", REGULARISERS)
def test_losses_have_gradients_where_slots_are_the_same(name):
    """Collapsed slots are where a loss must push, or at least not give NaN."""
    c = torch.ones(3, 4, 5, requires_grad=True)
    REGULARISERS[name](c).backward()
    assert bool(torch.isfinite(c.grad).all())


def test_static_slots_satisfy_the_sources_loss_and_not_ours():
    """Orthogonal slots that are the same in every text: nothing of the text is in them."""
    static = 4 * torch.eye(8).expand(16, 8, 8)
    assert float(REGULARISERS["uniformity"](static)) == pytest.approx(math.exp(-4), rel=1e-6)
    assert float(REGULARISERS["input-variance"](static)) == pytest.approx(0.99, abs=1e-6)
    assert float(REGULARISERS["input-uniformity"](static)) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", ["input-variance", "input-uniformity", "input-combined"])
def test_losses_over_texts_need_two(name):
    with pytest.raises(ValueError, match="needs 2 texts"):
        REGULARISERS[name](drawn(texts=1))


def weights(kind, raw=None):
    found = LossWeights(
        ConceptConfig(
            **SMALL, concept_losses=["variance", "uniformity"], weighting=kind, concept_weight=0.2
        )
    )
    if found.raw is not None:
        torch.nn.init.zeros_(found.raw) if raw is None else found.raw.data.copy_(torch.tensor(raw))
    return found


PARTS = {"variance": torch.tensor(0.5), "uniformity": torch.tensor(0.25)}


def test_weightings_are_their_formulas():
    task = torch.tensor(4.0)
    assert float(weights("fixed")(task, PARTS)) == pytest.approx(4 + 0.1 * 0.5 + 0.1 * 0.25)
    assert weights("learned")(task, PARTS).item() == pytest.approx(4.75 / 3)
    raw = [1.0, -1.0, 0.5]
    wanted = sum(0.5 * math.exp(-s) * v + 0.5 * s for s, v in zip(raw, (4, 0.5, 0.25), strict=True))
    assert weights("kendall-gal", raw)(task, PARTS).item() == pytest.approx(wanted)
    assert weights("kendall-gal", raw).weights() == pytest.approx(
        {
            "task": 0.5 * math.exp(-1),
            "variance": 0.5 * math.exp(1),
            "uniformity": 0.5 * math.exp(-0.5),
        }
    )
    assert weights("fixed").weights() == {"task": 1.0, "variance": 0.1, "uniformity": 0.1}


def test_kendall_gal_mutes_the_task_as_the_algebra_says():
    """At the optimum s = ln l every loss has the gradient 1 / 2l: one that is nearly 0 outweighs the task."""
    model = weights("kendall-gal")
    losses = {"variance": torch.tensor(0.018), "uniformity": torch.tensor(1.0)}
    optimizer = torch.optim.Adam([model.raw], lr=0.05)
    for _ in range(2000):
        optimizer.zero_grad()
        model(torch.tensor(4.31), losses).backward()
        optimizer.step()
    assert model.raw.tolist() == pytest.approx([math.log(4.31), math.log(0.018), 0.0], abs=1e-3)
    found = model.weights()
    assert found["task"] == pytest.approx(1 / (2 * 4.31), rel=1e-3)
    assert found["variance"] / found["task"] == pytest.approx(4.31 / 0.018, rel=1e-2)
