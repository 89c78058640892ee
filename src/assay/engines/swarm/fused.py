"""The fused CPU kernel (csrc/) of the optimizer, through ctypes: float32 only, chunks up to 64 x 64.

An optional part of the package's build: `describe` says what it is or why it is missing, `computes`
whether it takes a tensor. Where it does not, `codec` and `distro` compute with torch. Results depend
neither on the number of threads nor on the other tensors of a stack. Of coefficients of equal
magnitude the smaller place comes first.

Suffixes, this file: N = tensors of a stack, R and C = chunks along rows and columns, a and b = sides
of a chunk, K = kept coefficients, G = chunks of a whole stack, M = coefficients of several clients.
"""

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_float, c_int, c_int32, c_int64
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from assay.core.errors import DataError
from assay.engines.library import load, pointer

if TYPE_CHECKING:
    from assay.engines.swarm.codec import Grid

_HERE = Path(__file__).parent
_MOST = 64
_NO_PLACE = 2
"""A call of the library returns 0, or what was wrong: `Outcome` in csrc/fused.cpp."""


class _Cut(ctypes.Structure):
    """Mirror of `Cut` in csrc/fused.cpp."""

    _fields_ = tuple((name, c_int64) for name in ("count", "rows", "columns", "a", "b", "k"))


class _Source(ctypes.Structure):
    """Mirror of `Source` in csrc/fused.cpp."""

    _fields_ = (
        ("cut", _Cut),
        *((name, ctypes.c_void_p) for name in ("idx", "val")),
        *((name, c_int64) for name in ("terms", "peers")),
    )


class _Sink(ctypes.Structure):
    """Mirror of `Sink` in csrc/fused.cpp."""

    _fields_ = (
        ("rows", ctypes.POINTER(ctypes.c_void_p)),
        ("count", c_int64),
        *((name, c_int32) for name in ("mean", "elements", "step", "sign")),
        *((name, c_float) for name in ("over", "lr")),
    )


@dataclass(frozen=True, slots=True)
class Part:
    """What the clients of one tier sent for a stack.

    Attributes:
        idx: Places [G, M], the clients' after each other.
        val: Values [G, M].
        cut: Chunks of the tier.
        peers: How many clients; each has as many coefficients a chunk.
    """

    idx: Tensor
    val: Tensor
    cut: "Grid"
    peers: int = 1


@dataclass(frozen=True, slots=True)
class Way:
    """How parts are combined and what becomes of the result.

    Attributes:
        mean: Divide a coefficient by how many clients of its tier name its place.
        elements: Divide an element by how many clients sent something for its chunk.
        over: Divide all by this.
        sign: Take signs.
        lr: Step back so far along the result; None stores it.
    """

    mean: bool = False
    elements: bool = False
    over: int = 1
    sign: bool = False
    lr: float | None = None


@cache
def _load() -> tuple[Any, str]:
    return load(_HERE)


def describe() -> str:
    """What the library is, or why there is none: for the provenance."""
    return _load()[1]


def computes(*tensors: Tensor, cuts: Sequence["Grid"] = ()) -> bool:
    """Whether the kernel takes these tensors, cut so: float32 on the CPU, in one piece each.

    Args:
        tensors: Of numbers, not of places.
        cuts: Their chunks.
    """
    return (
        _load()[0] is not None
        and all(cut.a <= _MOST and cut.b <= _MOST for cut in cuts)
        and all(
            each.dtype == torch.float32 and each.device.type == "cpu" and each.is_contiguous()
            for each in tensors
        )
    )


def encode(stack_NRaCb: Tensor, cut: "Grid") -> tuple[Tensor, Tensor]:
    """Places (int64) and values of the largest coefficients of every chunk, each [G, K].

    Args:
        stack_NRaCb: A stack [count, rows, columns].
        cut: Its chunks.

    Raises:
        ValueError: `computes` does not hold, or sizes do not fit.
    """
    _check((cut.count, cut.rows, cut.columns), stack_NRaCb, cuts=(cut,))
    idx, val = _kept(cut)
    _raise_for(
        _load()[0].swarm_encode(
            byref(_mirror(cut)), *_numbers(stack_NRaCb), _threads(), _places(idx), *_numbers(val)
        ),
        cut,
    )
    return idx, val


def step(
    delta_NRaCb: Tensor,
    gradient_NRaCb: Tensor,
    own: tuple[Tensor, Tensor] | None,
    cut: "Grid",
    *,
    decay: float,
    lr: float,
    at_once: bool,
) -> tuple[Tensor, Tensor]:
    """Make delta (delta - decoded own) decay + lr gradient; return its largest coefficients.

    Args:
        delta_NRaCb: A stack [count, rows, columns].
        gradient_NRaCb: Of the same shape.
        own: Places and values [G, K] that delta is to forget first.
        cut: Chunks.
        decay: Of delta.
        lr: Of the gradient.
        at_once: Whether delta loses the coefficients that it returns.

    Returns:
        Places (int64) and values, each [G, K].

    Raises:
        ValueError: `computes` does not hold, or sizes do not fit.
        DataError: A place of `own` is outside of its chunk; delta is as it was.
    """
    _check((cut.count, cut.rows, cut.columns), delta_NRaCb, gradient_NRaCb, cuts=(cut,))
    if own is not None:
        _check((cut.chunks, cut.k), own[1], places=own[0])
    idx, val = _kept(cut)
    _raise_for(
        _load()[0].swarm_step(
            byref(_mirror(cut)),
            *_numbers(delta_NRaCb, gradient_NRaCb),
            None if own is None else _places(own[0]),
            None if own is None else _numbers(own[1])[0],
            c_float(decay),
            c_float(lr),
            c_int(at_once),
            _threads(),
            _places(idx),
            *_numbers(val),
        ),
        cut,
    )
    return idx, val


def combine(parts: Sequence[Part], way: Way, stacks_NRC: Sequence[Tensor]) -> None:
    """Sum what the tiers sent, in the order given, and store it or step along it, in place.

    A part that is larger than the stacks is cut off, a smaller one stands at their beginning.

    Args:
        parts: Of the tiers that sent something.
        way: How.
        stacks_NRC: Stacks [count, rows, columns] of one shape: one to store, any number to step.

    Raises:
        ValueError: `computes` does not hold, or sizes do not fit.
        DataError: A place is outside of its chunk; the stacks are as they were.
    """
    count, rows, columns = stacks_NRC[0].shape
    _check((count, rows, columns), *stacks_NRC)
    sources = (_Source * len(parts))()
    for source, part in zip(sources, parts, strict=True):
        terms = part.idx.shape[-1]
        _check((part.cut.chunks, terms), part.val, places=part.idx, cuts=(part.cut,))
        idx, val = part.idx.data_ptr(), part.val.data_ptr()
        source.cut, source.idx, source.val = _mirror(part.cut), idx, val
        source.terms, source.peers = terms, part.peers
    addresses = (ctypes.c_void_p * len(stacks_NRC))(*(each.data_ptr() for each in stacks_NRC))
    sink = _Sink(
        rows=addresses,
        count=len(stacks_NRC),
        mean=way.mean,
        elements=way.elements,
        step=way.lr is not None,
        sign=way.sign,
        over=way.over,
        lr=way.lr or 0.0,
    )
    whole = _Cut(count=count, rows=rows, columns=columns)
    outcome = _load()[0].swarm_combine(
        byref(whole), sources, c_int(len(parts)), byref(sink), _threads()
    )
    _raise_for(outcome, *(part.cut for part in parts))


def signed_step(theta: Tensor, direction: Tensor, lr: float) -> Tensor:
    """A new row: theta - lr sign(direction).

    Args:
        theta: Flat row.
        direction: Of the same length.
        lr: Length of the step.

    Raises:
        ValueError: `computes` does not hold, or sizes differ.
    """
    _check(tuple(theta.shape), theta, direction)
    out = torch.empty_like(theta)
    _load()[0].swarm_signed_step(
        *_numbers(theta, direction), c_int64(theta.numel()), c_float(lr), _threads(), *_numbers(out)
    )
    return out


def _check(
    shape: tuple[int, ...],
    *tensors: Tensor,
    places: Tensor | None = None,
    cuts: Sequence["Grid"] = (),
) -> None:
    """What the library cannot see: types, layout and sizes."""
    if not computes(*tensors, cuts=cuts):
        raise ValueError(
            f"The kernel takes contiguous float32 on the CPU and chunks up to {_MOST} x {_MOST}; got "
            f"{[(each.dtype, each.device.type, each.stride()) for each in tensors]}, {[*cuts]}"
        )
    if places is not None and (places.dtype != torch.int64 or not places.is_contiguous()):
        raise ValueError(f"Places must be contiguous int64; got {places.dtype}")
    for each in (*tensors, *(() if places is None else (places,))):
        if tuple(each.shape) != shape:
            raise ValueError(f"The kernel needs shape {shape}; got {tuple(each.shape)}")


def _raise_for(outcome: int, *cuts: "Grid") -> None:
    if outcome == _NO_PLACE:
        raise DataError(
            "A coefficient's place must be from 0 to one below the numbers of its chunk "
            f"({', '.join(str(cut.volume) for cut in cuts)}); one is not. The coefficients were made "
            "for other chunks, or are damaged."
        )
    if outcome:
        raise ValueError(f"The kernel takes no such chunks: {[*cuts]}")


def _kept(cut: "Grid") -> tuple[Tensor, Tensor]:
    return torch.empty(cut.chunks, cut.k, dtype=torch.int64), torch.empty(cut.chunks, cut.k)


def _mirror(cut: "Grid") -> _Cut:
    return _Cut(cut.count, cut.rows, cut.columns, cut.a, cut.b, cut.k)


def _threads() -> c_int:
    return c_int(torch.get_num_threads())


def _places(tensor: Tensor) -> Any:
    return pointer(tensor, c_int64)


def _numbers(*tensors: Tensor) -> list[Any]:
    return [pointer(each, c_float) for each in tensors]
