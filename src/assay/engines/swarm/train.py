"""A run of the swarm in one process: every client really trains, sends bytes and applies them.

All randomness comes from the run's seeds, and peers are combined in the order of their numbers, so a
run is the same bit for bit wherever it is interrupted.
"""

import io
import json
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assay.core.engine import RunContext
from assay.core.errors import CheckpointError
from assay.engines.swarm.client import Client
from assay.engines.swarm.config import SwarmConfig
from assay.engines.swarm.data import Text, assignment, corpus
from assay.engines.swarm.distro import RULES, Sent, applied, combined, grids
from assay.engines.swarm.matformer import initial, parameters, slice_tier
from assay.engines.swarm.payload import Head, dense_bytes, pack, schema, unpack

SHOW_EVERY_S = 1.0


@dataclass
class Traffic:
    """What was sent so far: bytes, and payloads."""

    sent_bytes: int = 0
    payloads: int = 0


@dataclass
class Swarm:
    """All clients of a run, and the payloads that are still to be applied.

    Attributes:
        config: Of the run.
        clients: One replica each.
        text: The corpus.
        order: Training sequences in the order of their use.
        waiting: Round → payloads of all clients, until they are applied.
        sent: Payloads of the last round.
    """

    config: SwarmConfig
    clients: list[Client]
    text: Text
    order: np.ndarray
    waiting: dict[int, list[bytes]] = field(default_factory=dict)
    sent: list[bytes] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)

    def round(self, step: int) -> dict[str, float]:
        """One round: apply what has arrived, train everywhere, send; the metrics of the round."""
        delay = RULES[self.config.mode].delay if self.exchanges else 0
        if self.exchanges and delay and step - delay in self.waiting:
            self._apply(self.waiting.pop(step - delay), step - delay, step)
        numbers = list(range(len(self.clients)))
        parts = assignment(self.config, self.order, step, numbers)
        sent = [
            client.train(self.text.sequences(parts[i]), step)
            for i, client in enumerate(self.clients)
        ]
        if self.exchanges:
            packed = [self._packed(i, sent[i], step) for i in numbers]
            self.traffic.sent_bytes += sum(map(len, packed))
            self.traffic.payloads += len(packed)
            self.waiting[step] = self.sent = packed
            if not delay:
                self._apply(self.waiting.pop(step), step, step)
        return self._metrics(step)

    @property
    def exchanges(self) -> bool:
        """Whether the clients send anything."""
        return self.config.mode != "local-adamw"

    def equal_replicas(self) -> bool:
        """Whether all clients of a tier hold the same parameters, bit for bit."""
        digests: dict[int, set[str]] = {}
        for client in self.clients:
            digests.setdefault(client.tier, set()).add(client.digest())
        return all(len(each) == 1 for each in digests.values())

    def held_out(self) -> dict[int, float]:
        """Tier → mean loss of its first client's parameters on held-out text, in nats."""
        found: dict[int, float] = {}
        text = self.text.held_out(self.config.eval_sequences)
        for client in self.clients:
            if client.tier not in found:
                found[client.tier] = client.held_out_loss(text)
        return found

    def _packed(self, number: int, sent: Sequence[Sent], step: int) -> bytes:
        return pack(
            self._head(number, step), sent, self._cuts(number), zeros=RULES[self.config.mode].zeros
        )

    def _head(self, number: int, step: int) -> Head:
        tier = self.clients[number].tier
        return Head(self.config.payload, tier, step, number, schema(self._cuts(number)))

    def _cuts(self, number: int) -> Any:
        config = self.config
        return grids(config.shape, self.clients[number].tier, config.chunk, config.top_k)

    def _apply(self, packed: Sequence[bytes], sent_at: int, step: int) -> None:
        """Every client applies the same payloads; those of one tier get one update."""
        config = self.config
        peers = [
            (self.clients[i].tier, unpack(data, self._head(i, sent_at), self._cuts(i)))
            for i, data in enumerate(packed)
        ]
        updates: dict[int, Tensor] = {}
        for client in self.clients:
            if client.tier not in updates:
                update = combined(
                    config.shape,
                    client.tier,
                    peers,
                    RULES[config.mode],
                    (config.chunk, config.top_k),
                )
                updates[client.tier] = applied(update, config.apply)
            client.apply(updates[client.tier], config.lr_at(step))

    def _metrics(self, step: int) -> dict[str, float]:
        found = {"train/lr": self.config.lr_at(step)}
        for tier in sorted({client.tier for client in self.clients}):
            losses = [client.train_loss for client in self.clients if client.tier == tier]
            found[f"train/loss_nats_tier{tier}"] = sum(losses) / len(losses)
        return found


def begin(config: SwarmConfig, context: RunContext) -> Swarm:
    """A run at round 0: every replica is cut from one full model."""
    text = Text(corpus(config.corpus, context.data_dir), config.seq_len)
    theta = initial(config.shape, torch.Generator().manual_seed(context.seeds["init"]))
    tiers = {tier: slice_tier(theta, config.shape, tier) for tier in sorted(set(config.tiers))}
    order = np.random.default_rng(context.seeds["data"]).permutation(text.train)
    return Swarm(config, [Client(config, tier, tiers[tier]) for tier in config.tiers], text, order)


def train(configs: Sequence[SwarmConfig], contexts: Sequence[RunContext]) -> None:
    """Train every run of the cohort, one after the other: each uses all threads."""
    for config, context in zip(configs, contexts, strict=True):
        torch.set_num_threads(context.threads)
        _train(config, context)


def _train(config: SwarmConfig, context: RunContext) -> None:
    swarm = begin(config, context)
    found = context.load_checkpoint()
    start = 0 if found is None else restore(swarm, *found)
    shown = began = time.monotonic()
    for step in range(start + 1, config.steps + 1):
        metrics = swarm.round(step)
        if step % config.eval_interval == 0 or step == config.steps:
            metrics |= {f"val/loss_nats_tier{t}": v for t, v in swarm.held_out().items()}
            metrics["sync/replicas_equal"] = float(swarm.equal_replicas())
        context.log(metrics, step=step)
        _store(swarm, context, step)
        now = time.monotonic()
        if now - shown > SHOW_EVERY_S:
            shown = now
            losses = {k.removeprefix("train/"): v for k, v in metrics.items() if "loss" in k}
            context.progress(step, config.steps, losses)
        stop = context.should_stop()
        due = config.checkpoint_interval and step % config.checkpoint_interval == 0
        if stop or due:
            context.save_checkpoint(step, checkpoint(swarm))
        if stop:
            return
    _finish(swarm, context, (time.monotonic() - began) / max(1, config.steps - start))


def _finish(swarm: Swarm, context: RunContext, seconds: float) -> None:
    config = swarm.config
    final = {f"test/loss_nats_tier{t}": v for t, v in swarm.held_out().items()}
    rounds = config.steps
    each = swarm.traffic.sent_bytes / rounds / len(swarm.clients)
    dense = sum(dense_bytes(parameters(config.shape, t)) for t in config.tiers) / len(config.tiers)
    context.summary(
        final
        | {
            "model/parameters": float(parameters(config.shape)),
            "sync/bytes_per_client_round": each,
            "sync/dense_ratio": dense / each if each else 0.0,
            "sync/replicas_equal": float(swarm.equal_replicas()),
            "speed/seconds_per_round": seconds,
        }
    )
    tokens = (
        config.batch * config.seq_len
        if config.batches == "disjoint"
        else config.seq_len * max(1, config.batch // len(config.tiers)) * len(config.tiers)
    )
    context.spent(rounds=rounds, tokens=rounds * tokens)


def _store(swarm: Swarm, context: RunContext, step: int) -> None:
    """Keep what the configuration asks for, as artifacts of this round."""
    config = swarm.config
    if not config.store or (config.store_steps and step > config.store_steps):
        return
    if "payloads" in config.store:
        for number, data in enumerate(swarm.sent):
            context.save(f"payload-{step:05d}-{number:03d}.bin", data)
    if "gradients" in config.store:
        for number, client in enumerate(swarm.clients):
            views = client.plan.views(client.gradient)
            kept = {n: views[f"layers.0.{n}"].numpy() for n in ("gate", "up", "down")}
            context.save(f"gradient-{step:05d}-{number:03d}.npz", _npz(kept))


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def checkpoint(swarm: Swarm) -> bytes:
    """All that the next round depends on."""
    arrays: dict[str, np.ndarray] = {}
    for number, client in enumerate(swarm.clients):
        arrays[f"{number}.theta"] = client.theta.numpy()
        if client.distro is not None:
            arrays[f"{number}.delta"] = client.distro.delta.numpy()
            for at, part in enumerate(client.distro.own or ()):
                arrays[f"{number}.own.{at}.idx"] = part.idx.numpy()
                arrays[f"{number}.own.{at}.val"] = part.val.numpy()
        if client.adamw is not None and client.adamw.state:
            state = client.adamw.state[client.theta]
            arrays[f"{number}.adamw.first"] = state["exp_avg"].numpy()
            arrays[f"{number}.adamw.second"] = state["exp_avg_sq"].numpy()
            arrays[f"{number}.adamw.step"] = state["step"].numpy()
    for step, packed in swarm.waiting.items():
        for number, data in enumerate(packed):
            arrays[f"waiting.{step}.{number}"] = np.frombuffer(data, np.uint8)
    facts = {"sent_bytes": swarm.traffic.sent_bytes, "payloads": swarm.traffic.payloads}
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    return _npz(arrays)


def restore(swarm: Swarm, step: int, content: bytes) -> int:
    """Put a checkpoint into a fresh swarm; returns its round.

    Raises:
        CheckpointError: It is none of this configuration.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            for number, client in enumerate(swarm.clients):
                client.theta.copy_(torch.from_numpy(arrays[f"{number}.theta"]))
                if client.distro is not None:
                    client.distro.delta.copy_(torch.from_numpy(arrays[f"{number}.delta"]))
                    if f"{number}.own.0.idx" in arrays:
                        client.distro.own = [
                            Sent(
                                torch.from_numpy(arrays[f"{number}.own.{at}.idx"]),
                                torch.from_numpy(arrays[f"{number}.own.{at}.val"]),
                            )
                            for at in range(len(client.plan.groups))
                        ]
                if client.adamw is not None and f"{number}.adamw.step" in arrays:
                    client.adamw.state[client.theta] = {
                        "step": torch.from_numpy(arrays[f"{number}.adamw.step"]),
                        "exp_avg": torch.from_numpy(arrays[f"{number}.adamw.first"]),
                        "exp_avg_sq": torch.from_numpy(arrays[f"{number}.adamw.second"]),
                    }
            for name in arrays.files:
                if name.startswith("waiting."):
                    _, round_, number_ = name.split(".")
                    packed = swarm.waiting.setdefault(int(round_), [b""] * len(swarm.clients))
                    packed[int(number_)] = arrays[name].tobytes()
            facts = json.loads(arrays["facts"].tobytes())
    except (KeyError, ValueError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"A checkpoint of a swarm must hold the state of its {len(swarm.clients)} clients; this "
            f"one does not: {error}. Remove it to begin again."
        ) from error
    swarm.traffic.sent_bytes, swarm.traffic.payloads = facts["sent_bytes"], facts["payloads"]
    return step
