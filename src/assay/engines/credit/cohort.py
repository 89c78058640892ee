"""The runs of a cohort, stacked: nets, optimizer, estimator, and what they are saved as."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from assay.core.engine import RunContext
from assay.core.errors import CheckpointError, ConfigError
from assay.engines.credit.config import EstimatorConfig
from assay.engines.credit.estimators.base import Estimator, Setting
from assay.engines.credit.estimators.registry import make
from assay.engines.credit.net import Net, Shape, initial
from assay.engines.credit.optim import Optimizer

ESTIMATOR_STREAM, NET_STREAM = 1, 0
MOST_SEED = 9_000_000_000_000
"""A seed and its streams must fit into 64 bits."""


def generator(seed: int, stream: int) -> torch.Generator:
    """One of several independent streams of a seed."""
    if not -MOST_SEED <= seed <= MOST_SEED:
        raise ConfigError(f"A seed must be within ±{MOST_SEED:,}; got {seed}.")
    return torch.Generator().manual_seed(1_000_003 * seed + stream)


def shared(
    configs: Sequence[EstimatorConfig], contexts: Sequence[RunContext], alike: frozenset[str]
) -> list[list[int]]:
    """Places of the runs that are the same but for the settings in `alike`, so that one net serves them."""
    first = configs[0]
    common = {name: getattr(first, name) for name in alike}
    groups: dict[object, list[int]] = {}
    for place, (config, context) in enumerate(zip(configs, contexts, strict=True)):
        key = replace(config, **common), tuple(sorted(context.seeds.items()))
        groups.setdefault(key, []).append(place)
    return list(groups.values())


@dataclass(slots=True)
class Learners:
    """Nets and estimators of a cohort, and all that their next step depends on.

    Attributes:
        net: Of all runs.
        optimizer: Of the nets.
        estimator: Of all runs.
        generators: Of each row's estimator.
        rows: Of each run, its row in the stack: several may share one.
    """

    net: Net
    optimizer: Optimizer
    estimator: Estimator
    generators: Sequence[torch.Generator]
    rows: Sequence[int]

    def state(self) -> dict[str, Tensor]:
        """Live tensors by name: with a leading axis of rows, or a number that all share."""
        parts = {
            "net": self.net.parameters,
            "optimizer": self.optimizer.state,
            "estimator": self.estimator.state(),
        }
        return {
            f"{part}.{name}": value for part, each in parts.items() for name, value in each.items()
        }

    def dump(self, run: int) -> bytes:
        """One run's part of it."""
        row = self.rows[run]
        tensors = {
            name: (value[row] if value.dim() else value).clone().contiguous()
            for name, value in self.state().items()
        }
        tensors["generator"] = self.generators[row].get_state()
        return safetensors.torch.save(tensors)

    def save(self, contexts: Sequence[RunContext], step: int) -> None:
        """Checkpoints of all runs after a step, whose row is logged by now."""
        for run, context in enumerate(contexts):
            context.save_checkpoint(step + 1, self.dump(run))

    def restore(self, contexts: Sequence[RunContext]) -> int:
        """Go on from checkpoints, where there are any; returns how many steps are done.

        Raises:
            CheckpointError: They are of different steps, or of other runs.
        """
        found = [context.load_checkpoint() for context in contexts]
        steps = {0 if each is None else each[0] - 1 for each in found}
        if len(steps) > 1:
            raise CheckpointError(
                f"Runs that are stacked must stand at one step; these stand at {sorted(steps)}. Train them "
                "apart, or remove the checkpoints."
            )
        for run, each in enumerate(found):
            if each is not None:
                self.load(run, each[1])
        return steps.pop()

    def load(self, run: int, content: bytes) -> None:
        """Put one run's part back.

        Raises:
            CheckpointError: It is none of this cohort.
        """
        row = self.rows[run]
        try:
            found = safetensors.torch.load(content)
            if only_one := found.keys() ^ {*self.state(), "generator"}:
                raise ValueError(f"only one of the two has {min(only_one)}")
            for name, value in self.state().items():
                place = value[row] if value.dim() else value
                if place.shape != found[name].shape:
                    raise ValueError(
                        f"{name} must be {list(place.shape)}, is {list(found[name].shape)}"
                    )
                place.copy_(found[name])
            self.generators[row].set_state(found["generator"])
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"A checkpoint must hold net, optimizer and estimator of this configuration; this one does "
                f"not: {error}. Remove it to begin again."
            ) from error


def begin(
    shape: Shape,
    configs: Sequence[EstimatorConfig],
    seeds: Sequence[int],
    *,
    alpha: Sequence[float],
    gain: Sequence[float],
    optimizer: str = "adam",
    weight_decay: Sequence[float] | None = None,
    rows: Sequence[int] | None = None,
) -> Learners:
    """A cohort at step 0, each row from its own seed.

    Args:
        shape: Of the nets.
        configs: Of the estimators, one a row.
        seeds: One a row.
        alpha: One a row; see `Net`.
        gain: One a row; see `initial`.
        optimizer: "adam" or "sgd" with momentum 0.9.
        weight_decay: One a row.
        rows: Of each run, its row; None where each has its own.
    """
    drawn = [
        initial(shape, generator(seed, NET_STREAM), g) for seed, g in zip(seeds, gain, strict=True)
    ]
    parameters = {name: torch.stack([each[name] for each in drawn]) for name in drawn[0]}
    net = Net(shape, torch.tensor(alpha, dtype=torch.float32), parameters)
    generators = [generator(seed, ESTIMATOR_STREAM) for seed in seeds]
    decay = (
        torch.tensor(weight_decay, dtype=torch.float32)
        if weight_decay and any(weight_decay)
        else None
    )
    made = Optimizer(
        parameters, "adam" if optimizer == "adam" else "sgd", momentum=0.9, decay_S=decay
    )
    estimator = make(Setting(shape, configs, generators))
    return Learners(net, made, estimator, generators, rows or range(len(seeds)))


def check_cohort(
    configs: Sequence[EstimatorConfig], contexts: Sequence[RunContext], stackable: frozenset[str]
) -> None:
    """Refuse runs that cannot be stacked.

    Raises:
        ConfigError: They differ in more than may be stacked, or the device is not the CPU.
    """
    first = configs[0]
    names = stackable & {field.name for field in fields(first)}
    for config in configs:
        if replace(config, **{name: getattr(first, name) for name in names}) != first:
            raise ConfigError(
                "The runs of a cohort may differ only in their seeds and in "
                f"{', '.join(sorted(names))}; got {config} beside {first}. Train them apart."
            )
    if contexts[0].device != "cpu":
        raise ConfigError(
            f"The credit engine computes on the CPU; got device {contexts[0].device!r}. Take 'cpu'."
        )
