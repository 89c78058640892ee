"""No hidden backpropagation: what estimators may and may not do with the net that they see."""

import sys
import types
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from credit_helpers import (
    LINEAR,
    SHAPES,
    VARIANTS,
    estimator_of,
    exact_costates,
    losses_from,
    net_of,
    trajectory_of,
    view_of,
)
from torch.autograd import forward_ad

from assay.core.errors import ConfigError
from assay.engines.credit.estimators.base import Estimator, credit_of, fitted, gradients_of
from assay.engines.credit.estimators.registry import ESTIMATORS, find, make
from assay.engines.credit.firewall import DERIVATIVES, CreditError, View

EXACT = {"rtol": 1e-9, "atol": 1e-12}
REVERSE = ("bp", "dni")
"""Methods that declare reverse mode through blocks as they are."""


class Poison(torch.autograd.Function):
    """A product that cannot be differentiated in reverse; ours, not the engine's."""

    @staticmethod
    def forward(h, weight):
        return torch.matmul(h, weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx, h_dot, weight_dot):
        h, weight = ctx.saved_tensors
        out = 0 if h_dot is None else torch.matmul(h_dot, weight)
        return out if weight_dot is None else out + torch.matmul(h, weight_dot)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("poisoned")


def poisoned(net):
    return replace(net, matmul=lambda index: Poison.apply)


def learned(net, estimator, view, steps=2):
    """Credit and state after some steps."""
    t = trajectory_of(net)
    for _ in range(steps):
        estimator.fit_step(t, view)
    own = estimator.parameter_gradients(t, view) or {}
    credit = credit_of(estimator, t, view)
    return [credit, *estimator.state().values(), *own.values()]


@pytest.mark.parametrize("variant", [v for v in VARIANTS if VARIANTS[v]["method"] not in REVERSE])
@pytest.mark.parametrize("kind", ["tanh", "gelu", "relu"])
def test_estimators_do_without_reverse_mode(variant, kind):
    """With a net whose products raise in reverse, learning and credit are the same bit for bit.

    And no parameter of the net gets a gradient, though all ask for one.
    """
    shape, free = SHAPES[kind], net_of(SHAPES[kind], dtype=torch.float32)
    asking = {name: value.clone().requires_grad_() for name, value in free.parameters.items()}
    found = []
    for net in (free, poisoned(free.having(asking))):
        estimator = estimator_of(shape, dtype=torch.float32, **VARIANTS[variant])
        found.append(learned(net, estimator, view_of(net, estimator)))
    for plain, under_poison in zip(*found, strict=True):
        assert torch.equal(plain, under_poison)
    assert not found[1][0].requires_grad
    assert all(value.grad is None for value in asking.values())


@pytest.mark.parametrize("method", REVERSE)
def test_those_that_declare_reverse_mode_use_it(method):
    """The poison works: the oracle and DNI, which say so, cannot do without."""
    net = poisoned(net_of(SHAPES["tanh"]))
    estimator = estimator_of(net.shape, method)
    with pytest.raises(RuntimeError, match="poisoned"):
        learned(net, estimator, view_of(net, estimator))


def test_what_each_method_declares():
    """The list that a reader of the log relies on; a change of it is a change of the method."""
    declared = {name: sorted(cls.derivatives) for name, cls in ESTIMATORS.items()}
    nothing = ("zero", "copy", "dfa", "state-bridge", "local-loss")
    assert all(declared.pop(name) == [] for name in nothing)
    assert declared == {
        "bp": ["oracle"],
        "fa": ["feedback-chain"],
        "sign-symmetric": ["feedback-chain", "weights"],
        "scalar-bridge": ["tail"],
        "vector-field": ["tail", "tail-jvp"],
        "learned-feedback": ["tail", "tail-jvp"],
        "forward-gradient": ["tail-jvp"],
        "node-perturbation": ["tail"],
        "weight-perturbation": ["tail", "weights"],
        "dni": ["block-vjp"],
    }


class Cheat(Estimator):
    """Differentiates what it should not; `trick` says how."""

    derivatives: ClassVar = frozenset({"tail", "tail-jvp", "feedback-chain", "weights"})
    trick: ClassVar = staticmethod(lambda view, t, h: h)

    def credit(self, trajectory, view):
        h = trajectory.h_SLBD[:, 1].clone().requires_grad_()
        with torch.enable_grad():
            out = type(self).trick(view, trajectory, h)
            found = out if isinstance(out, tuple) else torch.autograd.grad(out.sum(), h)
        return found[0].unsqueeze(1).expand_as(trajectory.h_SLBD[:, :-1])


TRICKS = {
    "block": (lambda view, t, h: view.net.block(1, h), 1),
    "tail": (lambda view, t, h: view.net.tail(1, h, t.y), 2),
    "another precision": (lambda view, t, h: view.net.to(torch.float32).tail(0, h.float(), t.y), 2),
    "other parameters": (lambda view, t, h: view.net.having({}).block(2, h), 2),
    "functional": (
        lambda view, t, h: (torch.func.grad(lambda z: view.net.tail(1, z, t.y).sum())(h),),
        2,
    ),
    "vjp of one block": (
        lambda view, t, h: torch.func.vjp(lambda z: view.net.block(0, z), h)[1](h),
        0,
    ),
    "its costates": (lambda view, t, h: (view.net.costates(t)[:, 0],), 2),
}


def cheated(trick, kind="tanh"):
    """What happens to an estimator with a trick."""
    net = net_of(SHAPES[kind])
    cls = type("Cheat", (Cheat,), {"trick": staticmethod(trick)})
    estimator = cls(estimator_of(net.shape, "zero").setting)
    return credit_of(estimator, trajectory_of(net), view_of(net, estimator))


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("kind", ["tanh", "gelu", "relu"])
def test_reverse_mode_through_a_block_is_caught(trick, kind):
    """A CreditError names the estimator and the block, whatever the way."""
    way, index = TRICKS[trick]
    with pytest.raises(CreditError, match=rf"Cheat .*reverse-mode .* block {index}\b"):
        cheated(way, kind)


LEAKS = {
    "tail": lambda view, t, h: view.tail([0], [h.unsqueeze(1)], t.y),
    "tail beside its own": lambda view, t, h: h.square().sum() + view.tail([0], [h.unsqueeze(1)], t.y).sum(),
    "tail functional": lambda view, t, h: (
        torch.func.grad(lambda z: view.tail([0], [z.unsqueeze(1)], t.y).sum())(h),
    ),
    "tail functional, mapped": lambda view, t, h: (
        torch.func.grad(
            lambda z: torch.func.vmap(lambda n: view.tail([0], [n], t.y))(z[None, :, None]).sum()
        )(h),
    ),
    "tail_jvp": lambda view, t, h: view.tail_jvp([0], [h.unsqueeze(1)], [h.unsqueeze(1)], t.y),
    "blocks": lambda view, t, h: view.blocks(torch.stack([h] * 3, 1)),
    "perturbed": lambda view, t, h: view.perturbed(t, torch.stack([h] * 3, 1)),
    "perturbed_jvp": lambda view, t, h: view.perturbed_jvp(t, torch.stack([h] * 3, 1)),
    "loss_at": lambda view, t, h: view.loss_at(t, {"blocks.bias": h[:, :3]}),
}  # fmt: skip


@pytest.mark.parametrize("way", LEAKS)
def test_no_derivative_is_quietly_lost(way):
    """What the view's own methods give has no history: reverse mode through it is an error, never 0."""
    with pytest.raises(
        CreditError,
        match=rf"Cheat gave view.{way.split()[0]} numbers of (h_0|blocks\.bias).* that it is differentiating",
    ):
        cheated(LEAKS[way])


def test_a_state_without_history_is_no_derivative():
    """The same calls with detached numbers pass; forward mode has a method of its own."""

    def way(view, t, h):
        h = h.detach()
        view.tail([0], [h.unsqueeze(1)], t.y)
        return (view.tail_jvp([0], [h.unsqueeze(1)], [h.unsqueeze(1)], t.y)[:, 0, 0, :, None] * h,)

    assert cheated(way).abs().max() > 0


def test_forward_mode_is_declared():
    """By torch.func or by dual numbers, the losses of states give no derivative."""
    net = net_of(SHAPES["tanh"])
    t, view = trajectory_of(net), View(net, "Cheat", frozenset({"tail"}))
    h = t.h_SLBD[:, :1]
    with pytest.raises(CreditError, match=r"declare and call view\.tail_jvp"):
        torch.func.jvp(lambda z: view.tail([0], [z], t.y), (h,), (h,))
    with (
        forward_ad.dual_level(),
        pytest.raises(CreditError, match=r"declare and call view\.tail_jvp"),
    ):
        view.tail([0], [forward_ad.make_dual(h, h)], t.y)


OWN = {
    "a name": ({"block.weights": torch.zeros(3, 3, 6, 6)}, "gave a gradient of 'block.weights'; the parameters .* blocks.weight"),
    "a shape": ({"blocks.weight": torch.zeros(3, 6, 6)}, r"gradient of blocks.weight in the shape \[3, 3, 6, 6\].* got \[3, 6, 6\]"),
    "no tensor": ({"blocks.weight": 0.0}, "gradient of blocks.weight .* got float"),
    "no number": ({"blocks.weight": torch.full((3, 3, 6, 6), torch.nan)}, "gradient of blocks.weight that is no number"),
    "no dict": ([], "must return a dict, .* got list"),
}  # fmt: skip


@pytest.mark.parametrize("fault", OWN)
def test_gradients_of_ones_own_are_checked(fault):
    """A method without credit is told what is wrong with its gradients, by its name and the parameter's."""
    given, told = OWN[fault]
    net = net_of(SHAPES["tanh"])
    cls = type("Mine", (Cheat,), {"parameter_gradients": lambda self, t, view: given})
    estimator = cls(estimator_of(net.shape, "zero").setting)
    with pytest.raises(
        CreditError, match=rf"(?s)stimator Mine .*{told}|parameter_gradients of .*{told}"
    ):
        gradients_of(estimator, trajectory_of(net), view_of(net, estimator))


UNDECLARED = {
    "tail": lambda view, t: view.tail([0], [t.h_SLBD[:, :1]], t.y),
    "tail blocks": lambda view, t: view.blocks(t.h_SLBD[:, :-1]),
    "tail perturbed": lambda view, t: view.perturbed(t, t.h_SLBD[:, :-1]),
    "tail loss_at": lambda view, t: view.loss_at(t, {}),
    "tail-jvp": lambda view, t: view.tail_jvp([0], [t.h_SLBD[:, :1]], [t.h_SLBD[:, :1]], t.y),
    "tail-jvp perturbed": lambda view, t: view.perturbed_jvp(t, t.h_SLBD[:, :-1]),
    "feedback-chain": lambda view, t: view.feedback_vjp(0, t.h_SLBD[:, 0], t.last_SBD, {}),
    "block-vjp": lambda view, t: view.block_vjp(0, t.h_SLBD[:, 0], t.last_SBD),
    "oracle": lambda view, t: view.costates(t),
    "weights": lambda view, t: view.net.block(0, t.h_SLBD[:, 0]),
}


@pytest.mark.parametrize("use", UNDECLARED)
def test_an_undeclared_method_is_refused(use):
    """A CreditError names the estimator, the method's kind, and what was declared."""
    kind = use.split()[0]
    net = net_of(SHAPES["tanh"])
    others = DERIVATIVES - {kind}
    for declared in (frozenset(), others):
        view = View(net, "Mine", declared)
        with pytest.raises(CreditError, match=f"Estimator Mine used '{kind}'"):
            UNDECLARED[use](view, trajectory_of(net))


def test_an_unknown_declaration_is_refused():
    """With the words that there are."""
    with pytest.raises(
        CreditError, match=r"Mine declares \['everything'\]; derivatives are .*tail"
    ):
        View(net_of(SHAPES["tanh"]), "Mine", frozenset({"everything"}))


def tangent_of(t, layers, copies, seed=2):
    g = torch.Generator().manual_seed(seed)
    size = (t.h_SLBD.shape[0], copies, *t.h_SLBD.shape[2:])
    return [torch.randn(size, generator=g, dtype=torch.float64) for _ in layers]


@pytest.mark.parametrize("kind", [*SHAPES, "linear"])
def test_a_sweep_is_each_layer_alone(kind):
    """`tail` of several layers and states at once: the loss of each put in alone."""
    net = net_of(LINEAR if kind == "linear" else SHAPES[kind])
    t, layers = trajectory_of(net), [0, 2]
    view = View(net, "Mine", frozenset({"tail"}))
    moved = [t.h_SLBD[:, [i]] + u for i, u in zip(layers, tangent_of(t, layers, 3), strict=True)]
    found = view.tail(layers, moved, t.y)
    assert found.shape == (3, 2, 3, 7)
    for run, alpha in enumerate(net.alpha_S):
        p = {name: value[run] for name, value in net.parameters.items()}
        for place, layer in enumerate(layers):
            for copy in range(3):
                h = moved[place][run, copy]
                wanted = losses_from(net.shape, alpha, p, layer, h, t.y[run])
                torch.testing.assert_close(found[run, place, copy], wanted, **EXACT)


@pytest.mark.parametrize("kind", [*SHAPES, "linear"])
def test_forward_mode_goes_through_the_guard(kind):
    """`tail_jvp` is <a, u> of the exact costates, and the limit of central differences."""
    net = net_of(LINEAR if kind == "linear" else SHAPES[kind])
    t, layers = trajectory_of(net), [0, 1, 2]
    view = View(net, "Mine", frozenset({"tail", "tail-jvp"}))
    us = tangent_of(t, layers, 2)
    at = [t.h_SLBD[:, [i]].expand_as(u) for i, u in zip(layers, us, strict=True)]
    found = view.tail_jvp(layers, at, us, t.y)
    a = exact_costates(net, t)[:, :3]
    wanted = torch.stack([(a[:, [i]] * u).sum(-1) for i, u in enumerate(us)], 1)
    torch.testing.assert_close(found, wanted, **EXACT)
    step = 1e-5
    up, down = (
        view.tail(layers, [h + s * u for h, u in zip(at, us, strict=True)], t.y)
        for s in (step, -step)
    )
    torch.testing.assert_close(found, (up - down) / (2 * step), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["tanh", "gelu", "relu"])
def test_noise_where_it_arises(kind):
    """`perturbed` adds to every h on the way; its derivative is the sum of all <a_l, u_l>."""
    net = net_of(SHAPES[kind])
    t = trajectory_of(net)
    view = View(net, "Mine", frozenset({"tail", "tail-jvp"}))
    u = torch.stack(tangent_of(t, range(3), 1), 1).squeeze(2)
    wanted = (exact_costates(net, t)[:, :-1] * u).sum((1, 3))
    torch.testing.assert_close(view.perturbed_jvp(t, u), wanted, **EXACT)
    slope = (view.perturbed(t, 1e-6 * u) - view.perturbed(t, -1e-6 * u)) / 2e-6
    torch.testing.assert_close(slope, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(view.perturbed(t, 0 * u), t.loss_SB, **EXACT)


@pytest.mark.parametrize("kind", [*SHAPES, "linear"])
def test_block_vjp_is_one_step_of_the_chain(kind):
    """The costate of a block's input from that of its output."""
    net = net_of(LINEAR if kind == "linear" else SHAPES[kind])
    t = trajectory_of(net)
    view = View(net, "Mine", frozenset({"block-vjp"}))
    a = exact_costates(net, t)
    for index in range(net.shape.depth):
        found = view.block_vjp(index, t.h_SLBD[:, index], a[:, index + 1])
        torch.testing.assert_close(found, a[:, index], **EXACT)


class Told(Estimator):
    """Gives what it is told to."""

    gives: ClassVar = None
    tells: ClassVar = ()

    def credit(self, trajectory, view):
        return type(self).gives

    def fit_step(self, trajectory, view):
        return type(self).tells


@pytest.mark.parametrize(
    ("gives", "told"),
    [(None, "got NoneType"), (torch.zeros(2, 2).numpy(), "got ndarray"), (torch.zeros(2, 2, dtype=torch.int64), "got torch.int64")],
)  # fmt: skip
def test_what_is_no_credit_is_refused_by_name(gives, told):
    kind = type("Told", (Told,), {"gives": gives})
    net = net_of(SHAPES["tanh"])
    estimator = kind(estimator_of(net.shape, "zero").setting)
    with pytest.raises(CreditError, match=f"Estimator Told must give credit as a tensor.*{told}"):
        credit_of(estimator, trajectory_of(net), view_of(net, estimator))


@pytest.mark.parametrize("tells", [None, {"loss": torch.tensor(0.0)}, {"loss": 0.0}])
def test_what_fit_step_tells_is_checked_at_once(tells):
    kind = type("Told", (Told,), {"tells": tells})
    net = net_of(SHAPES["tanh"])
    estimator = kind(estimator_of(net.shape, "zero").setting)
    with pytest.raises(CreditError, match="fit_step of estimator Told must return a dict"):
        fitted(estimator, trajectory_of(net), view_of(net, estimator))


@pytest.mark.parametrize("name", ["h_SLBD", "last_SBD", "error_SBC"])
def test_writing_into_the_trajectory_is_refused(name):
    """The truth and the net's own update are computed from it."""

    class Careless(Estimator):
        def credit(self, trajectory, view):
            getattr(trajectory, name).mul_(0)
            return torch.zeros_like(trajectory.h_SLBD[:, :-1])

        def fit_step(self, trajectory, view):
            getattr(trajectory, name)[:, 0] += 1
            return {}

    net = net_of(SHAPES["tanh"])
    estimator = Careless(estimator_of(net.shape, "zero").setting)
    for act in (credit_of, fitted):
        with pytest.raises(CreditError, match=rf"Careless wrote into the trajectory \({name}\)"):
            act(estimator, trajectory_of(net), view_of(net, estimator))


def test_an_estimator_without_a_setting_is_refused():
    """Its __init__ forgot the base class's."""

    class Forgetful(Told):
        def __init__(self, setting):
            pass

    sys.modules["forgetful"] = types.ModuleType("forgetful")
    sys.modules["forgetful"].Forgetful = Forgetful
    setting = estimator_of(SHAPES["tanh"], "zero").setting
    own = [replace(config, method="forgetful:Forgetful") for config in setting.configs]
    with pytest.raises(ConfigError, match=r"must call super\(\).__init__"):
        make(replace(setting, configs=own))


@pytest.mark.parametrize(
    "backward",
    [
        lambda t, view: view.tail([0], [t.h_SLBD[:, :1]], t.y).sum(),
        lambda t, view: t.logits_SBC.sum(),
    ],
)
def test_backpropagation_through_what_is_given_is_told_by_name(backward):
    """Not only through the view's net: what is given has no history at all."""

    class Backward(Estimator):
        derivatives: ClassVar = frozenset({"tail"})

        def credit(self, trajectory, view):
            with torch.enable_grad():
                backward(trajectory, view).backward()
            return torch.zeros_like(trajectory.h_SLBD[:, :-1])

    net = net_of(SHAPES["tanh"])
    estimator = Backward(estimator_of(net.shape, "zero").setting)
    with pytest.raises(
        CreditError, match="Backward took a reverse-mode derivative of what has none"
    ):
        credit_of(estimator, trajectory_of(net), view_of(net, estimator))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "must have the method credit"),
        ({"credit": lambda *_: None, "derivatives": "tail"}, "must be a frozenset"),
    ],
)
def test_a_class_that_is_no_estimator_yet_is_told(body, told):
    sys.modules["unfinished"] = types.ModuleType("unfinished")
    sys.modules["unfinished"].Kind = type("Kind", (Estimator,), body)
    with pytest.raises(ConfigError, match=told):
        find("unfinished:Kind")
