"""How much the updates of small clients agree with those of large ones: analyses of stored payloads.

L is the update of the first client of tier 0, S_sum the sum of those of all clients of higher tiers,
over all stored rounds. `sign` is the share of elements whose signs are equal; 0 equals 0, so that
shared zeros count as agreement, and a definition that has many of them says little (specs/swarm.md
§4). `cosine` pools numerator and norms over tensors and rounds.

Each function is an analysis of a study (`[analyses.NAME] function = "assay.engines.swarm.agreement:…"`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assay.core.config import build
from assay.core.errors import DataError
from assay.engines import memory
from assay.engines.swarm.codec import Grid, decode
from assay.engines.swarm.combine import combined
from assay.engines.swarm.config import SwarmConfig
from assay.engines.swarm.distro import RULES, Peer, Sent, grids
from assay.engines.swarm.exchange import read
from assay.engines.swarm.matformer import Group, layout
from assay.engines.swarm.payload import PayloadError

PAYLOAD = re.compile(r"payload-(\d{5,})-(\d{3})\.bin")
BLOCK = 2**17
GRADIENT = re.compile(r"gradient-(\d{5,})-(\d{3})\.npz")


@dataclass
class Pooled:
    """Sums over tensors and rounds, in float64."""

    equal: float = 0.0
    total: float = 0.0
    dot: float = 0.0
    small: float = 0.0
    large: float = 0.0
    both_equal: float = 0.0
    both: float = 0.0
    either: float = 0.0

    def add(self, small: Tensor, large: Tensor) -> None:
        """Take in two tensors of one shape."""
        # Block by block, so that what is computed of one stays in the cache.
        for a, b in zip(small.flatten().split(BLOCK), large.flatten().split(BLOCK), strict=True):
            self._add(a, b)

    def _add(self, a: Tensor, b: Tensor) -> None:
        there, other = a != 0, b != 0
        both = there & other
        same = a.sign() == b.sign()
        self.equal += int(same.sum())
        self.total += a.numel()
        # In float64: float32 sums of 10^7 terms would lose digits.
        self.dot += float((a * b).sum(dtype=torch.float64))
        self.small += float((a * a).sum(dtype=torch.float64))
        self.large += float((b * b).sum(dtype=torch.float64))
        self.both_equal += int((same & both).sum())
        self.both += int(both.sum())
        self.either += int((there | other).sum())

    def __add__(self, other: "Pooled") -> "Pooled":
        return Pooled(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def values(self, name: str) -> dict[str, float]:
        """`agree/NAME_sign` and `agree/NAME_cosine`."""
        norm = (self.small * self.large) ** 0.5
        return {
            f"agree/{name}_sign": self.equal / self.total if self.total else float("nan"),
            f"agree/{name}_cosine": self.dot / norm if norm else float("nan"),
        }


@dataclass(frozen=True)
class _Round:
    """What the clients sent in a round: L's coefficients, those of the smaller clients, and all."""

    large: Sequence[Sent]
    small: Sequence[tuple[int, Sequence[Sent]]]
    all: Sequence[Peer]


def encoded(artifacts: Mapping[str, Path], run: Mapping[str, Any]) -> dict[str, float]:
    """Coefficients as transmitted, of all tensors but the feed-forward ones.

    This is what the source measured first. More than 99 % of the places are zeros that both share.
    """
    config, pooled = _config(run), Pooled()
    for sent in _rounds(artifacts, config):
        for at, (group, cut) in enumerate(_plan(config, 0)):
            if group.sliced is None:
                large = _scattered(sent.large[at], cut)
                small = torch.zeros_like(large)
                for tier, each in sent.small:
                    small += _scattered(each[at], _plan(config, tier)[at][1])
                pooled.add(small, large)
    return pooled.values("encoded")


def decoded(artifacts: Mapping[str, Path], run: Mapping[str, Any]) -> dict[str, float]:
    """Decoded updates of the full model; where the small clients have nothing, S_sum is 0."""
    return sum(_decoded(artifacts, run, padded=True).values(), Pooled()).values("decoded")


def overlap(artifacts: Mapping[str, Path], run: Mapping[str, Any]) -> dict[str, float]:
    """Decoded updates of the part that both have: together, by group, and where both are not 0."""
    groups = _decoded(artifacts, run, padded=False)
    whole = sum(groups.values(), Pooled())
    mlp = groups["wide"] + groups["narrow"]
    found = whole.values("overlap") | mlp.values("mlp")
    found |= {
        "agree/both_nonzero_sign": whole.both_equal / whole.both if whole.both else float("nan")
    }
    for name in ("embedding", "head", "attention", "norm"):
        found |= groups[name].values(name)
    return found


def support(artifacts: Mapping[str, Path], run: Mapping[str, Any]) -> dict[str, float]:
    """Share of the coefficients that L or a small client sent which both sent, by group.

    Mean over the small clients; a coefficient of value 0 was not sent.
    """
    config = _config(run)
    pooled: dict[str, Pooled] = {}
    for sent in _rounds(artifacts, config):
        for at, (group, cut) in enumerate(_plan(config, 0)):
            for tier, each in sent.small:
                theirs = _plan(config, tier)[at]
                large = _cut_to(_chunked(sent.large[at], cut), cut, theirs[1])
                pooled.setdefault(_kind(group), Pooled()).add(_chunked(each[at], theirs[1]), large)
    whole = sum(pooled.values(), Pooled())
    return {
        "agree/support_overlap": whole.both / whole.either if whole.either else float("nan")
    } | {
        f"agree/{kind}_support_overlap": p.both / p.either for kind, p in pooled.items() if p.either
    }


def raw(artifacts: Mapping[str, Path], run: Mapping[str, Any]) -> dict[str, float]:
    """Raw gradients of the first layer's feed-forward block, in the part that both have."""
    config, pooled = _config(run), Pooled()
    for rows in _grouped(artifacts, GRADIENT, config).values():
        (large, *_), small = _sides(rows, config)
        with np.load(rows[large], allow_pickle=False) as theirs:
            mine = {name: torch.from_numpy(theirs[name]) for name in ("gate", "up", "down")}
        total = {name: torch.zeros_like(each) for name, each in mine.items()}
        most = dict.fromkeys(mine, (0, 0))
        for number in small:
            with np.load(rows[number], allow_pickle=False) as arrays:
                for name in total:
                    each = torch.from_numpy(arrays[name])
                    total[name][: each.shape[0], : each.shape[1]] += each
                    most[name] = max(most[name], (each.shape[0], each.shape[1]))
        for name, (rows_, columns) in most.items():
            pooled.add(total[name][:rows_, :columns], mine[name][:rows_, :columns])
    return pooled.values("raw")


def applied(artifacts: Mapping[str, Path], run: Mapping[str, Any]) -> dict[str, float]:
    """The update that all apply, beside L's: signs and cosines of decoded tensors.

    L is one of the senders, so that this is more than its agreement with the others; and of the
    neurons that only L has, the update is L's. Taken of what was sent: where some of it was not
    agreed on, what was applied is in the stored updates.
    """
    config = _config(run)
    parts = {name: Pooled() for name in ("rest", "prefix", "suffix")}
    for sent in _rounds(artifacts, config):
        rule = RULES[config.mode]
        update = combined(config.shape, 0, sent.all, rule, config.cut)
        narrowest = max(tier for tier, _ in sent.small)
        width = config.shape.width(narrowest)
        for at, (group, cut) in enumerate(_plan(config, 0)):
            ours = group.view(update)
            large = decode(sent.large[at].idx, sent.large[at].val, cut)
            if group.sliced is None:
                parts["rest"].add(ours, large)
                continue
            axis = 1 + group.sliced
            behind = config.shape.ffn - width
            for name, start, length in (("prefix", 0, width), ("suffix", width, behind)):
                piece = (each.narrow(axis, start, length) for each in (ours, large))
                parts[name].add(*piece)
    whole = sum(parts.values(), Pooled()).values("applied")
    return whole | parts["prefix"].values("applied_mlp") | parts["suffix"].values("applied_suffix")


def first_layer(artifacts: Mapping[str, Path], run: Mapping[str, Any]) -> dict[str, float]:
    """Decoded updates of the first layer's feed-forward block, in the part that both have.

    The same tensors as `raw`, after compression.
    """
    groups = _decoded(artifacts, run, padded=False, first=True)
    return (groups["wide"] + groups["narrow"]).values("first_layer")


def _decoded(
    artifacts: Mapping[str, Path], run: Mapping[str, Any], *, padded: bool, first: bool = False
) -> dict[str, Pooled]:
    config = _config(run)
    found = {
        kind: Pooled() for kind in ("embedding", "head", "attention", "wide", "narrow", "norm")
    }
    for sent in _rounds(artifacts, config):
        for at, (group, cut) in enumerate(_plan(config, 0)):
            large = decode(sent.large[at].idx, sent.large[at].val, cut)
            parts = [
                decode(each[at].idx, each[at].val, _plan(config, tier)[at][1])
                for tier, each in sent.small
            ]
            rows = max(part.shape[1] for part in parts)
            columns = max(part.shape[2] for part in parts)
            small = large.new_zeros(large.shape)
            for part in parts:
                small[:, : part.shape[1], : part.shape[2]] += part
            if not padded:
                small, large = small[:, :rows, :columns], large[:, :rows, :columns]
            if group.kind == "embedding":
                found["embedding"].add(small[0], large[0])
                found["head"].add(small[1], large[1])
            elif group.kind in found:
                # The tensors of a group stand layer by layer.
                count = len(group.names) // config.shape.layers if first else len(group.names)
                found[group.kind].add(small[:count], large[:count])
    return found


def _config(run: Mapping[str, Any]) -> SwarmConfig:
    return build(SwarmConfig, run["config"], where="the run")


def _plan(config: SwarmConfig, tier: int) -> list[tuple[Group, Grid]]:
    """Groups of a tier, with their chunks."""
    cuts = grids(config.shape, tier, config.cut)
    return list(zip(layout(config.shape, tier).groups, cuts, strict=True))


def _kind(group: Group) -> str:
    return "mlp" if group.sliced is not None else group.kind


def _scattered(sent: Sent, cut: Grid) -> Tensor:
    """All coefficients of a group, those that were not sent 0, [chunks, volume]."""
    return torch.zeros(cut.chunks, cut.volume).scatter_add_(1, sent.idx, sent.val)


def _chunked(sent: Sent, cut: Grid) -> Tensor:
    """The same as [count, rows of chunks, columns of chunks, a, b]."""
    dense = _scattered(sent, cut)
    return dense.view(cut.count, cut.rows // cut.a, cut.columns // cut.b, cut.a, cut.b)


def _cut_to(chunks: Tensor, cut: Grid, other: Grid) -> Tensor:
    """The chunks that a narrower client has too."""
    if (cut.a, cut.b) != (other.a, other.b):
        raise DataError(
            f"Support can be compared where chunks are equal; {cut.a} x {cut.b} and {other.a} x "
            f"{other.b} are not. Take a chunk that divides the width of every tier."
        )
    return chunks[:, : other.rows // other.a, : other.columns // other.b]


def _rounds(artifacts: Mapping[str, Path], config: SwarmConfig) -> Iterator[_Round]:
    """The stored payloads, round by round; rounds without a large or a small client say nothing."""
    memory.keep()
    for step, rows in sorted(_grouped(artifacts, PAYLOAD, config).items()):
        (large, *_), small = _sides(rows, config)
        peers = {n: _read(path, n, step, config) for n, path in sorted(rows.items())}
        # Of helper neurons, which come last, no analysis but `applied` speaks.
        yield _Round(
            peers[large].sent,
            [(config.tiers[n], peers[n].sent) for n in small],
            list(peers.values()),
        )


def _read(path: Path, client: int, step: int, config: SwarmConfig) -> Peer:
    try:
        return read(config, client, step, path.read_bytes())
    except PayloadError as error:
        raise DataError(f"{path}: {error}.") from error


def _grouped(
    artifacts: Mapping[str, Path], pattern: re.Pattern[str], config: SwarmConfig
) -> dict[int, dict[int, Path]]:
    """Round → client → file, of the rounds in which a large and a small client were there.

    Raises:
        DataError: The run stored none, or there is no such round.
    """
    found: dict[int, dict[int, Path]] = {}
    for name, path in artifacts.items():
        if hit := pattern.fullmatch(name):
            found.setdefault(int(hit[1]), {})[int(hit[2])] = path
    if not found:
        raise DataError(
            f"An agreement needs files named {pattern.pattern}; the run stored none. Set `store` in "
            "the study's [config] to what is to be kept."
        )
    both = {step: rows for step, rows in found.items() if all(_sides(rows, config))}
    if not both:
        raise DataError(
            "An agreement compares a client of tier 0 with smaller ones; no stored round has both. The "
            f"tiers are {config.tiers}."
        )
    return both


def _sides(rows: Mapping[int, Path], config: SwarmConfig) -> tuple[list[int], list[int]]:
    """The large clients, and the smaller ones."""
    large = [n for n in sorted(rows) if config.tiers[n] == 0]
    return large, [n for n in sorted(rows) if config.tiers[n] > 0]
