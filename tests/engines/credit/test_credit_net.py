"""Nets, costates and local updates against autograd on a net written a second time."""

import pytest
import torch
from credit_helpers import (
    LINEAR,
    SHAPES,
    alone,
    batch_of,
    block,
    encode,
    exact_costates,
    generators,
    losses_from,
    net_of,
    trajectory_of,
)

from assay.engines.credit.net import Shape, count, initial
from assay.engines.credit.surrogates import cosine, gradients, normalised

EXACT = {"rtol": 1e-9, "atol": 1e-13}
EVERY = pytest.mark.parametrize("kind", SHAPES)


@pytest.fixture
def made(kind):
    net = net_of(SHAPES[kind])
    return net, trajectory_of(net)


def random_credit(t, seed=9):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(t.h_SLBD.shape, generator=g, dtype=torch.float64)


def close(found, wanted):
    """Gradients of all runs, by name, beside those of each run alone."""
    assert set(found) == set(wanted[0])
    for name, value in found.items():
        torch.testing.assert_close(value, torch.stack([w[name] for w in wanted]), **EXACT)


def gradients_alone(net, loss_of):
    """Autograd's, run by run, of a loss of (run, alpha, parameters)."""
    out = []
    for run in range(len(net.alpha_S)):
        p = alone(net.parameters, run)
        found = torch.autograd.grad(loss_of(run, net.alpha_S[run], p), list(p.values()))
        out.append(dict(zip(p, found, strict=True)))
    return out


@EVERY
def test_a_trajectory_is_the_nets(made):
    """States, losses, error and last credit of a batch are what the formulas say."""
    net, t = made
    for run, alpha in enumerate(net.alpha_S):
        p = {name: value[run] for name, value in net.parameters.items()}
        torch.testing.assert_close(t.h_SLBD[run, 0], encode(net.shape, p, t.x_SBI[run]), **EXACT)
        for index in range(net.shape.depth):
            wanted = block(net.shape, alpha, p, index, t.h_SLBD[run, index])
            torch.testing.assert_close(t.h_SLBD[run, index + 1], wanted, **EXACT)
        wanted = losses_from(net.shape, alpha, p, 0, t.h_SLBD[run, 0], t.y[run])
        torch.testing.assert_close(t.loss_SB[run], wanted, **EXACT)
    torch.testing.assert_close(t.last_SBD, exact_costates(net, t)[:, -1], **EXACT)
    wanted = torch.bmm(t.error_SBC, net.parameters["head.weight"].mT)
    torch.testing.assert_close(t.last_SBD, wanted, **EXACT)


@pytest.mark.parametrize("kind", [*SHAPES, "linear"])
def test_a_block_is_the_same_wherever_it_is_written(kind):
    """Into a new tensor, into a part of a stack, over its own input: one block, bit for bit."""
    net = net_of(LINEAR if kind == "linear" else SHAPES[kind], dtype=torch.float32)
    stack = torch.randn(3, 4, 7, 6, generator=generators(1)[0])
    wanted, kept = net.forward(1, stack[:, 1].clone())
    before = stack.clone()
    _, also = net.forward(1, stack[:, 1], stack[:, 2])
    assert torch.equal(stack[:, 2], wanted)
    assert torch.equal(stack[:, [0, 1, 3]], before[:, [0, 1, 3]])
    assert all(map(torch.equal, kept, also))
    net.forward(1, stack[:, 1], stack[:, 1])
    assert torch.equal(stack[:, 1], wanted)


@EVERY
def test_costates_are_derivatives_of_each_samples_own_loss(made):
    """Not of the batch mean: a_l of a sample is autograd's derivative of its loss by its h_l."""
    net, t = made
    torch.testing.assert_close(net.costates(t), exact_costates(net, t), **EXACT)


def test_costates_of_linear_dynamics_in_closed_form():
    """Quadratic loss: a_l = (h_L - y) (A_l … A_{L-1})ᵀ, rows multiplied from the right."""
    net = net_of(LINEAR)
    t = trajectory_of(net)
    wanted = [t.h_SLBD[:, -1] - t.y]
    for index in reversed(range(LINEAR.depth)):
        wanted.insert(0, wanted[0] @ net.parameters["blocks.weight"][:, index].mT)
    torch.testing.assert_close(net.costates(t), torch.stack(wanted, 1), **EXACT)
    torch.testing.assert_close(t.last_SBD, wanted[-1], **EXACT)


@EVERY
def test_inner_product_with_exact_credit_is_backpropagation(made):
    """Raw per-sample oracle credit, mean over samples: the gradient of every parameter."""
    net, t = made

    def loss(run, alpha, p):
        h = encode(net.shape, p, t.x_SBI[run])
        return losses_from(net.shape, alpha, p, 0, h, t.y[run]).mean()

    close(gradients(net, t, net.costates(t)), gradients_alone(net, loss))


@EVERY
@pytest.mark.parametrize("surrogate", ["inner", "target-shift", "cosine"])
@pytest.mark.parametrize("again", [False, True])
def test_local_gradients_are_those_of_the_local_losses(made, surrogate, again):
    """Autograd of each formula, inputs and credit held fixed; the head has its own loss.

    Also where the parameters have changed since the trajectory, as in a second update.
    """
    net, t = made
    credit, eta = random_credit(t), 0.3
    if again:
        net = net.having({name: 1.1 * value + 0.05 for name, value in net.parameters.items()})

    def local(output, start, state, a):
        if surrogate == "inner":
            return (output * a).sum(-1)
        if surrogate == "target-shift":
            return (output - (state - eta * a)).square().sum(-1) / 2
        way = output - start
        return (way * a).sum(-1) / (way.square().sum(-1) * a.square().sum(-1)).sqrt()

    def loss(run, alpha, p):
        h = t.h_SLBD[run]
        first = encode(net.shape, p, t.x_SBI[run])
        total = local(first, 0, h[0], credit[run, 0])
        for index in range(net.shape.depth):
            out = block(net.shape, alpha, p, index, h[index])
            total = total + local(out, h[index], h[index + 1], credit[run, index + 1])
        last = losses_from(net.shape, alpha, p, net.shape.depth, h[-1], t.y[run])
        return (total + last).mean()

    found = gradients(net, t, credit, surrogate, eta, again=again)
    close(found, gradients_alone(net, loss))


@pytest.mark.parametrize("eta", [0.01, 1.0])
def test_target_shift_begins_as_eta_times_the_inner_product(eta):
    """At the trajectory's own parameters the two differ by the factor alone; the head in nothing."""
    net = net_of(SHAPES["tanh"])
    t = trajectory_of(net)
    credit = random_credit(t)
    inner = gradients(net, t, credit)
    for name, g in gradients(net, t, credit, "target-shift", eta).items():
        factor = 1.0 if name.startswith("head.") else eta
        torch.testing.assert_close(g, factor * inner[name], **EXACT)


def test_a_sample_without_credit_has_no_cosine_gradient():
    """Credit of 0 has no direction; what it gives is 0, and a number."""
    net = net_of(SHAPES["tanh"])
    t = trajectory_of(net)
    found = gradients(net, t, torch.zeros_like(t.h_SLBD), "cosine")
    assert all(not g.any() for name, g in found.items() if not name.startswith("head."))


@pytest.mark.parametrize(("how", "axes"), [("per-sample", (3,)), ("per-layer", (2, 3))])
def test_normalised_credit(how, axes):
    """Divided by its root mean square plus 1e-6, of each sample's or of a layer's batch, per run."""
    credit = (
        random_credit(trajectory_of(net_of(SHAPES["tanh"]))) * torch.logspace(-7, 2, 7)[:, None]
    )
    before = credit.clone()
    rms = credit.square().mean(axes, keepdim=True).sqrt()
    torch.testing.assert_close(normalised(credit, how), credit / (rms + 1e-6), **EXACT)
    assert torch.equal(normalised(credit, "none"), before)


def test_cosine_of_gradients_is_of_all_tensors_together():
    """Each run's own, over its concatenated tensors."""
    g = torch.Generator().manual_seed(0)
    one, other = (
        {"a": torch.randn(3, 4, 2, generator=g), "b": torch.randn(3, 5, generator=g)}
        for _ in range(2)
    )
    flat = [torch.cat([each["a"].flatten(1), each["b"]], 1) for each in (one, other)]
    wanted = torch.nn.functional.cosine_similarity(*flat, dim=1)
    torch.testing.assert_close(cosine(one, other), wanted)
    torch.testing.assert_close(cosine(one, one), torch.ones(3))


@EVERY
def test_another_precision_is_another_net(made):
    """`to` and `having` leave the first net as it was."""
    net, _ = made
    before = {name: value.clone() for name, value in net.parameters.items()}
    wide = net.to(torch.float32).to(torch.float64)
    wide.parameters["blocks.weight"].zero_()
    changed = net.having({"blocks.weight": torch.zeros_like(before["blocks.weight"])})
    assert not changed.parameters["blocks.weight"].any()
    assert all(torch.equal(net.parameters[name], value) for name, value in before.items())


@EVERY
def test_initial_parameters_have_the_sizes_that_are_documented(kind):
    """Variance 1 / rows; the blocks' first matrices times gain, plain ones times what ReLU costs.

    False alarm below 1e-6 each: a variance from 4096 numbers has a relative deviation of 2.2 %.
    """
    base = SHAPES[kind]
    shape = Shape(
        inputs=64, width=64, depth=2, classes=64, block=base.block, activation=base.activation
    )
    made = initial(shape, torch.Generator().manual_seed(3), gain=0.5)
    he = 2.0 if base.block == "plain" and base.activation != "tanh" else 1.0
    factors = {"encoder.weight": he, "blocks.weight": he / 4, "blocks.out": 1, "head.weight": 1}
    for name, value in made.items():
        if name.endswith("bias"):
            assert not value.any()
        else:
            assert float(value.var()) * 64 == pytest.approx(factors[name], rel=0.12)
    assert count(shape) == sum(value.numel() for value in made.values())


def test_linear_dynamics_are_near_the_identity():
    """A = I + gain G / sqrt(L width). False alarm below 1e-6: 8192 numbers, 5 deviations of 0.8 %."""
    shape = Shape(inputs=64, width=64, depth=2, classes=64, block="linear", loss="quadratic")
    made = initial(shape, generators(1)[0], gain=0.5)["blocks.weight"] - torch.eye(64)
    assert float(made.std()) == pytest.approx(0.5 / 128**0.5, rel=0.04)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"inputs": 0}, "inputs must be at least 1; got 0"),
        ({"width": 0}, "width must be at least 1; got 0"),
        ({"depth": 0}, "depth must be at least 1; got 0"),
        ({"classes": -1}, "classes must be at least 1; got -1"),
        ({"loss": "quadratic"}, "must be equal; got 5, 6, 4"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(change, says):
    """With the number that is wrong."""
    with pytest.raises(ValueError, match=says):
        Shape(**{"inputs": 5, "width": 6, "depth": 2, "classes": 4, **change})


def test_runs_share_nothing():
    """Changing one run's parameters or inputs changes no number of another."""
    net = net_of(SHAPES["gelu"])
    x, y = batch_of(net.shape)
    first = net.costates(net.trajectory(x, y))
    x2 = x.clone()
    x2[1] = 3
    changed = {name: value.clone() for name, value in net.parameters.items()}
    for value in changed.values():
        value[1] *= 2
    other = net.having(changed)
    second = other.costates(other.trajectory(x2, y))
    assert torch.equal(first[[0, 2]], second[[0, 2]])
    assert not torch.equal(first[1], second[1])
