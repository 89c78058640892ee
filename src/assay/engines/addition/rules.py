"""Rules of a configuration: each error tells the rule, the value and the way out."""

from typing import get_args

from assay.core.errors import ConfigError
from assay.engines.addition import config as schema
from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.prompt import NUM_DIGITS, Prompt, format_of


def check(config: AdditionConfig) -> None:
    """Raise ConfigError at the first rule that a configuration breaks."""
    _check_choices(config)
    _check_sizes(config)
    _check_ranks(config)
    _check_ties(config)
    _check_fixed(config)
    _check_schedule(config)
    _check_curriculum(config)
    _check_extras(config)


def _check_choices(config: AdditionConfig) -> None:
    choices = {
        "prompt": Prompt,
        "embedding": schema.Embedding,
        "positions": schema.Positions,
        "tie_qkv": schema.TieQKV,
        "tie_out": schema.TieOut,
        "ffn": schema.FeedForward,
        "tie_down": schema.TieDown,
        "norm": schema.Norm,
        "shared_norm": schema.SharedNorm,
        "init": schema.Init,
    }
    for name, known in choices.items():
        value = getattr(config, name)
        if value not in get_args(known):
            raise ConfigError(f"{name} must be one of {', '.join(get_args(known))}; got {value!r}.")


def _check_sizes(config: AdditionConfig) -> None:
    for name in ("d_model", "d_ff", "heads", "steps", "batch_size", "eval_interval", "val_size"):
        value = getattr(config, name)
        if value < 1:
            default = AdditionConfig.__dataclass_fields__[name].default
            raise ConfigError(
                f"{name} must be at least 1; got {value}. It is a count: the default is {default}."
            )
    if config.head_width < 0 or (not config.head_width and config.d_model % config.heads):
        raise ConfigError(
            f"d_model must be a multiple of heads where head_width is 0; got d_model {config.d_model}"
            f", heads {config.heads}, head_width {config.head_width}. Set head_width."
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
    length = len(format_of(config.prompt).positions)
    if config.position_rows and (config.position_rows < length or config.positions != "learned"):
        raise ConfigError(
            f"position_rows must be 0 or at least the prompt's {length} positions, with learned "
            f"positions; got {config.position_rows} with positions = {config.positions!r}."
        )
    if config.embedding == "arc" and (config.d_model < 2 or config.prompt != "zeros"):
        raise ConfigError(
            "embedding = 'arc' places digits only, on a circle: it needs d_model of at least 2 and "
            f"prompt = 'zeros'; got d_model {config.d_model} and prompt {config.prompt!r}."
        )


def _check_ranks(config: AdditionConfig) -> None:
    narrow = min(config.d_model, config.inner_width)
    limits = {
        "pos_rank": config.d_model if config.positions == "learned" else 0,
        "qkv_rank": narrow,
        "attn_out_rank": narrow if config.tie_out == "none" else 0,
        "ffn_rank": min(config.d_model, config.d_ff),
    }
    for name, limit in limits.items():
        value = getattr(config, name)
        if not 0 <= value <= limit:
            raise ConfigError(
                f"{name} must be 0 (full matrix) or a rank of at most {limit} here; got {value}. "
                "A larger rank has more parameters than the full matrix can express, and a matrix "
                "that is tied or fixed has no rank of its own."
            )


def _check_ties(config: AdditionConfig) -> None:
    if config.tie_qkv.startswith("share") and config.qkv_rank == 0:
        raise ConfigError(
            f"tie_qkv = {config.tie_qkv!r} shares a low-rank factor, so qkv_rank must be at least "
            "1; got 0 (full). Set qkv_rank, or choose none, all, qk or kv."
        )
    if config.bias and config.tie_qkv != "none":
        raise ConfigError(
            f"bias = true needs tie_qkv = 'none'; got {config.tie_qkv!r}. It is not defined which "
            "bias tied projections share."
        )
    if config.shared_norm != "none" and config.norm == "none":
        raise ConfigError(
            f"shared_norm = {config.shared_norm!r} needs a norm; got norm = 'none'. There is "
            "nothing to share."
        )
    pairs = {
        "rope_theta": (config.rope_theta != 0, config.width_of_head, "the width of a head"),
        "tie_qkv = 'rotated'": (
            config.tie_qkv == "rotated",
            config.width_of_head,
            "the width of a head",
        ),
        "tie_down = 'rotated'": (config.tie_down == "rotated", config.d_ff, "d_ff"),
    }
    for name, (is_used, size, what) in pairs.items():
        if is_used and size % 2:
            raise ConfigError(
                f"{name} turns features in pairs, so {what} must be even; got {size}."
            )
    if not (config.rope_theta == 0 or config.rope_theta > 1):
        raise ConfigError(
            f"rope_theta must be 0 (off) or above 1; got {config.rope_theta}. The record uses 3."
        )


def _check_fixed(config: AdditionConfig) -> None:
    has_rank = {
        "fixed_full_rank_attn": config.qkv_rank or config.attn_out_rank,
        "fixed_full_rank_mlp": config.ffn_rank,
    }
    for name, rank in has_rank.items():
        if getattr(config, name) and not rank:
            raise ConfigError(
                f"{name} = true adds a frozen matrix to low-rank matrices only, and here there are "
                "none: it would change nothing. Set a rank, or leave it out. (An arm with such a "
                "setting is its own baseline under another name.)"
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
    for name in ("min_lr_ratio", "grok_threshold", "carry_share", "stop_dead_below"):
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


def _check_extras(config: AdditionConfig) -> None:
    begin, end = config.carry_fade
    if not 0 <= begin <= end or (config.carry_share > 0) != (end > 0):
        raise ConfigError(
            "carry_fade is [from_step, to_step] with from_step <= to_step, set together with "
            f"carry_share; got carry_fade {list(config.carry_fade)} and carry_share "
            f"{config.carry_share}. The share fades by step, never by a metric."
        )
    if config.grokfast_lambda < 0 or not 0 <= config.grokfast_alpha < 1:
        raise ConfigError(
            "grokfast_lambda must be at least 0 and grokfast_alpha in [0, 1); got "
            f"{config.grokfast_lambda} and {config.grokfast_alpha}. Usual are 2 and 0.98."
        )
    if config.grokfast_from < 0 or (config.grokfast_from and not config.grokfast_lambda):
        raise ConfigError(
            f"grokfast_from is a step and needs grokfast_lambda above 0; got {config.grokfast_from}"
            f" with grokfast_lambda {config.grokfast_lambda}."
        )
    known = get_args(schema.Finish)
    unknown = [stage for stage in config.finish if stage not in known]
    if unknown:
        raise ConfigError(f"finish lists stages among {', '.join(known)}; got {unknown[0]!r}.")
    for name in ("finish_steps", "finish_lr", "finish_sigma"):
        value = getattr(config, name)
        if not value > 0:
            raise ConfigError(
                f"{name} must be above 0; got {value}. finish = [] leaves stages out."
            )
    if config.stop_dead_at < 0 or config.stop_dead_at % config.eval_interval:
        raise ConfigError(
            f"stop_dead_at must be a multiple of eval_interval ({config.eval_interval}), where runs "
            f"are evaluated, or 0 for never; got {config.stop_dead_at}."
        )
