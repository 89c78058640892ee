"""A run of the swarm for the lab: rounds, evaluations, stored payloads, checkpoints."""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from assay.core.engine import RunContext
from assay.engines import memory
from assay.engines.swarm import checkpoint
from assay.engines.swarm.config import SwarmConfig
from assay.engines.swarm.corpus import corpus
from assay.engines.swarm.crew import Crew, LocalCrew
from assay.engines.swarm.data import Text
from assay.engines.swarm.exchange import update
from assay.engines.swarm.export import to_bytes
from assay.engines.swarm.matformer import initial, layout, parameters
from assay.engines.swarm.network import Network
from assay.engines.swarm.payload import dense_bytes
from assay.engines.swarm.session import Session

SHOW_EVERY_S = 1.0


def train(configs: Sequence[SwarmConfig], contexts: Sequence[RunContext]) -> None:
    """Train every run of the cohort, one after the other: each uses all threads."""
    for config, context in zip(configs, contexts, strict=True):
        torch.set_num_threads(context.threads)
        train_one(config, context)


def train_one(
    config: SwarmConfig,
    context: RunContext,
    crew: Crew | None = None,
    watch: Callable[[Session], None] | None = None,
    start: torch.Tensor | None = None,
) -> None:
    """Train one run to its end, or until its context says stop.

    Args:
        config: Of the run.
        context: Seeds, data, and where results go.
        crew: Where the clients are; None is this process.
        watch: Told after every round.
        start: Parameters of the full model to begin with, instead of drawn ones.
    """
    memory.keep()
    session = begin(config, context, crew)
    if start is not None:
        session.full.copy_(start)
    found = context.load_checkpoint()
    if found is not None:
        checkpoint.load(session, found[1])
    first = session.state.step
    shown = began = time.monotonic()
    while not session.is_finished:
        step, epoch = session.state.step + 1, session.state.epoch
        metrics = session.round()
        if step % config.eval_interval == 0 or session.is_finished:
            metrics |= {
                f"val/loss_nats_tier{t}": v for t, v in session.held_out(final=False).items()
            }
        metrics["sync/replicas_equal"] = float(session.equal_replicas())
        metrics["sync/members"] = float(len(session.state.members))
        context.log(metrics, step=step)
        store(session, context, step)
        if watch is not None:
            watch(session)
        now = time.monotonic()
        if now - shown > SHOW_EVERY_S:
            shown = now
            context.progress(step, config.steps, _shown(session, metrics))
        stop = context.should_stop()
        due = config.checkpoint_interval and step % config.checkpoint_interval == 0
        cooled = session.state.epoch > epoch and not session.is_finished
        if stop or due or cooled:
            # The row of this step is logged by now: a resumed run logs the next one.
            context.save_checkpoint(step + 1, checkpoint.dump(session))
        if stop:
            return
    _finish(session, context, (time.monotonic() - began) / max(1, session.state.step - first))


def begin(config: SwarmConfig, context: RunContext, crew: Crew | None = None) -> Session:
    """A run at round 0: every replica will be cut from one full model.

    Args:
        config: Of the run.
        context: Seeds and data.
        crew: Where the clients are; None is this process.
    """
    text = Text(corpus(config.corpus, context.data_dir), config.seq_len)
    theta = initial(config.shape, torch.Generator().manual_seed(context.seeds["init"]))
    order = np.random.default_rng(context.seeds["data"]).permutation(text.train)
    network = Network(config, context.seeds["faults"])
    return Session(config, crew or LocalCrew(config), text, order, network, theta)


def _shown(session: Session, metrics: Mapping[str, float]) -> dict[str, float]:
    """Members, kilobytes that one of them sent in the round, and the losses of each tier."""
    sent = [len(data) for data in session.sent.values()]
    each = sum(sent) / len(sent) / 1000 if sent else 0.0
    losses = {k.removeprefix("train/"): v for k, v in metrics.items() if "loss" in k}
    return {"members": float(len(session.state.members)), "kB_each": each} | losses


def _finish(session: Session, context: RunContext, seconds: float) -> None:
    config = session.config
    final = {f"test/loss_nats_tier{t}": v for t, v in session.held_out(final=True).items()}
    each = session.sent_bytes / session.payloads if session.payloads else 0.0
    dense = sum(dense_bytes(parameters(config.shape, t)) for t in config.tiers) / len(config.tiers)
    if "model" in config.store:
        context.save("model.safetensors", to_bytes(session.full_model(), config.shape, 0))
    context.summary(
        final
        | session.network.counts()
        | {
            "model/parameters": float(parameters(config.shape)),
            "sync/bytes_per_client_round": each,
            "sync/dense_ratio": dense / each if each else 0.0,
            "sync/replicas_equal": float(session.equal_replicas()),
            "sync/applied_share": session.applied_share(),
            "sync/taught_bytes": float(session.taught_bytes),
            "time/simulated_s": session.now,
            "speed/seconds_per_round": seconds,
        }
    )
    context.spent(rounds=session.state.step)


def store(session: Session, context: RunContext, step: int) -> None:
    """Keep what the configuration asks for, as artifacts of this round."""
    config = session.config
    if not config.store or (config.store_steps and step > config.store_steps):
        return
    if "payloads" in config.store:
        for number, data in session.sent.items():
            context.save(f"payload-{step:05d}-{number:03d}.bin", data)
    if "gradients" in config.store:
        for number in session.crew.living():
            content = checkpoint.arrays_to_bytes(session.crew.gradients(number) or {})
            context.save(f"gradient-{step:05d}-{number:03d}.npz", content)
    for sent_at, packed in session.applied.items() if "updates" in config.store else ():
        views = layout(config.shape, 0).views(update(config, packed, sent_at))
        # Signs take a byte each; a raw update keeps its numbers.
        kind = np.int8 if config.apply == "sign" else np.float32
        arrays = {name: view.numpy().astype(kind) for name, view in views.items()}
        context.save(f"update-{sent_at:05d}.npz", checkpoint.arrays_to_bytes(arrays))
