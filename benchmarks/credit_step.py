"""A training step of each credit estimator beside backpropagation, and of several seeds stacked.

    python benchmarks/credit_step.py [--repeats 7] [--out FILE] [--biotorch PYTHON]

One thread. "autograd" is the same net trained by plain backpropagation (torch.autograd over the whole
net and torch.optim.Adam), written here; "bp" is the engine's oracle, which finds the costates first and
then each block's gradient from them. All cases of one net are measured in turn, so that a busy moment
falls on all of them; medians over repeats. `--biotorch` names the interpreter of an environment with BioTorch
(`peers/credit_biotorch.py` says how it is made), whose steps of the same MLP take turns with ours.
"""

import argparse
import json
import platform
import statistics
import subprocess
import time
from functools import partial
from itertools import product
from pathlib import Path

import torch

from assay.engines import memory
from assay.engines.credit.config import TrainConfig
from assay.engines.credit.estimators.registry import ESTIMATORS
from assay.engines.credit.loop import together
from assay.engines.credit.train import Training, state_bytes

NETS = {
    "ladder: 4 tanh blocks of 128, batch 128": {
        "data": "ladder", "block": "tanh", "width": 128, "depth": 4, "train_size": 2048,
    },
    "digits: 4 GELU blocks of 64, batch 64": {
        "data": "digits", "block": "gelu", "width": 64, "depth": 4, "batch": 64,
    },
    "MLP: 3 hidden ReLU layers of 256 on digits, batch 64": {
        "data": "digits", "block": "plain", "activation": "relu", "width": 256, "depth": 2, "batch": 64,
    },
}  # fmt: skip
MLP = list(NETS)[-1]
PEER_SIZES = {
    "inputs": 64, "width": NETS[MLP]["width"], "hidden": NETS[MLP]["depth"] + 1, "classes": 10,
    "batch": NETS[MLP]["batch"],
}  # fmt: skip
PEER_METHODS = ("bp", "fa", "dfa")
SEEDS = (1, 3, 16)
STACKED = ("bp", "dfa", "scalar-bridge", "vector-field")


class Context:
    """A run that keeps nothing."""

    device, threads, data_dir = "cpu", 1, None

    def __init__(self, seed):
        self.seeds = {"init": seed, "data": seed}


class Groups:
    """A cohort, stacked as the engine stacks it."""

    def __init__(self, config, seeds):
        size = together(state_bytes(config))
        self.parts = [
            Training([config] * len(part), [Context(s) for s in part])
            for part in (range(i, min(i + size, seeds)) for i in range(0, seeds, size))
        ]

    def __call__(self):
        for part in self.parts:
            part.advance()


class Autograd:
    """The same net and batches, by plain backpropagation."""

    def __init__(self, config):
        self.training = Training([config], [Context(0)])
        self.leaves = {
            name: torch.nn.Parameter(value.clone())
            for name, value in self.training.net.parameters.items()
        }
        self.optimizer = torch.optim.Adam(self.leaves.values(), lr=config.lr)

    def __call__(self):
        t = self.training
        x, y = t.batch()
        net = t.net.having(self.leaves)
        h = net.encode(x)
        for index in range(net.shape.depth):
            h = net.block(index, h)
        loss = net.losses(net.head(h), y).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        t.step += 1


class Peer:
    """BioTorch in a process of its own."""

    def __init__(self, python):
        script = Path(__file__).parent / "peers" / "credit_biotorch.py"
        words = [python, "-W", "ignore", str(script), json.dumps(PEER_SIZES)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(words, text=True, **pipes)
        assert self.process.stdout.readline().strip() == "ready"

    def seconds(self, method, calls):
        self.process.stdin.write(f"{method} {calls}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def seconds(case, calls):
    """Of one call, over so many."""
    began = time.perf_counter()
    for _ in range(calls):
        case()
    return (time.perf_counter() - began) / calls


def measure(cases, repeats, length):
    """Milliseconds a call of each case: every repeat, all cases in turn.

    Args:
        cases: Name → number of calls → seconds a call.
        repeats: Of each case.
        length: Seconds that a repeat takes, about.
    """
    for case in cases.values():
        case(3)
    calls = {name: max(1, int(length / case(1))) for name, case in cases.items()}
    found = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            found[name].append(1e3 * case(calls[name]))
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--biotorch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    memory.keep()  # as the engine does
    peer = Peer(options.biotorch) if options.biotorch else None
    record = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    for net, settings in NETS.items():
        configs = {name: TrainConfig(method=name, **settings) for name in ESTIMATORS}
        cases = {"autograd": Autograd(configs["bp"])}
        cases |= {name: Groups(config, 1) for name, config in configs.items()}
        cases |= {
            f"{name} x {seeds}": Groups(configs[name], seeds)
            for name, seeds in product(STACKED, SEEDS[1:])
        }
        timed = {name: partial(seconds, case) for name, case in cases.items()}
        if peer is not None and net == MLP:
            timed |= {f"BioTorch {m}": partial(peer.seconds, m) for m in PEER_METHODS}
        found = measure(timed, options.repeats, options.seconds)
        middle = {name: statistics.median(each) for name, each in found.items()}
        record[net] = {"ms": found, "median_ms": middle}
        print(f"\n{net}\n{'method':24} {'ms a step':>10} {'to autograd':>12}")
        for name in ["autograd", *ESTIMATORS, *(n for n in found if n.startswith("BioTorch"))]:
            print(f"{name:24} {middle[name]:10.2f} {middle[name] / middle['autograd']:11.2f}x")
        print(f"\n{'seeds stacked':24} " + " ".join(f"{s:>14}" for s in SEEDS))
        for name in STACKED:
            row = [middle[name], *(middle[f"{name} x {s}"] for s in SEEDS[1:])]
            print(f"{name:24} " + " ".join(f"{v:6.2f} ({v / row[0]:4.2f}x)" for v in row))
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
