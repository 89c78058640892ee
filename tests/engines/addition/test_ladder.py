"""Every public model is a configuration, and its parameters are counted from its tensors."""

import pytest

from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.ladder import LADDER, ladder
from assay.engines.addition.layout import ALIGN, ROW_ALIGN, layout, num_parameters
from assay.engines.addition.model import Parameters, count

COMPONENTS = {
    "36": {"tokens": 3, "norms": 3, "qkv": 13, "qk norm": 4, "ffn": 13},
    "262": {"tokens": 56, "positions": 74, "norms": 12, "qkv": 36, "out": 24, "ffn": 60},
    "311": {"tokens": 56, "positions": 111, "norms": 12, "qkv": 36, "out": 24, "ffn": 72},
    "456": {"tokens": 98, "positions": 120, "norms": 21, "qkv": 63, "out": 28, "ffn": 126},
    "491": {"tokens": 98, "positions": 120, "norms": 21, "qkv": 84, "out": 42, "ffn": 126},
    "498": {"tokens": 98, "positions": 120, "norms": 42, "qkv": 84, "out": 28, "ffn": 126},
    "512": {"tokens": 98, "positions": 120, "norms": 42, "qkv": 84, "out": 42, "ffn": 126},
    "582": {"tokens": 98, "positions": 120, "norms": 42, "qkv": 84, "out": 42, "ffn": 196},
    "763": {"tokens": 98, "positions": 231, "norms": 42, "qkv": 147, "out": 49, "ffn": 196},
    "777-f14": {"tokens": 98, "positions": 245, "norms": 42, "qkv": 147, "out": 49, "ffn": 196},
    "777-f28": {"tokens": 98, "positions": 231, "norms": 42, "qkv": 147, "out": 49, "ffn": 210},
    "784": {"tokens": 112, "positions": 264, "norms": 48, "qkv": 96, "out": 48, "ffn": 216},
    "824": {"tokens": 112, "positions": 264, "norms": 48, "qkv": 192, "out": 64, "ffn": 144},
    "896": {"tokens": 112, "positions": 264, "norms": 48, "qkv": 192, "out": 64, "ffn": 216},
    "959": {"tokens": 98, "positions": 231, "norms": 42, "qkv": 147, "out": 49, "ffn": 392},
    "973": {"tokens": 98, "positions": 245, "norms": 42, "qkv": 147, "out": 49, "ffn": 392},
    "1128": {"tokens": 112, "positions": 264, "norms": 48, "qkv": 192, "out": 64, "ffn": 448},
    "1644": {"tokens": 912, "positions": 184, "norms": 48, "qkv": 216, "out": 72, "ffn": 212},
}
"""By the formula of the specification, worked out by hand for each."""
TIES = {  # parameters of the query, key and value projections at width 7: rank 0, rank 2
    "none": (147, 2 * (7 + 21)),
    "all": (49, 28),
    "qk": (98, 56),
    "kv": (98, 56),
    "shareA": (None, 56),
    "shareB": (None, 56),
    "shareA_tieQK": (None, 42),
    "shareA_tieKV": (None, 42),
    "shareB_tieQK": (None, 42),
    "shareB_tieKV": (None, 42),
}


def trained(config: AdditionConfig) -> dict[str, object]:
    made = Parameters.initial(config, [1])
    names = {slot.name for slot in made.layout.slots}
    return {name: view for name, view in made.named().items() if name in names}


@pytest.mark.parametrize("name", LADDER)
def test_counts_of_the_public_table(name):
    """The name, the components worked out by hand, and the tensors agree."""
    config = ladder()[name]
    assert layout(config).count() == COMPONENTS[name]
    assert num_parameters(config) == int(name.split("-")[0]) == count(trained(config))


def test_the_ladder_has_every_public_model():
    """The counts that the source and the leaderboard list."""
    public = [
        "456",
        "491",
        "498",
        "512",
        "582",
        "763",
        "777",
        "784",
        "824",
        "896",
        "959",
        "973",
        "1128",
        "1644",
        "311",
        "262",
        "36",
    ]
    assert {name.split("-")[0] for name in LADDER} == set(public)
    assert set(COMPONENTS) == set(LADDER)


def test_a_tensor_under_two_names_counts_once():
    """Unique storage: what is tied is one parameter."""
    views = trained(ladder()["456"])
    assert count({**views, "lm_head.weight": views["token_emb.weight"]}) == 456


@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("rank", [0, 2])
def test_every_tie_is_counted(tie, rank):
    """Tying removes exactly the numbers that the specification says."""
    expected = TIES[tie][bool(rank)]
    if expected is not None:
        config = AdditionConfig(tie_qkv=tie, qkv_rank=rank)
        assert layout(config).count()["qkv"] == expected


def test_frozen_buffers_are_listed_apart():
    """896 parameters with the frozen matrices and without; the buffers are 2 x 224 numbers."""
    config = ladder()["896"]
    plan = layout(config)
    assert [slot.numel for slot in plan.frozen] == [224, 224]
    assert num_parameters(config) == 896
    both = AdditionConfig(qkv_rank=2, attn_out_rank=2, ffn_rank=2, fixed_full_rank_attn=True,
                          fixed_full_rank_mlp=True)  # fmt: skip
    assert [slot.numel for slot in layout(both).frozen] == [147, 49, 98, 98]


def test_frozen_buffers_do_not_move_the_start():
    """With and without them a seed starts at the same parameters."""
    settings = {**LADDER["896"], "fixed_full_rank_mlp": False}
    without = Parameters.initial(AdditionConfig(**settings), [1, 2])
    assert (Parameters.initial(ladder()["896"], [1, 2]).rows_SP == without.rows_SP).all()


def test_rows_leave_no_remainder():
    """Every parameter starts at a multiple of 64 bytes; rows are multiples of 64 numbers."""
    for config in ladder().values():
        plan = layout(config)
        assert plan.row % ROW_ALIGN == 0
        assert plan.frozen_row % ROW_ALIGN == 0
        assert all(slot.start % ALIGN == 0 for slot in (*plan.slots, *plan.frozen))
