"""A round of the swarm against clients and parameters; memory a client; bytes a round, really sent.

    python benchmarks/swarm_scaling.py [--rounds 5] [--threads 2] [--out FOLDER]

Each case is a process of its own, so that its peak memory is its own. A third of the clients have the
full width (tier 0), the others half of it. Bytes are those of the payloads that the clients sent,
headers included, against the whole gradient in float32.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch

from assay.cli.local_files import LocalContext
from assay.engines.swarm.config import MODELS, SwarmConfig
from assay.engines.swarm.matformer import parameters
from assay.engines.swarm.payload import dense_bytes
from assay.engines.swarm.train import train_one

CASES = [("tiny", n) for n in (1, 4, 32)] + [("small", n) for n in (1, 2, 4, 8, 16, 32)]
CASES += [("nanogpt-34m", n) for n in (1, 4, 32)]
WARM = 2


def one(model, clients, rounds, threads):
    """Seconds of each round, peak memory, and bytes of the last round by tier."""
    tiers = tuple(int(i % 3 > 0) for i in range(clients))
    config = SwarmConfig(
        model=model, tiers=tiers, steps=WARM + rounds, batch=clients, seq_len=64, lr=1e-3,
        eval_interval=10**6, eval_sequences=1,
    )  # fmt: skip
    times, sent = [time.perf_counter()], {}

    def watch(session):
        times.append(time.perf_counter())
        for number, data in session.sent.items():
            sent.setdefault(tiers[number], []).append(len(data))

    torch.set_num_threads(threads)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        context = LocalContext(
            Path(folder) / "run",
            told={"config": {}, "seed": 0},
            seeds=dict.fromkeys(("init", "data", "faults"), 0),
            quiet=True,
            threads=threads,
        )
        train_one(config, context, watch=watch)
    seconds = [b - a for a, b in pairwise(times)][WARM:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "model": model,
        "parameters": parameters(MODELS[model]),
        "clients": clients,
        "round_s": seconds,
        "median_round_s": statistics.median(seconds),
        "peak_mib": peak / 1024,
        "above_start_mib": (peak - before) / 1024,
        "bytes_a_client": {
            str(t): {
                "sent": statistics.mean(each[WARM * tiers.count(t):]),
                "dense": dense_bytes(parameters(MODELS[model], t)),
            }
            for t, each in sorted(sent.items())
        },
        "replicas_equal": context.final["sync/replicas_equal"],
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", nargs=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.one:
        model, clients = options.one
        print(json.dumps(one(model, int(clients), options.rounds, options.threads)))
        return
    found = []
    for model, clients in CASES:
        command = [sys.executable, __file__, "--one", model, str(clients), "--rounds",
                   str(options.rounds), "--threads", str(options.threads)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        each = found[-1]
        print(
            f"{model:12} {clients:3} clients  {each['median_round_s']:8.3f} s a round  "
            f"{each['peak_mib']:8.0f} MiB  {each['bytes_a_client']}",
            flush=True,
        )
    result = {
        "benchmark": "swarm_scaling",
        "machine": platform.processor() or platform.machine(),
        "threads": options.threads,
        "load_before": Path("/proc/loadavg").read_text().split()[:3],
        "cases": found,
    }
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
