"""Texts as C concept vectors: encoders, objectives, analysis and evaluation.

What a user's own code needs can be imported from here. It is loaded when it is asked for, since the
lab reads this package's configurations without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay.engines.concepts.configuration import ConceptConfig
    from assay.engines.concepts.models import (
        ConceptForMaskedLM,
        ConceptForSequenceClassification,
        ConceptModel,
        unmask,
    )

_HOMES = {
    "configuration": ("ConceptConfig",),
    "models": (
        "ConceptForMaskedLM",
        "ConceptForSequenceClassification",
        "ConceptModel",
        "unmask",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ConceptConfig",
    "ConceptForMaskedLM",
    "ConceptForSequenceClassification",
    "ConceptModel",
    "unmask",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
