"""Adapter: what the lab needs to know about this engine. No torch until a task runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.core.engine import CohortFunction, Engine, Metric, RunContext, Task
from assay.engines import facts
from assay.engines.credit.config import (
    LQ_STACKABLE,
    STACKABLE,
    TRIED,
    FrozenConfig,
    LqConfig,
    TrainConfig,
)


def _share(says: str, goal: str = "max") -> Metric:
    return Metric(says=says, goal=goal, low=-1.0, high=1.0)


def _credit(split: str) -> dict[str, Metric]:
    on = f"on held-out samples ({split}), in float64, mean over h_0 … h_(L-1)"
    return {
        f"{split}/gamma": _share(f"Cosine of guessed and true costate of a sample, {on}."),
        f"{split}/gamma_first": _share(f"The same at h_0 alone, {on.partition(', mean')[0]}."),
        f"{split}/copy_gamma": _share(
            f"What gamma would be if the credit of h_L were copied to every layer, {on}: high where "
            "the blocks are near the identity.",
            "none",
        ),
        f"{split}/rho": _share(
            f"Correlation of predicted and real loss changes under small changes of a state, {on}."
        ),
        f"{split}/rho_within": _share(
            f"The same within each sample, its own means taken off, {on}."
        ),
        f"{split}/nudge_nats": Metric(
            says=f"Loss change of a step of size 0.01 against the normalised credit, {on}.",
            goal="min",
        ),
        f"{split}/valid_rate": Metric(
            says=f"Share of samples and layers whose true costate has a direction, {on}.",
            low=0.0,
            high=1.0,
        ),
        f"{split}/rms_growth": Metric(
            says=f"Root mean square of h_L by that of h_0, on held-out samples ({split}).", low=0.0
        ),
    }


def _net(split: str) -> dict[str, Metric]:
    return {
        f"{split}/loss_nats": Metric(
            says=f"Mean cross-entropy on the {split} part.", goal="min", low=0.0
        ),
        f"{split}/accuracy": Metric(
            says=f"Share of right labels on the {split} part.",
            goal="max",
            low=0.0,
            high=1.0,
            chance=f"{split}/majority_rate",
        ),
        f"{split}/majority_rate": Metric(
            says=f"Share of the most frequent label in the {split} part.", low=0.0, high=1.0
        ),
        f"{split}/update_cosine": _share(
            "Cosine of the local gradients of encoder and blocks, before clipping and the optimizer, with "
            f"the true gradient of a held-out batch ({split}), in float64."
        ),
    }


FIT = {
    "train/fit_loss": Metric(
        says="The estimator's own loss on this step's batch, relative to what it predicts (a local loss's: plain).",
        goal="min",
        low=0.0,
    )
}
SPEED = {
    "speed/seconds_per_step": Metric(
        says="Wall time of a step of all runs that are stacked with it, evaluations included.",
        goal="min",
        low=0.0,
    )
}
ONLINE = (
    {
        "train/loss_nats": Metric(
            says="Mean cross-entropy of this step's batch, before the step.", goal="min", low=0.0
        ),
        "net/parameters": Metric(says="Trained numbers of the net.", low=0.0),
    }
    | FIT
    | SPEED
    | _credit("val")
    | _credit("test")
    | _net("val")
    | _net("test")
)
_STEPS = "after five local steps on one batch, the estimator frozen"
_SEARCH = "along the update of {part} by {kind} credit, made of length 1"
_PARTS = {"last1": "the last block", "last2": "the last two blocks", "all": "encoder and blocks"}
_KINDS = {"raw": "raw", "norm": "per-sample normalised"}
EXPLOIT = {
    "exploit/steps_same_nats": Metric(says=f"Loss change on the batch {_STEPS}.", goal="min"),
    "exploit/steps_held_nats": Metric(says=f"Loss change on another batch {_STEPS}.", goal="min"),
} | {
    f"exploit/{part}_{kind}_{which}_nats": Metric(
        says=f"{what} {_SEARCH.format(part=_PARTS[part], kind=_KINDS[kind])}.", goal="min"
    )
    for part in _PARTS
    for kind in _KINDS
    for which, what in {
        "same": "Smallest loss change over step sizes on the credit's own batch",
        "held": "Loss change on a held-out batch at the step size that was best on the credit's own",
        "fair": "Loss change on a held-out batch at the step size that was best on a third",
    }.items()
}


def _train(configs: Sequence[Any], contexts: Sequence[RunContext]) -> None:
    from assay.engines.credit.train import train

    train(configs, contexts)


def _frozen(configs: Sequence[Any], contexts: Sequence[RunContext]) -> None:
    from assay.engines.credit.frozen import run

    run(configs, contexts)


def _lq(configs: Sequence[Any], contexts: Sequence[RunContext]) -> None:
    from assay.engines.credit.lq import run

    run(configs, contexts)


def _fingerprint(
    config: TrainConfig, seeds: Mapping[str, int], data_dir: Path | None
) -> dict[str, str]:
    if config.data == "ladder":
        return {"ladder": f"teacher and inputs of seed {seeds['data']}"}
    from assay.engines.credit.images import sha256_of

    return {config.data: sha256_of(config.data, data_dir)}


def _drawn(config: LqConfig, seeds: Mapping[str, int], data_dir: Path | None) -> dict[str, str]:
    return {"batches": f"drawn from seed {seeds['data']}"}


def _check(configs: Sequence[TrainConfig], data_dir: Path | None) -> None:
    from assay.engines.credit.images import locate

    for name in {config.data for config in configs}:
        if name not in ("ladder", "digits") and not name.startswith("hub:"):
            locate(name, data_dir)


def _of_nets(
    name: str,
    config: type[TrainConfig],
    metrics: Mapping[str, Metric],
    run: CohortFunction,
    stackable: frozenset[str],
) -> Task:
    """A task whose nets learn from data: what `train` and `frozen` have in common."""
    return Task(
        name=name,
        config=config,
        seeds=("init", "data"),
        metrics=metrics,
        run=run,
        stackable=stackable,
        budget=("epochs",),
        check=_check,
        fingerprint=_fingerprint,
        environment=facts.of_torch,
        max_threads=1,
    )


ENGINE = Engine(
    name="credit",
    tasks={
        "train": _of_nets("train", TrainConfig, ONLINE, _train, STACKABLE),
        "frozen": _of_nets("frozen", FrozenConfig, ONLINE | EXPLOIT, _frozen, STACKABLE | TRIED),
        "lq": Task(
            name="lq",
            config=LqConfig,
            seeds=("init", "data"),
            metrics=FIT | SPEED | _credit("val") | _credit("test"),
            run=_lq,
            stackable=LQ_STACKABLE,
            budget=("steps",),
            fingerprint=_drawn,
            environment=facts.of_torch,
            max_threads=1,
        ),
    },
    packages=("torch", "numpy", "scikit-learn", "pillow"),
)
