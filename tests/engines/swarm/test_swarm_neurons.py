"""Helper neurons, learnable gates, and coefficients and chunks that clients share."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import back, joined
from test_swarm_train import CONFIG, Context, run

from assay.core.config import to_plain
from assay.engines.swarm import agreement
from assay.engines.swarm.client import Client, Order
from assay.engines.swarm.codec import encode
from assay.engines.swarm.combine import combined
from assay.engines.swarm.config import Cut, Shape
from assay.engines.swarm.distro import RULES, Peer, Sent, grids
from assay.engines.swarm.exchange import cuts, neurons, read
from assay.engines.swarm.export import from_bytes
from assay.engines.swarm.matformer import active, chosen, initial, layout
from assay.engines.swarm.train import train

SHAPE = Shape(hidden=24, layers=2, heads=2, ffn=32, vocab=37)
HELPED = replace(
    CONFIG, tiers=(0, 1, 1, 2), helper_fractions=(0.0, 0.25, 0.25, 0.5), helper_interval=2
)
TEXT = torch.randint(0, 256, (2, 17), generator=torch.Generator().manual_seed(1))


def test_helper_neurons_are_drawn_evenly_from_the_suffix():
    """Without replacement, never of the client's own, other ones in each epoch and layer."""
    counts = np.zeros(32)
    for epoch in range(2000):
        drawn = chosen(SHAPE, 1, 4, epoch)
        assert drawn.shape == (2, 4)
        for row in drawn.tolist():
            assert row == sorted(set(row))
            assert all(16 <= neuron < 32 for neuron in row)
            counts[row] += 1
    assert counts[:16].sum() == 0
    # Each of 16 is drawn with probability 1/4 in 4,000 draws: 1000 ± 5 standard deviations.
    assert np.abs(counts[16:] - 1000).max() < 5 * (4000 * 0.25 * 0.75) ** 0.5
    assert not torch.equal(chosen(SHAPE, 1, 4, 0), chosen(SHAPE, 1, 4, 1))
    assert not torch.equal(chosen(SHAPE, 1, 4, 0)[0], chosen(SHAPE, 1, 4, 0)[1])
    assert chosen(SHAPE, 1, 16, 3).tolist() == [list(range(16, 32))] * 2


def test_a_helper_computes_what_the_neurons_say():
    """Own neurons and helpers together are those of the full model, and only they get a gradient."""
    config = replace(HELPED, mode="assay")
    theta = initial(config.shape, torch.Generator().manual_seed(0))
    client, full = Client(config, 1, theta), Client(config, 0, theta)
    drawn = neurons(config, 1, 1)
    # The full client with all other neurons cut out computes the same.
    views = layout(config.shape, 0).views(full.theta)
    kept = torch.zeros(config.shape.layers, config.shape.ffn, dtype=torch.bool)
    kept[:, : config.shape.width(1)] = True
    kept.scatter_(1, drawn, True)
    for layer in range(config.shape.layers):
        views[f"layers.{layer}.down"] *= kept[layer]
    assert client.train(Order(1, TEXT)).loss == pytest.approx(
        full.train(Order(1, TEXT)).loss, abs=1e-6
    )
    ours, theirs = client.plan.views(client.gradient), full.plan.views(full.gradient)
    up = theirs["layers.0.up"]
    torch.testing.assert_close(ours["layers.0.up"], up[: config.shape.width(1)], atol=1e-6, rtol=0)
    torch.testing.assert_close(ours["layers.0.up.helpers"], up[drawn[0]], atol=1e-6, rtol=0)


@pytest.mark.parametrize("receiver", [0, 1, 2])
def test_receivers_put_each_neuron_where_it_belongs(receiver):
    """Against float64: decoded helpers are scattered over the full width, and counted there."""
    cut = Cut(8, 3, 8)
    generator = torch.Generator().manual_seed(3)
    peers = []
    for tier, helpers in ((0, 0), (1, 4), (2, 8), (1, 4)):
        sent = random_sent(tier, helpers, generator, cut)
        peers.append(Peer(tier, sent, chosen(SHAPE, tier, helpers, 5) if helpers else None))
    got = layout(SHAPE, receiver).views(combined(SHAPE, receiver, peers, RULES["assay"], cut))
    for layer in range(SHAPE.layers):
        name = f"layers.{layer}.up"
        total, count = np.zeros((32, 24)), np.zeros((32, 24))
        for peer in peers:
            plan = layout(SHAPE, *peer.kind)
            freq = freq_of(plan, peer.sent, grids(SHAPE, peer.tier, cut, peer.kind[1]))
            own = back(freq[name])
            total[: len(own)] += own
            count[: len(own)] += tiles(freq[name])
            if peer.kind[1]:
                rows = peer.neurons_LN[layer].numpy()
                total[rows] += back(freq[f"{name}.helpers"])
                count[rows] += tiles(freq[f"{name}.helpers"])
        want = (total / np.maximum(count, 1))[: SHAPE.width(receiver)]
        np.testing.assert_allclose(got[name].numpy(), want, atol=1e-5)


def random_sent(tier, helpers, generator, cut):
    """Coefficients of random gradients."""
    plan = layout(SHAPE, tier, helpers)
    row = torch.randn(plan.size, generator=generator)
    pieces = grids(SHAPE, tier, cut, helpers)
    return [Sent(*encode(g.view(row), c)) for g, c in zip(plan.groups, pieces, strict=True)]


def freq_of(plan, sent, pieces):
    """Name → coefficients, float64."""
    out = {}
    for group, cut, part in zip(plan.groups, pieces, sent, strict=True):
        freq = torch.zeros(cut.chunks, cut.volume, dtype=torch.float64)
        freq.scatter_add_(1, part.idx, part.val.double())
        grid = freq.view(cut.count, cut.rows // cut.a, cut.columns // cut.b, cut.a, cut.b)
        out |= {name: each.numpy() for name, each in zip(group.names, grid, strict=True)}
    return out


def tiles(freq):
    """1 where a chunk sent something."""
    live = np.any(freq != 0, axis=(2, 3))
    return joined(np.broadcast_to(live[:, :, None, None], freq.shape).astype(float))


def test_runs_with_helpers():
    """Equal replicas; a helped client trains the suffix; resume equals no interruption."""
    config = replace(HELPED, steps=7, store=("payloads",))
    whole = run(config)
    assert whole.final["sync/replicas_equal"] == 1
    sizes = {n: len(whole.saved[f"payload-00003-{n:03d}.bin"]) for n in range(4)}
    plain = run(replace(config, helper_fractions=()))
    assert sizes[1] > len(plain.saved["payload-00003-001.bin"])
    assert sizes[0] == len(plain.saved["payload-00003-000.bin"])
    for stop in (2, 3, 4):
        parted = Context()
        parted.stop_at = stop
        train([config], [parted])
        parted.stop_at = None
        train([config], [parted])
        assert (parted.final, parted.logged) == (whole.final, whole.logged)
    faults = {"loss": 0.2, "churn": 0.4, "epoch_rounds": 3}
    assert run(replace(config, steps=12, **faults)).final["sync/replicas_equal"] == 1


def test_the_unsent_part_of_a_neuron_waits_for_its_next_turn():
    """What helper neurons have not sent rests where they lie in the full model."""
    config = replace(HELPED, helper_interval=1)
    theta = initial(config.shape, torch.Generator().manual_seed(0))
    client = Client(config, 1, theta)
    client.train(Order(1, TEXT))
    client.distro.settle()
    before = client.distro.delta.clone()
    client.train(Order(2, TEXT))
    row = active(client.resting, config.shape, 1, neurons(config, 1, 1))
    group = client.plan.of_kind("wide helpers")
    assert torch.equal(group.view(row), group.view(before))
    assert group.view(before).abs().sum() > 0


def test_a_helper_that_comes_back_in_another_turn():
    """What it had not sent lies where its neurons of that turn were, not where those of the new one are."""
    config = replace(HELPED, helper_interval=2)
    theta = initial(config.shape, torch.Generator().manual_seed(0))
    first = Client(config, 1, theta)
    for step in (1, 2):
        first.train(Order(step, TEXT))
    kept = first.unsent()
    again = Client(config, 1, theta)
    again.restore(kept)
    again.train(Order(5, TEXT))
    row = active(again.resting, config.shape, 1, neurons(config, 1, 1))
    group = again.plan.of_kind("wide helpers")
    assert torch.equal(group.view(row), group.view(torch.from_numpy(kept["delta"])))
    assert group.view(row).abs().sum() > 0


def test_without_helpers_the_small_clients_never_touch_the_suffix():
    """All clients small but helped: the suffix of the full model learns; else it stays."""
    config = replace(CONFIG, tiers=(1, 1, 1), steps=5, mode="assay", store=("model",))
    helped = run(replace(config, helper_fractions=(0.5,)))
    plain = run(config)
    assert helped.saved["model.safetensors"] != plain.saved["model.safetensors"]
    shape, start = config.shape, initial(config.shape, torch.Generator().manual_seed(1))
    for context, moved in ((helped, True), (plain, False)):
        end = from_bytes(context.saved["model.safetensors"], shape, 0)
        suffix = [
            layout(shape, 0).views(row)["layers.0.up"][shape.width(1) :] for row in (start, end)
        ]
        assert torch.equal(*suffix) is not moved


def test_a_client_that_does_not_share_its_prefix():
    """It sends nothing of its feed-forward tensors, each client by its own flag, and keeps all of it."""
    config = replace(
        CONFIG, tiers=(0, 1, 1), steps=3, share_prefix=(True, False, True), store=("payloads",)
    )
    context = run(config)
    for number, shares in enumerate(config.share_prefix):
        sent = read(config, number, 3, context.saved[f"payload-00003-{number:03d}.bin"]).sent
        plan = layout(config.shape, config.tiers[number])
        for group, part in zip(plan.groups, sent, strict=True):
            live = bool((part.val != 0).any())
            assert live is (shares or group.kind not in ("wide", "narrow")), (number, group.kind)
    assert context.final["sync/replicas_equal"] == 1
    client = Client(
        config,
        1,
        initial(config.shape, torch.Generator().manual_seed(0))[: layout(config.shape, 1).size],
    )
    for step in (1, 2):
        client.train(Order(step, TEXT))
    wide = client.plan.of_kind("wide")
    rate = config.lr_at(2)
    kept = wide.view(client.distro.delta) - rate * wide.view(client.gradient)
    assert kept.abs().sum() > 0


@pytest.mark.parametrize("what", ["tier_gates", "gate_learned"])
def test_learnable_gates(what):
    """They begin at 1, learn, each tier its own, and stay equal in all replicas."""
    config = replace(CONFIG, steps=5, suffix_gate="linear", gate_warmup=0, store=("model",))
    gated = replace(config, **{what: True})
    theta = initial(gated.shape, torch.Generator().manual_seed(0))
    plain = initial(config.shape, torch.Generator().manual_seed(0))
    tolerance = 1e-6 if what == "tier_gates" else 1e-2
    assert Client(gated, 0, theta).held_out_loss(TEXT, 5) == pytest.approx(
        Client(config, 0, plain).held_out_loss(TEXT, 5), abs=tolerance
    )
    context = run(gated)
    assert context.final["sync/replicas_equal"] == 1
    end = layout(gated.shape, 0).views(
        from_bytes(context.saved["model.safetensors"], gated.shape, 0)
    )
    if what == "tier_gates":
        assert all(end[f"layers.0.tier_gate.{tier}"] != 0 for tier in (0, 1))
        assert end["layers.0.tier_gate.2"] == 0
    else:
        assert end["layers.0.suffix_logit"] != 6


def test_the_leaders_coefficients():
    """All send the same places; each its own values."""
    config = replace(CONFIG, tiers=(0, 1, 1), steps=3, support="leader", store=("payloads",))
    saved = run(config).saved
    large, small = (read(config, n, 3, saved[f"payload-00003-{n:03d}.bin"]) for n in (0, 1))
    for ours, theirs, mine, other in zip(
        small.sent, large.sent, cuts(config, 1), cuts(config, 0), strict=True
    ):
        grid = theirs.idx.view(other.count, other.rows // other.a, -1, other.k)
        part = grid[:, : mine.rows // mine.a, : mine.columns // mine.b].reshape(-1, mine.k)
        live = (ours.val != 0).any(dim=1) & (part != torch.arange(mine.k)).any(dim=1)
        assert torch.equal(ours.idx[live], part[live])
    assert run(config).final["sync/replicas_equal"] == 1


def test_supports_overlap_where_the_leader_chooses(tmp_path):
    """The analysis of supports finds more overlap than with own choices."""
    found = {}
    for support in ("own", "leader"):
        config = replace(CONFIG, steps=3, support=support, store=("payloads",))
        files = {}
        for name, content in run(config).saved.items():
            files[name] = tmp_path / f"{support}-{name}"
            files[name].write_bytes(content)
        values = agreement.support(files, {"config": to_plain(config)})
        found[support] = values["agree/attention_support_overlap"]
    assert found["leader"] > 0.99 > 0.9 > found["own"]


def test_aligned_chunks():
    """One side along the neurons for all tiers; supports can then be compared."""
    config = replace(CONFIG, tiers=(0, 3), batch=4, chunks="aligned")
    narrow, wide = cuts(config, 1), cuts(config, 0)
    assert [(c.a, c.b) for c in narrow] == [(c.a, c.b) for c in wide]
    assert (wide[2].a, wide[3].b) == (32, 32)
    own = cuts(replace(config, chunks="own"), 0)
    assert (own[2].a, own[3].b) == (64, 64)
    assert run(replace(config, support="leader")).final["sync/replicas_equal"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"helper_fractions": (2.0,)}, "from 0 to 1"),
        ({"helper_fractions": (0.5,), "mode": "legacy"}, "mode 'assay'"),
        ({"support": "leader", "tiers": (0, 3)}, "'aligned'"),
        ({"support": "leader", "helper_fractions": (0.5,)}, "no helper neurons"),
        ({"gate_learned": True}, "suffix_gate"),
        ({"helper_interval": 0}, "at least 1"),
        ({"share_prefix": (False,), "mode": "legacy"}, "mode 'assay'"),
    ],
)
def test_bad_settings(change, message):
    """A setting out of its range is refused with the rule and the way out."""
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)
