import subprocess
import sys

import pytest

from assay.core.config import build, to_plain
from assay.core.errors import ConfigError
from assay.engines.addition.config import AdditionConfig, num_parameters, phase_at
from assay.engines.addition.layout import ALIGN, layout
from assay.engines.addition.model import Parameters, count

from .helpers import PUBLIC_456

LN3 = {"pos_rank": 3, "qkv_rank": 3, "ffn_rank": 3}
TABLE = [
    (456, PUBLIC_456),
    (491, {**LN3, "attn_out_rank": 3, "norm": "rmsnorm"}),
    (498, {**LN3, "attn_out_rank": 2}),
    (512, {**LN3, "attn_out_rank": 3}),
    (582, {**LN3, "attn_out_rank": 3, "ffn_rank": 0}),
    (763, {}),
    (959, {"d_ff": 28}),
    (1128, {"d_model": 8, "d_ff": 28}),
    (896, {"d_model": 8, "d_ff": 28, "ffn_rank": 3}),
    (824, {"d_model": 8, "d_ff": 16, "ffn_rank": 3}),
    (784, {"d_model": 8, "d_ff": 28, "ffn_rank": 3, "qkv_rank": 3, "attn_out_rank": 3}),
    (311, {"d_model": 4, "d_ff": 8, "norm": "rmsnorm", "tie_qkv": "shareA_tieKV", **LN3,
           "attn_out_rank": 3}),
    (262, {"d_model": 4, "d_ff": 6, "norm": "rmsnorm", "tie_qkv": "shareA_tieKV", **LN3,
           "pos_rank": 2, "attn_out_rank": 3}),
]  # fmt: skip
TIES = ("none", "all", "qk", "kv", "shareA", "shareB", "shareA_tieQK", "shareA_tieKV",
        "shareB_tieQK", "shareB_tieKV")  # fmt: skip


@pytest.mark.parametrize(("known", "settings"), TABLE, ids=[str(n) for n, _ in TABLE])
def test_parameter_counts_of_the_public_table(known, settings):
    """The formula, the tensors and the published number agree."""
    config = AdditionConfig(**settings)
    assert num_parameters(config) == known
    assert sum(layout(config).count().values()) == known
    assert count(Parameters.initial(config, [1]).seed(0)) == known


@pytest.mark.parametrize(
    ("tie", "rank"), [(t, r) for t in TIES for r in (0, 2) if r or not t.startswith("share")]
)
def test_every_tie_is_counted_alike_by_formula_and_tensors(tie, rank):
    """Tying removes exactly the numbers that the formula says."""
    config = AdditionConfig(tie_qkv=tie, qkv_rank=rank)
    assert sum(layout(config).count().values()) == num_parameters(config)


def test_parameters_start_on_aligned_numbers():
    """Every parameter and every row starts at a multiple of 64 bytes."""
    plan = layout(AdditionConfig(**PUBLIC_456))
    assert plan.row % ALIGN == 0
    assert all(slot.start % ALIGN == 0 for slot in plan.slots)


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
