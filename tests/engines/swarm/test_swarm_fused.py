"""The C++ kernel of the optimizer against float64 (scipy's DCT) and against torch's operations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import chunks, joined
from scipy.fft import dctn, idctn

from assay.core.errors import DataError
from assay.engines.swarm import codec, fused
from assay.engines.swarm.codec import decode, encode
from assay.engines.swarm.combine import apply_combined, combined
from assay.engines.swarm.config import Cut, Shape
from assay.engines.swarm.distro import RULES, Distro, Peer, Sent, grids
from assay.engines.swarm.engine import ENGINE
from assay.engines.swarm.matformer import layout

SHAPES = [(1, 1, 1), (2, 1, 64), (1, 29, 64), (2, 58, 128), (2, 64, 64), (1, 128, 192), (1, 7, 13),
          (3, 5, 1), (1, 1, 7), (2, 33, 63), (1, 64, 34), (1, 2, 2)]  # fmt: skip
UNEVEN = Shape(hidden=24, layers=2, heads=2, ffn=192, vocab=37)
"""Its tiers are cut into chunks of 64, 48, 48 and 24: the borders of one lie inside of another's."""
CUT = Cut(64, 5, 64)


def grid(count, rows, columns, most, k):
    """Chunks of at most `most` on both sides."""
    return codec.grid(count, rows, columns, (most, most), k)


@pytest.fixture
def absent(monkeypatch, tmp_path):
    """An installation without a compiler."""
    monkeypatch.setattr(fused, "_HERE", tmp_path)
    fused._load.cache_clear()
    yield
    monkeypatch.undo()
    fused._load.cache_clear()


def by_torch(monkeypatch, function, *args, **options):
    """What torch's operations make of it."""
    with monkeypatch.context() as patch:
        patch.setattr(fused, "computes", lambda *tensors, cuts=(): False)
        return function(*args, **options)


def stack(*shape, seed=0):
    """Random numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def frequencies(stack_, cut):
    """Coefficients [chunks, volume] by scipy, in float64."""
    each = [chunks(one.double().numpy(), 64) for one in stack_]
    return dctn(np.stack(each), axes=(3, 4), norm="ortho").reshape(cut.chunks, cut.volume)


def check_chosen(idx, val, freq, k):
    """Values are those of their places, and no other place holds a larger one, to 1e-5."""
    scale = np.abs(freq).max(axis=1, keepdims=True)
    assert all(len(set(row)) == k for row in idx.tolist())
    taken = np.take_along_axis(freq, idx.numpy(), 1)
    assert np.all(np.abs(val.numpy() - taken) <= 1e-5 * scale)
    best = -np.sort(-np.abs(freq), axis=1)[:, :k]
    assert np.all(np.abs(np.abs(taken) - best) <= 1e-5 * scale)


def test_the_kernel_is_built_here():
    """With a compiler on the machine, a missing extension is a failure, not a skipped test."""
    assert fused.describe().startswith("fused C++")
    assert ENGINE.tasks["train"].environment()["kernel"] == fused.describe()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [1, 8, 70, 5000])
def test_encode_and_decode_equal_float64(shape, k):
    """Every kind of chunk: full, odd, one line, one number; few and all coefficients."""
    given_, cut = stack(*shape), grid(*shape, 64, k)
    idx, val = fused.encode(given_, cut)
    freq = frequencies(given_, cut)
    check_chosen(idx, val, freq, cut.k)
    sparse = np.zeros_like(freq)
    np.put_along_axis(sparse, idx.numpy(), val.double().numpy(), 1)
    rows, columns = cut.rows // cut.a, cut.columns // cut.b
    pieces = idctn(sparse.reshape(-1, cut.a, cut.b), axes=(1, 2), norm="ortho")
    want = [joined(one) for one in pieces.reshape(cut.count, rows, columns, cut.a, cut.b)]
    np.testing.assert_allclose(decode(idx, val, cut).numpy(), np.stack(want), atol=5e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 130), st.integers(1, 130), st.integers(1, 64),
    st.integers(1, 12), st.integers(0, 99),
)  # fmt: skip
def test_any_shape_chooses_as_torch(count, rows, columns, most, k, seed):
    """Places equal torch's wherever no two coefficients are within rounding of each other."""
    given_, cut = stack(count, rows, columns, seed=seed), grid(count, rows, columns, most, k)
    idx, val = fused.encode(given_, cut)
    exact_idx, exact = encode(given_.double(), grid(count, rows, columns, most, k + 1))
    torch.testing.assert_close(val.double().abs(), exact.abs()[:, : cut.k], rtol=1e-5, atol=1e-6)
    clear = ((exact.abs()[:, :-1] - exact.abs()[:, 1:]) > 1e-4).all(dim=1)
    assert torch.equal(idx[clear], exact_idx[clear, : cut.k])
    torch.testing.assert_close(val[clear].double(), exact[clear, : cut.k], rtol=1e-5, atol=1e-6)


def test_equal_magnitudes_come_by_place():
    """One number in the corner: coefficients (i, j) and (j, i) are equal bit for bit."""
    for side in (2, 8, 13, 64):
        corner = torch.zeros(1, side, side)
        corner[0, 0, 0] = -1.5
        idx, val = fused.encode(corner, grid(1, side, side, 64, 40))
        order = sorted(zip((-val[0].abs()).tolist(), idx[0].tolist(), strict=True))
        assert [place for _, place in order] == idx[0].tolist()
        assert len(set(val[0].abs().tolist())) < val.shape[1]


def test_zero_chunks_name_their_first_places():
    """Alone and beside chunks that hold something."""
    given_, cut = torch.zeros(2, 16, 24), grid(2, 16, 24, 8, 3)
    given_[1, 9, 17] = 1.0
    idx, val = fused.encode(given_, cut)
    live = torch.arange(cut.chunks) == 11
    assert torch.equal((val != 0).any(dim=1), live)
    assert (idx[~live] == torch.arange(3)).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_chunk(bad):
    """Its chunk names distinct places of its own; the others are as without it."""
    given_, cut = stack(1, 58, 192), grid(1, 58, 192, 64, 8)
    clean = fused.encode(given_, cut)
    given_[0, 40, 100] = bad
    idx, val = fused.encode(given_, cut)
    other = torch.arange(cut.chunks) != 1
    assert torch.equal(idx[other], clean[0][other])
    assert torch.equal(val[other], clean[1][other])
    assert not val[1].isfinite().any()
    assert len(set(idx[1].tolist())) == 8
    if bad != bad:  # all are, and equal
        assert idx[1].tolist() == list(range(8))
    assert ((idx >= 0) & (idx < cut.volume)).all()


def everything(delta, gradient, cut):
    """All that the kernel computes of a stack."""
    delta, theta = delta.clone(), delta.clone()
    idx, val = fused.encode(gradient, cut)
    first = fused.step(delta, gradient, (idx, val), cut, decay=0.9, lr=0.1, at_once=False)
    second = fused.step(delta, gradient, None, cut, decay=0.9, lr=0.1, at_once=True)
    parts = [fused.Part(idx, val, cut), fused.Part(*first, cut)]
    for way in (fused.Way(elements=True), fused.Way(mean=True, sign=True, lr=0.1)):
        fused.combine(parts, way, [theta])
    ahead = fused.signed_step(theta, delta, 0.1)
    per_chunk = [each.view(cut.count, -1) for each in (idx, val, *first, *second)]
    return [*per_chunk, delta, theta, ahead]


def test_threads_and_neighbours_change_nothing():
    """Bit for bit: with 1, 2 and 3 threads, and each tensor of a stack alone."""
    delta, gradient, cut = stack(3, 768, 256), stack(3, 768, 256, seed=1), grid(3, 768, 256, 64, 8)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(everything(delta, gradient, cut))
    finally:
        torch.set_num_threads(threads)
    alone = grid(1, 768, 256, 64, 8)
    single = [everything(delta[i : i + 1], gradient[i : i + 1], alone) for i in range(3)]
    found.append([torch.cat(each) for each in zip(*single, strict=True)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("mode", ["assay", "reference"])
def test_steps_equal_torchs(mode, monkeypatch):
    """Sent coefficients, what stays, and where the gradient is taken, over four rounds."""
    plan, cuts = layout(UNEVEN, 1), grids(UNEVEN, 1, CUT)
    mine, theirs = (Distro(plan, cuts, RULES[mode], 0.9) for _ in range(2))
    for step in range(4):
        g = stack(plan.size, seed=step)
        plan.groups[0].view(g)[0, 5:] = 0
        sent = mine.step(g, 0.1)
        want = by_torch(monkeypatch, theirs.step, g, 0.1)
        for got, other in zip(sent, want, strict=True):
            torch.testing.assert_close(got.val, other.val, rtol=1e-5, atol=1e-6)
            live = (got.val != 0).any(dim=1)
            assert torch.equal(got.idx[live], other.idx[live])
        torch.testing.assert_close(mine.delta, theirs.delta, rtol=1e-5, atol=1e-6)
        mine.delta.copy_(theirs.delta)  # so that its sign is that of the same numbers
        assert torch.equal(mine.ahead(g, 0.1), by_torch(monkeypatch, mine.ahead, g, 0.1))


def sent_by(tiers):
    """Random coefficients of clients of these tiers, quantised; some chunks silent."""
    generator, peers = torch.Generator().manual_seed(4), []
    for tier in tiers:
        sent = []
        for cut in grids(UNEVEN, tier, CUT):
            idx, val = encode(
                torch.randn(cut.count, cut.rows, cut.columns, generator=generator), cut
            )
            silent = torch.rand(cut.chunks, 1, generator=generator) < 0.4
            sent.append(Sent(idx, torch.where(silent, 0.0, val)))
        peers.append(Peer(tier, sent))
    return peers


@pytest.mark.parametrize("mode", ["assay", "reference", "legacy"])
@pytest.mark.parametrize("tiers", [(0,), (0, 0, 0), (1, 3), (0, 2, 1, 2, 3), ()])
@pytest.mark.parametrize("receiver", [0, 2, 3])
def test_updates_equal_torchs(mode, tiers, receiver, monkeypatch):
    """Every rule, chunks of unequal tiers, stored and applied to two replicas."""
    peers, plan = sent_by(tiers), layout(UNEVEN, receiver)
    ask = (UNEVEN, receiver, peers, RULES[mode], CUT)
    update = combined(*ask)
    want = by_torch(monkeypatch, combined, *ask)
    torch.testing.assert_close(update, want, rtol=1e-5, atol=1e-6)
    theta = stack(plan.size)
    for apply, direction in (("sign", update.sign()), ("raw", update)):
        replicas = [theta.clone(), theta.clone()]
        apply_combined(replicas, *ask, apply, 0.1)
        assert torch.equal(*replicas)
        torch.testing.assert_close(
            replicas[0], theta.sub(direction, alpha=0.1), rtol=1e-6, atol=1e-7
        )


def test_places_outside_of_a_chunk_are_refused():
    """Before anything is written."""
    cut = grid(2, 58, 128, 64, 8)
    idx, val = fused.encode(stack(2, 58, 128), cut)
    for wrong in (cut.volume, -1, 2**40, -(2**40)):
        bad = idx.clone()
        bad[2, 3] = wrong
        delta = stack(2, 58, 128, seed=1)
        before = delta.clone()
        with pytest.raises(DataError, match=str(cut.volume)):
            fused.step(delta, before, (bad, val), cut, decay=0.9, lr=1.0, at_once=True)
        with pytest.raises(DataError, match=str(cut.volume)):
            fused.combine([fused.Part(bad, val, cut)], fused.Way(lr=1.0), [delta])
        with pytest.raises(DataError, match=str(cut.volume)):
            decode(bad, val, cut)
        assert torch.equal(delta, before)


def test_what_does_not_fit_is_refused():
    """Types, layout, sizes, and cuts that are none."""
    good, cut = stack(2, 16, 24), grid(2, 16, 24, 8, 3)
    for given_ in (good.double(), good.transpose(1, 2), good[:1], good[:, :8].contiguous()):
        with pytest.raises(ValueError, match=r"float32|shape"):
            fused.encode(given_, cut)
    for change in ({"k": 0}, {"k": 65}, {"a": 5}, {"a": 65}):
        with pytest.raises(ValueError, match="chunks"):
            fused.encode(good, replace(cut, **change))
    idx, val = fused.encode(good, cut)
    for part in ((idx.int(), val), (idx[1:], val), (idx, val[:, :2].contiguous())):
        with pytest.raises(ValueError, match=r"int64|shape"):
            fused.combine([fused.Part(*part, cut)], fused.Way(), [good])
    with pytest.raises(ValueError, match="chunks"):
        fused.combine([fused.Part(idx, val, cut, peers=2)], fused.Way(), [good])


def test_larger_chunks_and_float64_go_to_torch():
    """The public functions compute what the kernel does not take."""
    for given_, most in ((stack(1, 128, 128), 128), (stack(1, 64, 64).double(), 64)):
        cut = grid(*given_.shape, most, 10**5)
        idx, val = encode(given_, cut)
        assert val.dtype == given_.dtype
        torch.testing.assert_close(decode(idx, val, cut), given_, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("absent")
def test_without_a_library_torch_computes():
    """And the provenance says so."""
    assert "was not built" in ENGINE.tasks["train"].environment()["kernel"]
    given_, cut = stack(2, 29, 64), grid(2, 29, 64, 64, 8)
    assert not fused.computes(given_, cuts=(cut,))
    check_chosen(*encode(given_, cut), frequencies(given_, cut), 8)
    with pytest.raises(ValueError, match="float32"):
        fused.encode(given_, cut)
