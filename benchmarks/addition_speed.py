"""Model-steps a second of the addition engine beside a plain full-sequence eager trainer.

    python benchmarks/addition_speed.py [--repeats 5] [--out record.json]

Both sides train at batch 512 in the last curriculum phase, sampling and optimizer included. Two
settings: one process (both sides on both cores; ours: 8 seeds in a cohort), and 2 processes of 1
thread (ours: 4 seeds each, as `assay run` divides them). Repeats of both sides alternate in one
run; medians are reported. The second ratio is to the two public trainers, which the specification
puts at about 33 ms a model-step on such a machine: that figure is quoted, not measured here.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from assay.engines.addition import fused
from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.layout import num_parameters
from assay.engines.addition.train import train

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from addition_plain import PlainConfig, Trainer, seconds_per_step

OURS: dict[str, dict[str, Any]] = {
    "d8 f28, 1128 parameters": {"d_model": 8, "d_ff": 28},
    "d7 f14 low rank, 456 parameters": {
        "d_model": 7,
        "d_ff": 14,
        "pos_rank": 3,
        "qkv_rank": 3,
        "attn_out_rank": 2,
        "ffn_rank": 3,
        "norm": "rmsnorm",
        "tie_qkv": "shareA_tieKV",
    },
}
PEER = {
    "d8 f28, 1128 parameters": PlainConfig(),
    "d7 f14 low rank, 456 parameters": PlainConfig(
        d_model=7,
        d_ff=14,
        pos_rank=3,
        qkv_rank=3,
        attn_out_rank=2,
        ffn_rank=3,
        rms=True,
        share_a_tie_kv=True,
    ),
}
MODELS = tuple(OURS)
WARM_UP = 3
PUBLIC_MS = 33.0
"""Milliseconds of a model-step of the public trainers on two such cores, as reported."""


class Speedometer:
    """A run context that keeps nothing but final values."""

    device = "cpu"
    data_dir = None

    def __init__(self, seed: int, threads: int = 1) -> None:
        self.threads = threads
        self.seeds: Mapping[str, int] = {"init": seed, "data": seed}
        self.final: dict[str, float] = {}

    def log(self, values: Mapping[str, float], *, step: int) -> None: ...

    def summary(self, values: Mapping[str, float]) -> None:
        self.final |= values

    def save(self, name: str, content: bytes) -> str:
        return name

    def save_checkpoint(self, step: int, content: bytes) -> None: ...

    def load_checkpoint(self) -> None:
        return None

    def event(self, kind: str, message: str, **details: Any) -> None: ...

    def spent(self, **budget: float) -> None: ...

    def progress(self, step: int, total: int, shown: Mapping[str, float]) -> None: ...

    def should_stop(self) -> bool:
        return False


def ours(model: str, *, seeds: int, steps: int, threads: int = 1) -> float:
    """Model-steps a second of a cohort, one evaluation on 512 pairs included."""
    config = AdditionConfig(
        **OURS[model],
        steps=steps,
        warmup_steps=steps // 10,
        eval_interval=steps,
        val_size=512,
        test_size=1,
        test_seeds=(41,),
        curriculum=((1, 10, steps),),
    )
    contexts = [Speedometer(seed, threads) for seed in range(seeds)]
    train([config] * seeds, contexts)
    return contexts[0].final["speed/model_steps_per_s"]


def plain(model: str, *, threads: int, steps: int) -> float:
    """Steps a second of one plain model."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    trainer = Trainer(PEER[model], seed=1)
    seconds_per_step(trainer, WARM_UP)
    speed = 1 / seconds_per_step(trainer, steps)
    torch.set_num_threads(before)
    return speed


def two_processes(side: str, model: str, steps: int) -> tuple[float, float]:
    """Two processes with one thread each, started together.

    Returns:
        The sum of their speeds, and the CPU milliseconds of a model-step (their mean): the
        second hardly depends on what else the machine was doing.
    """
    command = [sys.executable, __file__, "--worker", side, "--model", model, "--steps", str(steps)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    results = [[float(part) for part in worker.communicate()[0].split()] for worker in workers]
    speed, cpu_ms = (sum(column) for column in zip(*results, strict=True))
    return speed, cpu_ms / len(results)


def worker(side: str, model: str, steps: int) -> None:
    """One of two processes: warm up, wait for the start signal, print the speed."""
    torch.set_num_threads(1)
    measure(side, model, seeds=4, threads=1, steps=max(2, steps // 10))
    print("ready", flush=True)
    sys.stdin.readline()
    before = time.process_time()
    speed = measure(side, model, seeds=4, threads=1, steps=steps)
    cpu_s = time.process_time() - before
    print(speed, 1000 * cpu_s / (steps * 4 if side == "ours" else steps + WARM_UP))


def measure(side: str, model: str, *, seeds: int, threads: int, steps: int) -> float:
    if side == "ours":
        return ours(model, seeds=seeds, steps=steps, threads=threads)
    return plain(model, threads=threads, steps=steps)


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def run_all(repeats: int, steps: int) -> list[dict[str, Any]]:
    plain_steps = max(4, steps // 20)
    rows: list[dict[str, Any]] = []
    for model in MODELS:
        speeds: dict[str, dict[str, list[float]]] = {
            "1 process": {"ours": [], "plain": []},
            "2 processes, 1 thread each": {"ours": [], "plain": []},
        }
        cpu_ms: dict[str, list[float]] = {"ours": [], "plain": []}
        ours(model, seeds=2, steps=10)
        for _ in range(repeats):
            together, apart = speeds.values()
            together["plain"].append(plain(model, threads=2, steps=plain_steps))
            together["ours"].append(ours(model, seeds=8, steps=steps, threads=2))
            for side, num in (("plain", plain_steps), ("ours", steps)):
                speed, spent_ms = two_processes(side, model, num)
                apart[side].append(speed)
                cpu_ms[side].append(spent_ms)
        for setting, sides in speeds.items():
            medians = {side: statistics.median(values) for side, values in sides.items()}
            rows.append(
                {
                    "model": model,
                    "parameters": num_parameters(AdditionConfig(**OURS[model])),
                    "setting": setting,
                    "model_steps_per_s": medians,
                    "ratio": medians["ours"] / medians["plain"],
                    "ratio_to_public_33_ms": medians["ours"] * PUBLIC_MS / 1000,
                    "cpu_ms_per_model_step_1_thread": {
                        side: statistics.median(values) for side, values in cpu_ms.items()
                    },
                    "all": sides,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", choices=("ours", "plain"))
    parser.add_argument("--model", choices=MODELS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.model, arguments.steps)
        return
    torch.set_num_threads(2)
    record = {
        "what": "addition training, model-steps/s, batch 512, 8 seeds",
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{cpu_name()}, {torch.get_num_threads()} threads, {platform.system()}",
        "load_before": Path("/proc/loadavg").read_text().split()[0],
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "kernel": fused.describe(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "repeats": arguments.repeats,
        "rows": run_all(arguments.repeats, arguments.steps),
    }
    text = json.dumps(record, indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)
    print(f"\nMedians of {record['repeats']} alternating repeats on {record['machine']}, ", end="")
    print(f"torch {record['torch']}.\n")
    print(
        "| model | setting | plain, model-steps/s | Assay, model-steps/s | ratio | to 33 ms "
        "| CPU ms a step |"
    )
    print("|---|---|---:|---:|---:|---:|---:|")
    for row in record["rows"]:
        speed, cpu = row["model_steps_per_s"], row["cpu_ms_per_model_step_1_thread"]
        print(
            f"| {row['model']} | {row['setting']} | {speed['plain']:.1f} | {speed['ours']:.0f} "
            f"| {row['ratio']:.1f}x | {row['ratio_to_public_33_ms']:.0f}x "
            f"| {cpu['plain']:.2f} / {cpu['ours']:.2f} |"
        )


if __name__ == "__main__":
    main()
