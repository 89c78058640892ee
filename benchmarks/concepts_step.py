"""A training step of the masked model beside plain ones: attention written out, and logits of every token.

    python benchmarks/concepts_step.py [--repeats 7] [--out FILE]

All have the same weights, the same batch, the same loss (checked before anything is timed), the same
optimizer and the same allocator. "plain" writes the source's layer out: softmax of a matrix of scores, and a
dense head, decoder and logits of all tokens. "eager" has the same attention, but decodes only what is asked
for, as the source's perceiver does with its head; so it tells the two apart. Each case runs in a process of
its own, for its peak memory; repeats take turns, so that a busy moment falls on all.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import time
from pathlib import Path

import torch
from transformers import set_seed

from assay.engines import memory
from assay.engines.concepts.configuration import ConceptConfig
from assay.engines.concepts.layers import Attention
from assay.engines.concepts.models import ConceptForMaskedLM

SHAPES = {
    "H512 L2 C128 N512 B4, V 50,368": {
        "hidden_size": 512, "num_hidden_layers": 2, "concept_num": 128, "intermediate_size": 1024,
        "num_attention_heads": 8, "vocab_size": 50368, "tokens": 512, "texts": 4,
    },
    "H128 L2 C32 N128 B32, V 4,096": {
        "hidden_size": 128, "num_hidden_layers": 2, "concept_num": 32, "intermediate_size": 256,
        "num_attention_heads": 2, "vocab_size": 4096, "tokens": 128, "texts": 32,
    },
}  # fmt: skip
CASES = ("ours", "eager", "plain")


class Eager(Attention):
    """The same attention, its scores as a matrix."""

    def forward(self, reading, read, mask=None):
        weights = self.weights(reading, read, mask)
        weights = torch.nn.functional.dropout(weights, self.dropout, self.training)
        value = self.value(read).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.out((weights @ value).transpose(1, 2).flatten(2))


def made(shape, case):
    """A model in training, its optimizer, and a batch with 15 % of the tokens asked for."""
    settings = {name: value for name, value in shape.items() if name not in ("tokens", "texts")}
    set_seed(0)
    model = ConceptForMaskedLM(
        ConceptConfig(
            **settings,
            max_position_embeddings=shape["tokens"],
            tie_word_embeddings=True,
            dense_head=case == "plain",
        )
    ).train()
    if case != "ours":
        for module in model.modules():
            if type(module) is Attention:
                module.__class__ = Eager
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(4, shape["vocab_size"], (shape["texts"], shape["tokens"]))
    labels = ids.masked_fill(torch.rand(ids.shape) >= 0.15, -100)
    return model, optimizer, (ids, torch.ones_like(ids), labels)


def step(model, optimizer, batch):
    optimizer.zero_grad()
    loss = model(*batch).loss
    loss.backward()
    optimizer.step()
    return loss


def serve(pipe, shape, case, threads):
    """Answer with the seconds of so many steps, and at the end with the peak memory."""
    torch.set_num_threads(threads)
    memory.keep()
    parts = made(shape, case)
    model = parts[0].eval()
    pipe.send(float(model(*parts[2]).loss.detach()))
    model.train()
    while (steps := pipe.recv()) > 0:
        began = time.perf_counter()
        for _ in range(steps):
            step(*parts)
        pipe.send((time.perf_counter() - began) / steps)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure(shape, repeats, seconds, threads):
    """Case → seconds a step of every repeat, and peak memory in MiB."""
    context = multiprocessing.get_context("spawn")
    pipes, losses = {}, {}
    for case in CASES:
        pipes[case], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, shape, case, threads), daemon=True).start()
        losses[case] = pipes[case].recv()
    for case in CASES[1:]:
        assert abs(losses["ours"] - losses[case]) < 1e-4 * losses[case], losses

    def ask(case, steps):
        pipes[case].send(steps)
        return pipes[case].recv()

    first = {case: ask(case, 2) for case in CASES}
    steps = {case: max(1, int(seconds / first[case])) for case in CASES}
    found = {case: [] for case in CASES}
    for _ in range(repeats):
        for case in CASES:
            found[case].append(ask(case, steps[case]))
    return found, {case: ask(case, 0) for case in CASES}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    record = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": options.threads,
    }
    print(f"{'shape':34} {'case':8} {'ms a step':>10} {'peak MiB':>9} {'of ours':>13}")
    for name, shape in SHAPES.items():
        found, peak = measure(shape, options.repeats, options.seconds, options.threads)
        middle = {case: statistics.median(each) for case, each in found.items()}
        ratios = {
            case: statistics.median(a / o for a, o in zip(found[case], found["ours"], strict=True))
            for case in CASES[1:]
        }
        record[name] = {"seconds": found, "peak_mib": peak, "by_ours": ratios}
        for case in CASES:
            shown = f"{ratios[case]:12.2f}x" if case in ratios else ""
            print(f"{name:34} {case:8} {1e3 * middle[case]:10.1f} {peak[case]:9.0f} {shown:>13}")
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
