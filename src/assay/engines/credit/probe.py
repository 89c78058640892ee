"""What a stored run's credit is worth: its estimator, or another one, on the net as it stands."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from assay.core.errors import CheckpointError, ConfigError, StoreError
from assay.engines.credit import diagnostics, exploit
from assay.engines.credit.cohort import ESTIMATOR_STREAM, generator
from assay.engines.credit.config import TrainConfig
from assay.engines.credit.estimators.base import Estimator, Setting
from assay.engines.credit.estimators.registry import ESTIMATORS, find
from assay.engines.credit.memory import Memory
from assay.engines.credit.train import Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A run as it was kept.

    Attributes:
        config: Of the run.
        seeds: By role.
        data_dir: The data folder, if there is one.
        content: Of its last.safetensors.
        where: What it is called in errors.
    """

    config: TrainConfig
    seeds: Mapping[str, int]
    data_dir: Path | None
    content: bytes
    where: str


def load(stored: Stored) -> Training:
    """Net, data and estimator of a stored run.

    Raises:
        StoreError: Its tensors are not those of its configuration.
    """
    training = Training([stored.config], [Memory(stored.seeds, stored.data_dir)])
    try:
        training.learners.load(0, stored.content)
    except CheckpointError as error:
        raise StoreError(
            f"last.safetensors of {stored.where} must hold the net and the estimator that its configuration "
            f"describes; it does not: {error.__cause__}. Give a run whose files belong together."
        ) from error
    return training


def estimator_of(training: Training, method: str | None = None) -> Estimator:
    """The run's own estimator, or another one that learns nothing.

    What the other one draws, it draws from the run's seed, as it would have in training.

    Args:
        training: A loaded run.
        method: Of the other one.

    Raises:
        ConfigError: The method needs training, or has no credit.
    """
    if method is None:
        own = training.learners.estimator
        if type(own).parameter_gradients is not Estimator.parameter_gradients:
            raise ConfigError(
                f"method {training.config.method!r} changes the weights without credit, so there is none to "
                "measure. Give another one for the same net, such as --method bp."
            )
        return own
    config = replace(training.config, method=method)
    kind = find(method)
    if not is_fixed(kind):
        fixed = [name for name, each in ESTIMATORS.items() if is_fixed(each)]
        raise ConfigError(
            f"method {method!r} must be one that gives credit without having learned it; choose one of "
            f'{", ".join(fixed)}. Of one that learns, task = "frozen" of a study trains it on a frozen net.'
        )
    drawn = generator(training.contexts[0].seeds["init"], ESTIMATOR_STREAM)
    return kind(Setting(training.shape, [config], [drawn]))


def is_fixed(kind: type[Estimator]) -> bool:
    """Whether an estimator gives credit, and learns nothing for it."""
    return (
        kind.fit_step is Estimator.fit_step
        and kind.parameter_gradients is Estimator.parameter_gradients
    )


def by_layer(
    training: Training, estimator: Estimator, samples: int | None = None
) -> dict[str, list[float]]:
    """Measures of each layer h_0 … h_(L-1), on samples of the test part.

    Args:
        training: A loaded run.
        estimator: Its own, or another.
        samples: How many at most; by default those of the run's own measures.

    Returns:
        gamma, rho, rho_within, nudge_nats, copy_gamma and valid_rate: a value for each layer.
    """
    part = training.data[0].test.first(samples or training.config.measured)
    found = diagnostics.measured(
        training.net, estimator, part.x_NI.unsqueeze(0), part.y_N.unsqueeze(0)
    )
    counts = diagnostics.cosines(found.credit_SLBD, found.truth_SLBD)[1]
    drawn = torch.Generator().manual_seed(training.contexts[0].seeds["init"])
    all_, within = diagnostics.rho(found, drawn)
    measures = {
        "gamma": diagnostics.gamma(found)[0],
        "rho": all_,
        "rho_within": within,
        "nudge_nats": diagnostics.nudge(found),
        "copy_gamma": diagnostics.copy_ceiling(found),
        "valid_rate": counts.double().mean(-1),
    }
    return {name: value[0].tolist() for name, value in measures.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A line search of one range and kind of credit: loss changes in nats, one a batch.

    Attributes:
        credit: Whose.
        sign: 1, or -1 for the control.
        where: last1, last2 or all.
        kind: raw or norm.
        same: The smallest over step sizes, on the credit's own batch.
        held: On a held-out batch, at that step size.
        fair: On that held-out batch, at the step size that was best on a third.
    """

    credit: str
    sign: int
    where: str
    kind: str
    same: list[float]
    held: list[float]
    fair: list[float]


def line_searches(
    training: Training, estimators: Mapping[str, Estimator], *, batches: int, size: int
) -> list[Found]:
    """Line searches of every estimator with its own sign and the other, ranges and kinds of credit.

    Args:
        training: A loaded run.
        estimators: By the name that the results get.
        batches: How many times, on batches of their own.
        size: Samples of each batch.

    Raises:
        ConfigError: A part of the data is smaller than a batch.
    """
    data = training.data[0]
    least = min(len(data.train), len(data.val), len(data.test))
    if not 1 <= size <= least:
        raise ConfigError(
            f"A batch must have 1 to {least} samples, as many as the smallest part of "
            f"{training.config.data!r}; got {size}."
        )
    wide = training.net.to(torch.float64)
    triples = [exploit.triple(training.data, number, size) for number in range(batches)]
    out = []
    for name, estimator in estimators.items():
        for sign in (1, -1):
            rule = exploit.Rule(sign=float(sign))
            with diagnostics.in_float64(estimator) as exact:
                each = [exploit.searches(wide, exact, three, rule) for three in triples]
            for where, kind in each[0]:
                values = {
                    at: [float(found[where, kind][at]) for found in each]
                    for at in ("same", "held", "fair")
                }
                out.append(Found(credit=name, sign=sign, where=where, kind=kind, **values))
    return out
