"""Learning without backpropagating through hidden layers: credit estimators, rules, diagnostics.

What a user's own code needs can be imported from here. It is loaded when it is asked for, since the
lab reads this package's configurations without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay.engines.credit.comparison import Comparison, compare
    from assay.engines.credit.config import EstimatorConfig, TrainConfig
    from assay.engines.credit.convert import from_sequential, to_sequential
    from assay.engines.credit.diagnostics import report
    from assay.engines.credit.estimators.base import Estimator, Setting, credit_of
    from assay.engines.credit.estimators.registry import make
    from assay.engines.credit.firewall import CreditError, View
    from assay.engines.credit.net import Net, Shape, Trajectory
    from assay.engines.credit.optim import Optimizer
    from assay.engines.credit.surrogates import gradients, normalised

_HOMES = {
    "comparison": ("Comparison", "compare"),
    "config": ("EstimatorConfig", "TrainConfig"),
    "convert": ("from_sequential", "to_sequential"),
    "diagnostics": ("report",),
    "estimators.base": ("Estimator", "Setting", "credit_of"),
    "estimators.registry": ("make",),
    "firewall": ("CreditError", "View"),
    "net": ("Net", "Shape", "Trajectory"),
    "optim": ("Optimizer",),
    "surrogates": ("gradients", "normalised"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022  (as above)
    "Comparison", "compare",
    "EstimatorConfig", "TrainConfig",
    "from_sequential", "to_sequential",
    "report",
    "Estimator", "Setting", "credit_of",
    "make",
    "CreditError", "View",
    "Net", "Shape", "Trajectory",
    "Optimizer",
    "gradients", "normalised",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
