"""The learned estimators' nets: stacked MLPs, with their input gradients in closed form."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from assay.engines.credit.codes import Code, code_width
from assay.engines.credit.estimators.base import Setting, tensors
from assay.engines.credit.net import Trajectory
from assay.engines.credit.optim import Optimizer


class _ThroughSilu(torch.autograd.Function):
    """See `through_silu`; torch's own kernel has no derivative."""

    @staticmethod
    def forward(ctx: Any, back: Tensor, z: Tensor) -> Tensor:
        """One pass."""
        ctx.save_for_backward(back, z)
        return torch.ops.aten.silu_backward(back, z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Linear in back; by z the second derivative, s (1 - s) (2 + z (1 - 2 s))."""
        (back, z), g = ctx.saved_tensors, grads[0]
        s = torch.sigmoid(z)
        bend = torch.rsub(s, 1, alpha=2).mul_(z).add_(2).mul_(s).mul_(s.neg_().add_(1))
        return torch.ops.aten.silu_backward(g, z), bend.mul_(back).mul_(g)


def through_silu(back: Tensor, z: Tensor) -> Tensor:
    """The derivative of SiLU at z, times back; can be differentiated once more."""
    return _ThroughSilu.apply(back, z)


@dataclass(frozen=True, slots=True)
class Mlp:
    """in → width → width → out with SiLU, for S runs: weights[i] [S, in, out], biases[i] [S, 1, out].

    The derivative by the input is written out, not left to autograd, so that asking for it costs
    one pass and a loss of it can be differentiated once more like any other.
    """

    weights: list[Tensor]
    biases: list[Tensor]

    @classmethod
    def drawn(cls, setting: Setting, inputs: int, outputs: int) -> "Mlp":
        """Uniform in ±1/√in, as torch.nn.Linear."""
        width = setting.config.est_width
        sizes = [(inputs, width), (width, width), (width, outputs)]
        weights: list[list[Tensor]] = [[], [], []]
        biases: list[list[Tensor]] = [[], [], []]
        for g in setting.generators:
            for i, (rows, columns) in enumerate(sizes):
                bound = rows**-0.5
                weights[i].append(torch.rand(rows, columns, generator=g) * 2 * bound - bound)
                biases[i].append(torch.rand(1, columns, generator=g) * 2 * bound - bound)
        return cls([torch.stack(w) for w in weights], [torch.stack(b) for b in biases])

    def __call__(self, x_SRI: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Outputs [S, R, out], and `hidden`."""
        hidden = self.hidden(x_SRI)
        last, bent = self.weights[2], functional.silu(hidden[1])
        if last.shape[-1] == 1:
            # torch multiplies by one column in another way for one run than for several.
            return (bent * last.mT).sum(-1, keepdim=True) + self.biases[2], hidden
        return torch.baddbmm(self.biases[2], bent, last), hidden

    def hidden(self, x_SRI: Tensor) -> list[Tensor]:
        """The two hidden layers before their activation."""
        first = torch.baddbmm(self.biases[0], x_SRI, self.weights[0])
        return [first, torch.baddbmm(self.biases[1], functional.silu(first), self.weights[1])]

    def input_gradient(self, hidden: list[Tensor], out_SRO: Tensor, first: int) -> Tensor:
        """Derivative of <outputs, out> by the first so many inputs, [S, R, first].

        Args:
            hidden: As calling gave it.
            out_SRO: What the outputs are weighted by.
            first: How many inputs.
        """
        last = self.weights[2].mT
        back = out_SRO * last if last.shape[1] == 1 else torch.bmm(out_SRO, last)
        back = through_silu(back, hidden[1])
        back = through_silu(torch.bmm(back, self.weights[1].mT), hidden[0])
        return torch.bmm(back, self.weights[0][:, :first].mT)

    def named(self) -> dict[str, Tensor]:
        """Weights and biases by name."""
        return {
            f"{i}.{kind}": value
            for kind, values in (("weight", self.weights), ("bias", self.biases))
            for i, value in enumerate(values)
        }


class Learner:
    """A net on (h / its root mean square, t, code) and its optimizer.

    The root mean square is a moving average over layers and samples, one number for each run.

    Args:
        setting: Of the estimator.
        outputs: Numbers of an output.
        coded: Whether the net sees the code.
    """

    DECAY = 0.99

    def __init__(self, setting: Setting, outputs: int, *, coded: bool = True) -> None:
        shape = setting.shape
        self.setting = setting
        self.code = Code(setting) if coded else None
        extra = code_width(shape, setting.config.code) if coded else 0
        self.mlp = Mlp.drawn(setting, shape.width + 1 + extra, outputs)
        self.optimizer = Optimizer(self.mlp.named())
        self.lr_S = setting.each("est_lr")
        self.averages_S2 = torch.zeros(len(setting.configs), 2)
        """Mean square of h and of the credit at h_L, not yet divided by their weight."""
        self.seen = torch.zeros(())

    def observe(self, trajectory: Trajectory) -> None:
        """Let the moving averages see a batch."""
        now = torch.stack(
            [trajectory.h_SLBD.square().mean((1, 2, 3)), trajectory.last_SBD.square().mean((1, 2))],
            1,
        )
        self.averages_S2.lerp_(now, 1 - self.DECAY)
        self.seen += 1

    def _rms(self, which: int) -> Tensor:
        weight = 1 - self.DECAY ** float(self.seen)
        return (self.averages_S2[:, which] / max(weight, 1e-12)).sqrt().clamp_min(1e-12)

    @property
    def h_size(self) -> Tensor:
        """Root mean square of h, [S, 1, 1]."""
        return self._rms(0).view(-1, 1, 1)

    @property
    def unit(self) -> Tensor:
        """What an output of 1 is worth, [S, 1, 1]."""
        if self.setting.config.scaled_targets:
            return self._rms(1).view(-1, 1, 1)
        return torch.ones_like(self.averages_S2[:, 1]).view(-1, 1, 1)

    def inputs(self, h_SKBD: Tensor, times: list[float], trajectory: Trajectory) -> Tensor:
        """Rows [S, K B, in] for states of K layers at their times."""
        runs, layers, samples, width = h_SKBD.shape
        rows = h_SKBD.new_empty(runs, layers, samples, self.mlp.weights[0].shape[1])
        torch.div(h_SKBD, self.h_size.unsqueeze(1), out=rows[..., :width])
        rows[..., width] = torch.tensor(times, dtype=h_SKBD.dtype).view(1, -1, 1)
        if self.code is not None:
            rows[..., width + 1 :] = self.code(trajectory).unsqueeze(1)
        return rows.flatten(1, 2)

    def learn(self, loss: Callable[[Mlp], Tensor], pace: float) -> Tensor:
        """One update of every run by its own loss; returns the losses [S].

        Args:
            loss: Of a net, [S].
            pace: Factor on the learning rate.
        """
        leaves = {name: value.detach().requires_grad_() for name, value in self.mlp.named().items()}
        leafy = Mlp(
            [leaves[f"{i}.weight"] for i in range(3)], [leaves[f"{i}.bias"] for i in range(3)]
        )
        with torch.enable_grad():
            loss_S = loss(leafy)
            total = loss_S.sum()
        grads = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        self.optimizer.step(dict(zip(leaves, grads, strict=True)), pace * self.lr_S)
        return loss_S.detach()

    def state(self) -> dict[str, Tensor]:
        """Weights, the optimizer's moments, the moving averages, and what the code draws."""
        return {
            **tensors(self.mlp.named(), "mlp"),
            **tensors(self.optimizer.state, "optimizer"),
            "averages": self.averages_S2,
            "seen": self.seen,
            **({} if self.code is None else self.code.state()),
        }


def mean_square(x: Tensor) -> Tensor:
    """Mean over samples (and layers, directions) of the squared length of the last axis, [S]."""
    return x.square().sum(-1).flatten(1).mean(1)
