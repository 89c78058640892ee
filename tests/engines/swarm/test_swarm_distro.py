"""The optimizer against a float64 implementation that shares no code with it."""

import numpy as np
import pytest
import torch
from reference import Client, back, combine_coefficients, combine_elements

from assay.engines.swarm import fused
from assay.engines.swarm.codec import decode, encode, grid
from assay.engines.swarm.combine import combined
from assay.engines.swarm.config import MODELS, Cut, Shape
from assay.engines.swarm.distro import RULES, Distro, Peer, Sent, grids
from assay.engines.swarm.matformer import layout

SHAPE = Shape(hidden=24, layers=2, heads=2, ffn=32, vocab=37)
CUT = Cut(8, 3, 8)


@pytest.fixture(autouse=True, params=["fused", "torch"])
def _way(request, monkeypatch, tmp_path):
    """Every law holds with the kernel and without it."""
    if request.param == "torch":
        monkeypatch.setattr(fused, "_HERE", tmp_path)
    fused._load.cache_clear()
    yield
    monkeypatch.undo()
    fused._load.cache_clear()


def as_arrays(plan, flat):
    """Name → float64 matrix of a flat row; a vector is one row."""
    return {name: np.atleast_2d(view.double().numpy()) for name, view in plan.views(flat).items()}


def gradient(plan, generator, scale=1.0):
    """A random gradient of float32."""
    return torch.randn(plan.size, generator=generator) * scale


@pytest.mark.parametrize("shape", [(1, 7, 5), (2, 24, 16), (3, 1, 24), (2, 37, 24)])
@pytest.mark.parametrize("k", [1, 3, 500])
def test_all_coefficients_give_the_tensor_back(shape, k):
    """The transform is orthonormal: energy is kept, and all coefficients are the tensor."""
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cut = grid(*shape, (8, 8), k)
    idx, val = encode(stack, cut)
    kept = decode(idx, val, cut)
    assert idx.shape == (cut.chunks, cut.k)
    torch.testing.assert_close((kept**2).sum(), (val**2).sum())
    # What is kept is a projection: the rest is orthogonal to it.
    torch.testing.assert_close(
        ((stack - kept) * kept).sum(), torch.tensor(0.0).double(), atol=1e-9, rtol=0
    )
    if k == 500:
        torch.testing.assert_close(kept, stack)


def test_more_coefficients_than_are_cheap_to_decode_sparsely():
    """Both ways back agree."""
    stack = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    cut = grid(2, 32, 32, (32, 32), 200)
    idx, val = encode(stack, cut)
    parts = [decode(idx[:, i : i + 50], val[:, i : i + 50], cut) for i in range(0, 200, 50)]
    torch.testing.assert_close(decode(idx, val, cut), sum(parts))


@pytest.mark.parametrize("mode", ["assay", "reference", "legacy"])
@pytest.mark.parametrize("tier", [0, 1])
def test_a_client_over_rounds(mode, tier):
    """Lookahead, update, choice and forgetting over eight rounds: supports equal, values to 1e-5."""
    rule, plan = RULES[mode], layout(SHAPE, tier)
    mine = Distro(plan, grids(SHAPE, tier, CUT), rule, 0.99)
    generator = torch.Generator().manual_seed(3)
    theta = torch.randn(plan.size, generator=generator)
    arrays = as_arrays(plan, theta)
    shapes = {n: a.shape for n, a in arrays.items()}
    theirs = Client(shapes, *CUT[:2], 0.99, rule.lookahead, rule.at_once)
    for step in range(1, 9):
        lr_before, lr = (0.1 * (step - 1), 0.1 * step)
        ahead = as_arrays(plan, mine.ahead(theta, lr_before))
        for name, want in theirs.ahead(arrays, lr_before).items():
            np.testing.assert_allclose(ahead[name], want, atol=1e-6)
        g = gradient(plan, generator)
        sent = mine.step(g, lr)
        want = theirs.step(as_arrays(plan, g), lr)
        for group, cut, part in zip(plan.groups, mine.cuts, sent, strict=True):
            got = torch.zeros(cut.chunks, cut.volume).scatter_add_(1, part.idx, part.val)
            all_of = np.concatenate([want[n].reshape(-1, cut.volume) for n in group.names])
            np.testing.assert_array_equal(got.numpy() != 0, all_of != 0)
            np.testing.assert_allclose(got.numpy(), all_of, atol=2e-5)
        for name, delta in as_arrays(plan, mine.delta).items():
            np.testing.assert_allclose(delta, theirs.delta[name], atol=2e-5)


def random_sent(tier, generator, plan_cuts, empty=0.0):
    """Coefficients of random gradients; some chunks sent nothing."""
    out = []
    for group, cut in zip(layout(SHAPE, tier).groups, plan_cuts, strict=True):
        stack = torch.randn(len(group.names), *group.shape, generator=generator)
        idx, val = encode(stack, cut)
        silent = torch.rand(cut.chunks, 1, generator=generator) < empty
        out.append(Sent(idx, torch.where(silent, 0.0, val)))
    return out


def dense(tier, sent, plan_cuts, shape=SHAPE):
    """Name → coefficients [rows, columns, a, b] in float64."""
    out = {}
    for group, cut, part in zip(layout(shape, tier).groups, plan_cuts, sent, strict=True):
        freq = torch.zeros(cut.chunks, cut.volume, dtype=torch.float64)
        freq.scatter_add_(1, part.idx, part.val.double())
        grid_ = freq.view(cut.count, cut.rows // cut.a, cut.columns // cut.b, cut.a, cut.b)
        out |= {name: each.numpy() for name, each in zip(group.names, grid_, strict=True)}
    return out


@pytest.mark.parametrize("tiers", [(0,), (0, 1, 1, 1), (2, 0, 1), (1, 1)])
@pytest.mark.parametrize("receiver", [0, 1, 2])
def test_contributors_are_counted_by_element(tiers, receiver):
    """Peers of any tiers, some silent: every element is the mean of those that sent for it."""
    generator = torch.Generator().manual_seed(5)
    peers = [Peer(t, random_sent(t, generator, grids(SHAPE, t, CUT), empty=0.4)) for t in tiers]
    update = combined(SHAPE, receiver, peers, RULES["assay"], CUT)
    plan = layout(SHAPE, receiver)
    got = as_arrays(plan, update)
    shapes = {name: each.shape for name, each in got.items()}
    received = [(p.tier, dense(p.tier, p.sent, grids(SHAPE, p.tier, CUT))) for p in peers]
    for name, want in combine_elements(received, shapes).items():
        np.testing.assert_allclose(got[name], want, atol=1e-5)


def test_senders_are_counted_by_coefficient():
    """DeMo's rule: mean over those that sent a coefficient."""
    generator = torch.Generator().manual_seed(6)
    cuts = grids(SHAPE, 0, CUT)
    peers = [Peer(0, random_sent(0, generator, cuts)) for _ in range(4)]
    got = as_arrays(layout(SHAPE, 0), combined(SHAPE, 0, peers, RULES["reference"], CUT))
    for name, want in combine_coefficients([(0, dense(0, p.sent, cuts)) for p in peers]).items():
        np.testing.assert_allclose(got[name], want, atol=1e-5)


def test_the_forks_rule_counts_the_senders_of_all_tiers():
    """Where tensors are alike in all tiers, it is DeMo's rule; else each peer's share is one of all."""
    generator, tiers = torch.Generator().manual_seed(8), (0, 1, 1, 1)
    peers = [Peer(t, random_sent(t, generator, grids(SHAPE, t, CUT))) for t in tiers]
    # Signs, as one bit is read: then it matters who is counted.
    peers = [Peer(p.tier, [Sent(s.idx, s.val.sign()) for s in p.sent]) for p in peers]
    got = as_arrays(layout(SHAPE, 0), combined(SHAPE, 0, peers, RULES["legacy"], CUT))
    sent = [dense(p.tier, p.sent, grids(SHAPE, p.tier, CUT)) for p in peers]
    alike = [name for name, freq in sent[1].items() if freq.shape == sent[0][name].shape]
    assert len(alike) > len(sent[0]) / 2
    received = [(0, {name: each[name] for name in alike}) for each in sent]
    for name, want in combine_coefficients(received).items():
        np.testing.assert_allclose(got[name], want, atol=1e-5)
    name = "layers.0.up"
    total = back(sent[0][name])
    total[:16] += sum(back(each[name]) for each in sent[1:])
    np.testing.assert_allclose(got[name], total / 4, atol=1e-5)


def test_tiers_agree_bit_for_bit_where_they_overlap():
    """What a small client applies is the same as a large one's, in the part that both have."""
    generator = torch.Generator().manual_seed(7)
    peers = [Peer(t, random_sent(t, generator, grids(SHAPE, t, CUT), 0.2)) for t in (0, 1, 2, 1)]
    updates = {t: combined(SHAPE, t, peers, RULES["assay"], CUT) for t in (0, 1, 2)}
    wide = layout(SHAPE, 0).views(updates[0])
    for tier in (1, 2):
        for name, narrow in layout(SHAPE, tier).views(updates[tier]).items():
            common = wide[name][: narrow.shape[0]]
            common = common if narrow.dim() == 1 else common[:, : narrow.shape[1]]
            assert torch.equal(common, narrow), name


def test_the_quoted_counts():
    """34,124,544 parameters, 127,840 coefficients, 30,978,816 in tier 1; 50257 is cut by 29."""
    shape = MODELS["nanogpt-34m"]
    assert (layout(shape, 0).size, layout(shape, 1).size) == (34_124_544, 30_978_816)
    cuts = grids(shape, 0, Cut(64, 8, 64))
    assert sum(cut.chunks * cut.k for cut in cuts) == 127_840
    assert (cuts[0].a, cuts[0].b) == (29, 64)
