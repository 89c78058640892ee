"""Gamma, rho and nudge: what they are of known credit, and what they leave alone."""

import pytest
import torch
from credit_helpers import (
    SHAPES,
    VARIANTS,
    batch_of,
    estimator_of,
    exact_costates,
    losses_from,
    net_of,
    trajectory_of,
    view_of,
)

from assay.engines.credit import diagnostics
from assay.engines.credit.diagnostics import Measured, gamma, measured, nudge, report, rho
from assay.engines.credit.estimators.fixed import DirectFeedback

EXACT = {"rtol": 1e-9, "atol": 1e-13}


def found_with(credit, net, t):
    """Measures of a given credit; the truth is our own."""
    return Measured(net, t, credit, exact_costates(net, t)[:, :-1])


def noisy(truth, seed=3, size=1.0):
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(truth.shape, generator=g, dtype=torch.float64)
    return truth + size * truth.square().mean((2, 3), keepdim=True).sqrt() * noise


@pytest.fixture(params=["tanh", "gelu", "relu"])
def made(request):
    net = net_of(SHAPES[request.param])
    return net, trajectory_of(net, samples=24)


def saturated(net):
    """Every third sample is right beyond doubt, so that its costate is tiny but not 0."""
    parameters = {name: value.clone() for name, value in net.parameters.items()}
    parameters["head.weight"] *= 20
    sure = net.having(parameters)
    x, y = batch_of(net.shape, samples=200)
    guess = sure.trajectory(x, y).logits_SBC.argmax(-1)
    y[:, ::3] = guess[:, ::3]
    return sure, x, y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_oracle_is_right(made, dtype):
    """Gamma 1 ± 1e-6 at every layer and a rho near 1, also of a net in float32."""
    net = made[0].to(dtype)
    x, y = batch_of(net.shape, samples=64, dtype=dtype)
    found = measured(net, estimator_of(net.shape, "bp", dtype=torch.float32), x, y)
    gammas, valid = gamma(found)
    assert (gammas - 1).abs().max() < 1e-6
    # Where all units of a ReLU are off there is no direction.
    assert valid.min() > (0.9 if net.shape.block == "plain" else 0.999)
    for each in rho(found, torch.Generator().manual_seed(0), size=1e-4):
        assert each.min() > 0.999


def test_sure_samples_do_not_pull_the_oracle_down():
    """Samples with tiny costates count in full (an eps in the cosine made the source's oracle .940)."""
    net, x, y = saturated(net_of(SHAPES["tanh"]))
    found = measured(net, estimator_of(net.shape, "bp"), x, y)
    lengths = found.truth_SLBD.norm(dim=-1)
    small = (lengths < 1e-8) & (lengths > 1e-12)
    assert small.double().mean() > 0.03
    gammas, valid = gamma(found)
    assert (gammas - 1).abs().max() < 1e-6
    torch.testing.assert_close(valid, (lengths > 1e-12).double().mean((1, 2)))


def test_samples_without_a_direction_are_left_out_and_counted():
    """A costate shorter than 1e-12 counts neither for nor against; the valid rate says how many."""
    net = net_of(SHAPES["tanh"])
    t = trajectory_of(net, samples=20)
    truth = exact_costates(net, t)[:, :-1]
    truth[:, :, :5] *= 1e-12 / truth[:, :, :5].norm(dim=-1, keepdim=True) / 2
    truth[:, :, 5:7] *= 1e-12 / truth[:, :, 5:7].norm(dim=-1, keepdim=True) * 2
    credit = truth.clone()
    credit[:, :, :5] *= -1
    gammas, valid = gamma(Measured(net, t, credit, truth))
    torch.testing.assert_close(gammas, torch.ones_like(gammas), **EXACT)
    assert valid.tolist() == [0.75] * 3


def test_no_credit_has_no_direction():
    """Zero: gamma 0 and rho 0 exactly, and no change by a nudge."""
    net = net_of(SHAPES["gelu"])
    found = measured(net, estimator_of(net.shape, "zero"), *batch_of(net.shape))
    assert not gamma(found)[0].any()
    assert not torch.stack(rho(found, torch.Generator())).any()
    assert nudge(found).abs().max() < 1e-14


def test_gamma_is_the_mean_cosine(made):
    """Over samples, layer by layer and run by run; of the credit's size nothing is left."""
    net, t = made
    truth = exact_costates(net, t)[:, :-1]
    credit = noisy(truth)
    wanted = torch.nn.functional.cosine_similarity(credit, truth, dim=-1, eps=1e-300).mean(-1)
    torch.testing.assert_close(gamma(found_with(credit, net, t))[0], wanted, **EXACT)
    torch.testing.assert_close(gamma(found_with(1e-9 * credit, net, t))[0], wanted, **EXACT)


def test_rho_is_the_weighted_cosine_in_the_limit():
    """Small changes: sum <â, a> / sqrt(sum |â|² sum |a|²) of each layer.

    Credit is (â random) weighted, so that this differs from gamma. With 80,000 changes the
    correlation's standard deviation is below 0.0036: a false alarm (5 deviations) once in 1e6.
    """
    net = net_of(SHAPES["tanh"])
    t = trajectory_of(net, samples=100)
    truth = exact_costates(net, t)[:, :-1]
    credit = noisy(truth, size=0.5) * torch.logspace(-1, 1, 100)[:, None]
    inner = (credit * truth).sum((2, 3))
    wanted = inner / (credit.square().sum((2, 3)) * truth.square().sum((2, 3))).sqrt()
    found = found_with(credit, net, t)
    over_all, within = rho(found, torch.Generator().manual_seed(1), draws=800, size=1e-6)
    assert (over_all - wanted).abs().max() < 0.018
    assert (within - wanted).abs().max() < 0.018
    assert (gamma(found)[0] - wanted).abs().min() > 0.02


def test_rho_is_a_correlation_over_samples_and_changes():
    """Pearson's, of changes of 1 % of the root mean square, drawn once for all runs."""
    net = net_of(SHAPES["relu"], runs=2)
    t = trajectory_of(net, samples=9)
    credit = noisy(exact_costates(net, t)[:, :-1])
    found, within = rho(found_with(credit, net, t), torch.Generator().manual_seed(4))
    drawn = torch.randn(
        (3, 4, 9, 6), generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    for run in range(2):
        p = {name: value[run] for name, value in net.parameters.items()}
        for layer in range(3):
            h = t.h_SLBD[run, layer]
            change = 0.01 * h.square().mean().sqrt() * drawn[layer]
            real = torch.stack(
                [losses_from(net.shape, 1.0, p, layer, h + c, t.y[run]) for c in change]
            )
            pair = torch.stack([(credit[run, layer] * change).sum(-1), real - t.loss_SB[run]])
            wanted = torch.corrcoef(pair.flatten(1))[0, 1]
            torch.testing.assert_close(found[run, layer], wanted, rtol=1e-6, atol=1e-9)
            own = (pair - pair.mean(1, keepdim=True)).flatten(1)
            wanted = torch.corrcoef(own)[0, 1]
            torch.testing.assert_close(within[run, layer], wanted, rtol=1e-6, atol=1e-9)


def test_nudge_is_the_loss_after_a_step_of_one_size(made):
    """h - 0.01 a / (RMS(a) + 1e-6), each sample's own; the exact credit lowers the loss."""
    net, t = made
    truth = exact_costates(net, t)[:, :-1]
    found = nudge(found_with(truth, net, t))
    for run, alpha in enumerate(net.alpha_S):
        p = {name: value[run] for name, value in net.parameters.items()}
        for layer in range(net.shape.depth):
            a = truth[run, layer]
            step = 0.01 * a / (a.square().mean(-1, keepdim=True).sqrt() + 1e-6)
            h = t.h_SLBD[run, layer] - step
            after = losses_from(net.shape, alpha, p, layer, h, t.y[run])
            wanted = (after - t.loss_SB[run]).mean()
            torch.testing.assert_close(found[run, layer], wanted, rtol=1e-7, atol=1e-12)
    assert found.max() < 0


def test_random_feedback_is_right_by_chance_alone():
    """E[gamma of DFA] = 0 on a frozen net, over 2000 draws of the feedback, at every layer.

    A false alarm (5 standard errors, 3 layers) less than once in 5e5.
    """
    runs, one = 2000, net_of(SHAPES["tanh"], runs=1)
    net = one.having({k: v.expand(runs, *v.shape[1:]) for k, v in one.parameters.items()})
    net = type(net)(net.shape, one.alpha_S.expand(runs), net.parameters)
    x, y = (each.expand(runs, *each.shape[1:]) for each in batch_of(net.shape, runs=1))
    dfa = estimator_of(net.shape, "dfa", runs)
    assert isinstance(dfa, DirectFeedback)
    gammas = gamma(measured(net, dfa, x, y))[0]
    score = gammas.mean(0) / (gammas.std(0) / runs**0.5)
    assert gammas.std(0).min() > 0.1
    assert score.abs().max() < 5


def test_copying_is_measured_without_an_estimator():
    """The copy ceiling is the gamma of TerminalCopy, whatever the estimator."""
    net = net_of(SHAPES["tanh"])
    x, y = batch_of(net.shape)
    copied = gamma(measured(net, estimator_of(net.shape, "copy"), x, y))[0]
    other = measured(net, estimator_of(net.shape, "dfa"), x, y)
    torch.testing.assert_close(diagnostics.copy_ceiling(other), copied, **EXACT)


def test_a_report_is_of_each_run():
    """Means over layers 0 … L - 1 by name; the runs of a cohort as each alone, bit for bit."""
    net = net_of(SHAPES["gelu"], dtype=torch.float32)
    x, y = batch_of(net.shape, samples=40, dtype=torch.float32)
    dfa = estimator_of(net.shape, "dfa", dtype=torch.float32)
    together = report(net, dfa, x, y, [4, 5, 6])
    for run in range(3):
        part = slice(run, run + 1)
        one = net.having({k: v[part] for k, v in net.parameters.items()})
        one = type(net)(net.shape, net.alpha_S[part], one.parameters)
        own = estimator_of(net.shape, "dfa", 1, torch.float32, first=100 + run)
        assert report(one, own, x[part], y[part], [4 + run]) == [together[run]]
    found = measured(net, dfa, x, y)
    rms = found.trajectory.h_SLBD.square().mean((2, 3)).sqrt()
    for run, values in enumerate(together):
        assert values["gamma"] == pytest.approx(float(gamma(found)[0][run].mean()))
        assert values["gamma_first"] == pytest.approx(float(gamma(found)[0][run, 0]))
        assert values["nudge_nats"] == pytest.approx(float(nudge(found)[run].mean()))
        assert values["rms_growth"] == pytest.approx(float(rms[run, -1] / rms[run, 0]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_measuring_leaves_the_estimator_as_it_was(variant):
    """State and random numbers, bit for bit, although all is measured in float64."""
    shape = SHAPES["tanh"]
    net = net_of(shape, dtype=torch.float32)
    estimator = estimator_of(shape, dtype=torch.float32, **VARIANTS[variant])
    t = trajectory_of(net)
    estimator.fit_step(t, view_of(net, estimator))
    before = {name: value.clone() for name, value in estimator.state().items()}
    drawn = [g.get_state() for g in estimator.setting.generators]
    first = report(net, estimator, t.x_SBI, t.y, [1, 2, 3])
    assert report(net, estimator, t.x_SBI, t.y, [1, 2, 3]) == first
    assert all(torch.equal(estimator.state()[name], value) for name, value in before.items())
    assert all(value.dtype == before[name].dtype for name, value in estimator.state().items())
    pairs = zip(estimator.setting.generators, drawn, strict=True)
    assert all(torch.equal(g.get_state(), state) for g, state in pairs)


def test_an_estimator_that_fails_in_float64_is_put_back():
    """An error inside leaves precision and random numbers as they were."""
    estimator = estimator_of(SHAPES["tanh"], "dfa", dtype=torch.float32)
    drawn = estimator.setting.generators[0].get_state()

    def measure():
        with diagnostics.in_float64(estimator) as wide:
            torch.randn(1, generator=wide.setting.generators[0])
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        measure()
    assert estimator.state()["feedback"].dtype == torch.float32
    assert torch.equal(estimator.setting.generators[0].get_state(), drawn)
