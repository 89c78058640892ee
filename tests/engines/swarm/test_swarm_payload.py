"""Payloads: what was packed comes out, and nothing else is accepted."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.engines.swarm.codec import encode
from assay.engines.swarm.config import MODELS, Cut, Shape
from assay.engines.swarm.distro import Sent, grids
from assay.engines.swarm.matformer import layout
from assay.engines.swarm.payload import (
    DIGEST,
    HEAD,
    Head,
    PayloadError,
    digest,
    most_bytes,
    pack,
    schema,
    unpack,
)

SHAPE = Shape(hidden=16, layers=1, heads=2, ffn=32, vocab=20)
CUT = Cut(8, 3, 8)


def example(kind="1bit", tier=0, *, zeros=False, seed=0):
    """A payload with silent chunks, its head, cuts and coefficients."""
    generator = torch.Generator().manual_seed(seed)
    cuts = grids(SHAPE, tier, CUT)
    sent = []
    for group, cut in zip(layout(SHAPE, tier).groups, cuts, strict=True):
        idx, val = encode(torch.randn(len(group.names), *group.shape, generator=generator), cut)
        silent = torch.rand(cut.chunks, 1, generator=generator) < 0.3
        sent.append(Sent(idx, torch.where(silent, 0.0, val)))
    head = Head(kind, tier, 7, 3, schema(cuts))
    return pack(head, sent, cuts, zeros=zeros), head, cuts, sent


@pytest.mark.parametrize("kind", ["1bit", "fp16", "fp32"])
@pytest.mark.parametrize("tier", [0, 1])
def test_what_was_packed_comes_out(kind, tier):
    """Places and values; signs in one bit, half precision in 16."""
    data, head, cuts, sent = example(kind, tier)
    for got, want in zip(unpack(data, head, cuts), sent, strict=True):
        live = (want.val != 0).any(dim=1)
        assert torch.equal(got.idx[live], want.idx[live])
        expected = {"1bit": want.val.sign(), "fp16": want.val.half().float(), "fp32": want.val}
        assert torch.equal(got.val, expected[kind])


def test_zeros_that_are_sent():
    """The fork's rule: all-zero chunks are sent, and one bit reads them as +1."""
    data, head, cuts, sent = example(zeros=True)
    for got, want in zip(unpack(data, head, cuts), sent, strict=True):
        assert torch.equal(got.val, torch.where(want.val < 0, -1.0, 1.0))
    assert len(data) == most_bytes(cuts, "1bit")


def test_a_chunk_with_fewer_coefficients_than_k():
    """What is zero in a chunk that sends is not sent: no place is named twice with a value."""
    cuts = grids(SHAPE, 0, CUT)
    sent = [Sent(torch.arange(c.k).repeat(c.chunks, 1), torch.zeros(c.chunks, c.k)) for c in cuts]
    sent[1].val[4] = torch.tensor([-2.0, 0.0, 0.0])
    head = Head("1bit", 0, 1, 0, schema(cuts))
    got = unpack(pack(head, sent, cuts, zeros=False), head, cuts)
    assert got[1].val[4].tolist() == [-1.0, 0.0, 0.0]
    assert all(part.val.abs().sum() == (at == 1) for at, part in enumerate(got))


def test_the_quoted_bytes():
    """271 kB and 766 kB of 136.5 MB, as specs/swarm.md §2 has them, and 2 kB of bitmaps."""
    shape = MODELS["nanogpt-34m"]
    cuts = grids(shape, 0, Cut(64, 8, 64))
    bitmaps = sum(-(-cut.chunks // 8) for cut in cuts)
    fixed = HEAD.size + DIGEST + bitmaps
    # A norm's chunk has 64 places, which take one byte: 544 coefficients.
    assert most_bytes(cuts, "1bit") - fixed == 2 * 127_840 - 544 + 127_840 // 8
    assert most_bytes(cuts, "fp32") - fixed == 2 * 127_840 - 544 + 4 * 127_840


@pytest.mark.parametrize(
    ("field", "value"),
    [("client", 4), ("step", 8), ("tier", 1), ("kind", "fp32"), ("schema", b"x" * 32)],
)
def test_another_senders_payload(field, value):
    """A payload of another client, round, tier, kind or layout is refused."""
    data, head, cuts, _ = example()
    other = {name: getattr(head, name) for name in ("kind", "tier", "step", "client", "schema")}
    with pytest.raises(PayloadError):
        unpack(data, Head(**(other | {field: value})), cuts)


def signed(body):
    """A body with a valid digest: what a malicious peer would send."""
    return body + digest(body)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(["1bit", "fp16", "fp32"]))
def test_mutated_payloads(data, kind):
    """Cut, extended or altered bytes, with a right digest: refused, or within all bounds."""
    packed, head, cuts, _ = example(kind)
    body = bytearray(packed[:-DIGEST])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(body) - 1))
        what = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if what == "set":
            body[at] = data.draw(st.integers(0, 255))
        elif what == "cut" and len(body) > 2:
            del body[at : at + data.draw(st.integers(1, 20))]
        else:
            body[at:at] = data.draw(st.binary(max_size=20))
        if not body:
            break
    check(signed(bytes(body)), head, cuts)


def check(data, head, cuts):
    """Refused, or every place and value is one that the format allows."""
    try:
        got = unpack(data, head, cuts)
    except PayloadError:
        return False
    for part, cut in zip(got, cuts, strict=True):
        assert part.idx.shape == part.val.shape == (cut.chunks, cut.k)
        assert 0 <= int(part.idx.min()) <= int(part.idx.max()) < cut.volume
        assert torch.isfinite(part.val).all()
    return True


@pytest.mark.parametrize("kind", ["1bit", "fp16", "fp32"])
def test_a_hundred_thousand_mutated_payloads(kind):
    """Random bytes changed in a valid payload, half of them with a right digest: no crash."""
    packed, head, cuts, _ = example(kind)
    rng = np.random.default_rng(9)
    raw = np.frombuffer(packed, np.uint8)
    accepted = 0
    for turn in range(34_000):
        mutated = raw.copy()
        at = rng.integers(0, len(raw), size=rng.integers(1, 4))
        mutated[at] ^= rng.integers(1, 256, size=len(at)).astype(np.uint8)
        data = mutated.tobytes()
        accepted += check(signed(data[:-DIGEST]) if turn % 2 else data, head, cuts)
    # With a right digest, a changed sign or place is a valid message of a liar; never without.
    assert 0 < accepted < 17_000
