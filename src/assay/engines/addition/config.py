"""What one training run of the addition engine is: a flat, checked, frozen configuration.

No torch here: `assay run --dry-run` validates studies with this module.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from assay.core.errors import ConfigError

NUM_DIGITS = 10
"""Digits of an operand; the sum has one more."""
VOCABULARY = 14
"""Digits 0-9, `+`, `=`, PAD (never used), EOS."""
SEQUENCE = 33
"""Positions that the model sees: 10 + `+` + 10 + `=` + 11 sum digits."""

Norm = Literal["layernorm", "rmsnorm"]
Init = Literal["normal", "scaled"]
TieQKV = Literal[
    "none",
    "all",
    "qk",
    "kv",
    "shareA",
    "shareB",
    "shareA_tieQK",
    "shareA_tieKV",
    "shareB_tieQK",
    "shareB_tieKV",
]

STACKABLE = frozenset({"lr", "weight_decay", "warmup_steps", "min_lr_ratio", "grad_clip"})
"""Settings that each run of a cohort may have for itself."""

PUBLIC_TEST_SEEDS = (41, 100, 200, 300, 400, 500, 999, 1234, 7777, 31415)
"""Holdout seeds whose test parts make the 100,000 examples of the public evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdditionConfig:
    """One-layer, one-head, pre-norm decoder that adds two 10-digit numbers, and its training."""

    d_model: int = 7
    """Width of the residual stream, and of the one attention head."""
    d_ff: int = 14
    """Width of the hidden layer of the feed-forward block."""
    pos_rank: int = 0
    """Rank of the position table (33 by d_model); 0 is a full table."""
    qkv_rank: int = 0
    """Rank of the query, key and value projections; 0 is full."""
    attn_out_rank: int = 0
    """Rank of the attention output projection; 0 is full."""
    ffn_rank: int = 0
    """Rank of both feed-forward matrices; 0 is full."""
    norm: Norm = "layernorm"
    """"layernorm" (eps 1e-5, weight and bias) or "rmsnorm" (eps 1e-8, weight only)."""
    tie_qkv: TieQKV = "none"
    """Which projections are one: all of them, two of them, or one low-rank factor of them."""
    init: Init = "normal"
    """Standard deviation of embeddings and full matrices (d_ff by d_model included): "normal" is
    0.02, "scaled" is 1/sqrt(d_model). Factors of low-rank matrices always have
    sqrt(2/(rows+columns)); factors of a low-rank position table have the embeddings' value.
    Both settings scale the same unit normals, so runs of one seed differ by scale alone."""
    steps: int = 27_000
    """Optimizer updates."""
    batch_size: int = 512
    """Examples of one update."""
    lr: float = 0.02
    """Peak learning rate of AdamW (betas 0.9 and 0.999, eps 1e-8)."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on every parameter."""
    warmup_steps: int = 1350
    """Updates over which the learning rate rises linearly to its peak."""
    min_lr_ratio: float = 0.1
    """Learning rate at the end of the cosine, as a fraction of the peak."""
    grad_clip: float = 1.0
    """Largest global norm of a run's gradient, in parameter units."""
    curriculum: tuple[tuple[int, int, int], ...] = ((1, 3, 2000), (1, 6, 7000), (1, 10, 27_000))
    """Phases [min_digits, max_digits, until_step]; the last one holds for ever. Of each example,
    the number of digits is drawn uniformly, and then both operands below 10^digits."""
    eval_interval: int = 1000
    """Updates between evaluations, log records and checkpoints; the last update has one too."""
    val_size: int = 5000
    """Held-out pairs that choose the best weights."""
    test_size: int = 10_000
    """Held-out pairs of one test set."""
    test_seeds: tuple[int, ...] = PUBLIC_TEST_SEEDS
    """Holdout seeds of the test sets on which the best weights are judged at the end."""
    grok_threshold: float = 0.99
    """Exact match on the validation pairs from which a run counts as grokked."""

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_choices(self)
        _check_schedule(self)
        _check_curriculum(self)


def _check_sizes(config: AdditionConfig) -> None:
    for name in ("d_model", "d_ff", "steps", "batch_size", "eval_interval", "val_size"):
        value = getattr(config, name)
        if value < 1:
            raise ConfigError(
                f"{name} must be at least 1; got {value}. It is a count: "
                f"the default is {getattr(AdditionConfig(), name)}."
            )
    limits = {
        "pos_rank": config.d_model,
        "qkv_rank": config.d_model,
        "attn_out_rank": config.d_model,
        "ffn_rank": min(config.d_model, config.d_ff),
    }
    for name, limit in limits.items():
        value = getattr(config, name)
        if not 0 <= value <= limit:
            raise ConfigError(
                f"{name} must be 0 (full matrix) or a rank of at most {limit} here; got {value}. "
                "A larger rank has more parameters than the full matrix can express."
            )
    if config.test_size < 1 or not config.test_seeds:
        raise ConfigError(
            f"test_size must be at least 1 and test_seeds must not be empty; got {config.test_size}"
            f" and {list(config.test_seeds)}. A run without a test set supports no claim: "
            "lower test_size to make a trial run quick."
        )
    if len(set(config.test_seeds)) != len(config.test_seeds):
        raise ConfigError(
            f"test_seeds must differ; got {list(config.test_seeds)}. A repeated seed would count "
            "the same examples twice."
        )


def _check_choices(config: AdditionConfig) -> None:
    for name, choices in (("norm", Norm), ("init", Init), ("tie_qkv", TieQKV)):
        value, known = getattr(config, name), get_args(choices)
        if value not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known)}; got {value!r}.")
    if config.tie_qkv.startswith("share") and config.qkv_rank == 0:
        raise ConfigError(
            f"tie_qkv = {config.tie_qkv!r} shares a low-rank factor, so qkv_rank must be at least "
            "1; got 0 (full). Set qkv_rank, or choose none, all, qk or kv."
        )


def _check_schedule(config: AdditionConfig) -> None:
    if not config.lr > 0:
        raise ConfigError(f"lr must be above 0; got {config.lr}. The source uses 0.02 or 0.015.")
    if not 0 <= config.weight_decay * config.lr < 1:
        raise ConfigError(
            f"weight_decay must be at least 0 and lr * weight_decay below 1; got {config.weight_decay}"
            f" at lr {config.lr}. The source uses 0.01."
        )
    if not 0 <= config.warmup_steps <= config.steps:
        raise ConfigError(
            f"warmup_steps must be between 0 and steps ({config.steps}); got {config.warmup_steps}. "
            "A tenth or a twentieth of the steps is usual; set it together with steps."
        )
    for name in ("min_lr_ratio", "grok_threshold"):
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} must be in [0, 1]; got {value}. It is a fraction.")
    if not config.grad_clip > 0:
        raise ConfigError(
            f"grad_clip must be above 0; got {config.grad_clip}. A huge value, 1e9, switches it off."
        )


def _check_curriculum(config: AdditionConfig) -> None:
    if not config.curriculum:
        raise ConfigError(
            "curriculum must have at least one phase; got none. [[1, 10, 1]] trains on all lengths."
        )
    before = 0
    for phase in config.curriculum:
        low, high, until = phase
        if not 1 <= low <= high <= NUM_DIGITS:
            raise ConfigError(
                f"a curriculum phase needs 1 <= min_digits <= max_digits <= {NUM_DIGITS}; "
                f"got {list(phase)}. A phase is [min_digits, max_digits, until_step]."
            )
        if until <= before:
            raise ConfigError(
                f"until_step of the curriculum's phases must rise; got {list(phase)} after {before}. "
                "They count from the start of training; they are not durations."
            )
        before = until


def phase_at(config: AdditionConfig, step: int) -> tuple[int, int]:
    """Smallest and largest number of digits drawn for the update that follows `step` updates."""
    for low, high, until in config.curriculum:
        if step < until:
            return low, high
    low, high, _ = config.curriculum[-1]
    return low, high


def num_parameters(config: AdditionConfig) -> int:
    """Trained numbers after tying, by the formula of the public leaderboard (head tied: 0)."""
    width, hidden, rank = config.d_model, config.d_ff, config.qkv_rank

    def lin(num_in: int, num_out: int, low: int) -> int:
        return low * (num_in + num_out) if low else num_in * num_out

    factor = width * rank
    qkv = {
        "none": lin(width, 3 * width, rank),
        "all": lin(width, width, rank),
        "qk": 2 * lin(width, width, rank),
        "kv": 2 * lin(width, width, rank),
        "shareA": 4 * factor,
        "shareB": 4 * factor,
    }.get(config.tie_qkv, 3 * factor)
    return (
        VOCABULARY * width
        + lin(SEQUENCE, width, config.pos_rank)
        + 3 * width * (2 if config.norm == "layernorm" else 1)
        + qkv
        + lin(width, width, config.attn_out_rank)
        + lin(width, hidden, config.ffn_rank)
        + lin(hidden, width, config.ffn_rank)
    )
