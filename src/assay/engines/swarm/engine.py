"""Adapter: what the lab needs to know about this engine. No torch until a task runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.core.engine import Engine, Metric, RunContext, Task
from assay.core.errors import ConfigError
from assay.engines.swarm.config import MOST_TIER, SwarmConfig

TIERS = range(MOST_TIER + 1)


def _loss(says: str) -> Metric:
    return Metric(says=says, goal="min", low=0.0)


METRICS = (
    {
        "train/lr": Metric(says="Learning rate of this round.", low=0.0),
        "sync/replicas_equal": Metric(
            says="1 if all clients of each tier hold the same parameters bit for bit, else 0.",
            low=0.0,
            high=1.0,
        ),
        "sync/bytes_per_client_round": Metric(
            says="Bytes of the payloads that a client really sent in a round, headers included.",
            low=0.0,
        ),
        "sync/dense_ratio": Metric(
            says="Bytes of a client's whole gradient in float32 by those it sent; 0 if it sent none.",
            low=0.0,
        ),
        "sync/moved_bytes": Metric(
            says="Bytes that crossed the simulated network: payloads, repeated ones, fetched models.",
            low=0.0,
        ),
        "sync/members": Metric(says="Members after this round.", low=0.0),
        "faults/lost": Metric(says="Payloads lost on their way, each asked for again.", low=0.0),
        "faults/altered": Metric(says="Payloads that arrived altered and were refused.", low=0.0),
        "faults/late": Metric(says="Payloads that a witness did not have in time.", low=0.0),
        "faults/refused": Metric(
            says="Payloads that could not be read, and were heard by nobody.", low=0.0
        ),
        "faults/untaught": Metric(
            says="Times that a small client had to train without a teacher, which was away.",
            low=0.0,
        ),
        "sync/taught_bytes": Metric(
            says="Bytes that teachers sent to the small clients, all together; not in the payloads.",
            low=0.0,
        ),
        "sync/applied_share": Metric(
            says="Share of the payloads that were agreed on and applied.", low=0.0, high=1.0
        ),
        "faults/kills": Metric(says="Clients that died.", low=0.0),
        "faults/rejoins": Metric(says="Clients that joined after the first epoch.", low=0.0),
        "time/simulated_s": Metric(says="Simulated time of the run.", low=0.0),
        "model/parameters": Metric(says="Parameters of the full model.", low=0.0),
        "speed/seconds_per_round": Metric(
            says="Wall time of a round of all clients of this attempt, evaluation included.",
            goal="min",
            low=0.0,
        ),
    }
    | {
        f"train/loss_nats_tier{t}": _loss(
            f"Mean cross-entropy of the tier-{t} clients' training sequences of this round, where the "
            "gradient was taken."
        )
        for t in TIERS
    }
    | {
        f"val/loss_nats_tier{t}": _loss(
            f"Mean cross-entropy of tier {t} on held-out sequences, others than those of test."
        )
        for t in TIERS
    }
    | {
        f"test/loss_nats_tier{t}": _loss(
            f"Mean cross-entropy of tier {t} on held-out sequences after the last round."
        )
        for t in TIERS
    }
)


def _train(configs: Sequence[Any], contexts: Sequence[RunContext]) -> None:
    from assay.engines.swarm.train import train

    train(configs, contexts)


def _fingerprint(
    config: SwarmConfig, seeds: Mapping[str, int], data_dir: Path | None
) -> dict[str, str]:
    from assay.engines.swarm.corpus import description

    name, sha256 = description(config.corpus)
    return {f"corpus {name}": sha256}


def check(configs: Sequence[SwarmConfig], data_dir: Path | None) -> None:
    """Refuse settings that do nothing, and what would fail every run: a text that is not there or too short.

    Raises:
        ConfigError: Told with the way out.
    """
    from assay.engines.swarm.corpus import corpus, divided
    from assay.engines.swarm.idle import refuse_idle

    refuse_idle(configs)
    for config in configs:
        divided(len(corpus(config.corpus, data_dir)), config.seq_len)


def _check_planned(configs: Sequence[SwarmConfig], data_dir: Path | None) -> None:
    for config in configs:
        path = Path(config.corpus)
        if path.is_absolute() or ".." in path.parts:
            raise ConfigError(
                f"corpus must be a path inside the data folder, ASSAY_DATA, so that a study says the same "
                f"on every machine; got {config.corpus!r}. Put the text there, and name it from there."
            )
    check(configs, data_dir)


def _environment() -> dict[str, str]:
    from assay.engines import facts
    from assay.engines.swarm import fused

    return {**facts.of_torch(), "kernel": fused.describe()}


ENGINE = Engine(
    name="swarm",
    tasks={
        "train": Task(
            name="train",
            config=SwarmConfig,
            seeds=("init", "data", "faults"),
            metrics=METRICS,
            run=_train,
            budget=("steps",),
            check=_check_planned,
            fingerprint=_fingerprint,
            environment=_environment,
        )
    },
    packages=("torch", "numpy"),
)
