"""Each estimator's credit and learning against formulas and autograd, in float64."""

from dataclasses import replace

import pytest
import torch
from credit_helpers import (
    LINEAR,
    ONLINE,
    SHAPES,
    activation,
    estimator_of,
    exact_costates,
    generators,
    net_of,
    softmax_error,
    trajectory_of,
    view_of,
)
from torch.nn import functional

from assay.engines.credit.estimators.base import Setting
from assay.engines.credit.estimators.mlp import Mlp, through_silu
from assay.engines.credit.estimators.registry import make
from assay.engines.credit.net import Net, initial

EXACT = {"rtol": 1e-9, "atol": 1e-12}
CODES = ("eT", "deltaL", "eT_hL", "deltaL_hL", "y")


def mlp_alone(state, run, x, prefix="mlp"):
    """The learned net of one run, from its formula."""
    for i in range(3):
        x = x @ state[f"{prefix}.{i}.weight"][run] + state[f"{prefix}.{i}.bias"][run]
        x = activation("silu", x) if i < 2 else x
    return x


def code_alone(name, estimator, t, run):
    """What the learned net sees of the output."""
    last = t.last_SBD[run]
    base = {
        "eT": lambda: softmax_error(t.logits_SBC[run], t.y[run]),
        "deltaL": lambda: last / (last.square().mean().sqrt() + 1e-6),
        "y": lambda: functional.one_hot(t.y[run], t.logits_SBC.shape[-1]).double(),
    }[name.removesuffix("_hL")]()
    if not name.endswith("_hL"):
        return base
    return torch.cat([base, t.h_SLBD[run, -1] @ estimator.state()["projection"][run]], -1)


def inputs_alone(estimator, t, run, layer, h, code="eT"):
    """Rows (h / RMS(h), l / L, code); after one batch the moving average is that batch's."""
    size = t.h_SLBD[run].square().mean().sqrt()
    time = torch.full((len(h), 1), layer / (t.h_SLBD.shape[1] - 1), dtype=h.dtype)
    return torch.cat([h / size, time, code_alone(code, estimator, t, run)], -1), size


def taught(shape, method, steps=1, **settings):
    """Net, batch, and an estimator that saw it; it learns at rate 1e-3."""
    net = net_of(shape)
    estimator = estimator_of(shape, method, **settings)
    t, view = trajectory_of(net), view_of(net, estimator)
    for _ in range(steps):
        fit = estimator.fit_step(t, view)
    return estimator, t, view, fit


def leaf(t, run, layer):
    return t.h_SLBD[run, layer].clone().requires_grad_()


def every(t):
    """(run, layer) of all credit."""
    runs, layers = t.h_SLBD.shape[:2]
    return [(run, layer) for run in range(runs) for layer in range(layers - 1)]


def test_silu_is_differentiated_twice():
    """`through_silu` is what autograd makes of SiLU, and its derivatives are those of that."""
    g = torch.Generator().manual_seed(0)
    drawn = 4 * torch.randn(2, 9, 5, generator=g, dtype=torch.float64)
    back, z = (each.clone().requires_grad_() for each in drawn)
    wanted = torch.autograd.grad(functional.silu(z), z, back)[0]
    torch.testing.assert_close(through_silu(back, z), wanted, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(through_silu, (back, z))


def test_the_written_out_input_gradient_is_autograds():
    """Of <outputs, weights> by the first inputs; and it can be differentiated once more."""
    setting = Setting(SHAPES["tanh"], [estimator_of(SHAPES["tanh"], "zero").setting.config] * 2, generators(2))  # fmt: skip
    mlp = Mlp.drawn(setting, 9, 3)
    mlp = Mlp(*([value.double().requires_grad_() for value in each] for each in (mlp.weights, mlp.biases)))  # fmt: skip
    x = torch.randn(2, 5, 9, dtype=torch.float64, generator=generators(1)[0], requires_grad=True)
    weigh = torch.randn(2, 5, 3, dtype=torch.float64, generator=generators(2)[1])
    out, hidden = mlp(x)
    (wanted,) = torch.autograd.grad((out * weigh).sum(), x, create_graph=True)
    found = mlp.input_gradient(hidden, weigh, 6)
    torch.testing.assert_close(found, wanted[..., :6], **EXACT)
    pair = [
        torch.autograd.grad(g[..., :6].square().sum(), mlp.weights, retain_graph=True)
        for g in (found, wanted)
    ]
    for ours, autograds in zip(*pair, strict=True):
        torch.testing.assert_close(ours, autograds, **EXACT)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("steps", [1, 3])
def test_state_bridge_is_a_vjp_of_its_prediction(code, steps):
    """Credit is J_P(h)ᵀ a_L, P = RMS(h) mlp(h / RMS(h), t, code), the code a constant."""
    estimator, t, view, _ = taught(SHAPES["tanh"], "state-bridge", steps, code=code)
    credit = estimator.credit(t, view)
    for run, layer in every(t):
        h = leaf(t, run, layer)
        rows, size = inputs_alone(estimator, t, run, layer, h, code)
        predicted = size * mlp_alone(estimator.state(), run, rows)
        (wanted,) = torch.autograd.grad(predicted, h, t.last_SBD[run])
        torch.testing.assert_close(credit[run, layer], wanted, **EXACT)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("bridge", ["mc", "td", "noisy"])
def test_scalar_bridge_is_the_gradient_of_its_value(code, bridge):
    """Credit is the derivative of V(h / RMS(h), t, code) by h, the code a constant."""
    estimator, t, view, _ = taught(SHAPES["gelu"], "scalar-bridge", 2, code=code, bridge=bridge)
    credit = estimator.credit(t, view)
    for run, layer in every(t):
        h = leaf(t, run, layer)
        value = mlp_alone(
            estimator.state(), run, inputs_alone(estimator, t, run, layer, h, code)[0]
        )
        (wanted,) = torch.autograd.grad(value.sum(), h)
        torch.testing.assert_close(credit[run, layer], wanted, **EXACT)


def test_losses_of_the_bridges_are_the_formulas():
    """State: relative squared error of h_L. Scalar: values of all layers, and the terminal's slope."""
    shape = SHAPES["tanh"]
    state, t, _, fit = taught(shape, "state-bridge", est_lr=1e-12)
    scalar, _, _, value_fit = taught(shape, "scalar-bridge", est_lr=1e-12, terminal_weight=0.7)
    depth = shape.depth
    for run in range(3):
        missed, total, last = [], 0.0, t.h_SLBD[run, -1]
        for layer in range(depth + 1):
            h = leaf(t, run, layer)
            rows, size = inputs_alone(state, t, run, layer, h)
            missed.append((size * mlp_alone(state.state(), run, rows) - last).square().sum(-1))
            value = mlp_alone(scalar.state(), run, rows)
            spread = t.loss_SB[run].var(unbiased=False)
            total += (value[:, 0] - t.loss_SB[run]).square().mean() / spread
        wanted = torch.stack(missed[:-1]).mean() / last.square().sum(-1).mean()
        torch.testing.assert_close(fit["fit"][run], wanted, rtol=1e-6, atol=0)
        (slope,) = torch.autograd.grad(value.sum(), h)
        a = t.last_SBD[run]
        total += 0.7 * (slope - a).square().sum(-1).mean() / a.square().sum(-1).mean()
        torch.testing.assert_close(value_fit["fit"][run], total.detach(), rtol=1e-6, atol=0)


def taught_again(method, **settings):
    """Net, batch, the estimator's numbers before its second step, what that said, and its random numbers."""
    estimator, t, view, _ = taught(SHAPES["tanh"], method, **settings)
    before = {name: value.clone() for name, value in estimator.state().items()}
    drawn = [g.get_state() for g in estimator.setting.generators]
    fit = estimator.fit_step(t, view)
    for g, state in zip(estimator.setting.generators, drawn, strict=True):
        g.set_state(state)
    return estimator, t, before, fit["fit"]


def values_alone(estimator, state, t, run, pairs, prefix="mlp"):
    """V of pairs of a layer and states there, [pairs, B]."""
    rows = [inputs_alone(estimator, t, run, layer, h)[0] for layer, h in pairs]
    return torch.stack([mlp_alone(state, run, row, prefix)[:, 0] for row in rows])


@pytest.mark.parametrize("bridge", ["td", "noisy"])
def test_neighbouring_layers_are_tied_by_the_formulas(bridge):
    """td: (V_l - slow V_{l + 1})² / Var(loss), summed over layers. noisy: changes of V, relative."""
    more = {"est_lr": 3e-2, "terminal_weight": 0.0}
    _, _, _, untied = taught_again("scalar-bridge", bridge=bridge, bridge_weight=0.0, **more)
    own = {"bridge": bridge, "bridge_weight": 0.3, "bridge_noise": 0.2} | more
    estimator, t, state, fit = taught_again("scalar-bridge", **own)
    noise = estimator.setting.randn(*t.h_SLBD[0, :-1].shape)
    net, depth = net_of(SHAPES["tanh"]), SHAPES["tanh"].depth
    for run in range(3):
        h = list(enumerate(t.h_SLBD[run]))
        value = values_alone(estimator, state, t, run, h)
        spread = t.loss_SB[run].var(unbiased=False)
        missed = (value - t.loss_SB[run]).square().mean(1).sum() / spread
        if bridge == "td":
            slow = values_alone(estimator, state, t, run, h, "slow")
            assert not torch.allclose(slow, value, rtol=1e-4)
            tie = (value[:-1] - slow[1:]).square().mean(1).sum() / spread
        else:
            size = 0.2 * t.h_SLBD[run].square().mean().sqrt()
            moved = [at + size * noise[run, layer] for layer, at in h[:-1]]
            image = [net.block(i, torch.stack([m] * 3))[run] for i, m in enumerate(moved)]
            here = values_alone(estimator, state, t, run, enumerate(moved)) - value[:-1]
            there = values_alone(estimator, state, t, run, enumerate(image, 1)) - value[1:]
            assert len(there) == depth
            tie = (here - there).square().mean() / there.square().mean()
        torch.testing.assert_close(fit[run], missed + 0.3 * tie, rtol=1e-8, atol=0)
        assert not torch.allclose(fit[run], untied[run], rtol=1e-4)


def test_loss_of_the_vector_field_is_the_formula():
    """Unexplained share of the loss changes along directions, and of the terminal gradient."""
    own = {"difference": "jvp", "directions": 3, "terminal_weight": 0.7}
    estimator, t, state, fit = taught_again("vector-field", **own)
    a = exact_costates(net_of(SHAPES["tanh"]), t)
    u = estimator.setting.randn(SHAPES["tanh"].depth, 3, *t.h_SLBD.shape[2:])
    for run in range(3):
        rows = [inputs_alone(estimator, t, run, i, h)[0] for i, h in enumerate(t.h_SLBD[run])]
        field = torch.stack([mlp_alone(state, run, row) for row in rows])
        changes = (a[run, :-1, None] * u[run]).sum(-1)
        missed = (field[:-1, None] * u[run]).sum(-1) - changes
        wanted = missed.square().mean() / changes.square().mean()
        last = t.last_SBD[run]
        wanted += 0.7 * (field[-1] - last).square().mean() / last.square().mean()
        torch.testing.assert_close(fit[run], wanted, rtol=1e-8, atol=0)


@pytest.mark.parametrize("settings", [{}, {"factored": True}, {"scaled_targets": True}])
def test_vector_field_is_its_nets_output(settings):
    """a(h, t, code); factored: a sum of e_c g_c(h, t); scaled: in units of the credit's size."""
    estimator, t, view, _ = taught(SHAPES["tanh"], "vector-field", **settings)
    credit = estimator.credit(t, view)
    for run, layer in every(t):
        h = t.h_SLBD[run, layer]
        rows, _ = inputs_alone(estimator, t, run, layer, h)
        if "factored" in settings:
            out = mlp_alone(estimator.state(), run, rows[:, : h.shape[1] + 1])
            parts = out.view(len(h), -1, h.shape[1])
            wanted = (parts * softmax_error(t.logits_SBC[run], t.y[run])[..., None]).sum(1)
        else:
            wanted = mlp_alone(estimator.state(), run, rows)
        if "scaled_targets" in settings:
            wanted = wanted * t.last_SBD[run].square().mean().sqrt()
        torch.testing.assert_close(credit[run, layer], wanted, **EXACT)


@pytest.mark.parametrize("method", ["vector-field", "learned-feedback"])
def test_differences_have_one_limit(method):
    """Central and one-sided differences of small steps teach what forward mode does."""
    fits = {}
    for way, epsilon in (("jvp", 1e-2), ("central", 1e-4), ("one-sided", 1e-7)):
        estimator, *_, fit = taught(SHAPES["gelu"], method, difference=way, epsilon=epsilon)
        fits[way] = torch.cat([fit["fit"], *(v.flatten() for v in estimator.state().values())])
    torch.testing.assert_close(fits["central"], fits["jvp"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(fits["one-sided"], fits["jvp"], rtol=1e-4, atol=1e-5)


def test_the_exact_costate_explains_all_loss_changes():
    """What the vector field learns from is <a, u>: each layer's, unless it is shuffled."""
    net = net_of(SHAPES["tanh"])
    t = trajectory_of(net, samples=40)
    a = exact_costates(net, t)
    for shuffled in (False, True):
        estimator = estimator_of(net.shape, "vector-field", difference="jvp", shuffled=shuffled)
        layers, u, changes = estimator.probe(t, view_of(net, estimator))
        assert layers == [0, 1, 2]
        wanted = (a[:, layers].unsqueeze(2) * u).sum(-1)
        assert torch.allclose(changes, wanted, rtol=1e-9) != shuffled
        torch.testing.assert_close(changes.sort(-1)[0], wanted.sort(-1)[0], **EXACT)


def test_layers_are_taken_in_turn_by_chance():
    """`layers_per_step` takes that many; over 60 steps every layer is taken."""
    net = net_of(SHAPES["tanh"])
    estimator = estimator_of(net.shape, "vector-field", layers_per_step=2, directions=1)
    t, view = trajectory_of(net), view_of(net, estimator)
    taken = [tuple(estimator.probe(t, view)[0]) for _ in range(60)]
    assert set(taken) == {(0, 1), (0, 2), (1, 2)}


@pytest.mark.parametrize("settings", [{}, {"layers_per_step": 2}])
def test_learned_feedback_descends_its_loss(settings):
    """Its written-out gradient is autograd's of the relative squared error of <e B, u>."""
    net = net_of(SHAPES["tanh"])
    estimator = estimator_of(net.shape, "learned-feedback", difference="jvp", **settings)
    t, view = trajectory_of(net), view_of(net, estimator)
    drawn = [g.get_state() for g in estimator.setting.generators]
    layers, u, changes = estimator.probe(t, view)
    for g, state in zip(estimator.setting.generators, drawn, strict=True):
        g.set_state(state)
    estimator.probe.asked -= 1
    matrix = estimator.state()["matrix"].clone().requires_grad_()
    field = t.error_SBC[:, None] @ matrix[:, layers]
    missed = (field[:, :, None] * u).sum(-1) - changes
    loss = missed.square().mean((1, 2, 3)) / changes.square().mean((1, 2, 3))
    (wanted,) = torch.autograd.grad(loss.sum(), matrix)
    seen = {}
    estimator.optimizer.step = lambda gradients, lr: seen.update(gradients)
    torch.testing.assert_close(estimator.fit_step(t, view)["fit"], loss.detach(), **EXACT)
    torch.testing.assert_close(seen["matrix"], wanted, **EXACT)


def test_local_loss_is_a_classifier_at_each_layer():
    """Credit and learning are autograd's of each layer's own cross-entropy."""
    net = net_of(SHAPES["gelu"])
    estimator = estimator_of(net.shape, "local-loss")
    t, view = trajectory_of(net), view_of(net, estimator)
    heads = {k: estimator.state()[k].clone().requires_grad_() for k in ("weight", "bias")}
    credit = estimator.credit(t, view)
    total = 0.0
    for run, layer in every(t):
        h = leaf(t, run, layer)
        logits = h @ heads["weight"][run, layer] + heads["bias"][run, layer]
        loss = functional.cross_entropy(logits, t.y[run], reduction="sum")
        (wanted,) = torch.autograd.grad(loss, h, retain_graph=True)
        torch.testing.assert_close(credit[run, layer], wanted, **EXACT)
        total = total + loss / t.y.shape[1]
    seen = {}
    estimator.optimizer.step = lambda gradients, lr: seen.update(gradients)
    fit = estimator.fit_step(t, view)["fit"]
    torch.testing.assert_close(fit.sum() * net.shape.depth, total.detach(), **EXACT)
    wanted = torch.autograd.grad(total, list(heads.values()))
    for name, value in zip(heads, wanted, strict=True):
        torch.testing.assert_close(seen[name], value, **EXACT)


def test_dni_learns_from_the_next_layers_credit():
    """Its loss compares each layer's output with the next one's, taken back through one block."""
    net = net_of(SHAPES["tanh"])
    estimator = estimator_of(net.shape, "dni", est_lr=1e-12)
    t, view = trajectory_of(net), view_of(net, estimator)
    fit = estimator.fit_step(t, view)["fit"]
    found = estimator.credit(t, view)
    after = torch.cat([found, t.last_SBD[:, None]], 1)
    aim = []
    for index in range(net.shape.depth):
        h = t.h_SLBD[:, index].clone().requires_grad_()
        aim += torch.autograd.grad(net.block(index, h), h, after[:, index + 1])
    aims = torch.stack(aim, 1)
    wanted = (found - aims).square().mean((1, 2, 3)) / aims.square().mean((1, 2, 3))
    torch.testing.assert_close(fit, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [*SHAPES, "linear"])
def test_feedback_alignment_with_the_true_matrices_is_backpropagation(kind):
    """With the blocks' own matrices as feedback, credit is the exact costates."""
    net = net_of(LINEAR if kind == "linear" else SHAPES[kind])
    estimator, t = estimator_of(net.shape, "fa"), trajectory_of(net)
    assert not torch.allclose(estimator.credit(t, view_of(net, estimator)), exact_costates(net, t)[:, :-1])  # fmt: skip
    for name, value in estimator.state().items():
        value.copy_(net.parameters[name])
    credit = estimator.credit(t, view_of(net, estimator))
    torch.testing.assert_close(credit, exact_costates(net, t)[:, :-1], **EXACT)


@pytest.mark.parametrize("gain", [1.0, 0.25])
def test_feedback_alignment_draws_its_matrices_as_the_blocks_are_drawn(gain):
    """From the estimator's generator and with the run's gain."""
    config = replace(ONLINE, method="fa", gain=gain)
    drawn = make(Setting(SHAPES["gelu"], [config], generators(1))).state()
    wanted = initial(SHAPES["gelu"], generators(1)[0], gain)
    assert all(torch.equal(value[0], wanted[name]) for name, value in drawn.items())
    assert set(drawn) == {"blocks.weight", "blocks.out"}


@pytest.mark.parametrize("kind", ["tanh", "gelu", "relu"])
def test_sign_symmetric_feedback(kind):
    """Backpropagation, where each matrix on the way back is its signs times its root mean square."""
    net = net_of(SHAPES[kind])
    t, estimator = trajectory_of(net), estimator_of(net.shape, "sign-symmetric")
    signs = {
        name: w.sign() * w.square().mean((2, 3), keepdim=True).sqrt()
        for name, w in net.parameters.items()
        if name in ("blocks.weight", "blocks.out")
    }
    fa = estimator_of(net.shape, "fa")
    for name, value in fa.state().items():
        value.copy_(signs[name])
    credit = estimator.credit(t, view_of(net, estimator))
    torch.testing.assert_close(credit, fa.credit(t, view_of(net, fa)), **EXACT)


def test_fixed_feedback_and_copies():
    """DFA is e B_l with entries of variance 1 / classes; copy is a_L; zero is 0."""
    net = net_of(SHAPES["tanh"])
    t = trajectory_of(net)
    dfa = estimator_of(net.shape, "dfa")
    matrix = dfa.state()["feedback"]
    wanted = torch.einsum("sbc,slcd->slbd", t.error_SBC, matrix)
    torch.testing.assert_close(dfa.credit(t, view_of(net, dfa)), wanted, **EXACT)
    many = estimator_of(net.shape, "dfa", runs=300).state()["feedback"]
    assert float(many.square().mean()) == pytest.approx(1 / 4, rel=0.05)  # 21600 numbers: 5 s.d.
    copy = estimator_of(net.shape, "copy")
    wanted = t.last_SBD[:, None].expand_as(t.h_SLBD[:, :-1])
    assert torch.equal(copy.credit(t, view_of(net, copy)), wanted)


def repeated(net, samples):
    """One sample of one run, many times over."""
    t = trajectory_of(net, samples=1)
    one = (t.x_SBI, t.y)
    return net.trajectory(*(each.expand(-1, samples, *each.shape[2:]) for each in one))


def unbiased(draws, wanted):
    """Means along the truth, over all layers and at each, within 5 standard errors of it."""
    along = torch.einsum("nld,ld->nl", draws, wanted)
    along = torch.cat([along, along.sum(1, keepdim=True)], 1)
    aim = wanted.square().sum(1)
    aim = torch.cat([aim, aim.sum(0, keepdim=True)])
    error = along.std(0) / len(draws) ** 0.5
    assert (error / aim)[-1] < 0.01
    assert ((along.mean(0) - aim) / error).abs().max() < 5


@pytest.mark.parametrize("method", ["forward-gradient", "node-perturbation"])
def test_perturbed_activities_are_unbiased(method):
    """The mean of 60,000 estimates of one costate is that costate, to 1 % (a standard error).

    False alarm (5 standard errors, 4 means): less than 3e-6. Node perturbation's bias is of the
    order of epsilon², here 1e-8.
    """
    net = net_of(SHAPES["gelu"], runs=1)
    t = repeated(net, 60_000)
    estimator = estimator_of(net.shape, method, runs=1, epsilon=1e-4)
    draws = estimator.credit(t, view_of(net, estimator))[0].transpose(0, 1)
    unbiased(draws, exact_costates(net, trajectory_of(net, samples=1))[0, :-1, 0])


def test_perturbed_weights_are_unbiased():
    """The mean over 40,000 runs of one net is the gradient of encoder and blocks; no head.

    False alarm (5 standard errors, 4 means): less than 3e-6.
    """
    runs, one = 40_000, net_of(SHAPES["tanh"], runs=1)
    p = {name: value.expand(runs, *value.shape[1:]) for name, value in one.parameters.items()}
    net = Net(one.shape, one.alpha_S.expand(runs), p)
    x, y = (each.expand(runs, *each.shape[1:]) for each in _two_samples(one))
    estimator = estimator_of(net.shape, "weight-perturbation", runs)
    t, view = net.trajectory(x, y), view_of(net, estimator)
    assert not estimator.credit(t, view).any()
    found = estimator.parameter_gradients(t, view)
    leaves = {name: value.clone().requires_grad_() for name, value in one.parameters.items()}
    loss = one.having(leaves)
    h = loss.encode(_two_samples(one)[0])
    truth = dict(zip(leaves, torch.autograd.grad(loss.tail(0, h, y[:1]).mean(), list(leaves.values())), strict=True))  # fmt: skip
    assert set(found) == {"encoder.weight", "blocks.weight", "blocks.bias"}
    draws = torch.stack([(found[k] * truth[k]).flatten(1).sum(1) for k in found], 1)
    aim = torch.stack([truth[k].square().sum() for k in found])
    error = draws.std(0) / runs**0.5
    assert ((draws.mean(0) - aim) / error).abs().max() < 5
    assert (error / aim).max() < 0.2


def _two_samples(net):
    t = trajectory_of(net, samples=2)
    return t.x_SBI, t.y
