"""What a run of the credit engine is: flat, checked, frozen configurations. No torch here."""

from dataclasses import dataclass
from typing import Literal, get_args

Method = Literal[
    "bp",
    "zero",
    "copy",
    "fa",
    "dfa",
    "sign-symmetric",
    "state-bridge",
    "scalar-bridge",
    "vector-field",
    "forward-gradient",
    "node-perturbation",
    "weight-perturbation",
    "learned-feedback",
    "dni",
    "local-loss",
]
WITHOUT_CREDIT_NET = frozenset(get_args(Method)) - {"vector-field", "dni"}
"""Methods without a net whose output is credit."""
ASKING_LOSS_CHANGES = ("vector-field", "learned-feedback")
"""Methods that learn from loss changes along directions."""
Schedule = Literal["constant", "cosine"]
Code = Literal["eT", "deltaL", "eT_hL", "deltaL_hL", "y"]

STACKABLE = frozenset(
    {"lr", "est_lr", "terminal_weight", "bridge_weight", "warmup", "alpha", "weight_decay", "gain"}
)
TRIED = frozenset(
    {"normalise", "surrogate", "target_eta", "clamp", "negated"}
    | {"exploit_lr", "exploit_anew", "exploit_batch", "exploit_batches", "line_searches"}
)
"""Settings of what is tried on a frozen net: runs that differ in nothing else share it and its estimator."""
LQ_STACKABLE = frozenset({"est_lr", "terminal_weight", "bridge_weight", "gain"})
"""Settings that each run of a cohort may have for itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorConfig:
    """How credit is estimated."""

    method: str = "dfa"
    """Estimator: bp (the oracle), zero, copy, fa, dfa, sign-symmetric, state-bridge, scalar-bridge,
    vector-field, forward-gradient, node-perturbation, weight-perturbation, learned-feedback, dni,
    local-loss; or module:Class of your own."""
    code: Code = "eT"
    """What the learned nets see of the output: the error, the derivative by h_L divided by its root
    mean square, either with a fixed projection of h_L besides, or the label."""
    est_width: int = 256
    """Hidden width of the learned nets: two hidden layers, SiLU."""
    est_lr: float = 1e-3
    """Learning rate of the learned nets, Adam."""
    est_steps: int = 1
    """Updates of the learned nets for each batch."""
    terminal_weight: float = 1.0
    """Weight of the terminal matching: the credit at h_L against the observed one."""
    bridge: Literal["mc", "td", "noisy"] = "mc"
    """What ties the scalar bridge's values of neighbouring layers: nothing (each is matched with
    the loss), the next layer's moving average, or differences under noise."""
    bridge_weight: float = 1.0
    """Weight of that tie."""
    bridge_noise: float = 0.1
    """Size of the noise, as a share of the root mean square of h."""
    directions: int = 4
    """Random directions a sample and layer (vector field, learned feedback)."""
    difference: Literal["central", "one-sided", "jvp"] = "central"
    """How the loss changes along a direction are found."""
    epsilon: float = 0.01
    """Step of the differences, as a share of the root mean square of h."""
    layers_per_step: int = 0
    """Random layers that are perturbed each step; 0 is all."""
    shuffled: bool = False
    """Control: loss changes are permuted over the batch, which leaves nothing to learn from them."""
    factored: bool = False
    """The vector field is linear in the error, as the true costate is: a sum of e_c g_c(h, t)."""
    scaled_targets: bool = False
    """The learned nets' output is in units of a moving average of the credit's root mean square."""

    def __post_init__(self) -> None:
        check_estimator(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LqConfig(EstimatorConfig):
    """Estimators alone on fixed linear dynamics with a quadratic loss: h A_1 … A_L against y."""

    width: int = 20
    """Numbers of a state."""
    depth: int = 8
    """Steps of the dynamics."""
    gain: float = 0.5
    """g of A = I + g G / sqrt(L width), G normal."""
    batch: int = 128
    """Samples a step, fresh each time: h_0 and y normal."""
    steps: int = 8000
    """Batches; the estimator's updates are est_steps as many."""
    schedule: Schedule = "constant"
    """Learning rate of the estimator over the steps: constant, or a cosine down to 0."""
    eval_interval: int = 1000
    """Steps between evaluations and checkpoints."""
    measured: int = 1024
    """Held-out samples on which the credit is measured."""

    def __post_init__(self) -> None:
        check_estimator(self)
        _positive(self, "depth", "steps", "eval_interval")
        _at_least_two(self, "width", "batch", "measured")
        if self.method in ("weight-perturbation", "local-loss"):
            raise ValueError(
                f"method {self.method} gives no credit here: the dynamics are fixed and have no labels"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(EstimatorConfig):
    """A net that learns from estimated credit, while the estimator learns too."""

    data: str = "digits"
    """"ladder" (made by a teacher), "digits" (scikit-learn's), "fashion-mnist", "cifar10" (data
    folder), hub:NAME, or the path of an .npz with x_train, y_train, x_test, y_test."""
    train_size: int = 0
    """Samples to train on; 0 is all there are (4096 of the ladder)."""
    augment: bool = False
    """Random crops and flips of colour images."""
    block: Literal["tanh", "gelu", "plain"] = "gelu"
    """"tanh": h + phi(W LN(h) + b) with phi(z) = (1 - alpha) z + alpha tanh z; "gelu": h + V gelu(W
    LN(h)); "plain": activation(W h + b)."""
    activation: Literal["relu", "tanh", "gelu", "silu"] = "relu"
    """Of plain blocks."""
    width: int = 128
    """Numbers of a hidden state."""
    depth: int = 4
    """Blocks."""
    alpha: float = 1.0
    """Share of tanh in the activation of student and teacher of the ladder."""
    gain: float = 1.0
    """Factor on the blocks' initial matrices."""
    epochs: int = 20
    """Passes over the training samples; what is left of the last batch is dropped."""
    batch: int = 128
    """Samples of an update."""
    lr: float = 1e-3
    """Learning rate of the net."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Of the net; SGD has momentum 0.9."""
    weight_decay: float = 0.0
    """Decoupled, times the learning rate, on the net's matrices."""
    schedule: Schedule = "constant"
    """Learning rate of the net over the steps: constant, or a cosine down to 0."""
    normalise: Literal["none", "per-layer", "per-sample"] = "per-layer"
    """Credit divided by its root mean square: over a layer's batch, or of each sample (S4's)."""
    surrogate: Literal["inner", "target-shift", "cosine"] = "inner"
    """Local loss that turns credit into a block's gradient."""
    target_eta: float = 0.1
    """Length of the target shift."""
    surrogate_steps: int = 1
    """Updates on one batch's credit."""
    last: Literal["exact", "dfa"] = "exact"
    """Credit at h_L: the exact one, which needs the head alone, or random feedback (pure DFA)."""
    clip: float = 1.0
    """Largest gradient norm of each block, of the encoder and of the head; 0 is none."""
    warmup: float = 0.0
    """Share of the steps at the start in which DFA's credit trains the net and the estimator only
    watches."""
    eval_interval: int = 5
    """Epochs between evaluations and checkpoints."""
    measured: int = 1024
    """Held-out samples on which the credit is measured, at most."""

    def __post_init__(self) -> None:
        check_train(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenConfig(TrainConfig):
    """An estimator that learns on a frozen net, and what local updates by its credit do to that net.

    The net is trained by backpropagation first.
    """

    snapshot_epochs: int = 20
    """Passes of backpropagation before the net is frozen, at `lr`; `epochs` are the estimator's."""
    exploit_batch: int = 128
    """Samples of each batch on which local updates are tried."""
    exploit_batches: int = 6
    """How many such batches, each with a second to choose on and a third to report on."""
    exploit_lr: float = 1e-3
    """Step size of the five local steps."""
    exploit_anew: bool = True
    """Whether each of the five takes credit anew, where the step before has led; else all take that
    of the first, for the same inputs of each block."""
    line_searches: bool = True
    """Whether the loss is followed along the updates too: eleven step sizes, six directions, three batches,
    which takes longer than the training."""
    clamp: float = 0.0
    """Largest size of an element of a gradient in the five local steps; 0 is none."""
    negated: bool = False
    """Control: the credit's sign is turned round in all local updates."""

    def __post_init__(self) -> None:
        check_train(self)
        _positive(self, "snapshot_epochs", "exploit_batch", "exploit_batches", "exploit_lr")
        for name, idle in (("warmup", 0.0), ("last", "exact"), ("surrogate_steps", 1)):
            if getattr(self, name) != idle:
                raise ValueError(
                    f"{name} is of online training and would do nothing here; got {getattr(self, name)!r}"
                )
        if self.surrogate == "target-shift" and self.exploit_anew:
            raise ValueError(
                "a first step of target-shift is the inner product's times target_eta, so with credit anew "
                "all five are; take exploit_anew = false"
            )
        if self.clamp < 0:
            raise ValueError(f"clamp must not be negative; got {self.clamp}")


def _positive(config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive; got {getattr(config, name)}")


def _at_least_two(config: object, *names: str) -> None:
    # See `check_estimator`: of sizes of one a run alone would differ from itself in a cohort.
    for name in names:
        if getattr(config, name) < 2:
            raise ValueError(f"{name} must be at least 2; got {getattr(config, name)}")


def check_train(config: TrainConfig) -> None:
    """Refuse settings that cannot be, or that would do nothing.

    Raises:
        ValueError: Says which and why.
    """
    check_estimator(config)
    _positive(config, "depth", "epochs", "lr", "surrogate_steps", "eval_interval", "gain")
    _at_least_two(config, "width", "batch", "measured")
    for name in ("weight_decay", "clip", "train_size"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must not be negative; got {getattr(config, name)}")
    for name in ("alpha", "warmup"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} must be in [0, 1]; got {getattr(config, name)}")
    if config.block != "tanh" and config.data != "ladder" and config.alpha != 1.0:
        raise ValueError(
            f'alpha is of tanh blocks, and would do nothing with block = "{config.block}"; got {config.alpha}'
        )
    if config.block == "plain" and config.data == "ladder":
        raise ValueError('data = "ladder" is a ladder of tanh blocks; take block = "tanh"')
    if config.augment and not config.data.startswith(("cifar10", "hub:")):
        raise ValueError(f"augment is for colour images; got data = {config.data!r}")
    if config.surrogate_steps > 1 and config.surrogate == "inner":
        raise ValueError(
            "surrogate_steps > 1 is for local losses with a minimum; the inner product has none. Take "
            'surrogate = "target-shift"'
        )


def check_estimator(config: EstimatorConfig) -> None:
    """Refuse settings that cannot be.

    Raises:
        ValueError: Says which and why.
    """
    known: tuple[str, ...] = get_args(Method)
    module, _, name = config.method.partition(":")
    if config.method not in known and not (
        name.isidentifier() and all(part.isidentifier() for part in module.split("."))
    ):
        raise ValueError(
            f"method must be one of {', '.join(known)}, or module:Class of your own; got "
            f"{config.method!r}"
        )
    # With one row or one column torch multiplies in another way for one run than for several.
    for field, least in (("est_width", 2), ("est_steps", 1), ("directions", 1)):
        if getattr(config, field) < least:
            raise ValueError(f"{field} must be at least {least}; got {getattr(config, field)}")
    for field in ("est_lr", "epsilon", "bridge_noise"):
        if not 0 < getattr(config, field) < 1e3:
            raise ValueError(f"{field} must be positive; got {getattr(config, field)}")
    if config.scaled_targets and config.method in WITHOUT_CREDIT_NET:
        raise ValueError(
            f"scaled_targets does nothing with method {config.method}, whose net predicts no credit"
        )
    if config.shuffled and config.method in known and config.method not in ASKING_LOSS_CHANGES:
        raise ValueError(
            f"shuffled is a control of {' and '.join(ASKING_LOSS_CHANGES)}, which learn from loss changes; "
            f"method {config.method} would be trained as if it were not set"
        )
    for field in ("terminal_weight", "bridge_weight", "layers_per_step"):
        if getattr(config, field) < 0:
            raise ValueError(f"{field} must not be negative; got {getattr(config, field)}")
