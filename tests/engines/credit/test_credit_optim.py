"""Stacked optimizers against torch's, run by run."""

import pytest
import torch

from assay.engines.credit.optim import Optimizer, clip_each
from assay.engines.credit.train import clipped

RUNS, STEPS = 3, 12
SIZES = {"a.weight": (4, 5), "a.bias": (5,), "blocks.weight": (2, 4, 4), "blocks.bias": (2, 4)}
LR = (0.1, 0.01, 0.3)


def drawn(seed):
    g = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(RUNS, *size, generator=g, dtype=torch.float64)
        for name, size in SIZES.items()
    }


def stacked(kind, **settings):
    """Parameters after some steps, all runs at once."""
    parameters = drawn(0)
    optimizer = Optimizer(parameters, kind, **settings)
    for step in range(STEPS):
        optimizer.step(drawn(step + 1), torch.tensor(LR, dtype=torch.float64))
    return parameters


def alone(run, make):
    """The same by an optimizer of torch, for one run."""
    leaves = {name: value[run].clone().requires_grad_() for name, value in drawn(0).items()}
    optimizer = make(leaves, LR[run])
    for step in range(STEPS):
        for name, value in drawn(step + 1).items():
            leaves[name].grad = value[run].clone()
        optimizer.step()
    return leaves


def adamw(decay):
    """Decay on matrices, none on biases."""

    def make(leaves, lr):
        groups = [
            {"params": [p], "weight_decay": 0.0 if name.endswith("bias") else decay}
            for name, p in leaves.items()
        ]
        return torch.optim.AdamW(groups, lr=lr)

    return make


WAYS = {
    "adam": ({"kind": "adam"}, lambda run: lambda p, lr: torch.optim.Adam(p.values(), lr=lr)),
    "sgd": ({"kind": "sgd"}, lambda run: lambda p, lr: torch.optim.SGD(p.values(), lr=lr)),
    "momentum": (
        {"kind": "sgd", "momentum": 0.9},
        lambda run: lambda p, lr: torch.optim.SGD(p.values(), lr=lr, momentum=0.9),
    ),
    "decay": (
        {"kind": "adam", "decay_S": torch.tensor([0.0, 0.5, 0.1], dtype=torch.float64)},
        lambda run: adamw((0.0, 0.5, 0.1)[run]),
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("run", range(RUNS))
def test_a_stacked_optimizer_is_torchs_for_each_run(way, run):
    """Adam, SGD, SGD with momentum and AdamW (no decay of biases), with a rate of each run's own."""
    settings, make = WAYS[way]
    found, wanted = stacked(**settings), alone(run, make(run))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name][run], value.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_run_is_what_it_is_alone(kind):
    """float32, sizes that fill no vector, gradients that may lie transposed: bit for bit in any stack."""
    g = torch.Generator().manual_seed(0)
    start = {"a.weight": torch.randn(5, 37, 11, generator=g), "b": torch.randn(5, 3, generator=g)}
    found = {}
    for first, last in ((0, 5), (1, 4), *((run, run + 1) for run in range(5))):
        parameters = {name: value[first:last].clone() for name, value in start.items()}
        optimizer = Optimizer(parameters, kind, decay_S=torch.tensor([0.1] * (last - first)))
        again = torch.Generator().manual_seed(1)
        for _ in range(3):
            drawn = {"a.weight": torch.randn(5, 11, 37, generator=again).mT}
            drawn["b"] = torch.randn(5, 3, generator=again)
            rates = torch.linspace(0.01, 0.03, 5)[first:last]
            if last - first == 1:
                drawn["a.weight"] = drawn["a.weight"].contiguous()
            optimizer.step({name: value[first:last] for name, value in drawn.items()}, rates)
        for run in range(first, last):
            for name, value in parameters.items():
                assert torch.equal(
                    value[run - first], found.setdefault((run, name), value[run - first])
                )


def test_a_stopped_optimizer_goes_on():
    """All that a next step depends on is in `state`."""
    whole = stacked("adam")
    parameters = drawn(0)
    optimizer = Optimizer(parameters)
    for step in range(STEPS):
        if step == 5:
            kept = {name: value.clone() for name, value in optimizer.state.items()}
            optimizer = Optimizer(parameters)
            for name, value in optimizer.state.items():
                value.copy_(kept[name])
        optimizer.step(drawn(step + 1), torch.tensor(LR, dtype=torch.float64))
    assert all(torch.equal(parameters[name], value) for name, value in whole.items())


@pytest.mark.parametrize("axes", [1, 2])
def test_clipping_is_apart(axes):
    """Each run (and each block) by its own norm over all tensors; what is short stays bit for bit."""
    g = torch.Generator().manual_seed(0)
    sizes = torch.tensor([0.01, 1.0, 100.0])
    gradients = {
        name: torch.randn(3, 2, *size, generator=g) * sizes.view(3, 1, *[1] * len(size))
        for name, size in (("weight", (4, 4)), ("bias", (4,)))
    }
    gradients = {name: value.double() for name, value in gradients.items()}
    found = clip_each(gradients, 1.0, axes)
    flat = torch.cat([value.flatten(axes) for value in gradients.values()], -1)
    after = torch.cat([value.flatten(axes) for value in found.values()], -1)
    length = flat.norm(dim=-1, keepdim=True)
    wanted = torch.where(length > 1, flat / length, flat)
    torch.testing.assert_close(after, wanted, rtol=1e-9, atol=1e-12)
    assert torch.equal(found["weight"][0], gradients["weight"][0])


def test_encoder_blocks_and_head_are_clipped_apart():
    """One long block shortens neither another block, nor the encoder, nor the head."""
    gradients = {
        "encoder.weight": torch.ones(2, 3, 3),
        "blocks.weight": torch.full((2, 2, 3, 3), 0.01),
        "blocks.bias": torch.full((2, 2, 3), 0.01),
        "head.weight": torch.full((2, 3, 2), 0.02),
        "head.bias": torch.zeros(2, 2),
    }
    gradients["blocks.weight"][1, 0] = 7.0
    found = clipped(gradients, 1.0)
    assert found.keys() == gradients.keys()
    assert torch.equal(found["head.weight"], gradients["head.weight"])
    assert torch.equal(found["blocks.weight"][0], gradients["blocks.weight"][0])
    assert torch.equal(found["blocks.weight"][1, 1], gradients["blocks.weight"][1, 1])
    long = torch.cat([found["blocks.weight"][1, 0].flatten(), found["blocks.bias"][1, 0]])
    assert float(long.norm()) == pytest.approx(1)
    assert float(found["encoder.weight"][0].norm()) == pytest.approx(1)
