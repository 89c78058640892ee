"""What a client sends in a round, as bytes: bounded, checked before use, never unpickled.

Layout, little-endian: header (magic, version, kind, tier, step, client, schema), then for each group
of tensors a bitmap of the chunks that send something, their places and their values, then a digest of
all before it. A chunk that sends fewer than k coefficients repeats a place: only the first counts.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from assay.engines.swarm.codec import Grid
from assay.engines.swarm.config import Payload
from assay.engines.swarm.distro import Sent

MAGIC, VERSION = b"ASWU", 1
HEAD = struct.Struct("<4sBBBxII32s")
DIGEST = 16
KINDS: dict[Payload, int] = {"1bit": 0, "fp16": 1, "fp32": 2}
VALUE_BITS = {0: 1, 1: 16, 2: 32}


class PayloadError(ValueError):
    """A received payload breaks the format; nothing of it was used."""


@dataclass(frozen=True, slots=True)
class Head:
    """Who sent what: kind of values, tier, round, client, and digest of the tensors' layout."""

    kind: Payload
    tier: int
    step: int
    client: int
    schema: bytes


@lru_cache(maxsize=64)
def schema(cuts: tuple[Grid, ...]) -> bytes:
    """The sha256 of how the tensors of a tier are cut: sender and receiver must agree on it."""
    text = ";".join(f"{c.count}x{c.rows}x{c.columns}/{c.a}x{c.b}/{c.k}" for c in cuts)
    return hashlib.sha256(text.encode()).digest()


def pack(head: Head, sent: Sequence[Sent], cuts: Sequence[Grid], *, zeros: bool) -> bytes:
    """A payload.

    Args:
        head: Of it.
        sent: Unquantised coefficients of every group.
        cuts: Their chunks.
        zeros: Whether all-zero chunks are sent too.
    """
    kind = KINDS[head.kind]
    parts = [HEAD.pack(MAGIC, VERSION, kind, head.tier, head.step, head.client, head.schema)]
    for part, cut in zip(sent, cuts, strict=True):
        live = torch.ones(cut.chunks, dtype=torch.bool) if zeros else (part.val != 0).any(dim=1)
        idx, val = part.idx[live].numpy(), part.val[live].numpy()
        if not zeros:
            # What is zero is not sent: its place is the chunk's first, which is taken.
            idx = np.where(val == 0, idx[:, :1], idx)
        parts += [
            np.packbits(live.numpy(), bitorder="little").tobytes(),
            idx.astype(_index_type(cut)).tobytes(),
            _values(val, kind),
        ]
    body = b"".join(parts)
    return body + digest(body)


def unpack(data: bytes, expected: Head, cuts: Sequence[Grid]) -> list[Sent]:
    """The coefficients of a payload, after every check.

    Args:
        data: As received.
        expected: What the sender must have said; its `client` and `step` too.
        cuts: The chunks of the sender's tier.

    Raises:
        PayloadError: It is not what such a sender could have sent in that round.
    """
    if len(data) > most_bytes(cuts, expected.kind):
        raise PayloadError(
            f"A payload of this tier has at most {most_bytes(cuts, expected.kind)} bytes; got {len(data)}"
        )
    if len(data) < HEAD.size + DIGEST or digest(data[:-DIGEST]) != data[-DIGEST:]:
        raise PayloadError("A payload must end with its own digest; this one is cut off or altered")
    magic, version, kind, tier, step, client, told = HEAD.unpack_from(data)
    want = (MAGIC, VERSION, KINDS[expected.kind], expected.tier, expected.step, expected.client, expected.schema)  # fmt: skip
    if (magic, version, kind, tier, step, client, told) != want:
        raise PayloadError(
            f"A payload must be that of client {expected.client}, tier {expected.tier}, round "
            f"{expected.step}, with the layout agreed on; got client {client}, tier {tier}, round {step}"
        )
    body, place, out = data[:-DIGEST], HEAD.size, []
    for cut in cuts:
        place, part = _group(body, place, cut, kind)
        out.append(part)
    if place != len(body):
        raise PayloadError(
            f"A payload must end after its last group; {len(body) - place} bytes are left"
        )
    return out


def most_bytes(cuts: Sequence[Grid], kind: Payload) -> int:
    """The largest payload of a tier: all chunks sent."""
    size = HEAD.size + DIGEST
    for cut in cuts:
        count = cut.chunks * cut.k
        size += -(-cut.chunks // 8) + count * _index_type(cut).itemsize
        size += -(-count * VALUE_BITS[KINDS[kind]] // 8)
    return size


def _index_type(cut: Grid) -> np.dtype[np.unsignedinteger]:
    """Smallest unsigned integer that holds every place of a chunk."""
    return np.dtype("<u1" if cut.volume <= 2**8 else "<u2" if cut.volume <= 2**16 else "<u4")


def _values(val: np.ndarray, kind: int) -> bytes:
    if kind == 0:
        return np.packbits(np.signbit(val), bitorder="little").tobytes()
    return val.astype("<f2" if kind == 1 else "<f4").tobytes()


def _group(body: bytes, place: int, cut: Grid, kind: int) -> tuple[int, Sent]:
    """One group from a place on; the place behind it."""
    place, bits = _take(body, place, -(-cut.chunks // 8), "a bitmap of chunks")
    flags = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
    if flags[cut.chunks :].any():
        raise PayloadError("The bits behind the last chunk of a bitmap must be 0")
    live = flags[: cut.chunks].astype(bool)
    count = int(live.sum()) * cut.k
    kind_of_index = _index_type(cut)
    place, raw = _take(body, place, count * kind_of_index.itemsize, "places")
    idx = np.frombuffer(raw, kind_of_index).astype(np.int64).reshape(-1, cut.k)
    if count and int(idx.max()) >= cut.volume:
        raise PayloadError(f"A place must be below {cut.volume}; got {int(idx.max())}")
    place, raw = _take(body, place, -(-count * VALUE_BITS[kind] // 8), "values")
    val = _read_values(raw, count, kind).reshape(-1, cut.k)
    val = np.where(_repeated(idx), np.float32(0), val)
    out_idx = torch.arange(cut.k).repeat(cut.chunks, 1)
    out_val = torch.zeros(cut.chunks, cut.k)
    at = torch.from_numpy(live)
    out_idx[at], out_val[at] = torch.from_numpy(idx), torch.from_numpy(val)
    return place, Sent(out_idx, out_val)


def _take(body: bytes, place: int, size: int, what: str) -> tuple[int, bytes]:
    if place + size > len(body):
        raise PayloadError(f"A payload must hold {size} bytes of {what}; it ends before")
    return place + size, body[place : place + size]


def _read_values(raw: bytes, count: int, kind: int) -> np.ndarray:
    if kind == 0:
        bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
        if bits[count:].any():
            raise PayloadError("The bits behind the last sign must be 0")
        return np.where(bits[:count], np.float32(-1), np.float32(1))
    val = np.frombuffer(raw, "<f2" if kind == 1 else "<f4").astype(np.float32)
    if not np.isfinite(val).all():
        raise PayloadError("Every value of a payload must be finite")
    return val


def _repeated(idx_GK: np.ndarray) -> np.ndarray:
    """Where a place stands in its chunk before: only the first counts."""
    order = np.argsort(idx_GK, axis=1, kind="stable")
    ranked = np.take_along_axis(idx_GK, order, axis=1)
    again = np.zeros_like(ranked, dtype=bool)
    again[:, 1:] = ranked[:, 1:] == ranked[:, :-1]
    out = np.zeros_like(again)
    np.put_along_axis(out, order, again, axis=1)
    return out


def digest(data: bytes) -> bytes:
    """The digest that ends a payload, and that witnesses report."""
    return hashlib.blake2b(data, digest_size=DIGEST).digest()


def dense_bytes(parameters: int) -> int:
    """What the whole gradient would take in float32."""
    return 4 * parameters
