"""Encoder time against the length of the text, beside a plain Transformer of the same width.

    python benchmarks/concepts_scaling.py [--repeats 5] [--out FILE] [--figure FILE]

Forward and backward of one text of N = 128 … 8192 tokens, C fixed, both with as many layers, the
library's attention, and no head. Slopes are of the logarithms of the medians over the longest four.
"""

import argparse
import json
import math
import platform
import statistics
from pathlib import Path

import torch
from matplotlib.figure import Figure
from transformers import set_seed

from assay.engines.concepts.config import CostConfig
from assay.engines.concepts.cost import encoder, seconds, text

LENGTHS = tuple(2**k for k in range(7, 14))
WIDTH, LAYERS, SLOTS, INNER = 256, 2, 64, 512
LAST = 4
"""Lengths from which slopes are found."""


def encoders():
    set_seed(0)
    common = {
        "tokens": max(LENGTHS), "hidden": WIDTH, "layers": LAYERS, "inner": INNER, "slots": SLOTS,
    }  # fmt: skip
    kinds = ("concepts", "bidirectional", "transformer")
    return {kind: encoder(CostConfig(encoder=kind, **common)) for kind in kinds}


def slope(lengths, times):
    x, y = [math.log(n) for n in lengths], [math.log(t) for t in times]
    return statistics.linear_regression(x, y).slope


def crossover(ours, theirs):
    """Length from which on ours is faster, between two that were measured; None if nowhere or everywhere."""
    gaps = [math.log(o / t) for o, t in zip(ours, theirs, strict=True)]
    for index in range(1, len(gaps)):
        if gaps[index - 1] > 0 >= gaps[index]:
            share = gaps[index - 1] / (gaps[index - 1] - gaps[index])
            return LENGTHS[index - 1] * 2**share
    return None


def draw(middle, path):
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    for name, times in middle.items():
        axes.plot(LENGTHS, times, "o-", label=name)
    axes.set(
        xscale="log", yscale="log", xlabel="N, tokens of a text", ylabel="forward and backward, s"
    )
    axes.set_xticks(LENGTHS, [str(n) for n in LENGTHS])
    axes.set_title(f"H {WIDTH}, {LAYERS} layers, C {SLOTS}, one text; medians")
    axes.legend(frameon=False)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    models = encoders()
    texts = {n: text(n) for n in LENGTHS}
    found = {name: {n: [] for n in LENGTHS} for name in models}
    for n in LENGTHS:
        for model in models.values():
            seconds(model, texts[n])
        for _ in range(options.repeats):
            for name, model in models.items():
                found[name][n].append(seconds(model, texts[n]))
    middle = {name: [statistics.median(each[n]) for n in LENGTHS] for name, each in found.items()}
    record = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": options.threads,
        "seconds": found,
        "slope": {name: slope(LENGTHS[-LAST:], times[-LAST:]) for name, times in middle.items()},
        "crossover": {
            name: crossover(times, middle["transformer"])
            for name, times in middle.items()
            if name != "transformer"
        },
    }
    print(f"{'N':>6} " + " ".join(f"{name:>24}" for name in models))
    for index, n in enumerate(LENGTHS):
        print(f"{n:6} " + " ".join(f"{1e3 * times[index]:21.1f} ms" for times in middle.values()))
    for kind in ("slope", "crossover"):
        print(kind, {name: value and round(value, 2) for name, value in record[kind].items()})
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    if options.figure:
        draw(middle, options.figure)


if __name__ == "__main__":
    main()
