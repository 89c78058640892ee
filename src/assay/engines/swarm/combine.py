"""What all clients' coefficients make together, in each of the rules of `distro`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from assay.engines.swarm import fused
from assay.engines.swarm.codec import Grid, decode
from assay.engines.swarm.config import Apply, Cut, Shape
from assay.engines.swarm.distro import Peer, Rule, Sent, grids
from assay.engines.swarm.fused import Part, Way
from assay.engines.swarm.matformer import HELPERS, Group, helper_places, layout


@dataclass(frozen=True, slots=True)
class _Helpers:
    """What the clients of one kind sent of their helper neurons, and which those are."""

    part: Part
    neurons_LN: Tensor


def combined(shape: Shape, tier: int, peers: Sequence[Peer], rule: Rule, cut: Cut) -> Tensor:
    """The update that a client of a tier applies, out of what all peers sent; a flat row.

    Peers are summed tier by tier in the order given, so that every receiver adds the same numbers
    in the same order: replicas stay equal bit for bit, and so do the common parts of two tiers.

    Args:
        shape: Of the full model.
        tier: The tier that the receiver stores.
        peers: What was received, in an order that all receivers share.
        rule: How they are combined.
        cut: Of the tensors.
    """
    plan = layout(shape, tier)
    out = torch.empty(plan.size)
    for at, group in enumerate(plan.groups):
        _combine(at, shape, peers, cut, _way(rule, group, peers), [group.view(out)])
    return out


def apply_combined(
    thetas: Sequence[Tensor],
    shape: Shape,
    tier: int,
    peers: Sequence[Peer],
    rule: Rule,
    cut: Cut,
    apply: Apply,
    lr: float,
) -> None:
    """Step along the update that clients of a tier get out of what all peers sent, in place.

    The update itself is not kept, so that memory is read and written once.

    Args:
        thetas: Parameters of the clients, flat rows.
        shape: Of the full model.
        tier: The tier that the receivers store.
        peers: As for `combined`.
        rule: How they are combined.
        cut: Of the tensors.
        apply: Along the signs of the update, or the update itself.
        lr: Learning rate of the round.
    """
    for at, group in enumerate(layout(shape, tier).groups):
        way = replace(_way(rule, group, peers), sign=apply == "sign", lr=lr)
        _combine(at, shape, peers, cut, way, [group.view(theta) for theta in thetas])


def _way(rule: Rule, group: Group, peers: Sequence[Peer]) -> Way:
    """How a rule combines a group."""
    if rule.combine == "element":
        return Way(elements=True)
    uniform = group.sliced is None or len({peer.kind for peer in peers}) <= 1
    if rule.combine == "coefficient" or uniform:
        return Way(mean=True)
    return Way(over=len(peers))


def _combine(
    at: int, shape: Shape, peers: Sequence[Peer], cut: Cut, way: Way, stacks: Sequence[Tensor]
) -> None:
    """One group: sum what was sent for it, and store it or step along it."""
    parts, helpers = _parts(at, shape, peers, cut)
    vals = [part.val for part in parts]
    if not helpers and fused.computes(*vals, *stacks, cuts=[part.cut for part in parts]):
        fused.combine(parts, way, stacks)
        return
    total, count = torch.zeros(stacks[0].shape), torch.zeros(stacks[0].shape)
    for part in parts:
        _add(total, _decoded(part, way))
        if way.elements:
            _add(count, _contributors(part))
    full = layout(shape, 0).groups[at]
    for each in helpers:
        axis, index = helper_places(full, each.neurons_LN)
        whole = total.new_zeros(len(full.names), *full.shape)
        _add(total, whole.scatter(axis, index, _decoded(each.part, way)))
        if way.elements:
            _add(count, whole.scatter(axis, index, _contributors(each.part)))
    total.div_(count.clamp_(min=1) if way.elements else way.over)
    if way.sign:
        total.sign_()
    for stack in stacks:
        if way.lr is None:
            stack.copy_(total)
        else:
            stack.sub_(total, alpha=way.lr)


def _parts(
    at: int, shape: Shape, peers: Sequence[Peer], cut: Cut
) -> tuple[list[Part], list[_Helpers]]:
    """What all peers sent for a group: together those whose tensors are alike, tier by tier.

    Of helper neurons apart, kind by kind.
    """
    wanted = layout(shape, 0).groups[at].kind
    own: dict[Grid, list[Sent]] = {}
    helpers: dict[tuple[int, int], tuple[Grid, list[Sent], Tensor]] = {}
    for peer in sorted(peers, key=lambda peer: peer.kind):
        tier, count = peer.kind
        groups, pieces = layout(shape, tier, count).groups, grids(shape, tier, cut, count)
        for group, piece, sent in zip(groups, pieces, peer.sent, strict=True):
            if group.kind == wanted:
                own.setdefault(piece, []).append(sent)
            elif group.kind == wanted + HELPERS and peer.neurons_LN is not None:
                helpers.setdefault(peer.kind, (piece, [], peer.neurons_LN))[1].append(sent)
    return [_part(piece, sent) for piece, sent in own.items()], [
        _Helpers(_part(piece, sent), neurons) for piece, sent, neurons in helpers.values()
    ]


def _part(piece: Grid, sent: Sequence[Sent]) -> Part:
    idx = torch.cat([each.idx for each in sent], dim=1)
    val = torch.cat([each.val for each in sent], dim=1)
    return Part(idx, val, piece, len(sent))


def _add(total: Tensor, more: Tensor) -> None:
    """Add a stack to one that is wider or narrower: the beginning is what both have."""
    rows, columns = (min(x, y) for x, y in zip(more.shape[1:], total.shape[1:], strict=True))
    total[:, :rows, :columns] += more[:, :rows, :columns]


def _decoded(part: Part, way: Way) -> Tensor:
    val = part.val / _senders(part.idx, part.val) if way.mean else part.val
    return decode(part.idx, val, part.cut)


def _senders(idx_GK: Tensor, val_GK: Tensor) -> Tensor:
    """How many peers sent each coefficient; at least 1."""
    same = idx_GK[:, :, None] == idx_GK[:, None, :]
    return same.sum(dim=2).to(val_GK.dtype)


def _contributors(part: Part) -> Tensor:
    """How many peers sent something for the chunk of each element, [count, rows, columns]."""
    cut = part.cut
    live = (part.val.view(cut.chunks, part.peers, -1) != 0).any(dim=2).sum(dim=1)
    height, width = cut.rows // cut.a, cut.columns // cut.b
    tiles = live.view(cut.count, height, 1, width, 1).float()
    return tiles.expand(-1, -1, cut.a, -1, cut.b).reshape(cut.count, cut.rows, cut.columns)
