"""Stored runs: what was trained is what is measured."""

from dataclasses import replace
from statistics import fmean

import pytest
import torch

from assay.core.errors import ConfigError, StoreError
from assay.engines.credit import TrainConfig
from assay.engines.credit import probe as probes
from assay.engines.credit.config import FrozenConfig
from assay.engines.credit.frozen import run as run_frozen
from assay.engines.credit.memory import Memory
from assay.engines.credit.train import train

# Forward-mode derivatives make torch load a module that warns of its own.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
CONFIG = TrainConfig(method="vector-field", width=12, depth=3, epochs=1, est_width=16, measured=64)
MEASURES = ("gamma", "rho", "rho_within", "nudge_nats", "copy_gamma", "valid_rate")


@pytest.fixture(scope="module")
def ended():
    """A finished run of seed 3, beside another."""
    contexts = [Memory({"init": s, "data": s}) for s in (2, 3)]
    train([CONFIG] * 2, contexts)
    return contexts[1]


def stored(context, config=CONFIG, **changes):
    content = changes.pop("content", context.files["last.safetensors"])
    return probes.Stored(
        config=replace(config, **changes), seeds=context.seeds, data_dir=None, content=content, where="here"
    )  # fmt: skip


def test_means_over_layers_are_the_values_of_the_run(ended):
    """What `finish` measured on the test part, to rounding: nothing is lost by storing."""
    training = probes.load(stored(ended))
    layers = probes.by_layer(training, probes.estimator_of(training))
    assert set(layers) == set(MEASURES)
    for name, values in layers.items():
        assert len(values) == CONFIG.depth
        assert fmean(values) == pytest.approx(ended.final[f"test/{name}"], abs=1e-12), name
    assert layers["gamma"][0] == pytest.approx(ended.final["test/gamma_first"], abs=1e-12)


def test_others_are_measured_on_the_same_net(ended):
    """The oracle is right; copying is the ceiling of copying; zero predicts nothing."""
    training = probes.load(stored(ended))

    def measures(method):
        return probes.by_layer(training, probes.estimator_of(training, method), 32)

    assert measures("bp")["gamma"] == pytest.approx([1.0] * 3, abs=1e-9)
    assert measures("copy")["gamma"] == pytest.approx(measures("bp")["copy_gamma"], abs=1e-12)
    assert measures("zero")["rho"] == [0.0] * 3
    assert abs(fmean(measures("dfa")["gamma"])) < 0.5
    for method in ("fa", "sign-symmetric", "node-perturbation", "forward-gradient"):
        assert len(measures(method)["gamma"]) == 3


def test_feedback_is_what_the_run_had():
    """DFA's matrices come from the run's seed: measured by name, it is the run's own."""
    context = Memory({"init": 5, "data": 5})
    train([replace(CONFIG, method="dfa")], [context])
    training = probes.load(stored(context, method="dfa"))
    own = probes.by_layer(training, probes.estimator_of(training))
    assert probes.by_layer(training, probes.estimator_of(training, "dfa")) == own


@pytest.mark.parametrize("method", ["dni", "vector-field", "weight-perturbation"])
def test_what_learns_cannot_be_measured_unlearned(ended, method):
    """Its credit would be that of a random net; the study that trains it is named."""
    training = probes.load(stored(ended))
    with pytest.raises(ConfigError, match=r"choose one of bp, zero, copy, fa, dfa.*frozen"):
        probes.estimator_of(training, method)


def test_weights_without_credit_have_nothing_to_measure():
    """Weight perturbation moves the weights themselves."""
    context = Memory({"init": 0, "data": 0})
    train([replace(CONFIG, method="weight-perturbation")], [context])
    training = probes.load(stored(context, method="weight-perturbation"))
    with pytest.raises(ConfigError, match="without credit"):
        probes.estimator_of(training)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 13}, "here must hold.*must be"),
        ({"method": "dni"}, "only one of the two has estimator.asked"),
        ({"block": "plain"}, "only one of the two has net.blocks.bias"),
        ({"content": b"no tensors"}, "here must hold"),
        ({"content": b""}, "here must hold"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(ended, changes, message):
    """Other shapes, another estimator, another file: named."""
    with pytest.raises(StoreError, match=f"(?s){message}"):
        probes.load(stored(ended, **changes))


def test_the_true_credit_lowers_the_loss_and_its_negative_does_not(ended):
    """On the credit's own batch; of the last block alone all credit is exact, so all agree."""
    training = probes.load(stored(ended))
    estimators = {"own": probes.estimator_of(training), "bp": probes.estimator_of(training, "bp")}
    found = {
        (each.credit, each.sign, each.where, each.kind): each
        for each in probes.line_searches(training, estimators, batches=2, size=32)
    }
    assert len(found) == 2 * 2 * 3 * 2
    for kind in ("raw", "norm"):
        assert max(found["bp", 1, "all", kind].same) < 0
        assert min(found["bp", -1, "all", kind].same) > 0
        own, true = (found[name, 1, "last1", kind] for name in ("own", "bp"))
        assert own.same == pytest.approx(true.same, abs=1e-6)
    with pytest.raises(ConfigError, match=r"1 to 134 samples.*got 135"):
        probes.line_searches(training, estimators, batches=1, size=135)


def test_searches_are_those_of_the_task_frozen():
    """On the same net and batches the same numbers, means over batches."""
    config = FrozenConfig(method="dfa", width=12, depth=2, epochs=1, snapshot_epochs=1, measured=64, exploit_batch=32, exploit_batches=2)  # fmt: skip
    context = Memory({"init": 1, "data": 1})
    run_frozen([config], [context])
    training = probes.load(stored(context, config))
    own = {"dfa": probes.estimator_of(training)}
    for each in probes.line_searches(training, own, batches=2, size=32):
        if each.sign == 1:
            for which in ("same", "held", "fair"):
                name = f"exploit/{each.where}_{each.kind}_{which}_nats"
                found = fmean(getattr(each, which))
                assert found == pytest.approx(context.final[name], abs=1e-6), name


def test_probing_changes_nothing(ended):
    """Neither the net nor the estimator."""
    training = probes.load(stored(ended))
    before = training.learners.dump(0)
    probes.by_layer(training, probes.estimator_of(training))
    assert training.learners.dump(0) == before
    assert torch.is_tensor(training.net.alpha_S)
