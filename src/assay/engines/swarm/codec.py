"""Chunked DCT and top-k: how an update becomes few coefficients, and back.

A tensor [rows, columns] is cut into chunks of a x b, where a and b are the largest divisors of rows
and columns that are at most `chunk`. Each chunk is transformed by the orthonormal DCT-II on both
sides, and its k largest coefficients by magnitude are kept (Peng, Quesnelle, Kingma 2024, DeMo,
§3; specs/swarm.md §2). Tensors of equal shape are transformed together. What is in float32, and in
chunks that it takes, `fused` computes; all else, and everything where it was not built, torch does.

Suffixes, this file: N = tensors of a stack, R and C = chunks along rows and columns, a and b =
sides of a chunk, K = kept coefficients, G = chunks of a whole stack (N R C).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from assay.engines.swarm import fused
from assay.engines.swarm.config import divisor

DENSE_ABOVE = 96
"""Kept coefficients of a chunk from which a dense transform back is cheaper than a sparse one."""


@lru_cache(maxsize=256)
def dct_matrix(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The orthonormal DCT-II, [frequency, place]."""
    n = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * torch.outer(n, n + 0.5)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.to(dtype)


@dataclass(frozen=True, slots=True)
class Grid:
    """How a stack [count, rows, columns] is cut into chunks.

    Attributes:
        count: Tensors of the stack.
        rows: Of one tensor.
        columns: Of one tensor.
        a: Rows of a chunk.
        b: Columns of a chunk.
        k: Coefficients that a chunk keeps.
    """

    count: int
    rows: int
    columns: int
    a: int
    b: int
    k: int

    @property
    def chunks(self) -> int:
        """Chunks of the whole stack."""
        return self.count * (self.rows // self.a) * (self.columns // self.b)

    @property
    def volume(self) -> int:
        """Coefficients of a chunk."""
        return self.a * self.b


def grid(count: int, rows: int, columns: int, most: tuple[int, int], top_k: int) -> Grid:
    """The cut of a stack into chunks of at most `most` rows and columns; k is at most what one holds."""
    a, b = divisor(rows, most[0]), divisor(columns, most[1])
    return Grid(count, rows, columns, a, b, min(top_k, a * b))


def encode(stack_NRaCb: Tensor, cut: Grid) -> tuple[Tensor, Tensor]:
    """Place and value of the largest coefficients of every chunk.

    Args:
        stack_NRaCb: A stack [count, rows, columns].
        cut: Its chunks.

    Returns:
        idx_GK: Places in the chunk (row of the chunk times b, plus column), int64; by magnitude.
        val_GK: Their coefficients. An all-zero chunk has its first places, and values 0.
    """
    if fused.computes(stack_NRaCb, cuts=(cut,)):
        return fused.encode(stack_NRaCb, cut)
    rows = stack_NRaCb.reshape(-1, cut.a, cut.columns)
    # Rows of chunks that hold nothing but zeros need no transform: most of an embedding table.
    live = rows.flatten(1).abs().amax(dim=1).nonzero()[:, 0]
    width = cut.columns // cut.b
    # An all-zero chunk names its first k places: in one bit the source sends them as +1.
    idx = torch.arange(cut.k).repeat(len(rows), width, 1)
    val = stack_NRaCb.new_zeros(len(rows), width, cut.k)
    if len(live):
        some = rows if len(live) == len(rows) else rows[live]
        found = _largest(_forward(some, cut), cut)
        idx[live], val[live] = (part.view(len(live), width, cut.k) for part in found)
    return idx.flatten(0, 1), val.flatten(0, 1)


def encode_at(stack_NRaCb: Tensor, idx_GK: Tensor, cut: Grid) -> Tensor:
    """The coefficients of given places of every chunk, [chunks, k]; 0 where a place is repeated.

    Args:
        stack_NRaCb: A stack [count, rows, columns].
        idx_GK: Places in the chunk.
        cut: Its chunks.
    """
    freq_RaCb = _forward(stack_NRaCb.reshape(-1, cut.a, cut.columns), cut)
    found = freq_RaCb.transpose(1, 2).reshape(-1, cut.volume).gather(1, idx_GK)
    earlier = torch.ones(cut.k, cut.k, dtype=torch.bool).tril(-1)
    again = ((idx_GK[:, :, None] == idx_GK[:, None, :]) & earlier).any(dim=2)
    return found.masked_fill(again, 0.0)


def _forward(rows_RaCb: Tensor, cut: Grid) -> Tensor:
    """DCT of rows of chunks [R, a, columns], to [R, a, C, b]."""
    if cut.a > 1:
        rows_RaCb = torch.matmul(dct_matrix(cut.a, rows_RaCb.dtype), rows_RaCb)
    split = rows_RaCb.reshape(-1, cut.b)
    if cut.b > 1:
        split = split @ dct_matrix(cut.b, rows_RaCb.dtype).T
    return split.view(len(rows_RaCb), cut.a, -1, cut.b)


def _largest(coefficients_RaCb: Tensor, cut: Grid) -> tuple[Tensor, Tensor]:
    """The k largest of each chunk by magnitude.

    The k largest lie in those k lines of b coefficients whose largest is largest, so that only k
    lines of a chunk are sorted.
    """
    count, _, width, b = coefficients_RaCb.shape
    tops_RCa = coefficients_RaCb.abs().amax(dim=3).transpose(1, 2)
    keep = min(cut.k, cut.a)
    line_RCk = tops_RCa.topk(keep, dim=2, sorted=False).indices.sort(dim=2).values
    # Line (r, i, c) of the flat view is number (r a + i) C + c.
    r = torch.arange(count)[:, None, None]
    c = torch.arange(width)[None, :, None]
    flat = ((r * cut.a + line_RCk) * width + c).flatten()
    lines = coefficients_RaCb.reshape(-1, b)[flat].view(count * width, keep * b)
    place = lines.abs().topk(cut.k, dim=1).indices
    line = line_RCk.reshape(count * width, keep).gather(1, place // b)
    return line * b + place % b, lines.gather(1, place)


def decode(idx_GK: Tensor, val_GK: Tensor, cut: Grid) -> Tensor:
    """The stack [count, rows, columns] that coefficients stand for; equal places add up.

    Chunks whose values are all 0 cost nothing.

    Raises:
        DataError: A place is outside of its chunk.
    """
    if fused.computes(val_GK, cuts=(cut,)):
        stack = torch.empty(cut.count, cut.rows, cut.columns)
        fused.combine([fused.Part(idx_GK.contiguous(), val_GK, cut)], fused.Way(), [stack])
        return stack
    height, width = cut.rows // cut.a, cut.columns // cut.b
    out = val_GK.new_zeros(cut.chunks, cut.a, cut.b)
    live = (val_GK != 0).any(dim=1).nonzero()[:, 0]
    if len(live):
        whole = len(live) == cut.chunks
        idx, val = (idx_GK, val_GK) if whole else (idx_GK[live], val_GK[live])
        piece = _back(idx, val, cut)
        if whole:
            out = piece
        else:
            out[live] = piece
    split = out.view(cut.count, height, width, cut.a, cut.b)
    return split.transpose(2, 3).reshape(cut.count, cut.rows, cut.columns)


def _back(idx_GK: Tensor, val_GK: Tensor, cut: Grid) -> Tensor:
    """Chunks [G, a, b] of coefficients."""
    left, right = dct_matrix(cut.a, val_GK.dtype), dct_matrix(cut.b, val_GK.dtype)
    if idx_GK.shape[1] > DENSE_ABOVE:
        dense = val_GK.new_zeros(len(idx_GK), cut.volume).scatter_add_(1, idx_GK, val_GK)
        return left.T @ dense.view(-1, cut.a, cut.b) @ right
    # A coefficient is the outer product of two rows of the transforms.
    i, j = idx_GK // cut.b, idx_GK % cut.b
    return torch.bmm((left[i] * val_GK[:, :, None]).transpose(1, 2), right[j])
