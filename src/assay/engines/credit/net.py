"""Stacks of equal blocks, for S runs at once, and their per-sample costates.

A net maps x to h_0 (encoder), h_l to h_{l+1} (block l of L), and h_L to a loss (head). All numbers
have a leading axis of runs; runs share nothing. The costate a_l of a sample is the derivative of
*its own* loss by its h_l, not that of the batch mean (which is 1/B of it).
"""

# Suffixes in this package: S = runs, L = blocks, B = samples, I = inputs, D = width, C = classes,
# R = rows (any number of samples).

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from assay.core.errors import ConfigError
from assay.engines.credit.activations import ACTIVATIONS, Activation, slope

BlockKind = Literal["tanh", "gelu", "plain", "linear"]
"""What block l does to h:
"tanh": h + phi(W LN(h) + b), phi(z) = (1 - alpha) z + alpha tanh z;
"gelu": h + V gelu(W LN(h));
"plain": phi(W h + b), with the activation of a converted MLP;
"linear": W h, fixed (the toy dynamics)."""
Loss = Literal["cross-entropy", "quadratic"]

MATRICES = ("blocks.weight", "blocks.out")
"""A block's matrices, in the order in which it multiplies by them."""
Matmul = Callable[[Tensor, Tensor], Tensor]
"""How a block multiplies rows [..., R, D] by a matrix [..., D, D]."""


def plainly(index: int) -> Matmul:
    """What every block multiplies with, unless someone stands guard."""
    return torch.matmul


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a stack is made of.

    Attributes:
        inputs: Numbers of one input; with the quadratic loss the input is h_0 itself.
        width: Numbers of a hidden state.
        depth: Blocks.
        classes: Classes; with the quadratic loss the width.
        block: What a block does.
        activation: Of plain blocks and of their encoder.
        loss: "cross-entropy" of logits W_out h_L + c, or "quadratic": half the squared distance of
            h_L and a target.
    """

    inputs: int
    width: int
    depth: int
    classes: int
    block: BlockKind = "tanh"
    activation: Activation = "relu"
    loss: Loss = "cross-entropy"

    def __post_init__(self) -> None:
        for name in ("inputs", "width", "depth", "classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.loss == "quadratic" and not self.inputs == self.width == self.classes:
            raise ValueError(
                "the quadratic loss compares h_L with a target and reads h_0: inputs, width and "
                f"classes must be equal; got {self.inputs}, {self.width}, {self.classes}"
            )


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One batch through the net, all detached: what an estimator may look at.

    Attributes:
        x_SBI: Inputs.
        y: Labels [S, B] (int64), or targets [S, B, D] of the quadratic loss.
        h_SLBD: States h_0 … h_L: L + 1 of them.
        logits_SBC: Of the head; h_L for the quadratic loss.
        loss_SB: Loss of each sample, nats.
        error_SBC: Derivative of the loss by the logits: softmax − one-hot, or h_L − target.
        last_SBD: Derivative of the loss by h_L, which needs the head alone.
        kept: What each block's own gradient needs of its forward pass, see `block_forward`.
    """

    x_SBI: Tensor
    y: Tensor
    h_SLBD: Tensor
    logits_SBC: Tensor
    loss_SB: Tensor
    error_SBC: Tensor
    last_SBD: Tensor
    kept: Sequence[Sequence[Tensor]]


@dataclass(frozen=True, slots=True)
class Net:
    """S stacks of one shape.

    Attributes:
        shape: Of all.
        alpha_S: Share of tanh in the activation of "tanh" blocks, each run its own.
        parameters: Name → tensor with a leading axis of runs; see `initial`.
        matmul: Number of a block → how it multiplies.
    """

    shape: Shape
    alpha_S: Tensor
    parameters: Mapping[str, Tensor]
    matmul: Callable[[int], Matmul] = plainly

    def to(self, dtype: torch.dtype) -> "Net":
        """A copy in another precision (a view of the same numbers where it is the same)."""
        moved = {name: value.to(dtype) for name, value in self.parameters.items()}
        return replace(self, alpha_S=self.alpha_S.to(dtype), parameters=moved)

    def having(self, changed: Mapping[str, Tensor]) -> "Net":
        """The same net with other numbers for some parameters."""
        return replace(self, parameters={**self.parameters, **changed})

    def encode(self, x_SBI: Tensor) -> Tensor:
        """h_0 of inputs, [S, B, D]; raises as `affine`."""
        return self.entered(self.affine(x_SBI))

    def affine(self, x_SBI: Tensor) -> Tensor:
        """What the encoder makes of inputs before its activation: linear in its parameters.

        Raises:
            ConfigError: The inputs are of another size than the encoder's.
        """
        if x_SBI.shape[-1] != self.shape.inputs:
            raise ConfigError(
                f"The encoder of this net reads inputs of {self.shape.inputs} numbers; got {x_SBI.shape[-1]} "
                f"(of shape {list(x_SBI.shape)}: runs, samples, numbers). Flatten images, and give those of "
                "the size that the net was made for."
            )
        if self.shape.loss == "quadratic":
            return x_SBI
        weight = self.parameters["encoder.weight"]
        if self.shape.block != "plain":
            return torch.bmm(x_SBI, weight)
        return torch.baddbmm(self.parameters["encoder.bias"].unsqueeze(1), x_SBI, weight)

    def entered(self, z_SBD: Tensor) -> Tensor:
        """h_0 of what `affine` gives."""
        return ACTIVATIONS[self.shape.activation](z_SBD) if self.shape.block == "plain" else z_SBD

    def block(self, index: int, h_SRD: Tensor) -> Tensor:
        """h_{index + 1} of states h_index."""
        return self.forward(index, h_SRD)[0]

    def forward(
        self, index: int, h_SRD: Tensor, into: Tensor | None = None
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """h_{index + 1}, and what is kept of it; see `block_forward`."""
        part, matmul = self.of_block(index), self.matmul(index)
        return block_forward(self.shape, self.alpha_S, part, h_SRD, matmul, into)

    def of_block(self, index: int) -> dict[str, Tensor]:
        """One block's parameters, [S, ...]."""
        return {
            name: value[:, index]
            for name, value in self.parameters.items()
            if name.startswith("blocks.")
        }

    def head(self, h_SRD: Tensor) -> Tensor:
        """Logits [S, R, C] of last states."""
        if self.shape.loss == "quadratic":
            return h_SRD
        return torch.baddbmm(
            self.parameters["head.bias"].unsqueeze(1), h_SRD, self.parameters["head.weight"]
        )

    def losses(self, logits_SRC: Tensor, y: Tensor) -> Tensor:
        """Loss of each row, [S, R]."""
        if self.shape.loss == "quadratic":
            return (logits_SRC - y).square().sum(-1) / 2
        return functional.cross_entropy(logits_SRC.mT, y, reduction="none")

    def error(self, logits_SRC: Tensor, y: Tensor) -> Tensor:
        """Derivative of each row's loss by its logits."""
        if self.shape.loss == "quadratic":
            return logits_SRC - y
        return logits_SRC.softmax(-1) - functional.one_hot(y, self.shape.classes)

    def losses_and_errors(self, logits_SRC: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both, by one softmax; nothing of it can be differentiated."""
        if self.shape.loss == "quadratic":
            return self.losses(logits_SRC, y), self.error(logits_SRC, y)
        # Over rows torch takes ten times as long.
        chances, right = logits_SRC.mT.log_softmax(-2).mT.contiguous(), y.unsqueeze(-1)
        loss = -chances.gather(-1, right).squeeze(-1)
        return loss, chances.exp_().scatter_add_(
            -1, right, -torch.ones_like(right, dtype=loss.dtype)
        )

    def last_credit(self, error_SRC: Tensor) -> Tensor:
        """Derivative of each row's loss by h_L, from that by its logits."""
        if self.shape.loss == "quadratic":
            return error_SRC
        return torch.bmm(error_SRC, self.parameters["head.weight"].mT)

    def tail(self, start: int, h_SRD: Tensor, y: Tensor) -> Tensor:
        """Loss [S, R] of each row whose state h_start is given."""
        h = h_SRD
        for index in range(start, self.shape.depth):
            h = self.block(index, h)
        return self.losses(self.head(h), y)

    @torch.no_grad()
    def trajectory(self, x_SBI: Tensor, y: Tensor) -> Trajectory:
        """A batch through the net; nothing of it can be differentiated."""
        first, depth = self.encode(x_SBI), self.shape.depth
        h = first.new_empty(first.shape[0], depth + 1, *first.shape[1:])
        h[:, 0] = first
        kept = [self.forward(index, h[:, index], h[:, index + 1])[1] for index in range(depth)]
        logits = self.head(h[:, -1])
        loss, error = self.losses_and_errors(logits, y)
        return Trajectory(
            x_SBI=x_SBI,
            y=y,
            h_SLBD=h,
            logits_SBC=logits,
            loss_SB=loss,
            error_SBC=error,
            last_SBD=self.last_credit(error),
            kept=kept,
        )

    def costates(self, trajectory: Trajectory) -> Tensor:
        """Exact costates a_0 … a_L of every sample, [S, L + 1, B, D], by reverse mode.

        For diagnostics and for the oracle: what no estimator may use.
        """
        states = [trajectory.h_SLBD[:, 0].detach().requires_grad_()]
        with torch.enable_grad():
            for index in range(self.shape.depth):
                states.append(self.block(index, states[-1]))
            loss = self.losses(self.head(states[-1]), trajectory.y).sum()
        return torch.stack(torch.autograd.grad(loss, states), 1)


def block_forward(
    shape: Shape,
    alpha_S: Tensor,
    part: Mapping[str, Tensor],
    h_SRD: Tensor,
    matmul: Matmul = torch.matmul,
    into: Tensor | None = None,
) -> tuple[Tensor, Sequence[Tensor]]:
    """What one block makes of its input, and what its own gradient needs: see `block_gradient`.

    Args:
        shape: Of the stack.
        alpha_S: Share of tanh.
        part: The block's parameters.
        h_SRD: Its input.
        matmul: How it multiplies.
        into: Where the output is written (it may be the input), if nothing is to be differentiated:
            fewer passes then, and the same bits.

    Returns:
        The output; and the rows that are multiplied by each matrix, and what comes out of the first.
    """
    weight = part["blocks.weight"]
    if shape.block == "linear":
        return _placed(matmul(h_SRD, weight), into), ()
    if shape.block == "gelu":
        rows = norm(h_SRD)
        z = matmul(rows, weight)
        bent = functional.gelu(z)
        return torch.add(h_SRD, matmul(bent, part["blocks.out"]), out=into), (rows, z, bent)
    bias = part["blocks.bias"].unsqueeze(-2)
    rows = h_SRD if shape.block == "plain" else norm(h_SRD)
    z = matmul(rows, weight)
    z = z + bias if into is None else z.add_(bias)
    if shape.block == "plain":
        return _placed(ACTIVATIONS[shape.activation](z), into), (h_SRD, z)
    bent, alpha = torch.tanh(z), alpha_S.view(-1, 1, 1)
    z = torch.lerp(z, bent, alpha) if into is None else z.lerp_(bent, alpha)
    return torch.add(h_SRD, z, out=into), (rows, bent)


def _placed(made: Tensor, into: Tensor | None) -> Tensor:
    return made if into is None else into.copy_(made)


def block_gradient(
    shape: Shape,
    alpha_S: Tensor,
    part: Mapping[str, Tensor],
    kept: Sequence[Tensor],
    out_SRD: Tensor,
    into: Mapping[str, Tensor],
) -> None:
    """Gradient of <out, a block's output> by its own parameters, its input a constant.

    Args:
        shape: Of the stack.
        alpha_S: Share of tanh.
        part: The block's parameters.
        kept: As `block_forward` gave it.
        out_SRD: What the output is weighted by.
        into: Where the gradients are written, by the parameters' names.
    """
    if shape.block == "linear":
        into["blocks.weight"].zero_()
        return
    if shape.block == "gelu":
        rows, z, bent = kept
        back = torch.bmm(out_SRD, part["blocks.out"].mT)
        torch.bmm(bent.mT, out_SRD, out=into["blocks.out"])
        torch.bmm(rows.mT, torch.ops.aten.gelu_backward(back, z), out=into["blocks.weight"])
        return
    rows, z = kept
    if shape.block == "plain":
        back = out_SRD * slope(shape.activation, z)
    else:
        # z is tanh of itself here.
        through = torch.ops.aten.tanh_backward(out_SRD, z)
        back = torch.lerp(out_SRD, through, alpha_S.view(-1, 1, 1), out=through)
    torch.bmm(rows.mT, back, out=into["blocks.weight"])
    torch.sum(back, -2, out=into["blocks.bias"])


def norm(h: Tensor) -> Tensor:
    """Layer norm without weights, eps 1e-5."""
    return functional.layer_norm(h, h.shape[-1:])


def initial(shape: Shape, generator: torch.Generator, gain: float = 1.0) -> dict[str, Tensor]:
    """Parameters of one run, without the axis of runs: float32.

    Every matrix is normal with variance 1 / rows; those of the blocks times `gain`, those of plain
    blocks and their encoder times what keeps the variance through a ReLU (He et al. 2015). Biases
    are 0. Matrices act on rows: h W.

    Args:
        shape: Of the stack.
        generator: Draws them, in the order encoder, blocks, head.
        gain: Factor on the blocks' first matrices.
    """

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator) / size[-2] ** 0.5

    inputs, width, depth, classes = shape.inputs, shape.width, shape.depth, shape.classes
    if shape.loss == "quadratic":
        eye = torch.eye(width)
        noise = torch.randn((depth, width, width), generator=generator)
        return {"blocks.weight": eye + gain * noise / (depth * width) ** 0.5}
    keep = 2**0.5 if shape.block == "plain" and shape.activation != "tanh" else 1.0
    made = {"encoder.weight": keep * normal(inputs, width)}
    if shape.block == "plain":
        made["encoder.bias"] = torch.zeros(width)
    made["blocks.weight"] = keep * gain * normal(depth, width, width)
    if shape.block == "gelu":
        made["blocks.out"] = normal(depth, width, width)
    else:
        made["blocks.bias"] = torch.zeros(depth, width)
    made["head.weight"] = normal(width, classes)
    made["head.bias"] = torch.zeros(classes)
    return made


def count(shape: Shape) -> int:
    """Trained numbers of one run."""
    return sum(value.numel() for value in initial(shape, torch.Generator()).values())
