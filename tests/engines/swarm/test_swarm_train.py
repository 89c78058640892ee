"""Runs of the swarm: replicas, resume, seeds, and what is exchanged."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from assay.core.errors import DataError
from assay.engines.swarm.client import Client, scaling_of
from assay.engines.swarm.config import MODELS, Shape, SwarmConfig
from assay.engines.swarm.corpus import corpus
from assay.engines.swarm.data import Text, assignment
from assay.engines.swarm.export import from_bytes
from assay.engines.swarm.matformer import initial, layout, slice_tier, tier_of
from assay.engines.swarm.model import Scaling, logits, loss
from assay.engines.swarm.network import Network
from assay.engines.swarm.train import begin, train

CONFIG = SwarmConfig(
    model="tiny", tiers=(0, 1, 1), steps=7, batch=6, seq_len=16, lr=1e-3, final_lr=1e-4, warmup_steps=2, eval_interval=3, eval_sequences=4
)  # fmt: skip


class Context:
    """A run context in memory."""

    device, threads, data_dir = "cpu", 1, None

    def __init__(self, init=1, data=2):
        self.seeds = {"init": init, "data": data, "faults": 3}
        self.logged, self.final, self.saved, self.budget = [], {}, {}, {}
        self.checkpoint, self.stop_at, self.step = None, None, 0

    def log(self, values, *, step):
        self.step = step
        self.logged.append((step, dict(values)))

    def summary(self, values):
        self.final |= {k: v for k, v in values.items() if not k.startswith("speed/")}

    def save(self, name, content):
        self.saved[name] = content
        return ""

    def save_checkpoint(self, step, content):
        self.checkpoint = (step, content)

    def load_checkpoint(self):
        return self.checkpoint

    def event(self, kind, message, **details):
        """Nothing to tell."""

    def spent(self, **budget):
        self.budget = budget

    def progress(self, step, total, shown):
        """Nothing is shown."""

    def should_stop(self):
        return self.step == self.stop_at


def run(config, **seeds):
    """A finished run."""
    context = Context(**seeds)
    train([config], [context])
    return context


@pytest.mark.parametrize("mode", ["assay", "legacy", "reference", "local-adamw"])
def test_an_interrupted_run_ends_as_it_would_have(mode):
    """Stopped after any round and gone on with: the same numbers, bit for bit."""
    config = replace(CONFIG, mode=mode, tiers=(0, 0, 0) if mode == "reference" else (0, 1, 1))
    whole = run(config)
    for stop in (1, 2, 4):
        parted = Context()
        parted.stop_at = stop
        train([config], [parted])
        assert parted.final == {}
        parted.stop_at = None
        train([config], [parted])
        assert parted.final == whole.final
        assert parted.logged == whole.logged


@pytest.mark.parametrize("payload", ["1bit", "fp16", "fp32"])
@pytest.mark.parametrize("apply", ["sign", "raw"])
def test_replicas_stay_equal(payload, apply):
    """All clients of a tier hold the same parameters at the end, whatever is sent and applied."""
    final = run(replace(CONFIG, payload=payload, apply=apply, tiers=(0, 0, 1, 1, 2))).final
    assert final["sync/replicas_equal"] == 1
    assert final["sync/bytes_per_client_round"] > 0


def test_a_run_that_exchanges_nothing_says_so():
    """Local training: no bytes, and replicas that drift apart. (Source log S1 was such a run.)"""
    final = run(replace(CONFIG, mode="local-adamw", tiers=(0, 0, 0))).final
    assert final["sync/bytes_per_client_round"] == 0
    assert final["sync/replicas_equal"] == 0


FAULTS = {
    "latency_ms": (50.0, 150.0),
    "loss": 0.2,
    "corrupt": 0.05,
    "bandwidth": 1e5,
    "churn": 0.4,
    "epoch_rounds": 3,
    "compute_s": (1.0, 1.3, 0.8),
}


@pytest.mark.parametrize("fault", [*FAULTS, "all"])
def test_replicas_stay_equal_under_faults(fault):
    """Loss, delay, altered bytes, slow lines, death and rejoining: one hash a tier at the end."""
    chosen = FAULTS if fault == "all" else {fault: FAULTS[fault], "epoch_rounds": 3}
    context = run(replace(CONFIG, tiers=(0, 0, 1, 1, 2, 1), steps=12, **chosen))
    assert context.final["sync/replicas_equal"] == 1
    equal = [
        values["sync/replicas_equal"]
        for _, values in context.logged
        if "sync/replicas_equal" in values
    ]
    assert equal == [1.0] * 12
    happened = {"loss": "lost", "corrupt": "altered", "churn": "kills"}.get(fault)
    if happened:
        assert context.final[f"faults/{happened}"] > 0
    if fault in ("churn", "all"):
        assert context.final["faults/rejoins"] > 0
        assert min(values["sync/members"] for _, values in context.logged) < 6


def test_a_perfect_network_changes_nothing_but_time():
    """Loss, altered bytes and latency cost time and bytes; what is learned is the same."""
    calm = run(CONFIG).final
    rough = run(replace(CONFIG, loss=0.3, corrupt=0.1, latency_ms=(5.0, 20.0))).final
    for name, value in calm.items():
        if name.startswith(("test/", "val/")):
            assert rough[name] == value
    assert rough["time/simulated_s"] > calm["time/simulated_s"]
    assert rough["sync/moved_bytes"] > calm["sync/moved_bytes"]


def test_a_client_that_is_too_slow_is_dropped_and_comes_back():
    """Its payloads are late for the witnesses; it is a member again in the next epoch."""
    config = replace(
        CONFIG, tiers=(0, 1, 1, 1, 1), steps=9, epoch_rounds=4, compute_s=(1.0, 1.0, 1.0, 1.0, 9.0)
    )
    context = run(config)
    members = [values["sync/members"] for _, values in context.logged]
    assert min(members) == 4
    assert 5 in members[3:]
    assert context.final["faults/late"] > 0
    assert context.final["sync/replicas_equal"] == 1


def test_an_interrupted_run_with_faults_ends_as_it_would_have():
    """Killed after any round, coordinator and network included: the same numbers."""
    config = replace(CONFIG, tiers=(0, 0, 1, 1, 2), steps=11, **FAULTS)
    whole = run(config)
    for stop in range(1, 11):
        parted = Context()
        parted.stop_at = stop
        train([config], [parted])
        parted.stop_at = None
        train([config], [parted])
        assert parted.final == whole.final, stop
        assert parted.logged == whole.logged, stop


@pytest.mark.long
def test_two_hundred_rounds_with_a_third_of_churn():
    """30 % churn, 20 % loss, 50 to 150 ms: equal replicas, and a loss within 2 % of a calm run."""
    config = replace(
        CONFIG,
        tiers=(0, 0, 1, 1, 1, 1, 1, 1),
        steps=200,
        batch=32,
        seq_len=32,
        eval_interval=50,
        eval_sequences=64,
    )
    calm = run(config).final
    rough = run(
        replace(config, churn=0.3, epoch_rounds=20, loss=0.2, latency_ms=(50.0, 150.0))
    ).final
    assert rough["faults/kills"] > 0
    assert rough["sync/replicas_equal"] == 1
    for tier in (0, 1):
        name = f"test/loss_nats_tier{tier}"
        assert abs(rough[name] / calm[name] - 1) < 0.02, (rough[name], calm[name])


def test_training_learns():
    """Sixty rounds on the standard library lower the held-out loss of every tier."""
    config = replace(CONFIG, steps=60, batch=24, seq_len=32, eval_interval=60)
    start, end = run(replace(config, steps=1)).final, run(config).final
    for tier in (0, 1):
        assert end[f"test/loss_nats_tier{tier}"] < start[f"test/loss_nats_tier{tier}"] - 0.5


@pytest.mark.parametrize("apply", ["sign", "raw"])
def test_stored_updates_are_what_was_applied(apply):
    """The full model's way from the start to the end is the sum of the stored updates times the rates."""
    config = replace(CONFIG, apply=apply, store=("updates", "model"))
    context = run(config)
    shape = config.shape
    theta = initial(shape, torch.Generator().manual_seed(1))
    end = from_bytes(context.saved["model.safetensors"], shape, 0)
    rounds = sorted(int(name[7:12]) for name in context.saved if name.startswith("update"))
    assert rounds == list(range(1, 8))
    for sent_at in rounds:
        with np.load(io.BytesIO(context.saved[f"update-{sent_at:05d}.npz"])) as arrays:
            for name, view in layout(shape, 0).views(theta).items():
                view -= config.lr_at(sent_at + 2) * torch.from_numpy(arrays[name]).float()
    torch.testing.assert_close(theta, end, rtol=0, atol=1e-6)


def test_seeds_are_what_a_run_depends_on():
    """Same seeds, same run; another initialisation or another order of the data, another run."""
    base = run(CONFIG).logged
    assert run(CONFIG).logged == base
    assert run(CONFIG, init=5).logged != base
    assert run(CONFIG, data=5).logged != base


def test_a_tier_is_a_part_of_the_full_model():
    """The small model's tensors are prefixes; tier 1 of tier 1 is tier 2."""
    shape = Shape(hidden=16, layers=1, heads=2, ffn=32, vocab=20)
    full = initial(shape, torch.Generator().manual_seed(0))
    half = slice_tier(full, shape, 1)
    wide, narrow = layout(shape, 0).views(full), layout(shape, 1).views(half)
    assert torch.equal(narrow["layers.0.gate"], wide["layers.0.gate"][:16])
    assert torch.equal(narrow["layers.0.down"], wide["layers.0.down"][:, :16])
    assert torch.equal(narrow["layers.0.q"], wide["layers.0.q"])
    assert torch.equal(slice_tier(half, shape, 2, source=1), slice_tier(full, shape, 2))
    assert [tier_of(shape, w) for w in (32, 16, 8)] == [0, 1, 2]
    with pytest.raises(ValueError, match="halved"):
        tier_of(shape, 12)
    with pytest.raises(ValueError, match="wider"):
        slice_tier(half, shape, 0, source=1)


def test_scalings_of_a_narrow_client():
    """(full/active)^p of the block's output, (active/full)^p of the residual and the norm."""
    config = replace(CONFIG, width_power=0.5, residual_power=0.5, norm_power=0.25, tiers=(0, 1, 2))
    theta = initial(config.shape, torch.Generator().manual_seed(0))
    small = scaling_of(config, 2, 1)
    assert (small.mlp, small.residual, small.norm) == pytest.approx((2.0, 0.5, 4**-0.25))
    full = scaling_of(config, 0, 1)
    assert (full.mlp, full.residual, full.norm, full.suffix) == (1, 1, 1, 1)
    plain = layout(config.shape, 0).views(theta)
    text = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(1))
    scaled = {n: v * 3 if n.endswith("down") else v for n, v in plain.items()}
    torch.testing.assert_close(
        logits(plain, config.shape, text, Scaling(mlp=6.0, residual=0.5)),
        logits(scaled, config.shape, text),
    )


def test_distillation_in_a_run():
    """The small clients' updates follow the full client; the full one's first gradient is what it was."""
    config = replace(
        CONFIG, batches="same", distill_beta=0.8, distill_warmup=0, steps=5, distill_k=8, store=("gradients",)
    )  # fmt: skip
    plain, taught = run(replace(config, distill_beta=0.0)), run(config)
    assert plain.saved["gradient-00001-000.npz"] == taught.saved["gradient-00001-000.npz"]
    assert plain.saved["gradient-00001-001.npz"] != taught.saved["gradient-00001-001.npz"]
    assert taught.final["sync/replicas_equal"] == 1
    assert taught.final["sync/moved_bytes"] > plain.final["sync/moved_bytes"]


@pytest.mark.parametrize(("kind", "middle"), [("linear", 0.25), ("cosine", 0.5 - 0.5**1.5)])
def test_the_suffix_gate(kind, middle):
    """Shut until its start, then a ramp; shut, the full model computes what the core tier does."""
    config = replace(CONFIG, suffix_gate=kind, gate_start=2, gate_warmup=4, tiers=(0, 1, 1))
    assert [config.suffix_factor(step) for step in (1, 2, 6, 9)] == [0, 0, 1, 1]
    assert config.suffix_factor(3) == pytest.approx(middle)
    theta = initial(config.shape, torch.Generator().manual_seed(0))
    text = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(1))
    wide = Client(config, 0, theta)
    narrow = Client(config, 1, slice_tier(theta, config.shape, 1))
    assert wide.held_out_loss(text, 1) == pytest.approx(narrow.held_out_loss(text, 1), abs=1e-6)
    assert wide.held_out_loss(text, 9) != pytest.approx(narrow.held_out_loss(text, 9), abs=1e-6)
    assert run(config).final["sync/replicas_equal"] == 1


def test_the_model_reads_no_later_token():
    """Scores at a place depend on no token after it."""
    shape = MODELS["tiny"]
    weights = layout(shape, 0).views(initial(shape, torch.Generator().manual_seed(0)))
    text = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(1))
    other = text.clone()
    other[:, 8:] = 3
    torch.testing.assert_close(
        logits(weights, shape, text)[:, :8], logits(weights, shape, other)[:, :8]
    )
    assert abs(float(loss(weights, shape, text)) - 5.545) < 0.1


def test_assignment():
    """Disjoint parts cover the batch once; "same" gives all one part; "fixed" never moves."""
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0)).numpy()
    parts = assignment(replace(CONFIG, batch=8), order, 3, [0, 1, 2])
    assert [len(parts[c]) for c in (0, 1, 2)] == [3, 3, 2]
    assert sorted(x for part in parts.values() for x in part) == sorted(order[16:24])
    same = assignment(replace(CONFIG, batches="same"), order, 3, [0, 1, 2])
    assert list(same[0]) == list(same[2]) == list(order[12:14])
    fixed = replace(CONFIG, batches="fixed", batch=3)
    assert [list(assignment(fixed, order, step, [0, 1, 2])[1]) for step in (1, 9)] == [
        [order[0]],
        [order[0]],
    ]


def test_a_teacher_that_is_away(monkeypatch):
    """Small clients then learn from their text alone, and it is counted; it teaches what it was given."""
    config = replace(
        CONFIG, batches="same", distill_beta=1.0, distill_warmup=0, steps=4, tiers=(0, 1, 1, 1)
    )
    assert run(config).final["faults/untaught"] == 0
    assert run(config).final["sync/taught_bytes"] > 0
    monkeypatch.setattr(
        Network, "kills", lambda self, epoch, first, rounds, members: {0: 2} if not epoch else {}
    )
    without = run(replace(config, churn=0.1, epoch_rounds=4))
    assert without.final["faults/untaught"] == 3 * 2


def test_epochs_last_as_long_as_they_say():
    """Members join again after exactly so many rounds, however long a round takes; deaths are as many."""
    late = {
        "churn": 0.2,
        "epoch_rounds": 5,
        "latency_ms": (50.0, 150.0),
        "compute_s": (5.0, 1.0, 2.0),
    }
    config = replace(
        CONFIG, tiers=(0, 0, 1, 1, 1, 1, 1, 1), batch=8, steps=100, eval_interval=100, **late
    )
    context = run(config)
    members = [values["sync/members"] for _, values in context.logged]
    grown = [step for step in range(1, 100) if members[step] > members[step - 1]]
    assert grown
    assert all(step % 5 == 0 for step in grown)
    # 20 epochs of 8 clients, each dying with probability 0.2: 32 ± 4 standard deviations.
    assert abs(context.final["faults/kills"] - 32) < 4 * (160 * 0.2 * 0.8) ** 0.5


def test_a_client_that_sends_nonsense_is_not_heard(monkeypatch):
    """Its payload is refused and counted; the others go on, and agree without it."""
    honest = Client.train

    def train_(self, order):
        done = honest(self, order)
        return replace(done, payload=done.payload[:-1]) if self.number == 2 else done

    monkeypatch.setattr(Client, "train", train_)
    context = run(replace(CONFIG, tiers=(0, 1, 1, 1), steps=5))
    assert context.final["faults/refused"] > 0
    assert context.final["sync/replicas_equal"] == 1
    assert context.logged[-1][0] == 5


def test_a_run_that_diverges_says_so():
    """Values that are not finite: an error that names the round and the way out."""
    with pytest.raises(DataError, match="lower lr"):
        run(replace(CONFIG, payload="fp32", apply="raw", lr=1e30, steps=7))


def test_every_tier_is_reported_even_if_its_clients_are_dead(monkeypatch):
    """The full model's loss is there when its only client has died in the last round."""
    kill = {0: 3}
    monkeypatch.setattr(Network, "kills", lambda self, epoch, first, rounds, members: kill)
    config = replace(CONFIG, tiers=(0, 1, 1, 1), steps=3, churn=0.1, epoch_rounds=10)
    final = run(config).final
    assert {f"test/loss_nats_tier{tier}" for tier in (0, 1)} <= set(final)
    kill |= {1: 3, 2: 3, 3: 3}
    assert run(config).final["sync/replicas_equal"] == 0


def test_a_round_in_which_nobody_is_left():
    """All clients die between two rounds: a new epoch begins with those who join."""
    for change in ({"batches": "same"}, {"mode": "reference", "tiers": (0, 0, 0)}):
        config = replace(CONFIG, steps=4, **change)
        session = begin(config, Context())
        session.round()
        for number in list(session.crew.living()):
            session.crew.lose(number)
        while not session.is_finished:
            session.round()
        assert session.equal_replicas()


def test_an_epoch_ends_with_a_checkpoint():
    """Whoever is killed afterwards goes on from there."""
    context = Context()
    saved = []
    context.save_checkpoint = lambda step, content: saved.append(step)
    train([replace(CONFIG, steps=7, epoch_rounds=2)], [context])
    assert saved == [3, 5, 7]


def test_who_gets_which_part():
    """Disjoint parts are dealt anew in each round; aligned ones by place."""
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0)).numpy()
    clients = [0, 1, 2, 3]
    config = replace(CONFIG, tiers=(0, 1, 1, 1), batch=6)
    longer = [
        tuple(len(assignment(config, order, step, clients)[c]) for c in clients)
        for step in range(1, 40)
    ]
    assert all(sorted(sizes) == [1, 1, 2, 2] for sizes in longer)
    assert all(any(sizes[c] == 1 for sizes in longer) for c in clients)
    aligned = replace(config, batches="aligned")
    for step in (1, 2, 7):
        parts = assignment(aligned, order, step, clients)
        assert [len(parts[c]) for c in clients] == [2, 2, 1, 1]
        assert list(parts[0]) == list(order[6 * step - 6 : 6 * step - 4])


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        ("cosine", [0.5, 1.0, 0.1 + 0.45 * (1 + 0.5**0.5), 0.55, 0.1]),
        ("linear", [0.5, 1.0, 0.775, 0.55, 0.1]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
        ("wsd", [0.5, 1.0, 1.0, 1.0, 0.1]),
    ],
)
def test_learning_rates(schedule, want):
    """Warm-up, then down to the final rate along the schedule; it stays there."""
    config = replace(CONFIG, schedule=schedule, warmup_steps=2, steps=10, lr=1.0, final_lr=0.1)
    assert [config.lr_at(step) for step in (1, 2, 4, 6, 10)] == pytest.approx(want)
    assert config.lr_at(99) == config.lr_at(10)
    if schedule == "wsd":
        assert config.lr_at(9) == pytest.approx(0.1 + 0.9 * 0.625)


def test_a_run_that_ends_by_time():
    """Simulated seconds end it after a whole round, with what was sent applied."""
    config = replace(CONFIG, steps=50, stop_s=10.0)
    context = run(config)
    rounds = context.budget["rounds"]
    assert 3 < rounds < 12
    assert context.logged[-1][0] == rounds
    assert context.final["sync/replicas_equal"] == 1
    assert context.final["time/simulated_s"] >= 10.0


def test_a_late_joiners_first_rounds_are_not_applied():
    """It trains, and sends; but what it sends counts only after some rounds."""
    late = {"churn": 0.6, "epoch_rounds": 4, "steps": 16, "tiers": (0, 0, 1, 1, 1, 1)}
    warm, cold = (run(replace(CONFIG, cold_rounds=rounds, **late)) for rounds in (0, 3))
    assert cold.final["faults/rejoins"] > 0
    assert cold.final["sync/replicas_equal"] == 1
    assert cold.final["test/loss_nats_tier0"] != warm.final["test/loss_nats_tier0"]
    first = [values for step, values in cold.logged if step <= 4]
    assert first == [values for step, values in warm.logged if step <= 4]


def test_held_out_text_is_never_trained_on():
    """No training sequence shares a predicted token with the held-out tenth; nor do its two parts."""
    text = Text(corpus("python", None), 64)
    assert text.train + text.held == (len(text.tokens) - 1) // 64
    assert text.held >= 0.09 * text.train
    assert torch.equal(text.test(2)[0], text.sequences([text.train])[0])
    assert torch.equal(text.validation(2)[0], text.sequences([text.train + 2])[0])
    all_of = 10**9
    assert len(text.test(all_of)) + len(text.validation(all_of)) == text.held
    for count in (1, 3, all_of):
        starts = [
            {tuple(each.tolist()) for each in part(count)} for part in (text.test, text.validation)
        ]
        assert starts[0].isdisjoint(starts[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "huge"}, "nanogpt-34m"),
        ({"tiers": ()}, "1 to 256"),
        ({"tiers": (0, 9)}, "from 0 to 7"),
        ({"batch": 2}, "each of 3 clients"),
        ({"decay": 1.5}, "from 0 to 1"),
        ({"lr": float("nan")}, "at least 0"),
        ({"steps": 0}, "at least 1"),
        ({"mode": "reference"}, "one tier"),
        ({"loss": 1.0}, "below 1"),
        ({"distill_beta": 0.5}, "'same' or 'fixed'"),
        ({"distill_k": 0}, "distill_k at least 1"),
        ({"churn": 0.3}, "set epoch_rounds"),
        ({"latency_ms": (2.0, 1.0)}, "smaller first"),
        ({"compute_s": (0.0,)}, "be positive"),
        ({"compute_s": (1.0, 1.0, 1.0, 1.0)}, "3 clients, got 4"),
        ({"distill_beta": 0.5, "batches": "aligned"}, "'same' or 'fixed'"),
        ({"distill_beta": 0.5, "batches": "same", "tiers": (1, 1, 1)}, "teaches"),
        ({"bandwidth": float("nan")}, "at least 0"),
        ({"width_power": float("nan")}, "finite"),
        ({"latency_ms": (0.0, 4000.0)}, "witnesses wait"),
        ({"loss": 0.99}, "one payload in 20"),
    ],
)
def test_bad_settings(change, message):
    """A setting out of its range is refused with the rule and the way out."""
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)
