"""What one training run of the addition engine is: a flat, checked, frozen configuration.

No torch here: `assay run --dry-run` validates studies with this module.
"""

from dataclasses import dataclass
from typing import Literal

from assay.engines.addition.prompt import Prompt

Norm = Literal["layernorm", "rmsnorm", "none"]
SharedNorm = Literal["none", "block", "all"]
Init = Literal["normal", "scaled"]
Embedding = Literal["table", "arc"]
Positions = Literal["learned", "sinusoidal", "none"]
FeedForward = Literal["gelu", "swiglu"]
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
    "rotated",
]
Finish = Literal["low-lr", "lbfgs", "cma-es", "hard-negatives"]
TieOut = Literal["none", "query"]
TieDown = Literal["none", "up", "rotated"]

STACKABLE = frozenset({"lr", "weight_decay", "warmup_steps", "min_lr_ratio", "grad_clip"})
"""Settings that each run of a cohort may have for itself."""

PUBLIC_TEST_SEEDS = (41, 100, 200, 300, 400, 500, 999, 1234, 7777, 31415)
"""Holdout seeds whose test parts make the 100,000 examples of the public evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdditionConfig:
    """One-layer pre-norm decoder that adds two 10-digit numbers, and its training."""

    prompt: Prompt = "msd"
    """Token format: "msd" (a + b =, operands highest digit first, sum units first, 14 tokens),
    "lsd" (the same, operands units first), "zeros" (digits only, 0 between the operands, 10
    tokens), "pairs" (one token for two digits, 114 tokens)."""
    d_model: int = 7
    """Width of the residual stream."""
    d_ff: int = 14
    """Width of the hidden layer of the feed-forward block."""
    heads: int = 1
    """Attention heads."""
    head_width: int = 0
    """Features of a head; 0 is d_model / heads."""
    embedding: Embedding = "table"
    """Token vectors, which are the output head too: "table" (one each) or "arc" (three numbers:
    digit v is A (cos(start + v stride), sin(start + v stride), 0, ...))."""
    positions: Positions = "learned"
    """Vectors added by position: a learned table, fixed sinusoids, or none."""
    pos_rank: int = 0
    """Rank of the learned position table; 0 is a full table."""
    position_rows: int = 0
    """Rows of the learned position table; 0 is one for each position of the prompt. Rows beyond
    those are counted but never used, as in the models with 35 positions."""
    rope_theta: float = 0.0
    """Base of the rotary position embedding; 0 is none. The trained record uses 3."""
    qkv_rank: int = 0
    """Rank of the query, key and value projections; 0 is full."""
    attn_out_rank: int = 0
    """Rank of the attention output projection; 0 is full."""
    ffn_rank: int = 0
    """Rank of the feed-forward matrices; 0 is full."""
    tie_qkv: TieQKV = "none"
    """Which projections are one: all of them, two of them, or one low-rank factor of them.
    "rotated": the key is the query turned by one learned angle (features in pairs), the value is
    the query."""
    tie_out: TieOut = "none"
    """"query": the output projection is the query projection transposed."""
    qk_norm: bool = False
    """Root-mean-square norm of queries and keys of each head, with one weight for both."""
    ffn: FeedForward = "gelu"
    """"gelu" (exact) or "swiglu": silu(x gate) times (x up)."""
    tie_down: TieDown = "none"
    """"up": the second feed-forward matrix is the first transposed; "rotated": its hidden
    features are turned in pairs by one learned angle besides."""
    norm: Norm = "layernorm"
    """"layernorm" (eps 1e-5, weight and bias), "rmsnorm" (eps 1e-8, weight only) or "none"."""
    shared_norm: SharedNorm = "none"
    """"block": the two norms of the block have one weight; "all": all three have."""
    bias: bool = False
    """Biases on all linear maps but the head."""
    fixed_full_rank_attn: bool = False
    """Add a frozen random full-rank matrix to every low-rank projection of the attention."""
    fixed_full_rank_mlp: bool = False
    """Add a frozen random full-rank matrix to both low-rank feed-forward matrices."""
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
    carry_share: float = 0.0
    """Share of carry-heavy examples at the start; 0 is none, 0.8 is what the small records use."""
    carry_fade: tuple[int, int] = (0, 0)
    """Steps between which the share of carry-heavy examples falls linearly from carry_share to 0."""
    grokfast_lambda: float = 0.0
    """How much of the gradient's moving average is added to it (Grokfast-EMA); 0 is off."""
    grokfast_alpha: float = 0.98
    """Decay of that moving average."""
    grokfast_from: int = 0
    """Step from which it is added; the average begins there."""
    stop_dead_at: int = 0
    """Step at which a run whose val_exact_match never reached stop_dead_below is given up; 0 is
    never. A multiple of eval_interval."""
    stop_dead_below: float = 0.01
    """Validation exact match below which a run counts as dead at stop_dead_at."""
    finish: tuple[Finish, ...] = ()
    """Stages after training, in order, each from the best weights: "low-lr" (AdamW at finish_lr,
    each further round at a third), "lbfgs", "cma-es", "hard-negatives" (half of each batch are
    errors that were searched for in the training stream). Only improvements on the validation
    pairs are kept."""
    finish_steps: int = 2000
    """Length of a stage: updates, iterations of L-BFGS, or generations of CMA-ES (24
    candidates on 4,096 pairs each)."""
    finish_lr: float = 0.001
    """Peak learning rate of the first low-lr round and of hard negatives."""
    finish_sigma: float = 0.003
    """Initial step size of CMA-ES, in parameter units."""
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
        # Imported here: the rules are a module of their own, and they read this class.
        from assay.engines.addition.rules import check  # noqa: PLC0415

        check(self)

    @property
    def inner_width(self) -> int:
        """Features of all heads together."""
        return self.heads * self.width_of_head

    @property
    def width_of_head(self) -> int:
        """Features of one head."""
        return self.head_width or self.d_model // self.heads


def phase_at(config: AdditionConfig, step: int) -> tuple[int, int]:
    """Smallest and largest number of digits drawn for the update that follows `step` updates."""
    for low, high, until in config.curriculum:
        if step < until:
            return low, high
    low, high, _ = config.curriculum[-1]
    return low, high


def carry_share_at(config: AdditionConfig, step: int) -> float:
    """Share of carry-heavy examples in the update that follows `step` updates."""
    begin, end = config.carry_fade
    if step >= end:
        return 0.0
    return config.carry_share * min(1.0, (end - step) / (end - begin))
