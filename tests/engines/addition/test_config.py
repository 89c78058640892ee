import subprocess
import sys

import pytest

from assay.core.config import build, to_plain
from assay.core.errors import ConfigError
from assay.engines.addition.config import AdditionConfig, carry_share_at, phase_at

TIES = ("none", "all", "qk", "kv", "shareA", "shareB", "shareA_tieQK", "shareA_tieKV",
        "shareB_tieQK", "shareB_tieKV")  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"d_model": 0}, "d_model must be at least 1; got 0"),
        ({"pos_rank": 8}, "pos_rank must be 0 .* at most 7"),
        ({"tie_qkv": "shareA"}, "qkv_rank must be at least 1"),
        ({"norm": "batch"}, "norm must be one of"),
        ({"init": "xavier"}, "init must be one of"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"warmup_steps": 30_000}, "warmup_steps must be between 0 and steps"),
        ({"grad_clip": 0.0}, "grad_clip must be above 0"),
        ({"min_lr_ratio": 2.0}, "min_lr_ratio must be in"),
        ({"curriculum": ()}, "at least one phase"),
        ({"curriculum": ((0, 3, 5),)}, "1 <= min_digits"),
        ({"curriculum": ((1, 11, 5),)}, "max_digits <= 10"),
        ({"curriculum": ((1, 3, 5), (1, 6, 5))}, "must rise"),
        ({"test_seeds": ()}, "must not be empty"),
        ({"test_seeds": (41, 41)}, "must differ"),
        ({"prompt": "words"}, "prompt must be one of"),
        ({"heads": 2}, "d_model must be a multiple of heads"),
        ({"position_rows": 20}, "position_rows must be 0 or at least the prompt's 33"),
        ({"embedding": "arc"}, "needs d_model of at least 2 and prompt = 'zeros'"),
        ({"positions": "none", "pos_rank": 2}, "pos_rank must be 0"),
        ({"tie_out": "query", "attn_out_rank": 2}, "attn_out_rank must be 0"),
        ({"bias": True, "tie_qkv": "all"}, "bias = true needs tie_qkv = 'none'"),
        ({"norm": "none", "shared_norm": "all"}, "shared_norm = 'all' needs a norm"),
        ({"rope_theta": 3.0}, "the width of a head must be even; got 7"),
        ({"rope_theta": 0.5, "d_model": 8}, "rope_theta must be 0"),
        ({"tie_qkv": "rotated"}, "the width of a head must be even"),
        ({"tie_down": "rotated", "d_ff": 3}, "d_ff must be even"),
        ({"fixed_full_rank_attn": True}, "it would change nothing"),
        ({"fixed_full_rank_mlp": True}, "it would change nothing"),
        ({"carry_share": 0.8}, "carry_fade is"),
        ({"carry_fade": (10, 5), "carry_share": 0.8}, "from_step <= to_step"),
        ({"grokfast_lambda": -1.0}, "grokfast_lambda must be at least 0"),
        ({"grokfast_from": 10}, "needs grokfast_lambda above 0"),
        ({"stop_dead_at": 1500}, "multiple of eval_interval"),
    ],
)
def test_broken_rules_are_named(settings, says):
    """A message has the rule and the value."""
    with pytest.raises(ConfigError, match=says):
        AdditionConfig(**settings)


def test_config_survives_plain_values():
    """TOML lists become phases, and back."""
    config = AdditionConfig(d_model=8, curriculum=((1, 3, 1000), (1, 10, 12_000)))
    assert build(AdditionConfig, to_plain(config), where="test") == config


def test_phases_change_at_their_step_and_the_last_holds():
    """`until_step` is the first step of the next phase."""
    config = AdditionConfig(curriculum=((1, 3, 10), (2, 6, 20)))
    assert [phase_at(config, step) for step in (0, 9, 10, 19, 20, 10**6)] == [
        (1, 3), (1, 3), (2, 6), (2, 6), (2, 6), (2, 6),
    ]  # fmt: skip


def test_engine_and_config_import_without_torch():
    """`assay run --dry-run` must not load torch."""
    code = (
        "import sys, assay.engines.addition.engine, assay.engines.addition.layout, "
        "assay.cli.addition; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_share_of_carries_fades_by_step():
    """Full until the first step, linear to the second, then none."""
    config = AdditionConfig(carry_share=0.8, carry_fade=(100, 300))
    shares = [carry_share_at(config, step) for step in (0, 100, 200, 300, 10**6)]
    assert shares == pytest.approx([0.8, 0.8, 0.4, 0.0, 0.0])
    assert carry_share_at(AdditionConfig(), 0) == 0.0
