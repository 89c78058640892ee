"""The ladder of public models as configurations: names, settings, sources. No torch here.

Names are parameter counts; where two models have one count, the feed-forward width tells them
apart. Sources: yinglunz (Y), maxencefrenette (M), gpt-acc-jax (J), rezabyt, lichengliu03, sytelus
(C), tbukic.
"""

from collections.abc import Mapping
from typing import Any

from assay.engines.addition.config import AdditionConfig

_LOW_RANK: dict[str, Any] = {"pos_rank": 3, "qkv_rank": 3, "attn_out_rank": 3, "ffn_rank": 3}
_TIED: dict[str, Any] = {"norm": "rmsnorm", "tie_qkv": "shareA_tieKV"}
_WIDE: dict[str, Any] = {"d_model": 8, "d_ff": 28}

LADDER: Mapping[str, Mapping[str, Any]] = {
    "36": {  # tbukic: the trained record
        "prompt": "zeros",
        "d_model": 3,
        "d_ff": 2,
        "head_width": 4,
        "embedding": "arc",
        "positions": "none",
        "rope_theta": 3.0,
        "tie_qkv": "rotated",
        "tie_out": "query",
        "qk_norm": True,
        "ffn": "swiglu",
        "tie_down": "rotated",
        "norm": "rmsnorm",
        "shared_norm": "all",
    },
    "262": {"d_model": 4, "d_ff": 6, **_LOW_RANK, "pos_rank": 2, **_TIED},  # lichengliu03
    "311": {"d_model": 4, "d_ff": 8, **_LOW_RANK, **_TIED},  # rezabyt
    "456": {**_LOW_RANK, "attn_out_rank": 2, **_TIED},  # Y
    "491": {**_LOW_RANK, "norm": "rmsnorm"},
    "498": {**_LOW_RANK, "attn_out_rank": 2},  # M's low-rank smoke test
    "512": _LOW_RANK,  # Y
    "582": {**_LOW_RANK, "ffn_rank": 0},  # Y
    "763": {},  # M's E8
    "777-f14": {"position_rows": 35},  # J
    "777-f28": {"d_ff": 28, "ffn_rank": 3},  # M's E38
    "784": {**_WIDE, "qkv_rank": 3, "attn_out_rank": 3, "ffn_rank": 3},  # M's E38
    "824": {"d_model": 8, "d_ff": 16, "ffn_rank": 3},  # M's E38
    "896": {**_WIDE, "ffn_rank": 3, "fixed_full_rank_mlp": True},  # M's base
    "959": {"d_ff": 28},  # M's E9
    "973": {"d_ff": 28, "position_rows": 35},  # J
    "1128": _WIDE,  # M's E10
    "1644": {"prompt": "pairs", "d_model": 8, "d_ff": 12, "heads": 2, "bias": True},  # C
}


def ladder() -> dict[str, AdditionConfig]:
    """Every model of the ladder, smallest first, with the default training."""
    return {name: AdditionConfig(**settings) for name, settings in LADDER.items()}
