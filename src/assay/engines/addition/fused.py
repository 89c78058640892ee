"""The fused CPU kernel (csrc/): loss, gradient and judgement over dense weights, through ctypes.

An optional part of the package's build. `unavailable` says why it cannot be used, `describe` what
it is. Calls release the interpreter, and keep no state.

Suffixes, this file: S = seeds, B = examples, E = dense row, N = pairs.
"""

import ctypes
from ctypes import byref, c_double, c_int, c_int32
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay.core.errors import DataError, ProvenanceError
from assay.engines.addition.block import EPS, Shape, rotary
from assay.engines.addition.data import LIMIT
from assay.engines.library import load, pointer

_HERE = Path(__file__).parent
_MAX_POSITIONS = 40
_PAIRS_OF_HEAD = 4
_NORMS = {"none": 0, "layernorm": 1, "rmsnorm": 2}
_MOST_MADE = 64
_NO_OPERANDS = 2
"""A call of the library returns 0, or what was wrong: `Outcome` in csrc/fused.cpp."""


class _Problem(ctypes.Structure):
    """Mirror of `Problem` in csrc/problem.h; the sizes are compared when the library is loaded."""

    _fields_ = (
        *((name, c_int32) for name in ("vocabulary", "num_positions", "num_rows", "end")),
        *((name, c_int32) for name in ("width", "heads", "head_width", "hidden")),
        *((name, c_int32) for name in ("norm", "qk_norm", "gated", "dense_size")),
        *((name, c_double) for name in ("eps", "qk_eps", "scale")),
        *((name, c_int32 * _MAX_POSITIONS) for name in ("kind", "place", "first")),
        ("has_rope", c_int32),
        ("cosine", c_double * _PAIRS_OF_HEAD * _MAX_POSITIONS),
        ("sine", c_double * _PAIRS_OF_HEAD * _MAX_POSITIONS),
    )


@cache
def _load() -> tuple[Any, str]:
    """The library, or None; and what it was compiled for, or why there is none."""
    library, what = load(_HERE)
    if library is None:
        return None, what
    sizes = (c_int32 * 4)()
    library.assay_sizes(sizes)
    if sizes[0] != ctypes.sizeof(_Problem) or sizes[1] != _MAX_POSITIONS:
        raise ProvenanceError(
            f"The kernel has a problem structure of {sizes[0]} bytes, fused.py one of "
            f"{ctypes.sizeof(_Problem)}: csrc/problem.h and fused.py must change together."
        )
    return library, what


def describe() -> str:
    """What the library is, or why there is none: for the provenance."""
    return _load()[1]


def unavailable(shape: Shape) -> str:
    """Why the kernel cannot compute a shape; empty if it can."""
    library, what = _load()
    if library is None:
        return what
    sizes = (c_int32 * 4)()
    library.assay_sizes(sizes)
    _, positions, vocabulary, hidden = sizes
    fits = (
        len(shape.format.positions) <= positions
        and shape.format.vocabulary <= vocabulary
        and shape.hidden <= hidden
        and shape.head_width <= 2 * _PAIRS_OF_HEAD
    )
    if fits and library.assay_supports(byref(_problem(shape))):
        return ""
    return (
        f"no fused kernel is compiled for width {shape.width}, {shape.heads} heads of "
        f"{shape.head_width} and hidden width {shape.hidden}"
    )


_MADE: dict[int, tuple[Shape, _Problem]] = {}
"""By the identity of the shape: to hash its 33 positions would take longer than the rest of a call."""


def _problem(shape: Shape) -> _Problem:
    found = _MADE.get(id(shape))
    if found is None:
        if len(_MADE) >= _MOST_MADE:
            _MADE.clear()
        found = _MADE[id(shape)] = shape, _make_problem(shape)  # kept, so that no other has its id
    return found[1]


def _make_problem(shape: Shape) -> _Problem:
    form = shape.format
    made = _Problem(
        vocabulary=form.vocabulary,
        num_positions=len(form.positions),
        num_rows=form.num_rows,
        end=form.end,
        width=shape.width,
        heads=shape.heads,
        head_width=shape.head_width,
        hidden=shape.hidden,
        norm=_NORMS[shape.norm],
        qk_norm=shape.qk_norm,
        gated=shape.gated,
        dense_size=shape.dense_size,
        eps=EPS[shape.norm],
        qk_eps=EPS["rmsnorm"],
        scale=shape.head_width**-0.5,
        has_rope=shape.rope_theta != 0,
    )
    for t, position in enumerate(form.positions):
        made.kind[t], made.place[t], made.first[t] = position.kind, position.place, position.first
    if shape.rope_theta:
        cosine, sine = rotary(shape, len(form.positions)).tolist()
        for t in range(len(form.positions)):
            for pair in range(shape.head_width // 2):
                made.cosine[t][pair], made.sine[t][pair] = cosine[t][pair], sine[t][pair]
    return made


def loss_and_grad(
    shape: Shape, dense_SE: Tensor, a_SB: Tensor, b_SB: Tensor, *, threads: int = 1
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy [S] (nats, float64) of each seed on its batch, and its gradient [S, E].

    Args:
        shape: Of the block; `unavailable(shape)` must be empty.
        dense_SE: Dense rows in the order of `Shape.dense`, float32 or float64.
        a_SB: Operands: whole numbers below 10^10 in float64.
        b_SB: The others.
        threads: The result does not depend on it.

    Raises:
        DataError: An operand is no whole number from 0 to 10^10 - 1.
        ValueError: Shapes, types or devices do not fit, or no kernel is compiled for the shape.
    """
    suffix, number = _check(shape, dense_SE, a_SB, b_SB)
    seeds, batch = a_SB.shape
    if not batch:
        raise ValueError("the batch is empty: a mean over no examples is no number")
    if dense_SE.shape != (seeds, shape.dense_size):
        raise ValueError(f"dense rows must be {(seeds, shape.dense_size)}: {dense_SE.shape}")
    loss_S = torch.empty(seeds, dtype=torch.float64)
    grad_SE = torch.empty_like(dense_SE)
    library, _ = _load()
    outcome = getattr(library, f"assay_step_{suffix}")(
        byref(_problem(shape)),
        pointer(dense_SE, number),
        pointer(a_SB, c_double),
        pointer(b_SB, c_double),
        c_int(seeds),
        c_int(batch),
        c_int(threads),
        pointer(loss_S, c_double),
        pointer(grad_SE, number),
    )
    _raise_for(outcome, shape, a_SB, b_SB)
    return loss_S, grad_SE


def wrong_digits(
    shape: Shape, dense_E: Tensor, a_N: Tensor, b_N: Tensor, *, threads: int = 1
) -> tuple[Tensor, float]:
    """Bits (int32) of each pair's wrong sum digits, teacher-forced, and the summed cross-entropy.

    Args and errors as `loss_and_grad`.
    """
    suffix, number = _check(shape, dense_E, a_N, b_N)
    if dense_E.shape != (shape.dense_size,):
        raise ValueError(f"the dense row must have {shape.dense_size} numbers: {dense_E.shape}")
    wrong_N = torch.empty(len(a_N), dtype=torch.int32)
    loss = c_double()
    library, _ = _load()
    outcome = getattr(library, f"assay_judge_{suffix}")(
        byref(_problem(shape)),
        pointer(dense_E, number),
        pointer(a_N, c_double),
        pointer(b_N, c_double),
        c_int(len(a_N)),
        c_int(threads),
        pointer(wrong_N, c_int32),
        byref(loss),
    )
    _raise_for(outcome, shape, a_N, b_N)
    return wrong_N, loss.value


def _check(shape: Shape, dense: Tensor, a: Tensor, b: Tensor) -> tuple[str, Any]:
    """Types and shapes; the library itself checks the operands, before it indexes by digits."""
    for name, operand in (("a", a), ("b", b)):
        if operand.dtype != torch.float64 or not operand.is_contiguous() or operand.is_cuda:
            raise ValueError(f"{name} must be contiguous float64 on the CPU: {operand.dtype}")
    if a.shape != b.shape:
        raise ValueError(f"a and b must have one shape: {a.shape}, {b.shape}")
    if not dense.is_contiguous() or dense.is_cuda:
        raise ValueError("dense weights must be contiguous and on the CPU")
    kinds = {torch.float32: ("f32", ctypes.c_float), torch.float64: ("f64", c_double)}
    if dense.dtype not in kinds:
        raise ValueError(f"dense weights must be float32 or float64: {dense.dtype}")
    return kinds[dense.dtype]


def _raise_for(outcome: int, shape: Shape, a: Tensor, b: Tensor) -> None:
    if outcome == _NO_OPERANDS:
        for name, operand in (("a", a), ("b", b)):
            bad = operand[~((operand >= 0) & (operand < LIMIT) & (operand.floor() == operand))]
            if bad.numel():
                raise DataError(
                    f"operand {name} must be from 0 to {LIMIT - 1}, and whole; got "
                    f"{float(bad[0])}. The model has 10 digit positions an operand, and no sign."
                )
    if outcome:
        raise ValueError(unavailable(shape) or f"the kernel answers {outcome}")
