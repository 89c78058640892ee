"""From a method's name to its estimator."""

import importlib

from assay.core.errors import ConfigError
from assay.engines.credit.estimators.base import Estimator, Setting
from assay.engines.credit.estimators.bridges import ScalarBridge, StateBridge
from assay.engines.credit.estimators.fixed import (
    DirectFeedback,
    FeedbackAlignment,
    Oracle,
    SignSymmetric,
    TerminalCopy,
    Zero,
)
from assay.engines.credit.estimators.local import LocalLoss, SyntheticGradient
from assay.engines.credit.estimators.perturbed import (
    ForwardGradient,
    LearnedFeedback,
    NodePerturbation,
    VectorField,
    WeightPerturbation,
)

ESTIMATORS: dict[str, type[Estimator]] = {
    "bp": Oracle,
    "zero": Zero,
    "copy": TerminalCopy,
    "fa": FeedbackAlignment,
    "dfa": DirectFeedback,
    "sign-symmetric": SignSymmetric,
    "state-bridge": StateBridge,
    "scalar-bridge": ScalarBridge,
    "vector-field": VectorField,
    "forward-gradient": ForwardGradient,
    "node-perturbation": NodePerturbation,
    "weight-perturbation": WeightPerturbation,
    "learned-feedback": LearnedFeedback,
    "dni": SyntheticGradient,
    "local-loss": LocalLoss,
}


def make(setting: Setting) -> Estimator:
    """The estimator that a configuration's `method` names: one of ours, or module:Class.

    Raises:
        ConfigError: There is no such class, or it is no estimator.
    """
    made = find(setting.config.method)(setting)
    if not hasattr(made, "setting"):
        raise ConfigError(
            f"Estimator {made.name} must call super().__init__(setting) first in its own __init__; it does not."
        )
    return made


def find(method: str) -> type[Estimator]:
    """The class of a method."""
    if method in ESTIMATORS:
        return ESTIMATORS[method]
    module, _, name = method.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"method {method!r} must name a class that can be imported: {error}. Put its file into "
            f"the folder where you are, or the project's, or choose one of {', '.join(ESTIMATORS)}."
        ) from error
    if not (isinstance(found, type) and issubclass(found, Estimator)):
        raise ConfigError(
            f"method {method!r} must name a subclass of assay.engines.credit.Estimator; it names {found!r}."
        )
    if missing := sorted(found.__abstractmethods__):
        raise ConfigError(f"Estimator {method!r} must have the method {missing[0]}; it does not.")
    if not isinstance(found.derivatives, frozenset):
        raise ConfigError(
            f'derivatives of estimator {method!r} must be a frozenset, such as frozenset({{"tail"}}); got '
            f"{found.derivatives!r}."
        )
    return found
