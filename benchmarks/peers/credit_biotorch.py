"""BioTorch's training step, served to `credit_step.py`, which is timed beside it.

Runs in an environment of its own: Python 3.11 with torch 2.13.0, numpy, scipy and biotorch 0.0.16
(`pip install --no-deps biotorch`, since it asks for far more than its layers need). Reads lines
"METHOD STEPS" and answers with seconds a step; an empty line ends it.
"""

import contextlib
import json
import sys
import time

import torch
from biotorch.module.biomodule import BioModule
from torch import nn


class Case:
    """One net of the given sizes, under one method."""

    def __init__(self, method, inputs, width, hidden, classes, batch):
        torch.manual_seed(0)
        sizes = [inputs, *[width] * hidden]
        layers = []
        for size, following in zip(sizes, [*sizes[1:], None], strict=True):
            layers += [nn.Linear(size, following), nn.ReLU()] if following else []
        net = nn.Sequential(*layers, nn.Linear(width, classes))
        self.method, self.loss = method, nn.CrossEntropyLoss()
        with contextlib.redirect_stdout(sys.stderr):
            self.net = net if method == "bp" else BioModule(net, mode=method, output_dim=classes)
        self.optimizer = torch.optim.Adam(
            [p for p in self.net.parameters() if p.requires_grad], lr=1e-3
        )
        self.x, self.y = torch.randn(batch, inputs), torch.randint(classes, (batch,))

    def __call__(self):
        self.optimizer.zero_grad()
        told = {"targets": self.y, "loss_function": self.loss} if self.method == "dfa" else {}
        self.loss(self.net(self.x, **told), self.y).backward()
        self.optimizer.step()


def main():
    torch.set_num_threads(1)
    sizes = json.loads(sys.argv[1])
    cases = {method: Case(method, **sizes) for method in ("bp", "fa", "dfa")}
    print("ready", flush=True)
    for line in sys.stdin:
        if not line.strip():
            break
        method, steps = line.split()
        began = time.perf_counter()
        for _ in range(int(steps)):
            cases[method]()
        print((time.perf_counter() - began) / int(steps), flush=True)


if __name__ == "__main__":
    main()
