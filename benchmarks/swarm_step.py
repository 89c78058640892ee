"""The optimizer step of the 34-million-parameter model, batched by shape and tensor by tensor.

    python benchmarks/swarm_step.py [--repeats 7] [--threads 2] [--out FOLDER]

A step is what a client does with its gradient: add it to the update, choose and take out the
coefficients, combine what was received (here its own), apply. The tensor-by-tensor version is ours
too, written as the public DeMo optimizer is described: one transform, one top-k over whole chunks and
one scatter a tensor. Both are checked to choose the same places with the same signs.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from assay.engines.swarm.codec import dct_matrix
from assay.engines.swarm.config import MODELS, Cut, divisor
from assay.engines.swarm.distro import RULES, Distro, Peer, combined, grids
from assay.engines.swarm.matformer import initial, layout

CHUNK, K, DECAY, LR = 64, 8, 0.999, 4e-4
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


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    plan, rule = layout(SHAPE, 0), RULES["reference"]
    batched = Distro(plan, grids(SHAPE, 0, Cut(CHUNK, K, CHUNK)), rule, DECAY)
    theta = initial(SHAPE, generator)
    views = {n: v.reshape(-1, v.shape[-1]) for n, v in plan.views(theta).items()}
    single = TensorByTensor({name: view.shape for name, view in views.items()})
    times: dict[str, list[float]] = {"batched": [], "tensor by tensor": []}
    for _ in range(options.repeats):
        flat = gradient(generator)
        named = {n: v.reshape(-1, v.shape[-1]) for n, v in plan.views(flat).items()}
        start = time.perf_counter()
        sent = batched.step(flat, LR)
        update = combined(SHAPE, 0, [Peer(0, sent)], rule, Cut(CHUNK, K, CHUNK))
        theta.sub_(update.sign_(), alpha=LR)
        times["batched"].append(time.perf_counter() - start)
        start = time.perf_counter()
        updates, chosen = single.step(named)
        for name, each in updates.items():
            views[name].sub_(each, alpha=LR)
        times["tensor by tensor"].append(time.perf_counter() - start)
        check(plan, sent, chosen)
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    result = {
        "benchmark": "swarm_step",
        "parameters": plan.size,
        "threads": options.threads,
        "machine": platform.processor() or platform.machine(),
        "seconds": times,
        "median_s": {name: statistics.median(each) for name, each in times.items()},
        "median_ratio": statistics.median(ratios),
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "record.json").write_text(json.dumps(result, indent=1) + "\n")


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
