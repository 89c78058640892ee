"""Runs of the credit engine: seeds, resume, warm-up, and what measuring leaves alone."""

from dataclasses import replace

import pytest
import safetensors.torch
import torch
from credit_helpers import LOCAL, METHODS, ONLINE, VARIANTS, Context, finished

from assay.core.errors import CheckpointError
from assay.engines.credit import engine, frozen, loop, lq
from assay.engines.credit import train as train_module
from assay.engines.credit.config import FrozenConfig, LqConfig, TrainConfig
from assay.engines.credit.data import ladder
from assay.engines.credit.net import Shape, initial
from assay.engines.credit.train import Order, Training, train

FROZEN = FrozenConfig(
    data="ladder", train_size=70, block="tanh", width=8, depth=3, batch=16, epochs=2,
    snapshot_epochs=1, eval_interval=2, measured=24, exploit_batch=16, exploit_batches=1, **LOCAL,
)  # fmt: skip
LQ = LqConfig(width=6, depth=3, batch=12, steps=9, eval_interval=4, measured=24, est_lr=1e-2, est_width=8, schedule="cosine")  # fmt: skip
TASKS = {"train": (train, ONLINE), "frozen": (frozen.run, FROZEN), "lq": (lq.run, LQ)}
DIFFERENT = {
    "lr": (1e-2, 3e-3, 1e-2),
    "est_lr": (1e-2, 1e-2, 2e-3),
    "terminal_weight": (1.0, 0.0, 0.5),
    "bridge_weight": (0.0, 1.0, 2.0),
    "warmup": (0.0, 0.5, 0.3),
    "alpha": (1.0, 0.0, 0.4),
    "gain": (1.0, 0.5, 2.0),
    "weight_decay": (0.0, 0.1, 0.0),
}
TABLE = [
    (task, variant)
    for task in TASKS
    for variant in (VARIANTS if task == "train" else METHODS)
    if task != "lq" or variant not in ("local-loss", "weight-perturbation")
]
EVERY = pytest.mark.parametrize(("task", "variant"), TABLE)


def of(task, variant, **changes):
    """A task's function and its small configuration of a variant."""
    run, config = TASKS[task]
    return run, replace(config, **{**VARIANTS[variant], **changes})


def cohort(run, configs, seeds):
    """Runs that are trained together."""
    contexts = [Context(init, data) for init, data in seeds]
    run(configs, contexts)
    return contexts


@EVERY
def test_a_seed_in_a_cohort_is_that_seed_alone(task, variant):
    """Bit for bit, rows and artifacts; also where settings that can be stacked differ."""
    run, config = of(task, variant)
    seeds = [(1, 2), (5, 2), (3, 7)]
    idle = {"frozen": {"warmup"}}.get(task, set())
    fields = {name: v for name, v in DIFFERENT.items() if hasattr(config, name)}
    configs = [
        replace(config, **{name: v[i] for name, v in fields.items() if name not in idle})
        for i in range(3)
    ]
    together = cohort(run, configs, seeds)
    for own, (init, data), context in zip(configs, seeds, together, strict=True):
        assert finished(run, own, init=init, data=data).results() == context.results()
    assert together[0].results() != together[1].results()


@pytest.mark.parametrize("method", ["bp", "vector-field", "scalar-bridge"])
def test_a_seed_in_a_wide_cohort_is_that_seed_alone(method):
    """The same at sizes where a matrix library might choose another way for several products."""
    config = replace(
        ONLINE, method=method, width=64, est_width=96, batch=64, train_size=128, epochs=2, depth=2
    )
    alone = finished(train, config, init=4, data=2)
    assert cohort(train, [config] * 3, [(1, 2), (4, 2), (8, 9)])[1].results() == alone.results()


TRIALS = [
    {},
    {"normalise": "none"},
    {"clamp": 1e-3},
    {"negated": True},
    {"exploit_lr": 0.1, "exploit_anew": False},
    {"surrogate": "target-shift", "target_eta": 0.3, "exploit_anew": False},
    {"exploit_batch": 4, "exploit_batches": 2},
    {"line_searches": False},
]


@pytest.mark.parametrize(
    "method", ["dfa", "local-loss", "scalar-bridge", "vector-field", "node-perturbation"]
)
@pytest.mark.parametrize("size", [1, 3])
def test_runs_that_share_a_net_are_each_that_run_alone(method, size, monkeypatch):
    """What is tried on a frozen net changes nothing of it: trained once, stopped or not, bit for bit."""
    configs = [replace(FROZEN, method=method, **tried) for tried in TRIALS]
    seeds = [(1, 2), (5, 2)]
    pairs = [(config, pair) for config in configs for pair in seeds]
    alone = [finished(frozen.run, own, init=i, data=d).results() for own, (i, d) in pairs]
    assert len({str(each) for each in alone}) == len(pairs)
    made = []
    monkeypatch.setattr(loop, "together", lambda state_bytes: size)
    begin = train_module.begin
    monkeypatch.setattr(
        train_module,
        "begin",
        lambda *args, **more: made.append(len(args[2])) or begin(*args, **more),
    )
    contexts = [Context(*pair) for _, pair in pairs]
    frozen.run([config for config, _ in pairs], contexts)
    assert [context.results() for context in contexts] == alone
    assert sum(made) == len(seeds)
    contexts = [Context(*pair) for _, pair in pairs]
    contexts[3].stop_at = 3
    frozen.run([config for config, _ in pairs], contexts)
    assert not contexts[3].final
    frozen.run([config for config, _ in pairs], contexts)
    assert [context.results() for context in contexts] == alone


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", [1, 2])
def test_how_many_are_stacked_changes_nothing(task, size, monkeypatch):
    """A cohort that is too large for the cache is computed in parts: the same, stopped or not."""
    run, config = of(task, "scalar-bridge td")
    seeds = [(1, 2), (5, 6), (3, 4)]
    whole = [each.results() for each in cohort(run, [config] * 3, seeds)]
    monkeypatch.setattr(loop, "together", lambda state_bytes: size)
    assert [each.results() for each in cohort(run, [config] * 3, seeds)] == whole
    contexts = [Context(*pair) for pair in seeds]
    contexts[2].stop_at = 3
    run([config] * 3, contexts)
    assert not contexts[2].final
    run([config] * 3, contexts)
    assert [context.results() for context in contexts] == whole


@EVERY
def test_an_interrupted_run_ends_as_it_would_have(task, variant):
    """Stopped anywhere, twice, and gone on with: the same numbers bit for bit, each row once."""
    run, config = of(task, variant)
    whole = finished(run, config).results()
    for first, second in ((1, 6), (3, 5)):
        parted = Context(stop_at=first)
        run([config], [parted])
        assert parted.final == {}
        parted.asked, parted.stop_at = 0, second
        run([config], [parted])
        if not parted.final:
            parted.stop_at = 0
            run([config], [parted])
        assert parted.results() == whole


@pytest.mark.parametrize("task", TASKS)
def test_a_cohort_stops_and_goes_on_together(task):
    """One run is asked to stop; all save, and all end as they would have."""
    run, config = of(task, "scalar-bridge td")
    seeds = [(1, 2), (5, 6)]
    whole = [each.results() for each in cohort(run, [config] * 2, seeds)]
    contexts = [Context(*pair) for pair in seeds]
    contexts[1].stop_at = 3
    run([config] * 2, contexts)
    assert all(context.checkpoint and not context.final for context in contexts)
    run([config] * 2, contexts)
    assert [context.results() for context in contexts] == whole


def test_a_run_that_died_after_its_last_checkpoint_only_finishes():
    """Killed between the last checkpoint and the results: judged again, to the same numbers."""
    config = replace(ONLINE, method="vector-field")
    whole = finished(train, config)
    again = Context()
    again.checkpoint, again.logged = whole.checkpoint, list(whole.logged)
    train([config], [again])
    assert again.results() == whole.results()


@EVERY
def test_measuring_changes_nothing_of_training(task, variant):
    """Evaluated after every epoch or only at the end: the same weights and estimator at the end."""
    run, config = of(task, variant)
    often, seldom = (finished(run, replace(config, eval_interval=k)) for k in (1, 100))
    assert often.saved == seldom.saved
    assert often.final == seldom.final
    assert len(often.logged) > len(seldom.logged) == 1


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", ["vector-field", "local-loss"])
def test_only_declared_metrics_are_logged(task, method):
    """Every name in rows and results is one that the task declares, and every one appears."""
    if (task, method) == ("lq", "local-loss"):
        method = "state-bridge"
    run, config = of(task, method)
    context = finished(run, config)
    names = {name for _, row in context.logged for name in row} | set(context.final)
    declared = {n for n in engine.ENGINE.tasks[task].metrics if not n.startswith("speed/")}
    assert names == declared


def test_seeds_are_what_a_run_depends_on():
    """Same seeds, same run; another initialisation or other data, another run."""
    base = finished(train, ONLINE).results()
    assert finished(train, ONLINE).results() == base
    assert finished(train, ONLINE, init=7).results() != base
    assert finished(train, ONLINE, data=7).results() != base


def test_a_seed_for_two_roles_makes_two_things():
    """With equal seeds for net and data, the net's weights (or feedback) are not among the inputs."""
    config = replace(ONLINE, width=16)
    shape = Shape(inputs=16, width=16, depth=3, classes=10)
    for seed in (0, 1):
        x = ladder(config, seed).train.x_NI
        for stream in (0, 1):
            g = torch.Generator().manual_seed(1_000_003 * seed + stream)
            weight = 4 * initial(shape, g)["encoder.weight"]
            assert not torch.isclose(weight[0], x[0], atol=1e-5).any(), (seed, stream)


def stepped(config, feedback=None):
    """The net's weights after every step; with a DFA of given feedback."""
    training = Training([config], [Context()])
    if feedback is not None:
        training.learners.estimator.state()["feedback"].copy_(feedback)
    found = []
    while training.step < training.steps:
        training.advance()
        found.append([value.clone() for value in training.net.parameters.values()])
    return found, training


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("warmup", "steps"), [(0.5, 6), (0.3, 4), (1.0, 12)])
def test_a_warm_up_is_dfa(method, warmup, steps):
    """For the first warmup · steps steps (rounded) all methods update the net as DFA does."""
    config = replace(ONLINE, method=method, warmup=warmup)
    found, training = stepped(config)
    wanted, _ = stepped(replace(config, method="dfa", warmup=0.0), training.warm.feedback_SLCD)
    same = [
        all(torch.equal(a, b) for a, b in zip(*pair, strict=True))
        for pair in zip(found, wanted, strict=True)
    ]
    assert same == [step < steps for step in range(12)]


@pytest.mark.parametrize(("epochs", "warmup", "steps"), [(25, 0.6, 15), (30, 0.5, 15), (10, 0.29, 3), (100, 0.07, 7)])  # fmt: skip
def test_a_warm_up_lasts_no_step_longer(epochs, warmup, steps):
    """Whatever the share is in binary: 0.6 of 25 steps are 15."""
    config = replace(ONLINE, method="zero", warmup=warmup, epochs=epochs, train_size=16)
    found, training = stepped(config)
    wanted, _ = stepped(replace(config, method="dfa", warmup=0.0), training.warm.feedback_SLCD)
    same = [torch.equal(a[0], b[0]) for a, b in zip(found, wanted, strict=True)]
    assert same.index(False) == steps


@pytest.mark.parametrize("method", ["state-bridge", "vector-field", "local-loss", "dni"])
def test_the_estimator_learns_through_the_warm_up(method):
    """A whole warm-up: the estimator's numbers move from what they were."""
    config = replace(ONLINE, method=method, warmup=1.0)
    training = Training([config], [Context()])
    before = {k: v.clone() for k, v in training.learners.estimator.state().items()}
    training.advance()
    after = training.learners.estimator.state()
    assert all(not torch.equal(before[k], v) for k, v in after.items() if k.endswith("weight"))


def test_the_warm_up_changes_no_other_random_number():
    """The last DFA step aside, an estimator draws the same with and without a warm-up."""
    states = []
    for warmup in (0.0, 1.0):
        _, training = stepped(replace(ONLINE, method="forward-gradient", warmup=warmup))
        states.append(training.learners.generators[0].get_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("changes", [{}, {"clip": 0.0}, {"optimizer": "sgd"}, {"schedule": "cosine"}, {"surrogate": "target-shift", "surrogate_steps": 3}, {"last": "dfa"}, {"block": "gelu"}])  # fmt: skip
def test_training_by_exact_credit_learns(changes):
    """Backpropagation lowers the training loss, under every way of updating."""
    config = replace(ONLINE, method="bp", epochs=25, eval_interval=1, **changes)
    rows = [values["train/loss_nats"] for _, values in finished(train, config).logged]
    assert rows[-1] < 0.8 * rows[0]


def test_raw_exact_credit_updates_along_the_gradient():
    """bp with the inner product and no normalisation: update_cosine is 1."""
    config = replace(ONLINE, method="bp", normalise="none")
    final = finished(train, config).final
    assert final["test/update_cosine"] == pytest.approx(1, abs=1e-9)
    assert final["test/gamma"] == pytest.approx(1, abs=1e-6)


def test_the_frozen_net_stays_frozen():
    """After its epochs of backpropagation no estimator's step moves it; before, none learns."""
    run, config = TASKS["frozen"]
    short = finished(run, replace(config, method="vector-field", epochs=1)).weights()
    long = finished(run, replace(config, method="vector-field", epochs=5)).weights()
    names = [name for name in short if name.startswith("net.")]
    assert all(torch.equal(short[name], long[name]) for name in names)
    other = finished(run, replace(config, method="zero")).weights()
    assert all(torch.equal(short[name], other[name]) for name in names)


def test_the_snapshot_is_plain_backpropagation():
    """Frozen's net after one epoch is that of training by raw exact credit."""
    run, config = TASKS["frozen"]
    snapshot = finished(run, replace(config, method="zero")).weights()
    online = replace(ONLINE, method="bp", normalise="none", epochs=1)
    trained = finished(train, online).weights()
    for name, value in trained.items():
        torch.testing.assert_close(snapshot[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("samples", "batch"), [(70, 16), (64, 16), (5, 16)])
def test_an_order_is_new_each_epoch(samples, batch):
    """Each epoch takes no sample twice, drops less than a batch, and is another order."""
    order = Order(samples, batch, seed=3)
    epochs = [
        torch.cat([order.at(epoch * order.batches + i) for i in range(order.batches)])
        for epoch in range(3)
    ]
    for taken in epochs:
        assert len(set(taken.tolist())) == len(taken) > samples - min(batch, samples)
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(Order(samples, batch, seed=3).at(order.batches), order.at(order.batches))


@pytest.mark.parametrize("damage", ["bytes", "shape", "method"])
def test_a_checkpoint_that_does_not_fit_is_refused(damage):
    """Of another width or method, or no safetensors at all: a CheckpointError that says what to do."""
    context, config = Context(stop_at=3), replace(ONLINE, method="state-bridge")
    train([config], [context])
    if damage == "bytes":
        context.checkpoint = (4, b"nonsense")
    changes = {"shape": {"width": 9}, "method": {"method": "vector-field", "code": "deltaL"}}
    with pytest.raises(CheckpointError, match="Remove it to begin again"):
        train([replace(config, **changes.get(damage, {}))], [context])


def test_what_is_saved_can_be_read():
    """last.safetensors holds net, optimizer, estimator and generator of one run."""
    config = replace(ONLINE, method="state-bridge", epochs=1)
    found = safetensors.torch.load(finished(train, config).saved["last.safetensors"])
    assert {name.partition(".")[0] for name in found} == {"net", "optimizer", "estimator", "generator"}  # fmt: skip
    assert found["net.blocks.weight"].shape == (3, 8, 8)
    assert isinstance(TASKS["train"][1], TrainConfig)
