"""An MLP of torch.nn and a stack of ours are one function."""

import pytest
import torch
from torch import nn

from assay.core.errors import ConfigError
from assay.engines.credit import Shape, from_sequential, gradients, to_sequential
from assay.engines.credit.net import Net, initial

ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU]


def mlp(kind=nn.ReLU, depth=2, *, flatten=False):
    """Of 12 inputs, width 7, 3 classes, in float64."""
    layers = [nn.Flatten()] if flatten else []
    layers += [nn.Linear(12, 7), kind()]
    for _ in range(depth):
        layers += [nn.Linear(7, 7), kind()]
    return nn.Sequential(*layers, nn.Linear(7, 3)).double()


def batch(*size, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(*size, generator=drawn, dtype=torch.float64)
    return x, torch.randint(0, 3, size[:1], generator=drawn)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_the_outputs_are_those_of_the_mlp(kind):
    """Of every activation, to rounding in float64."""
    module = mlp(kind)
    x, y = batch(9, 12)
    found = from_sequential(module).trajectory(x.unsqueeze(0), y.unsqueeze(0))
    assert torch.allclose(found.logits_SBC[0], module(x), rtol=0, atol=1e-12)


def test_the_update_by_the_true_credit_is_the_gradient_of_the_mlp():
    """Layer by layer, as autograd has it for the module."""
    module = mlp(nn.Tanh)
    x, y = batch(9, 12)
    nn.functional.cross_entropy(module(x), y).backward()
    net = from_sequential(module)
    trajectory = net.trajectory(x.unsqueeze(0), y.unsqueeze(0))
    found = gradients(net, trajectory, net.costates(trajectory))
    linears = [layer for layer in module if isinstance(layer, nn.Linear)]
    first, *middle, last = [layer.weight.grad.T for layer in linears]
    wanted = {"encoder.weight": first, "blocks.weight": torch.stack(middle), "head.weight": last}
    for name, value in wanted.items():
        assert torch.allclose(found[name][0], value, rtol=0, atol=1e-12), name


def test_there_and_back_is_the_same_module():
    """Bit for bit, images included."""
    module = mlp(nn.SiLU, 3, flatten=True)
    again = to_sequential(from_sequential(module), flatten=True)
    assert [type(layer) for layer in again] == [type(layer) for layer in module]
    for (name, a), (_, b) in zip(module.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    x, _ = batch(5, 1, 3, 4)
    assert torch.equal(module(x), again(x))


def test_a_conversion_is_a_copy():
    """Training the stack leaves the module alone."""
    module = mlp()
    before = module[0].weight.detach().clone()
    from_sequential(module).parameters["encoder.weight"].zero_()
    assert torch.equal(module[0].weight, before)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)), "Layer 2 .*widths must be equal, here 5"),
        (nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(6, 2)), "Layer 4 .*widths must be equal"),
        (nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2)), "Layer 1 .*activation must stand here"),
        (nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2)), "Layer 2 .*Dropout.*Linear must stand here"),
        (nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)), "Layer 1 .*BatchNorm1d.*activation must"),
        (nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2)), "Layer 3 .*one kind, here relu"),
        (nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2), nn.ReLU()), "Layer 5 .*last layer must be the Linear"),
        (nn.Sequential(nn.Linear(4, 5), nn.GELU("tanh"), nn.Linear(5, 5), nn.GELU(), nn.Linear(5, 2)), "Layer 1 .*exact"),
        (nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5, bias=False), nn.ReLU(), nn.Linear(5, 2)), "Layer 2 .*must have a bias"),
        (nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), "three Linear layers.*got 2"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2)), "Layer 0 .*keep the samples"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5, 2)), "Layer 0 .*Conv2d"),
        (nn.Sequential(), "three Linear layers.*got 0"),
    ],
)  # fmt: skip
def test_what_is_no_plain_mlp_is_refused_by_its_layer(module, message):
    """With the rule that it breaks, and what can be converted."""
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        from_sequential(module)


def test_a_layer_is_named_as_the_module_names_it():
    """Not by its number, where it has a name."""
    module = nn.Sequential()
    module.add_module("into", nn.Linear(4, 5))
    module.add_module("drop", nn.Dropout())
    with pytest.raises(ConfigError, match="Layer drop"):
        from_sequential(module)


def test_residual_blocks_are_no_mlp():
    """A net of tanh blocks has norms and skip connections."""
    shape = Shape(inputs=4, width=5, depth=2, classes=3)
    drawn = initial(shape, torch.Generator())
    net = Net(shape, torch.ones(1), {name: value.unsqueeze(0) for name, value in drawn.items()})
    with pytest.raises(ConfigError, match='block = "tanh"'):
        to_sequential(net)


def test_images_of_another_size_are_refused():
    """With the numbers that the encoder reads, and those that came."""
    x, y = batch(5, 11)
    with pytest.raises(ConfigError, match="reads inputs of 12 numbers; got 11"):
        from_sequential(mlp()).trajectory(x.unsqueeze(0), y.unsqueeze(0))


def test_an_activation_may_stand_more_than_once():
    """One module for all places, as is often written."""
    bent = nn.ReLU()
    mlp = nn.Sequential(nn.Linear(8, 6), bent, nn.Linear(6, 6), bent, nn.Linear(6, 4))
    x = torch.randn(5, 8)
    net = from_sequential(mlp)
    found = net.trajectory(x.unsqueeze(0), torch.zeros(1, 5, dtype=torch.int64)).logits_SBC[0]
    torch.testing.assert_close(found, mlp(x))


def test_a_linear_that_stands_twice_is_refused():
    """Its weights are one; as a stack they would part."""
    twice, bent = nn.Linear(6, 6), nn.Tanh()
    mlp = nn.Sequential(nn.Linear(8, 6), bent, twice, bent, twice, bent, nn.Linear(6, 4))
    with pytest.raises(ConfigError, match="stands at 2, 4 too"):
        from_sequential(mlp)
