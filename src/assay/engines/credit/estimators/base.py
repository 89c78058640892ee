"""What a credit estimator is, and how its answer is checked."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from assay.engines.credit.config import EstimatorConfig
from assay.engines.credit.firewall import CreditError, Derivative, View
from assay.engines.credit.net import Shape, Trajectory


@dataclass(frozen=True, slots=True)
class Setting:
    """What an estimator is made for.

    Attributes:
        shape: Of the nets.
        configs: Settings of each run; they differ at most in what can be stacked.
        generators: Of each run: all that its estimator draws.
    """

    shape: Shape
    configs: Sequence[EstimatorConfig]
    generators: Sequence[torch.Generator]

    @property
    def config(self) -> EstimatorConfig:
        """What all runs have in common."""
        return self.configs[0]

    def randn(self, *size: int) -> Tensor:
        """Normal numbers [S, *size], each run's from its own generator."""
        drawn = torch.empty(len(self.generators), *size)
        for own, generator in zip(drawn, self.generators, strict=True):
            torch.randn(size, generator=generator, out=own)
        return drawn

    def each(self, name: str) -> Tensor:
        """A setting of every run, [S]."""
        return torch.tensor([float(getattr(config, name)) for config in self.configs])


class Estimator(ABC):
    """Guesses costates without backpropagation through hidden layers; all runs at once.

    A subclass says which derivatives it uses, and the view that it is given allows no other.

    Args:
        setting: Shape, settings and generators of the runs.
    """

    derivatives: ClassVar[frozenset[Derivative]] = frozenset()

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.pace = 1.0
        """Factor on the learning rate, for schedules."""

    @property
    def name(self) -> str:
        """For errors and logs."""
        return type(self).__name__

    @abstractmethod
    def credit(self, trajectory: Trajectory, view: View) -> Tensor:
        """Costates of h_0 … h_{L - 1} of every sample, [S, L, B, D]."""

    def fit_step(self, trajectory: Trajectory, view: View) -> dict[str, Tensor]:
        """Learn from one batch; returns what is worth logging, name → [S]."""
        return {}

    def parameter_gradients(self, trajectory: Trajectory, view: View) -> dict[str, Tensor] | None:
        """Gradients of the net's own parameters, from methods that have no credit."""
        return None

    def state(self) -> dict[str, Tensor]:
        """All numbers that it has learned or drawn; changing them changes the estimator."""
        return {}

    def to(self, dtype: torch.dtype) -> None:
        """Compute in another precision from now on.

        Raises:
            CreditError: `state` names something that is no tensor.
        """
        for name, value in self.state().items():
            if not isinstance(value, Tensor):
                raise CreditError(
                    f"Estimator {self.name} must give tensors in state(), name → tensor; {name!r} is "
                    f"{type(value).__name__}. Make it a tensor, or leave it out if it never changes."
                )
            if value.is_floating_point():
                value.data = value.data.to(dtype)


def credit_of(estimator: Estimator, trajectory: Trajectory, view: View) -> Tensor:
    """An estimator's credit for h_0 … h_{L - 1}, checked.

    Raises:
        CreditError: It is of the wrong shape, or has numbers that are none; says which layer.
    """
    try:
        with untouched(estimator, trajectory):
            credit = estimator.credit(trajectory, view)
    except RuntimeError as error:
        # What a first estimator of one's own meets when it is measured, after it has trained well.
        mixed = any(word in str(error) for word in ("dtype", "Double", "double"))
        if trajectory.h_SLBD.dtype == torch.float64 and mixed:
            raise CreditError(
                f"Estimator {estimator.name} must compute in float64 when it is measured, and mixes precisions: "
                f"{error}. Name every tensor that it keeps in state(); those are converted."
            ) from error
        if "does not require grad" in str(error):
            raise CreditError(
                f"Estimator {estimator.name} took a reverse-mode derivative of what has none: the states h_0 … h_L, logits "
                "and losses of the net are given without their history, since hidden backpropagation is what an estimator must "
                "do without. Use view.tail or view.tail_jvp, or differentiate nets of its own."
            ) from error
        raise
    if not isinstance(credit, Tensor) or credit.dtype != trajectory.h_SLBD.dtype:
        told = credit.dtype if isinstance(credit, Tensor) else type(credit).__name__
        raise CreditError(
            f"Estimator {estimator.name} must give credit as a tensor of {trajectory.h_SLBD.dtype}, like the states; "
            f"got {told}. Return it from credit()."
        )
    wanted = trajectory.h_SLBD[:, :-1].shape
    if tuple(credit.shape) != tuple(wanted):
        raise CreditError(
            f"Estimator {estimator.name} must give credit of shape {list(wanted)} (runs, layers 0 to "
            f"L - 1, samples, width); got {list(credit.shape)}."
        )
    # Later sums take terms in the order in which they lie, which must not differ with the stack's size.
    credit = credit.detach().contiguous()
    # A sum is a number only if all its terms are: one pass where a look at each takes five.
    if not math.isfinite(float(credit.sum())):
        good = torch.isfinite(credit).flatten(2).all(-1)
        if good.all():
            return credit
        run, layer = (~good).nonzero()[0].tolist()
        raise CreditError(
            f"Estimator {estimator.name} gave credit that is no number at layer {layer} (run {run} of "
            f"the cohort). Lower est_lr or the net's lr, or look at what it divides by."
        )
    return credit


def fitted(estimator: Estimator, trajectory: Trajectory, view: View) -> dict[str, Tensor]:
    """Let an estimator learn from a batch, and check what it tells.

    Raises:
        CreditError: It is no number a run under a name, or the batch is no longer what it was.
    """
    with untouched(estimator, trajectory):
        told = estimator.fit_step(trajectory, view)
    runs = trajectory.h_SLBD.shape[0]
    good = isinstance(told, dict) and all(
        isinstance(value, Tensor) and value.shape == (runs,) for value in told.values()
    )
    if not good:
        raise CreditError(
            f"fit_step of estimator {estimator.name} must return a dict, name → tensor of {runs} number(s), one a run, "
            f"of what is worth logging (or an empty one); got {told!r:.200}."
        )
    return told


def gradients_of(
    estimator: Estimator, trajectory: Trajectory, view: View
) -> dict[str, Tensor] | None:
    """What a method without credit gives instead: gradients by the parameters' names; None of others.

    Raises:
        CreditError: One is of no parameter, of another shape, or no number; or the batch is no longer what
            it was.
    """
    with untouched(estimator, trajectory):
        given = estimator.parameter_gradients(trajectory, view)
    if given is None:
        return None
    if not isinstance(given, dict):
        raise CreditError(
            f"parameter_gradients of estimator {estimator.name} must return a dict, name of a parameter → "
            f"gradient, or None; got {type(given).__name__}."
        )
    sizes = view.sizes
    for name, value in given.items():
        if name not in sizes:
            raise CreditError(
                f"Estimator {estimator.name} gave a gradient of {name!r}; the parameters of this net are "
                f"{', '.join(sizes)}."
            )
        told = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if told != sizes[name]:
            raise CreditError(
                f"Estimator {estimator.name} must give the gradient of {name} in the shape {sizes[name]}, a "
                f"leading axis of runs included; got {told}."
            )
        if not math.isfinite(float(value.sum())) and not torch.isfinite(value).all():
            raise CreditError(
                f"Estimator {estimator.name} gave a gradient of {name} that is no number. Lower est_lr or the "
                "net's lr, or look at what it divides by."
            )
    return given


@contextmanager
def untouched(estimator: Estimator, trajectory: Trajectory) -> Iterator[None]:
    """Nothing of the batch is written to: it is that of the net's own update, and of the truth beside.

    Raises:
        CreditError: Something was; names it.
    """
    seen = {f.name: getattr(trajectory, f.name) for f in fields(trajectory)}
    versions = {name: value._version for name, value in seen.items() if isinstance(value, Tensor)}
    yield
    changed = [name for name, version in versions.items() if seen[name]._version != version]
    if changed:
        raise CreditError(
            f"Estimator {estimator.name} wrote into the trajectory ({', '.join(changed)}), which is also what the net "
            "learns from and what the credit is compared with. Compute with copies: h.clone(), or operations "
            "without a trailing underscore."
        )


def tensors(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A part's state under a name."""
    return {f"{prefix}.{name}": value for name, value in state.items()}
