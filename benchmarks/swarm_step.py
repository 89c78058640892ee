"""The optimizer step of the 34-million-parameter model: fused kernel, batched torch, tensor by tensor.

    python benchmarks/swarm_step.py [--repeats 15] [--threads 2] [--out FOLDER]

A step is what a client does with its gradient: add it to the update, choose and take out the
coefficients, combine what was received (here its own), apply. The three take turns on the same
gradients. "batched" is the engine without its extension. The tensor-by-tensor version is ours too,
written as the public DeMo optimizer is described: one transform, one top-k over whole chunks and one
scatter a tensor. All are checked to choose the same places with the same signs. Encode and decode are
timed alone as well; decode writes into fresh memory, as a caller of it does.
"""

import argparse
import json
import platform
import statistics
import time
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import torch

from assay.engines.swarm import fused
from assay.engines.swarm.codec import dct_matrix, decode, encode
from assay.engines.swarm.combine import apply_combined
from assay.engines.swarm.config import MODELS, Cut, divisor
from assay.engines.swarm.distro import RULES, Distro, Peer, grids
from assay.engines.swarm.matformer import initial, layout

CHUNK, K, DECAY, LR = 64, 8, 0.999, 4e-4
CUT = Cut(CHUNK, K, CHUNK)
SHAPE = MODELS["nanogpt-34m"]


class TensorByTensor:
    """One tensor after the other."""

    def __init__(self, shapes):
        self.delta = {name: torch.zeros(shape) for name, shape in shapes.items()}

    def step(self, gradient):
        """The update of every tensor, and the places and values that were chosen."""
        updates, chosen = {}, {}
        for name, g in gradient.items():
            delta = self.delta[name].mul_(DECAY).add_(g, alpha=LR)
            rows, columns = delta.shape
            a, b = divisor(rows, CHUNK), divisor(columns, CHUNK)
            left, right = dct_matrix(a), dct_matrix(b)
            pieces = delta.view(rows // a, a, columns // b, b).transpose(1, 2)
            freq = torch.einsum("ij,rcjk,lk->rcil", left, pieces, right).flatten(2)
            idx = freq.abs().topk(min(K, a * b), dim=2).indices
            val = freq.gather(2, idx)
            sparse = torch.zeros_like(freq).scatter_(2, idx, val)
            delta -= self._back(sparse, left, right, delta.shape)
            mean = torch.zeros_like(freq).scatter_reduce_(2, idx, val, "mean", include_self=False)
            updates[name] = self._back(mean, left, right, delta.shape).sign_()
            chosen[name] = (idx.flatten(0, 1), val.flatten(0, 1))
        return updates, chosen

    @staticmethod
    def _back(freq, left, right, shape):
        pieces = freq.view(*freq.shape[:2], len(left), len(right))
        back = torch.einsum("ji,rcjk,kl->rcil", left, pieces, right)
        return back.transpose(1, 2).reshape(shape)


def gradient(generator):
    """As training gives it: only the rows of tokens that occur have a gradient in the embedding."""
    plan = layout(SHAPE, 0)
    flat = torch.randn(plan.size, generator=generator)
    embedding = plan.groups[0].view(flat)[0]
    embedding[256:] = 0
    return flat


class Engine:
    """The engine's own step, with its kernel or without."""

    def __init__(self, plan, theta, *, kernel):
        self.plan, self.theta, self.kernel = plan, theta.clone(), kernel
        self.rule = RULES["reference"]
        self.distro = Distro(plan, grids(SHAPE, 0, CUT), self.rule, DECAY)

    def timed(self, flat):
        """Seconds of the step, of its two halves, and of encode and decode alone; what was sent."""
        with patch.object(
            fused, "computes", fused.computes if self.kernel else lambda *t, cuts=(): False
        ):
            times = [time.perf_counter()]
            sent = self.distro.step(flat, LR)
            times.append(time.perf_counter())
            apply_combined([self.theta], SHAPE, 0, [Peer(0, sent)], self.rule, CUT, "sign", LR)
            times.append(time.perf_counter())
            for group, cut in zip(self.plan.groups, self.distro.cuts, strict=True):
                encode(group.view(flat), cut)
            times.append(time.perf_counter())
            for cut, part in zip(self.distro.cuts, sent, strict=True):
                decode(part.idx, part.val, cut)
            times.append(time.perf_counter())
        first, second, encoded, decoded = (b - a for a, b in pairwise(times))
        return {
            "step": first + second,
            "distro.step": first,
            "combine and apply": second,
            "encode": encoded,
            "decode": decoded,
        }, sent


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    load_before = Path("/proc/loadavg").read_text().split()[:3]
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    plan = layout(SHAPE, 0)
    theta = initial(SHAPE, generator)
    engines = {
        "fused": Engine(plan, theta, kernel=True),
        "batched": Engine(plan, theta, kernel=False),
    }
    views = {n: v.reshape(-1, v.shape[-1]) for n, v in plan.views(theta).items()}
    single = TensorByTensor({name: view.shape for name, view in views.items()})
    times: dict[str, dict[str, list[float]]] = {"tensor by tensor": {"step": []}}
    for _ in range(options.repeats):
        flat = gradient(generator)
        named = {n: v.reshape(-1, v.shape[-1]) for n, v in plan.views(flat).items()}
        sent = {}
        for way, engine in engines.items():
            found, sent[way] = engine.timed(flat)
            for part, seconds in found.items():
                times.setdefault(way, {}).setdefault(part, []).append(seconds)
        start = time.perf_counter()
        updates, chosen = single.step(named)
        for name, each in updates.items():
            views[name].sub_(each, alpha=LR)
        times["tensor by tensor"]["step"].append(time.perf_counter() - start)
        for each in sent.values():
            check(plan, each, chosen)
    medians = {
        way: {part: statistics.median(each) for part, each in parts.items()}
        for way, parts in times.items()
    }
    result = {
        "benchmark": "swarm_step",
        "parameters": plan.size,
        "threads": options.threads,
        "kernel": fused.describe(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "load_before": load_before,
        "load_after": Path("/proc/loadavg").read_text().split()[:3],
        "median_s": medians,
        "median_ratio_to_fused": {way: ratio(times[way], times["fused"]) for way in times},
        "seconds": times,
    }
    print(json.dumps({key: each for key, each in result.items() if key != "seconds"}, indent=1))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "record.json").write_text(json.dumps(result, indent=1) + "\n")


def ratio(slower, faster):
    """The median over repeats of the ratio within a repeat, by part."""
    return {
        part: statistics.median(a / b for a, b in zip(each, faster[part], strict=True))
        for part, each in slower.items()
    }


def check(plan, sent, chosen):
    """Both chose the same places, with the same signs, wherever something is sent."""
    different = total = 0
    for group, part in zip(plan.groups, sent, strict=True):
        idx = torch.cat([chosen[name][0] for name in group.names])
        val = torch.cat([chosen[name][1] for name in group.names])
        live = (val != 0).any(dim=1)
        mine, order = part.idx[live].sort(dim=1)
        theirs, other = idx[live].sort(dim=1)
        signs = part.val[live].gather(1, order).sign() == val[live].gather(1, other).sign()
        different += int(((mine != theirs) | ~signs).sum())
        total += mine.numel()
    # Two sums in another order may change which of two nearly equal coefficients is larger.
    assert different <= 1e-4 * total, (different, total)


if __name__ == "__main__":
    main()
