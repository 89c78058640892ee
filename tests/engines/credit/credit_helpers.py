"""Small nets, estimators and run contexts, and a net written a second time, one run alone."""

import io

import safetensors.torch
import torch
from torch.nn import functional

from assay.engines.credit.config import EstimatorConfig, TrainConfig
from assay.engines.credit.estimators.base import Estimator, Setting
from assay.engines.credit.estimators.registry import ESTIMATORS, make
from assay.engines.credit.firewall import View
from assay.engines.credit.net import Net, Shape, initial

SHAPES = {
    "tanh": Shape(inputs=5, width=6, depth=3, classes=4, block="tanh"),
    "gelu": Shape(inputs=5, width=6, depth=3, classes=4, block="gelu"),
    "relu": Shape(inputs=5, width=6, depth=3, classes=4, block="plain", activation="relu"),
    "plain-tanh": Shape(inputs=5, width=6, depth=3, classes=4, block="plain", activation="tanh"),
    "plain-gelu": Shape(inputs=5, width=6, depth=3, classes=4, block="plain", activation="gelu"),
    "plain-silu": Shape(inputs=5, width=6, depth=3, classes=4, block="plain", activation="silu"),
}
LINEAR = Shape(inputs=6, width=6, depth=4, classes=6, block="linear", loss="quadratic")
ALPHAS = (0.0, 0.5, 1.0)
METHODS = tuple(ESTIMATORS)
LOCAL = {"lr": 1e-2, "est_lr": 1e-2, "est_width": 8}
ONLINE = TrainConfig(
    data="ladder", train_size=70, block="tanh", width=8, depth=3, batch=16, epochs=3,
    eval_interval=2, measured=24, method="dfa", **LOCAL,
)  # fmt: skip
"""Four steps an epoch, of which the second and the third are evaluated."""
VARIANTS = {
    **{name: {"method": name} for name in METHODS},
    "scalar-bridge td": {"method": "scalar-bridge", "bridge": "td", "code": "deltaL"},
    "scalar-bridge noisy": {"method": "scalar-bridge", "bridge": "noisy", "code": "y"},
    "state-bridge projected": {"method": "state-bridge", "code": "deltaL_hL", "est_steps": 2},
    "vector-field some layers": {
        "method": "vector-field", "difference": "jvp", "layers_per_step": 1, "shuffled": True,
    },
    "vector-field factored": {
        "method": "vector-field", "difference": "one-sided", "factored": True, "scaled_targets": True,
    },
    "learned-feedback one layer": {"method": "learned-feedback", "layers_per_step": 1},
}  # fmt: skip
"""Every method, and the settings under which it keeps or draws something else."""


def generators(count, first=100):
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


def net_of(shape, runs=3, seed=0, gain=1.0, dtype=torch.float64):
    """Nets with nothing left at 0; the runs of "tanh" blocks have different shares of tanh."""
    drawn = [initial(shape, g, gain) for g in generators(runs, seed)]
    noise = torch.Generator().manual_seed(seed + 77)
    parameters = {name: torch.stack([each[name] for each in drawn]).to(dtype) for name in drawn[0]}
    for name, value in parameters.items():
        if name.endswith("bias"):
            value += 0.3 * torch.randn(value.shape, generator=noise, dtype=dtype)
    alpha = torch.tensor([ALPHAS[i % 3] for i in range(runs)], dtype=dtype)
    return Net(shape, alpha, parameters)


def batch_of(shape, runs=3, samples=7, seed=5, dtype=torch.float64):
    """Inputs, and labels or targets."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(runs, samples, shape.inputs, generator=g, dtype=dtype)
    if shape.loss == "quadratic":
        return x, torch.randn(runs, samples, shape.width, generator=g, dtype=dtype)
    return x, torch.randint(0, shape.classes, (runs, samples), generator=g)


def trajectory_of(net, samples=7, seed=5):
    runs = len(net.alpha_S)
    dtype = net.alpha_S.dtype
    return net.trajectory(*batch_of(net.shape, runs, samples, seed, dtype))


def estimator_of(shape, method, runs=3, dtype=torch.float64, first=100, **settings):
    """An estimator by its name, in float64."""
    config = EstimatorConfig(method=method, **{"est_width": 8, **settings})
    estimator = make(Setting(shape, [config] * runs, generators(runs, first)))
    estimator.to(dtype)
    return estimator


def view_of(net, estimator):
    return View(net, estimator.name, estimator.derivatives)


def alone(values, run):
    """One run's parameters as leaves, without the axis of runs."""
    return {name: value[run].clone().requires_grad_() for name, value in values.items()}


def activation(name, z):
    """The second time: none of the engine's functions."""
    if name == "relu":
        return z.clamp(min=0)
    if name == "tanh":
        return 1 - 2 / (torch.exp(2 * z) + 1)
    if name == "silu":
        return z / (1 + torch.exp(-z))
    return z * (1 + torch.erf(z / 2**0.5)) / 2


def block(shape, alpha, p, index, h):
    """One block of one run, from the formulas."""
    weight = p["blocks.weight"][index]
    if shape.block == "linear":
        return h @ weight
    if shape.block == "plain":
        return activation(shape.activation, h @ weight + p["blocks.bias"][index])
    centred = h - h.mean(-1, keepdim=True)
    z = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() @ weight
    if shape.block == "gelu":
        return h + activation("gelu", z) @ p["blocks.out"][index]
    z = z + p["blocks.bias"][index]
    return h + (1 - alpha) * z + alpha * activation("tanh", z)


def encode(shape, p, x):
    if shape.loss == "quadratic":
        return x
    h = x @ p["encoder.weight"]
    return h if shape.block != "plain" else activation(shape.activation, h + p["encoder.bias"])


def losses_from(shape, alpha, p, index, h, y):
    """Loss of each sample of one run whose state h_index is given."""
    for at in range(index, shape.depth):
        h = block(shape, alpha, p, at, h)
    if shape.loss == "quadratic":
        return (h - y).square().sum(-1) / 2
    logits = h @ p["head.weight"] + p["head.bias"]
    return logits.exp().sum(-1).log() - logits.gather(1, y[:, None])[:, 0]


def exact_costates(net, trajectory):
    """Derivative of each sample's own loss by each of its states, sample by sample."""
    t, found = trajectory, torch.zeros_like(trajectory.h_SLBD)
    for run, layer, sample in torch.cartesian_prod(*map(torch.arange, found.shape[:3])).tolist():
        h = t.h_SLBD[run, layer, sample : sample + 1].clone().requires_grad_()
        p = {name: value[run] for name, value in net.parameters.items()}
        y = t.y[run, sample : sample + 1]
        loss = losses_from(net.shape, net.alpha_S[run], p, layer, h, y)
        found[run, layer, sample] = torch.autograd.grad(loss.sum(), h)[0][0]
    return found


class Context:
    """A run context in memory; asked to stop for the n-th time, it says yes."""

    device, threads, data_dir = "cpu", 1, None

    def __init__(self, init=1, data=2, stop_at=0):
        self.seeds = {"init": init, "data": data}
        self.logged, self.final, self.saved, self.budget, self.events = [], {}, {}, {}, []
        self.checkpoint, self.stop_at, self.asked = None, stop_at, 0

    def log(self, values, *, step):
        self.logged.append((step, dict(values)))

    def summary(self, values):
        self.final |= {k: v for k, v in values.items() if not k.startswith("speed/")}

    def save(self, name, content):
        self.saved[name] = content
        return ""

    def save_checkpoint(self, step, content):
        self.checkpoint = (step, content)

    def load_checkpoint(self):
        return self.checkpoint

    def event(self, kind, message, **details):
        self.events.append(kind)

    def spent(self, **budget):
        self.budget = budget

    def progress(self, step, total, shown):
        """Nothing is shown."""

    def should_stop(self):
        self.asked += 1
        return self.asked == self.stop_at

    def results(self):
        """All that must be the same where a run is the same; floats bit for bit."""
        return repr((self.logged, self.final, self.budget)), self.saved

    def weights(self):
        """The net's parameters at the end."""
        found = safetensors.torch.load(self.saved["last.safetensors"])
        return {name: value for name, value in found.items() if name.startswith("net.")}


def finished(task, config, **seeds):
    """A run to its end."""
    context = Context(**seeds)
    task([config], [context])
    assert context.final
    return context


class Doubled(Estimator):
    """An estimator of a user's own: twice the credit of h_L."""

    def credit(self, trajectory, view):
        return 2 * trajectory.last_SBD.unsqueeze(1).expand_as(trajectory.h_SLBD[:, :-1])


class NoEstimator:
    """Something else."""


def softmax_error(logits, y):
    return functional.softmax(logits, -1) - functional.one_hot(y, logits.shape[-1])


def as_bytes(save, **arrays):
    """What a numpy writer makes of arrays."""
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()
