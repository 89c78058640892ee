"""What an estimator may differentiate: the view of the net that it is given, and its guard.

Allowed to all: the derivative of the loss by logits and h_L (they lie in the `Trajectory`), and
anything inside the estimator's own net. Everything else is declared, and a method of `View`:

    tail            losses of changed states: forward evaluations
    tail-jvp        forward-mode derivatives of those losses
    feedback-chain  reverse mode through a block whose matrices are replaced by others
    block-vjp       reverse mode through one block (DNI)
    weights         the net's own parameters, and forward passes with them
    oracle          reverse mode through all: the true costates

The view's net multiplies by `Guarded`, whose backward raises, so that no estimator backpropagates by
accident. A declaration is trusted: who has `block-vjp`, `weights` or `feedback-chain` with the net's own
matrices could chain the exact credit, and the log says what was declared so that a reader can ask.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.autograd.function import once_differentiable

from assay.core.errors import AssayError
from assay.engines.credit.net import MATRICES, Matmul, Net, Trajectory, block_forward

Derivative = Literal["tail", "tail-jvp", "feedback-chain", "block-vjp", "weights", "oracle"]
DERIVATIVES: frozenset[Derivative] = frozenset(
    ("tail", "tail-jvp", "feedback-chain", "block-vjp", "weights", "oracle")
)


EVERY = "h_0 … h_{L - 1}"
"""Where all layers are given in one tensor."""


class CreditError(AssayError):
    """An estimator did what it may not, or gave what is no credit."""


class Guarded(torch.autograd.Function):
    """A matrix product with values and forward-mode derivatives, and no reverse mode."""

    @staticmethod
    def forward(h: Tensor, weight: Tensor, who: str, index: int) -> Tensor:
        """The product."""
        return torch.matmul(h, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the derivatives need, and whom to blame."""
        h, weight, ctx.who, ctx.index = inputs
        ctx.save_for_forward(h, weight)

    @staticmethod
    def jvp(ctx: Any, h_dot: Tensor | None, weight_dot: Tensor | None, *_: None) -> Tensor:
        """Forward mode: allowed."""
        h, weight = ctx.saved_tensors
        parts = []
        if h_dot is not None:
            parts.append(torch.matmul(h_dot, weight))
        if weight_dot is not None:
            parts.append(torch.matmul(h, weight_dot))
        return sum(parts[1:], parts[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Reverse mode: never."""
        raise CreditError(
            f"Estimator {ctx.who} took a reverse-mode derivative through block {ctx.index}. Hidden "
            "backpropagation is what an estimator must do without: use view.tail, view.tail_jvp, or "
            "declare and call view.block_vjp."
        )


class Replaced(torch.autograd.Function):
    """A matrix product whose derivative by its rows uses another matrix (feedback alignment)."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, feedback: Tensor) -> Tensor:
        """The product with the true matrix."""
        ctx.save_for_backward(feedback)
        return torch.matmul(h, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Transport by the feedback matrix; the matrices themselves get nothing."""
        (feedback,) = ctx.saved_tensors
        return torch.matmul(grads[0], feedback.mT), None, None


class View:
    """The net, as an estimator may use it.

    Args:
        net: Of all runs.
        who: Name of the estimator, for errors.
        declared: What it says that it uses.

    Attributes:
        shape: Of the nets.
        sizes: Name of a parameter of the net → its shape, a leading axis of runs included.
    """

    def __init__(self, net: Net, who: str, declared: frozenset[Derivative]) -> None:
        unknown = declared - DERIVATIVES
        if unknown:
            raise CreditError(
                f"Estimator {who} declares {sorted(unknown)}; derivatives are {sorted(DERIVATIVES)}."
            )

        def guarded(index: int) -> Matmul:
            return lambda h, weight: Guarded.apply(h, weight, who, index)

        self.shape = net.shape
        self.sizes = {name: list(value.shape) for name, value in net.parameters.items()}
        self._guarded = replace(net, matmul=guarded)
        self._who = who
        self._declared = declared
        # What only the declared methods below may use.
        self.__net = net

    def _need(self, derivative: Derivative, where: str = "") -> None:
        if derivative not in self._declared:
            raise CreditError(
                f"Estimator {self._who} used {derivative!r}{where}, which it does not declare (it declares "
                f"{sorted(self._declared) or 'nothing'}). Add it to `derivatives`, so that the log can say "
                "what it rests on."
            )

    def _undifferentiated(self, method: str, given: Mapping[str, Tensor]) -> None:
        """Losses are given without their history: a derivative through them would quietly be none."""
        followed = next((where for where, tensor in given.items() if _is_followed(tensor)), None)
        if followed is not None:
            raise CreditError(
                f"Estimator {self._who} gave view.{method} numbers of {followed} that it is differentiating. Hidden "
                "backpropagation is what an estimator must do without, and what comes back has no history. "
                "Give it numbers.detach(), or declare and call view.tail_jvp for forward mode."
            )

    @property
    def net(self) -> Net:
        """The net, whose reverse mode is barred."""
        self._need("weights")
        return self._guarded

    def blocks(self, h_SLBD: Tensor) -> Tensor:
        """h_1 … h_L that each block makes of a given input of its own."""
        self._need("tail")
        self._undifferentiated("blocks", {EVERY: h_SLBD})
        with torch.no_grad():
            return torch.stack(
                [self._guarded.block(i, h) for i, h in enumerate(h_SLBD.unbind(1))], 1
            )

    def tail(self, layers: Sequence[int], states: Sequence[Tensor], y: Tensor) -> Tensor:
        """Losses of states put in at several layers, in one sweep through the net.

        Args:
            layers: Layers, ascending.
            states: For each, [S, N, B, D]: N states of each sample.
            y: Labels or targets of the samples.

        Returns:
            [S, layers, N, B].
        """
        self._need("tail")
        self._undifferentiated("tail", _of(layers, states))
        with torch.no_grad():
            return _sweep(self._guarded, layers, states, y, in_place=True)

    def tail_jvp(
        self, layers: Sequence[int], states: Sequence[Tensor], tangents: Sequence[Tensor], y: Tensor
    ) -> Tensor:
        """Derivatives of those losses along tangents of the states; as `tail`."""
        self._need("tail-jvp")
        for given in (states, tangents):
            self._undifferentiated("tail_jvp", _of(layers, given))
        # Forward mode writes beside each number, so those that share one place must be copied.
        at = tuple(state.contiguous() for state in states)
        with torch.no_grad():
            change = torch.func.jvp(
                lambda *given: _sweep(self._guarded, layers, given, y, in_place=False),
                at,
                tuple(tangents),
            )[1]
        return change

    def perturbed(self, trajectory: Trajectory, noise_SLBD: Tensor) -> Tensor:
        """Losses [S, B] where noise is added to h_0 … h_{L - 1}, each where it arises."""
        self._need("tail")
        self._undifferentiated("perturbed", {EVERY: noise_SLBD})
        with torch.no_grad():
            return _with_noise(self._guarded, trajectory, noise_SLBD)

    def perturbed_jvp(self, trajectory: Trajectory, tangent_SLBD: Tensor) -> Tensor:
        """Derivative [S, B] of each loss along a tangent of h_0 … h_{L - 1} together."""
        self._need("tail-jvp")
        self._undifferentiated("perturbed_jvp", {EVERY: tangent_SLBD})
        with torch.no_grad():
            change = torch.func.jvp(
                lambda noise: _with_noise(self._guarded, trajectory, noise),
                (torch.zeros_like(tangent_SLBD),),
                (tangent_SLBD,),
            )[1]
        return change

    def loss_at(self, trajectory: Trajectory, change: Mapping[str, Tensor]) -> Tensor:
        """Mean loss [S] of the batch where the parameters are changed by so much."""
        self._need("tail")
        self._undifferentiated("loss_at", change)
        moved = {name: self._guarded.parameters[name] + value for name, value in change.items()}
        return (
            self._guarded.having(moved).trajectory(trajectory.x_SBI, trajectory.y).loss_SB.mean(1)
        )

    def feedback_vjp(
        self, index: int, h_SRD: Tensor, credit_SRD: Tensor, feedback: Mapping[str, Tensor]
    ) -> Tensor:
        """Credit of a block's input from that of its output, with other matrices in its place.

        Args:
            index: Of the block.
            h_SRD: Its input.
            credit_SRD: Of its output.
            feedback: Name of a matrix of blocks → [S, L, D, D] used instead of it on the way back.
        """
        self._need("feedback-chain", f" at block {index}")
        net = self.__net
        part = net.of_block(index)
        found = iter([feedback[name][:, index] for name in MATRICES if name in part])
        return _vjp(
            lambda h: block_forward(
                net.shape, net.alpha_S, part, h, lambda a, w: Replaced.apply(a, w, next(found))
            )[0],
            h_SRD,
            credit_SRD,
        )

    def block_vjp(self, index: int, h_SRD: Tensor, credit_SRD: Tensor) -> Tensor:
        """Credit of a block's input from that of its output, exactly; through no other block."""
        self._need("block-vjp", f" at block {index}")
        return _vjp(lambda h: self.__net.block(index, h), h_SRD, credit_SRD)

    def costates(self, trajectory: Trajectory) -> Tensor:
        """The true costates of h_0 … h_L: what all others must do without."""
        self._need("oracle")
        return self.__net.costates(trajectory)


def _of(layers: Sequence[int], given: Sequence[Tensor]) -> dict[str, Tensor]:
    """By what they are called in an error."""
    return {f"h_{layer}": tensor for layer, tensor in zip(layers, given, strict=True)}


def _is_followed(tensor: Tensor) -> bool:
    """Whether a tensor is being differentiated, by autograd or by torch.func."""
    functorch = torch._C._functorch
    if torch.is_grad_enabled() and tensor.requires_grad:
        return True
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_gradtrackingtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return unpack_dual(tensor).tangent is not None


def _vjp(function: Callable[[Tensor], Tensor], h: Tensor, credit: Tensor) -> Tensor:
    leaf = h.detach().requires_grad_()
    with torch.enable_grad():
        out = function(leaf)
    return torch.autograd.grad(out, leaf, credit)[0]


def _sweep(
    net: Net, layers: Sequence[int], states: Sequence[Tensor], y: Tensor, *, in_place: bool
) -> Tensor:
    """Rows join where their layer is reached, so each block is computed once."""
    runs, copies, samples, width = states[0].shape
    rows = states[0].new_empty(runs, 0, width)
    waiting = dict(zip(layers, states, strict=True))
    for index in range(min(layers), net.shape.depth):
        if index in waiting:
            rows = torch.cat([rows, waiting[index].reshape(runs, copies * samples, width)], 1)
        rows = net.forward(index, rows, rows if in_place else None)[0]
    many = len(layers) * copies
    labels = y.unsqueeze(1).expand(runs, many, *y.shape[1:]).reshape(runs, -1, *y.shape[2:])
    return net.losses(net.head(rows), labels).view(runs, len(layers), copies, samples)


def _with_noise(net: Net, trajectory: Trajectory, noise_SLBD: Tensor) -> Tensor:
    h = trajectory.h_SLBD[:, 0] + noise_SLBD[:, 0]
    for index in range(net.shape.depth):
        h = net.block(index, h)
        if index + 1 < net.shape.depth:
            h = h + noise_SLBD[:, index + 1]
    return net.losses(net.head(h), trajectory.y)
