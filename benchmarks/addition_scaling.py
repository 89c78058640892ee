"""Cost of a model-step against the number of seeds and the batch size, and the memory of 64 seeds.

    python benchmarks/addition_scaling.py [--out record.json] [--figure figure.png]

One process, one thread, the 1,128-parameter model, last curriculum phase, sampling and optimizer
included. Every point is the median of repeats that alternate with the other points. Memory is the
largest resident size of a fresh process that trains that many seeds at batch 512.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from assay.engines.addition import fused
from assay.engines.addition.backend import choose
from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.state import Cohort
from assay.engines.addition.train import Examples, advance

sys.path.insert(0, str(Path(__file__).parent))
from addition_speed import Speedometer, cpu_name

SEEDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BATCHES = (128, 256, 512, 1024, 2048, 4096)
COSTS_MS = (0.2, 0.5, 1, 2, 5)
"""Ticks of the figure."""
MODEL_STEPS = 512
"""Model-steps of one timing: fewer steps where there are more seeds."""


class Point:
    """A cohort that is ready to be timed."""

    def __init__(self, seeds: int, batch: int) -> None:
        config = AdditionConfig(
            d_model=8,
            d_ff=28,
            batch_size=batch,
            val_size=512,
            test_size=1,
            test_seeds=(41,),
            curriculum=((1, 10, 1),),
        )
        self.seeds, self.batch = seeds, batch
        self.cohort = Cohort.start([config] * seeds, [Speedometer(s) for s in range(seeds)])
        self.backend = choose(config, device="cpu", threads=1)
        self.examples = Examples()
        self.steps = max(16, 16 * round(MODEL_STEPS * 512 / (seeds * batch * 16)))
        self.times: list[float] = []
        advance(self.cohort, self.backend, self.examples, until=16)

    def measure(self) -> None:
        """Milliseconds of one model-step, once."""
        first = self.cohort.runs[0].step
        start = time.perf_counter()
        advance(self.cohort, self.backend, self.examples, until=first + self.steps)
        spent_ms = 1000 * (time.perf_counter() - start)
        self.times.append(spent_ms / self.steps / self.seeds)


def peak_mib(seeds: int) -> float:
    """Largest resident size of a process that trains for two blocks of steps."""
    command = [sys.executable, __file__, "--memory", str(seeds)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def memory(seeds: int) -> None:
    """The child of `peak_mib`."""
    torch.set_num_threads(1)
    with torch.no_grad():
        point = Point(seeds, 512)
        advance(point.cohort, point.backend, point.examples, until=32)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Both curves, with the line of equal cost an example."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    by_seed = [row for row in rows if row["batch"] == 512]
    left.plot([r["seeds"] for r in by_seed], [r["ms"] for r in by_seed], "o-")
    left.set(
        xscale="log", xlabel="seeds in the cohort, batch 512", ylabel="ms a model-step", ylim=0
    )
    by_batch = [row for row in rows if row["seeds"] == 8]
    sizes = [r["batch"] for r in by_batch]
    right.plot(sizes, [r["ms"] for r in by_batch], "o-", label="measured")
    base = next(r["ms"] for r in by_batch if r["batch"] == 512)
    right.plot(
        sizes, [base * size / 512 for size in sizes], "--", label="proportional to the batch"
    )
    right.set(xscale="log", yscale="log", xlabel="batch size, 8 seeds", ylabel="ms a model-step")
    right.legend(frameon=False)
    right.set_yticks(list(COSTS_MS), [f"{cost:g}" for cost in COSTS_MS])
    for axes, ticks in ((left, [r["seeds"] for r in by_seed]), (right, sizes)):
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--memory", type=int)
    arguments = parser.parse_args()
    if arguments.memory:
        memory(arguments.memory)
        return
    # First: a child's largest resident size starts from that of its parent.
    peaks = {str(seeds): peak_mib(seeds) for seeds in (1, 8, 64)}
    torch.set_num_threads(1)
    with torch.no_grad():
        points = [Point(seeds, 512) for seeds in SEEDS]
        points += [Point(8, batch) for batch in BATCHES if batch != 512]
        for _ in range(arguments.repeats):
            for point in points:
                point.measure()
    rows = [
        {"seeds": p.seeds, "batch": p.batch, "ms": statistics.median(p.times), "all_ms": p.times}
        for p in sorted(points, key=lambda p: (p.batch != 512, p.batch, p.seeds))
    ]
    record = {
        "what": "addition training, ms a model-step, 1,128 parameters, one thread",
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{cpu_name()}, 1 thread, {platform.system()}",
        "load_before": Path("/proc/loadavg").read_text().split()[0],
        "kernel": fused.describe(),
        "torch": torch.__version__,
        "rows": rows,
        "peak_memory_mib": peaks,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    if arguments.figure:
        draw(sorted(rows, key=lambda r: (r["seeds"], r["batch"])), arguments.figure)
    print(
        f"{record['machine']}; {record['kernel']}\n\n| seeds | batch | ms a model-step |\n|--:|--:|--:|"
    )
    for row in rows:
        print(f"| {row['seeds']} | {row['batch']} | {row['ms']:.3f} |")
    print("\npeak memory, MiB:", record["peak_memory_mib"])


if __name__ == "__main__":
    main()
