"""Settings that cannot be, or that would do nothing, are refused with their name and value."""

import re
from dataclasses import replace

import pytest
import torch
from credit_helpers import ONLINE, SHAPES, Context, estimator_of, net_of, trajectory_of, view_of

from assay.core.config import build
from assay.core.errors import ConfigError
from assay.engines.credit import frozen, lq
from assay.engines.credit.cohort import check_cohort
from assay.engines.credit.config import (
    LQ_STACKABLE,
    STACKABLE,
    EstimatorConfig,
    FrozenConfig,
    LqConfig,
    TrainConfig,
)
from assay.engines.credit.estimators.base import Estimator, credit_of
from assay.engines.credit.estimators.registry import find
from assay.engines.credit.firewall import CreditError
from assay.engines.credit.train import train

CLASSES = (LqConfig, TrainConfig, FrozenConfig)
ESTIMATOR = [
    *((name, bad) for name in ("est_width", "est_steps", "directions") for bad in (0, -1)),
    *((name, bad) for name in ("est_lr", "epsilon", "bridge_noise") for bad in (0.0, -1.0, 1e3)),
    *((name, -1) for name in ("terminal_weight", "bridge_weight", "layers_per_step")),
    *(("method", bad) for bad in ("backprop", "", ":Class", "module:", "a b:C", "a..b:C", "m:1")),
]
NET = [
    *((name, 0) for name in ("width", "depth", "epochs", "batch", "surrogate_steps")),
    *((name, 0) for name in ("eval_interval", "measured", "lr", "gain")),
    *((name, -1) for name in ("weight_decay", "clip", "train_size")),
    *((name, bad) for name in ("alpha", "warmup") for bad in (-0.1, 1.1, float("nan"))),
]
REFUSED = [
    *((cls, {name: bad}) for cls in CLASSES for name, bad in ESTIMATOR),
    *((cls, {name: bad}) for cls in (TrainConfig, FrozenConfig) for name, bad in NET),
    *((LqConfig, {name: 0}) for name in ("width", "depth", "batch", "steps", "measured")),
    (LqConfig, {"eval_interval": 0}),
    *((FrozenConfig, {n: 0}) for n in ("snapshot_epochs", "exploit_batch", "exploit_batches")),
    (FrozenConfig, {"exploit_lr": 0.0}),
    (FrozenConfig, {"warmup": 0.5}),
    (FrozenConfig, {"last": "dfa"}),
    (FrozenConfig, {"surrogate_steps": 2, "surrogate": "target-shift"}),
    (FrozenConfig, {"clamp": -1.0}),
]


@pytest.mark.parametrize(("cls", "settings"), REFUSED)
def test_a_setting_that_cannot_be_is_refused(cls, settings):
    """The message names the field and the value that it got."""
    name, value = next(iter(settings.items()))
    with pytest.raises(ValueError, match=rf"{name} .*got {re.escape(repr(value))}"):
        cls(**settings)


@pytest.mark.parametrize("method", ["dfa", "zero", "scalar-bridge", "dni"])
def test_the_shuffled_control_is_refused_where_there_is_nothing_to_shuffle(method):
    """Else a control would be the run that it controls."""
    with pytest.raises(ValueError, match=f"shuffled is a control of .*method {method}"):
        TrainConfig(method=method, shuffled=True)
    assert TrainConfig(method="learned-feedback", shuffled=True).shuffled
    assert TrainConfig(method="mine:Own", shuffled=True).shuffled


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"block": "plain", "data": "ladder"}, 'take block = "tanh"'),
        ({"augment": True, "data": "digits"}, "augment is for colour images; got data = 'digits'"),
        ({"alpha": 0.5, "block": "gelu"}, 'would do nothing with block = "gelu"; got 0.5'),
        ({"surrogate_steps": 2}, 'surrogate_steps > 1 .* surrogate = "target-shift"'),
    ],
)
@pytest.mark.parametrize("cls", [TrainConfig, FrozenConfig])
def test_settings_that_do_not_go_together_are_refused(cls, settings, says):
    """With what to take instead."""
    with pytest.raises(ValueError, match=says):
        cls(**settings)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("key", "value"),
    [("bridge", "bad"), ("code", "eL"), ("difference", "both"), ("directions", 1.5)],
)
def test_words_and_types_are_checked(cls, key, value):
    """As a study is read: unknown words and wrong types are a ConfigError that names the key."""
    with pytest.raises(ConfigError, match=key):
        build(cls, {key: value}, where="study.toml [config]")


@pytest.mark.parametrize("cls", CLASSES)
def test_defaults_stand(cls):
    """Every configuration can be made of nothing, and read as a study is."""
    assert build(cls, {}, where="here") == cls()
    assert cls(method="my.module:Class").method == "my.module:Class"


FIRST = TrainConfig(method="scalar-bridge", block="tanh")


@pytest.mark.parametrize("name", sorted(STACKABLE))
def test_stackable_settings_may_differ(name):
    """In a cohort of training; in one of the toy task, those that it has."""
    pair = [FIRST, replace(FIRST, **{name: getattr(FIRST, name) / 2 + 0.01})]
    check_cohort(pair, [Context(), Context()], STACKABLE)
    if name in LQ_STACKABLE:
        toy = LqConfig()
        pair = [toy, replace(toy, **{name: getattr(toy, name) / 2 + 0.01})]
        check_cohort(pair, [Context(), Context()], LQ_STACKABLE)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "dfa"},
        {"width": 12},
        {"code": "y"},
        {"clip": 0.5},
        {"batch": 3},
        {"epsilon": 0.1},
    ],
)
@pytest.mark.parametrize("run", [train, frozen.run])
def test_other_settings_may_not_differ(run, change):
    """The first run is refused with what may differ, and both configurations."""
    first = FIRST if run is train else FrozenConfig(method="scalar-bridge")
    with pytest.raises(ConfigError, match=r"may differ only in their seeds and in alpha, .*warmup"):
        run([first, replace(first, **change)], [Context(), Context()])


def test_another_device_is_refused():
    """The engine computes on the CPU."""
    context = Context()
    context.device = "cuda"
    for run, config in ((train, ONLINE), (lq.run, LqConfig())):
        with pytest.raises(ConfigError, match=r"on the CPU; got device 'cuda'"):
            run([config], [context])


def test_a_method_of_ones_own_trains(monkeypatch):
    """module:Class is imported and used as any other."""
    context = Context()
    train([replace(ONLINE, method="credit_helpers:Doubled")], [context])
    copied = Context()
    train([replace(ONLINE, method="copy")], [copied])
    assert context.final["test/copy_gamma"] == pytest.approx(context.final["test/gamma"])
    assert context.final.keys() == copied.final.keys()


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("no_such_module:Class", "'no_such_module:Class' must name a class .* No module named"),
        ("credit_helpers:Missing", "can be imported: .*Missing"),
        ("credit_helpers:NoEstimator", "must name a subclass .* it names <class"),
        ("credit_helpers:net_of", "must name a subclass .* it names <function"),
    ],
)
def test_a_method_that_is_none_is_refused(method, says):
    """Not found, or no estimator: a ConfigError with its name."""
    with pytest.raises(ConfigError, match=says):
        find(method)


@pytest.mark.parametrize("method", ["local-loss", "weight-perturbation"])
def test_the_toy_is_of_methods_with_credit(method):
    """Its dynamics are fixed and have no labels."""
    with pytest.raises(ValueError, match=f"{method} gives no credit here"):
        LqConfig(method=method)


@pytest.mark.parametrize("name", ["width", "batch", "measured", "est_width"])
def test_sizes_of_one_are_refused(name):
    """One row or one column is multiplied in another way alone than in a cohort."""
    for config in (TrainConfig, LqConfig):
        with pytest.raises(ValueError, match=f"{name} must be at least 2; got 1"):
            config(**{name: 1})


def test_exploit_batches_fit_the_data():
    """A batch larger than a part of the data is refused with that part's size."""
    config = FrozenConfig(data="ladder", block="tanh", train_size=64, exploit_batch=65, width=8)
    with pytest.raises(ConfigError, match=r"exploit_batch must be at most .* 64; got 65"):
        frozen.run([config], [Context()])


class Wrong(Estimator):
    """Credit that is none."""

    def __init__(self, setting, spoil):
        super().__init__(setting)
        self.spoil = spoil

    def credit(self, trajectory, view):
        return self.spoil(trajectory.h_SLBD[:, :-1].clone())


def infinite(credit, value, run, layer):
    credit[run, layer, 3, 2] = value
    return credit


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda c: c[:, 1:], r"Wrong must give credit of shape \[3, 3, 7, 6\].*got \[3, 2, 7, 6\]"),
        (lambda c: c.sum(), r"Wrong must give credit of shape .*got \[\]"),
        (lambda c: infinite(c, torch.nan, 0, 2), r"Wrong gave .* at layer 2 \(run 0"),
        (lambda c: infinite(c, torch.inf, 1, 0), r"Wrong gave .* at layer 0 \(run 1"),
    ],
)
def test_what_is_no_credit_is_refused(spoil, says):
    """A CreditError names the estimator, and the layer where a number is none."""
    net = net_of(SHAPES["tanh"])
    estimator = Wrong(estimator_of(net.shape, "zero").setting, spoil)
    with pytest.raises(CreditError, match=says):
        credit_of(estimator, trajectory_of(net), view_of(net, estimator))


def test_large_credit_is_credit():
    """Numbers whose sum overflows are numbers all the same."""
    net = net_of(SHAPES["tanh"], dtype=torch.float32)
    setting = estimator_of(net.shape, "zero").setting
    estimator = Wrong(setting, lambda c: torch.full_like(c, 3e38))
    assert credit_of(estimator, trajectory_of(net), view_of(net, estimator)).min() > 1e38
    assert EstimatorConfig().method == "dfa"
