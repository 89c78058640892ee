"""A plain MLP of torch.nn as a stack of ours, and back: the same function, number for number."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from assay.core.errors import ConfigError
from assay.engines.credit.activations import Activation
from assay.engines.credit.net import Net, Shape

MODULES: dict[type[nn.Module], Activation] = {
    nn.Tanh: "tanh",
    nn.ReLU: "relu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
}
FORM = "Flatten (or not), Linear, activation, Linear, activation, …, Linear"


def from_sequential(module: nn.Sequential) -> Net:
    """A stack of one run whose logits are those of an MLP.

    The first Linear and its activation are the encoder, the last Linear is the head, and each pair
    between is a block: "plain", with the same width throughout. The numbers are copied.

    Args:
        module: Flatten (or not), then Linear layers with one kind of activation between them: ReLU,
            Tanh, exact GELU or SiLU. At least three Linear layers; all with biases.

    Raises:
        ConfigError: It is anything else; names the layer.
    """
    # Not named_children, which leaves out what stands twice.
    parts = [(name, layer) for name, layer in module._modules.items() if layer is not None]
    if parts and isinstance(parts[0][1], nn.Flatten):
        if (parts[0][1].start_dim, parts[0][1].end_dim) != (1, -1):
            raise _refused(*parts[0], "a Flatten must keep the samples and flatten all else")
        parts = parts[1:]
    linears: list[nn.Linear] = []
    activations: list[Activation] = []
    # In their order, so that the first that does not fit is the one that is named.
    for place, (name, layer) in enumerate(parts):
        if place % 2 == 0:
            linears.append(_linear(name, layer))
        else:
            activations.append(_activation(name, layer))
    _apart(parts)
    if len(linears) < 3:
        raise ConfigError(
            f"An MLP must have at least three Linear layers (encoder, a block, head); got {len(linears)}: "
            "with fewer, no hidden layer is left whose credit would have to be estimated."
        )
    if len(activations) == len(linears):
        raise _refused(*parts[-1], "the last layer must be the Linear that gives the logits")
    _same(parts, linears, activations)
    first, *middle, last = linears
    shape = Shape(
        inputs=first.in_features,
        width=first.out_features,
        depth=len(middle),
        classes=last.out_features,
        block="plain",
        activation=activations[0],
    )
    parameters = {
        "encoder.weight": _rows([first])[0],
        "encoder.bias": _biases([first])[0],
        "blocks.weight": _rows(middle),
        "blocks.bias": _biases(middle),
        "head.weight": _rows([last])[0],
        "head.bias": _biases([last])[0],
    }
    stacked = {name: value.unsqueeze(0).contiguous() for name, value in parameters.items()}
    return Net(shape, torch.ones(1, dtype=first.weight.dtype), stacked)


def to_sequential(net: Net, run: int = 0, *, flatten: bool = False) -> nn.Sequential:
    """One run of a plain stack as an MLP; the numbers are copied.

    Args:
        net: Of blocks "plain".
        run: Which run.
        flatten: Whether the MLP begins with a Flatten, for images.

    Raises:
        ConfigError: Its blocks are others: their norms or skip connections are no MLP.
    """
    shape = net.shape
    if shape.block != "plain":
        raise ConfigError(
            f'Only a net of plain blocks is an MLP; this one has block = "{shape.block}". Train one with '
            'block = "plain".'
        )
    activation = next(module for module, name in MODULES.items() if name == shape.activation)
    own = {name: value[run].detach() for name, value in net.parameters.items()}
    matrices = [own["encoder.weight"], *own["blocks.weight"], own["head.weight"]]
    biases = [own["encoder.bias"], *own["blocks.bias"], own["head.bias"]]
    layers: list[nn.Module] = [nn.Flatten()] if flatten else []
    for matrix, bias in zip(matrices, biases, strict=True):
        linear = nn.Linear(matrix.shape[0], matrix.shape[1], dtype=matrix.dtype)
        with torch.no_grad():
            linear.weight.copy_(matrix.T)
            linear.bias.copy_(bias)
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


def _rows(linears: Sequence[nn.Linear]) -> Tensor:
    """Matrices that act on rows."""
    return torch.stack([each.weight.detach().T for each in linears])


def _biases(linears: Sequence[nn.Linear]) -> Tensor:
    return torch.stack([each.bias.detach() for each in linears])


def _refused(name: str, layer: nn.Module, rule: str) -> ConfigError:
    return ConfigError(
        f"Layer {name} of the MLP is {layer}: {rule}. What can be converted is {FORM}."
    )


def _linear(name: str, layer: nn.Module) -> nn.Linear:
    if not isinstance(layer, nn.Linear):
        raise _refused(name, layer, "a Linear must stand here")
    # A layer without one would get a bias by training, and be no longer what it was.
    if layer.bias is None:
        raise _refused(
            name,
            layer,
            "it must have a bias (zeros change nothing), as every layer here learns one",
        )
    return layer


def _activation(name: str, layer: nn.Module) -> Activation:
    found = MODULES.get(type(layer))
    if found is None or getattr(layer, "approximate", "none") != "none":
        known = ", ".join(module.__name__ for module in MODULES)
        raise _refused(name, layer, f"an activation must stand here: {known} (exact)")
    return found


def _apart(parts: Sequence[tuple[str, nn.Module]]) -> None:
    """Refuse weights that stand twice."""
    for name, layer in parts:
        places = [other for other, each in parts if each is layer]
        if len(places) > 1 and isinstance(layer, nn.Linear):
            rule = f"it stands at {', '.join(places)} too, and here every layer learns weights of its own"
            raise _refused(name, layer, rule)


def _same(
    parts: Sequence[tuple[str, nn.Module]],
    linears: Sequence[nn.Linear],
    activations: Sequence[Activation],
) -> None:
    """Refuse a second width, a second activation, or layers that do not fit."""
    width = linears[0].out_features
    for place, layer in enumerate(linears):
        into = linears[0].in_features if place == 0 else width
        out = layer.out_features if place == len(linears) - 1 else width
        if (layer.in_features, layer.out_features) != (into, out):
            rule = f"all hidden widths must be equal, here {width}"
            raise _refused(*parts[2 * place], rule)
    for place, kind in enumerate(activations):
        if kind != activations[0]:
            raise _refused(
                *parts[2 * place + 1], f"all activations must be of one kind, here {activations[0]}"
            )
