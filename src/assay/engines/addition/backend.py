"""The ways to compute loss and gradient of a stack of seeds, and to judge one seed on pairs.

On the CPU: the fused kernel, or, without a compiler or for shapes that it lacks, plain PyTorch on
the supervised rows, one seed at a time. On other devices: plain PyTorch, all seeds stacked, and on
CUDA replayed as a graph. Each says what it is, and a run records it.

Suffixes, this file: S = seeds, P = numbers of a flat row, B = examples, N = pairs.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from assay.engines.addition import fused
from assay.engines.addition.block import targets, tokens
from assay.engines.addition.compose import dense_weights, flat, shape_of
from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.data import Pairs
from assay.engines.addition.model import Parameters, eager_losses, model_logits

JUDGE_BLOCK = 1000
"""Pairs of one forward pass of the plain block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a seed does on pairs.

    Attributes:
        wrong_N: Of each pair, a bit (int32) for each wrong sum digit, bit 0 for units, under
            teacher forcing.
        loss_sum_nats: Cross-entropy summed over all supervised tokens.
    """

    wrong_N: Tensor
    loss_sum_nats: float


class Backend(Protocol):
    """A way to compute."""

    what: str
    """For the provenance: which arithmetic this is, and why."""

    def gradient(self, parameters: Parameters, a_SB: Tensor, b_SB: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy [S] (nats) and its gradient [S, P]."""

    def judge(self, parameters: Parameters, index: int, pairs: Pairs) -> Judgement:
        """What one seed of the stack gets wrong."""


class Fused:
    """The C++ kernel over dense weights, with autograd around it for what makes them."""

    def __init__(self, config: AdditionConfig, threads: int) -> None:
        self._shape = shape_of(config)
        self._threads = threads
        self.what = fused.describe()

    def gradient(self, parameters: Parameters, a_SB: Tensor, b_SB: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backend`."""
        rows_SP = parameters.rows_SP.detach().requires_grad_()
        with torch.enable_grad():
            named = parameters.named(rows_SP)
            dense_SE = flat(dense_weights(parameters.config, parameters.layout, named))
        loss_S, d_dense_SE = fused.loss_and_grad(
            self._shape, dense_SE.detach(), a_SB, b_SB, threads=self._threads
        )
        (grad_SP,) = torch.autograd.grad(dense_SE, rows_SP, d_dense_SE)
        return loss_S, grad_SP

    def judge(self, parameters: Parameters, index: int, pairs: Pairs) -> Judgement:
        """See `Backend`."""
        dense_E = parameters.select([index]).dense()[0]
        wrong_N, loss = fused.wrong_digits(
            self._shape, dense_E, pairs.a, pairs.b, threads=self._threads
        )
        return Judgement(wrong_N=wrong_N, loss_sum_nats=loss)


class Eager:
    """Plain PyTorch and autograd, one seed at a time: the reference, and the way without a kernel."""

    def __init__(self, reason: str) -> None:
        self.what = f"eager torch, one seed at a time ({reason})"

    def gradient(self, parameters: Parameters, a_SB: Tensor, b_SB: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backend`."""
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        for index in range(len(a_SB)):
            one = parameters.select([index])
            row_1P = one.rows_SP.requires_grad_()
            with torch.enable_grad():
                loss_1 = eager_losses(one, row_1P, a_SB[index, None], b_SB[index, None])
            losses.append(loss_1.detach())
            gradients += torch.autograd.grad(loss_1, row_1P, torch.ones_like(loss_1))
        return torch.cat(losses).double(), torch.cat(gradients)

    def judge(self, parameters: Parameters, index: int, pairs: Pairs) -> Judgement:
        """See `Backend`."""
        one = parameters.select([index])
        form = shape_of(one.config).format
        num_digits = form.num_rows - (form.end >= 0)
        bit_Q = 1 << torch.arange(num_digits, device=one.rows_SP.device)
        wrong, loss = [], 0.0
        for start in range(0, len(pairs), JUDGE_BLOCK):
            a_1B = pairs.a[None, start : start + JUDGE_BLOCK].to(one.rows_SP.device)
            b_1B = pairs.b[None, start : start + JUDGE_BLOCK].to(one.rows_SP.device)
            target = targets(form, a_1B, b_1B)
            with torch.no_grad():
                logit = model_logits(one, tokens(form, a_1B, b_1B), form.num_rows)
            is_wrong = logit.argmax(-1)[0, :, :num_digits] != target[0, :, :num_digits]
            wrong.append((is_wrong * bit_Q).sum(-1).to(torch.int32).cpu())
            loss += float(F.cross_entropy(logit.flatten(0, 2), target.flatten(), reduction="sum"))
        return Judgement(wrong_N=torch.cat(wrong), loss_sum_nats=loss)


class Stacked(Eager):
    """Plain PyTorch with all seeds stacked, for devices where that is fast."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.what = f"eager torch, seeds stacked, on {device}"
        self._graph: _Graph | None = None

    def gradient(self, parameters: Parameters, a_SB: Tensor, b_SB: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backend`. On CUDA the kernels are launched once and replayed as a graph."""
        if not parameters.rows_SP.is_cuda:
            return _stacked_gradient(parameters, a_SB, b_SB)
        if self._graph is None or not self._graph.fits(parameters, a_SB):
            self._graph = _Graph(parameters, a_SB, b_SB)
        return self._graph(parameters, a_SB, b_SB)


def _stacked_gradient(parameters: Parameters, a_SB: Tensor, b_SB: Tensor) -> tuple[Tensor, Tensor]:
    rows_SP = parameters.rows_SP.detach().requires_grad_()
    with torch.enable_grad():
        loss_S = eager_losses(parameters, rows_SP, a_SB, b_SB)
    (grad_SP,) = torch.autograd.grad(loss_S, rows_SP, torch.ones_like(loss_S))
    return loss_S.detach().double(), grad_SP


class _Graph:
    """One captured step. Launching some 150 tiny kernels one by one takes longer than running them."""

    WARM_UP = 3

    def __init__(self, parameters: Parameters, a_SB: Tensor, b_SB: Tensor) -> None:
        self._a, self._b = a_SB.clone(), b_SB.clone()
        self._parameters = parameters.to(parameters.rows_SP.device)
        self._parameters.rows_SP = parameters.rows_SP.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warm-up on a side stream: CUDA's rule for captures
            for _ in range(self.WARM_UP):
                _stacked_gradient(self._parameters, self._a, self._b)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = _stacked_gradient(self._parameters, self._a, self._b)

    def fits(self, parameters: Parameters, a_SB: Tensor) -> bool:
        """Whether the captured sizes are those of the call."""
        return self._a.shape == a_SB.shape and self._parameters.config == parameters.config

    def __call__(self, parameters: Parameters, a_SB: Tensor, b_SB: Tensor) -> tuple[Tensor, Tensor]:
        self._a.copy_(a_SB)
        self._b.copy_(b_SB)
        self._parameters.rows_SP.copy_(parameters.rows_SP)
        self._parameters.frozen_SP.copy_(parameters.frozen_SP)
        self._graph.replay()
        return self._result[0].clone(), self._result[1].clone()


def choose(config: AdditionConfig, *, device: str, threads: int) -> Backend:
    """The fastest backend for a configuration on a device."""
    if device != "cpu":
        return Stacked(device)
    reason = fused.unavailable(shape_of(config))
    return Eager(reason) if reason else Fused(config, threads)
