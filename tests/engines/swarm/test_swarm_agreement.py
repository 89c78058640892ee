"""Agreement of small and large clients: every definition against numpy on the decoded tensors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import back
from test_swarm_distro import dense
from test_swarm_train import CONFIG, Context

from assay.core.config import to_plain
from assay.core.errors import DataError
from assay.engines.swarm import agreement
from assay.engines.swarm.distro import grids
from assay.engines.swarm.payload import Head, schema, unpack
from assay.engines.swarm.train import train

STORED = replace(
    CONFIG, tiers=(0, 1, 2), steps=4, store=("payloads", "gradients"), chunk=16, top_k=4
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Files and configuration of a run that stored everything."""
    context = Context()
    train([STORED], [context])
    folder = tmp_path_factory.mktemp("stored")
    files = {}
    for name, content in context.saved.items():
        (folder / name).write_bytes(content)
        files[name] = folder / name
    return files, {"config": to_plain(STORED)}


def updates(files):
    """Round → client → name → decoded float64 matrix, by code that is not the engine's."""
    return {
        step: {c: {n: back(freq) for n, freq in named.items()} for c, named in clients.items()}
        for step, clients in coefficients(files).items()
    }


def coefficients(files):
    """Round → client → name → coefficients [rows, columns, a, b] in float64."""
    found = {}
    for name, path in files.items():
        if name.startswith("payload"):
            step, client = int(name[8:13]), int(name[14:17])
            tier = STORED.tiers[client]
            cuts = grids(STORED.shape, tier, STORED.cut)
            sent = unpack(path.read_bytes(), Head("1bit", tier, step, client, schema(cuts)), cuts)
            found.setdefault(step, {})[client] = dense(tier, sent, cuts, STORED.shape)
    return found


def pooled(pairs):
    """Share of equal signs, and cosine, of pairs of arrays."""
    small = np.concatenate([s.ravel() for s, _ in pairs])
    large = np.concatenate([x.ravel() for _, x in pairs])
    # What is decoded from nothing is 0 up to the rounding of the transform.
    small, large = (np.where(np.abs(each) < 1e-9, 0, each) for each in (small, large))
    cosine = small @ large / np.sqrt((small @ small) * (large @ large))
    return np.mean(np.sign(small) == np.sign(large)), cosine


def pairs(files, *, padded, wanted=lambda name: True):
    """S_sum and L of every tensor and round, over all of L or the widest small client's part."""
    out = []
    for clients in updates(files).values():
        for name, large in clients[0].items():
            if not wanted(name):
                continue
            small = np.zeros_like(large)
            for client in (1, 2):
                each = clients[client][name]
                small[: each.shape[0], : each.shape[1]] += each
            rows, columns = large.shape if padded else clients[1][name].shape
            out.append((small[:rows, :columns], large[:rows, :columns]))
    return out


def test_decoded_and_overlap(stored):
    """Full, overlapping and feed-forward parts, to 1e-3 on signs (float32 against float64)."""
    files, run = stored
    sign, cosine = pooled(pairs(files, padded=True))
    found = agreement.decoded(files, run)
    assert found["agree/decoded_sign"] == pytest.approx(sign, abs=1e-3)
    assert found["agree/decoded_cosine"] == pytest.approx(cosine, abs=1e-5)
    found = agreement.overlap(files, run)
    for name, wanted in {
        "overlap": lambda name: True,
        "mlp": lambda name: name.split(".")[-1] in ("gate", "up", "down"),
        "attention": lambda name: name.split(".")[-1] in "qkvo",
        "head": lambda name: name == "head",
        "embedding": lambda name: name == "embedding",
    }.items():
        sign, cosine = pooled(pairs(files, padded=False, wanted=wanted))
        assert found[f"agree/{name}_sign"] == pytest.approx(sign, abs=1e-3), name
        assert found[f"agree/{name}_cosine"] == pytest.approx(cosine, abs=1e-5), name


def test_encoded_counts_shared_zeros(stored):
    """Most places of encoded updates are zeros of both: agreement near 1 at any cosine."""
    files, run = stored
    found = agreement.encoded(files, run)
    assert found["agree/encoded_sign"] > 0.95
    assert found["agree/encoded_cosine"] < 0.9


def test_support(stored):
    """Of the coefficients that L or a small client sent, those that both sent; pooled over both."""
    files, run = stored
    both, either = {}, {}
    for clients in coefficients(files).values():
        for small in (1, 2):
            for name, theirs in clients[small].items():
                large = clients[0][name][: theirs.shape[0], : theirs.shape[1]]
                kind = "attention" if name.split(".")[-1] in ("q", "k", "v", "o") else "all"
                for key in {kind, "all"}:
                    both[key] = both.get(key, 0) + np.sum((large != 0) & (theirs != 0))
                    either[key] = either.get(key, 0) + np.sum((large != 0) | (theirs != 0))
    found = agreement.support(files, run)
    assert found["agree/support_overlap"] == both["all"] / either["all"]
    assert found["agree/attention_support_overlap"] == both["attention"] / either["attention"]
    assert 0 < found["agree/support_overlap"] < 1


def test_raw(stored):
    """Gradients of the first layer, in the part of the widest small client."""
    files, run = stored
    small, large = [], []
    for step in range(1, 5):
        arrays = [np.load(files[f"gradient-{step:05d}-{c:03d}.npz"]) for c in range(3)]
        for name in ("gate", "up", "down"):
            total = np.zeros_like(arrays[0][name])
            for each in arrays[1:]:
                rows, columns = each[name].shape
                total[:rows, :columns] += each[name]
            rows, columns = arrays[1][name].shape
            small.append(total[:rows, :columns])
            large.append(arrays[0][name][:rows, :columns])
    sign, cosine = pooled(list(zip(small, large, strict=True)))
    found = agreement.raw(files, run)
    assert found["agree/raw_sign"] == pytest.approx(sign, abs=1e-3)
    assert found["agree/raw_cosine"] == pytest.approx(cosine, abs=1e-4)


def test_a_run_that_stored_nothing(stored):
    """Told with the setting that stores."""
    with pytest.raises(DataError, match="Set `store`"):
        agreement.overlap({}, stored[1])


def test_clients_of_one_tier(stored):
    """Without a small client there is nothing to compare."""
    files, run = stored
    one = {"config": run["config"] | {"tiers": [0, 0, 0]}}
    with pytest.raises(DataError, match="smaller ones"):
        agreement.overlap(files, one)


def test_equal_updates_agree():
    """The same tensor on both sides: 1 and 1; its negative: only zeros agree."""
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    x[:10] = 0
    same, other = agreement.Pooled(), agreement.Pooled()
    same.add(x, x)
    other.add(-x, x)
    assert same.values("x") == pytest.approx({"agree/x_sign": 1.0, "agree/x_cosine": 1.0})
    assert other.values("x") == pytest.approx({"agree/x_sign": 0.2, "agree/x_cosine": -1.0})
    assert (other.both, other.both_equal) == (40, 0)


def test_first_layer(stored):
    """The decoded updates of the tensors that `raw` compares."""
    files, run = stored
    wanted = ("layers.0.gate", "layers.0.up", "layers.0.down")
    sign, cosine = pooled(pairs(files, padded=False, wanted=lambda name: name in wanted))
    found = agreement.first_layer(files, run)
    assert found["agree/first_layer_sign"] == pytest.approx(sign, abs=1e-3)
    assert found["agree/first_layer_cosine"] == pytest.approx(cosine, abs=1e-5)


def test_applied(stored):
    """What all apply, beside L's part of it: mean of the senders of each element, decoded apart."""
    files, run = stored
    whole, suffix = [], []
    quarter = STORED.shape.width(2)
    for clients in updates(files).values():
        for name, large in clients[0].items():
            total, count = np.zeros_like(large), np.zeros_like(large)
            for each in clients.values():
                mine = each[name]
                total[: mine.shape[0], : mine.shape[1]] += mine
                count[: mine.shape[0], : mine.shape[1]] += np.abs(mine).sum() > 0
            update = total / np.maximum(count, 1)
            whole.append((update, large))
            kind = name.split(".")[-1]
            if kind in ("gate", "up"):
                suffix.append((update[quarter:], large[quarter:]))
            if kind == "down":
                suffix.append((update[:, quarter:], large[:, quarter:]))
    found = agreement.applied(files, run)
    sign, cosine = pooled(whole)
    assert found["agree/applied_sign"] == pytest.approx(sign, abs=2e-3)
    sign, cosine = pooled(suffix)
    assert found["agree/applied_suffix_sign"] == pytest.approx(sign, abs=2e-3)
    assert found["agree/applied_suffix_cosine"] == pytest.approx(cosine, abs=0.05)
