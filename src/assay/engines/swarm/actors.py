"""Clients as Ray actors: one actor a client, on one machine or on several.

The session, its coordinator and the simulated faults are those of a single process; here only the
clients live elsewhere, and can really die. Payloads are the same bounded bytes. Ray itself moves
Python objects between machines of one operator: see docs/swarm.md for what that asks of a network.
"""

import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
import torch
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError
from torch import Tensor

from assay.core.errors import ConfigError
from assay.engines import memory
from assay.engines.swarm import exchange
from assay.engines.swarm.checkpoint import UNREADABLE, arrays_to_bytes
from assay.engines.swarm.client import Client, Order, Trained
from assay.engines.swarm.config import SwarmConfig

SLICE_S = 1.0
PATIENCE_S = 600.0
"""A client that does not answer for so long is taken to be dead."""


class Seats(Protocol):
    """Where actors come from."""

    def at_hand(self, needed: int) -> Sequence[int]:
        """Numbers of the clients that could join now; waits until there are so many."""

    def actor(self, number: int) -> Any:
        """The actor of a client."""

    def free(self, number: int) -> None:
        """A client's actor is gone."""


class Worker:
    """What an actor runs: one client, and the part of its update that it has not sent, on its disk."""

    def __init__(
        self, config: SwarmConfig, number: int, disk: str | None, threads: int, run: str
    ) -> None:
        """A client of a run without parameters yet."""
        memory.keep()
        torch.set_num_threads(threads)
        self.config, self.number, self.run = config, number, run
        self.path = None if disk is None else Path(disk) / f"client-{number:03d}.npz"
        self.client: Client | None = None

    def pid(self) -> int:
        """The process that the actor runs in."""
        return os.getpid()

    def begin(self, theta: np.ndarray, step: int) -> str:
        """Take over parameters, and what an earlier life of this client has left on the disk.

        What is there of another run, or of a round after `step`, is left alone; a file that cannot be
        read is set aside.

        Returns:
            What is to be told of the file; empty if nothing.
        """
        self.client = Client(self.config, self.number, torch.from_numpy(theta.copy()))
        if self.path is None or not self.path.is_file():
            return ""
        try:
            with np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False) as arrays:
                kept = {name: arrays[name] for name in arrays.files}
            run, when = kept.pop("run").tobytes().decode("ascii"), int(kept.pop("step")[0])
            kept.pop("theta", None)
            if run == self.run and when <= step:
                self.client.restore(kept)
        except UNREADABLE as error:
            aside = self.path.with_suffix(".damaged")
            self.path.replace(aside)
            return (
                f"{self.path.name} must hold what client {self.number} had not sent; it does not "
                f"({error}). It is {aside.name} now, and the client begins without."
            )
        return ""

    def train(self, order: Order) -> Trained:
        """One gradient; then what is left unsent is on the disk."""
        trained = self._alive().train(order)
        if self.path is not None:
            about = {
                "run": np.frombuffer(self.run.encode("ascii"), np.uint8),
                "step": np.array([order.step]),
            }
            whole = self.path.with_suffix(".new")
            whole.write_bytes(arrays_to_bytes(self._alive().unsent() | about))
            whole.replace(self.path)
        return trained

    def apply(self, packed: Mapping[int, bytes], sent_at: int, lr: float) -> None:
        """Apply a round's agreed payloads, after every check."""
        client = self._alive()
        peers = exchange.read_all(self.config, packed, sent_at)
        exchange.apply(self.config, [client.theta], client.stored, peers, lr)

    def part(self, stored: int) -> np.ndarray:
        """Parameters for a client that stores a tier."""
        return self._alive().part(stored).numpy()

    def digest(self) -> str:
        """A digest of the parameters."""
        return self._alive().digest()

    def held_out_loss(self, text_BT: Tensor, step: int) -> float:
        """Loss on held-out text, in nats."""
        return self._alive().held_out_loss(text_BT, step)

    def gradients(self) -> dict[str, np.ndarray]:
        """The last raw gradient of the first layer's feed-forward block."""
        return self._alive().first_layer()

    def state(self) -> dict[str, np.ndarray]:
        """All that the next round depends on."""
        return self._alive().state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` gave."""
        self.client = Client.empty(self.config, self.number)
        self.client.restore(state)

    def _alive(self) -> Client:
        if self.client is None:
            raise RuntimeError(f"client {self.number} has no parameters yet")
        return self.client


class LocalSeats:
    """Actors that this program starts itself, wherever the cluster has room."""

    def __init__(
        self, config: SwarmConfig, disk: Path | None, cpus: float, threads: int, run: str
    ) -> None:
        """For all clients of a run.

        Args:
            config: Of the run.
            disk: Folder, the same on every machine, for what clients have not sent; None keeps none.
            cpus: Of the cluster, for each.
            threads: Of each.
            run: Identity of the run.

        Raises:
            ConfigError: The cluster has too few CPUs.
        """
        there, wanted = ray.cluster_resources().get("CPU", 0.0), cpus * len(config.tiers)
        if wanted > there + 1e-6:
            raise ConfigError(
                f"{len(config.tiers)} clients of {cpus:g} CPUs need {wanted:g}; the cluster has {there:g}. "
                "Give each less with --cpus, or add machines."
            )
        self.config, self.disk, self.threads, self.run = config, disk, threads, run
        self.worker: Any = ray.remote(Worker).options(num_cpus=cpus)

    def at_hand(self, needed: int) -> Sequence[int]:
        """Everybody."""
        del needed
        return range(len(self.config.tiers))

    def actor(self, number: int) -> Any:
        """A new actor."""
        disk = None if self.disk is None else str(self.disk)
        return self.worker.remote(self.config, number, disk, self.threads, self.run)

    def free(self, number: int) -> None:
        """Another one can be started."""


class ActorCrew:
    """All clients as actors: they train at the same time, and who dies is missed by nobody."""

    def __init__(
        self, config: SwarmConfig, seats: Seats, say: Callable[[str], None] = lambda line: None
    ) -> None:
        """Nobody lives yet.

        Args:
            config: Of the run.
            seats: Where actors come from.
            say: Tells what clients report of their disks.
        """
        self.config, self.seats, self.say = config, seats, say
        self.actors: dict[int, Any] = {}

    def living(self) -> Sequence[int]:
        """Numbers of the clients that answered last."""
        return sorted(self.actors)

    def at_hand(self, needed: int) -> Sequence[int]:
        """Those that have a seat."""
        return self.seats.at_hand(needed)

    def admit(self, given: Mapping[int, Tensor | int], step: int) -> None:
        """All at once; parameters of a peer do not pass through this process."""
        # Who died since it last answered can give nothing: it is found out before it is asked.
        peers = {what for what in given.values() if isinstance(what, int)}
        alive = self._ask({peer: _calling("pid") for peer in peers})
        sources = {
            number: self.actors[what].part.remote(self.config.stored(number))
            if isinstance(what, int)
            else ray.put(what.numpy())
            for number, what in given.items()
            if not isinstance(what, int) or what in alive
        }
        self.actors |= {number: self.seats.actor(number) for number in sources}
        calls = {number: _calling("begin", source, step) for number, source in sources.items()}
        for notice in self._ask(calls).values():
            if notice:
                self.say(notice)

    def lose(self, number: int) -> None:
        """End the actor; its disk keeps what was not sent."""
        actor = self.actors.pop(number, None)
        if actor is not None:
            ray.kill(actor)
            self.seats.free(number)

    def train(self, orders: Mapping[int, Order]) -> dict[int, Trained]:
        """All at once."""
        return self._ask({n: _calling("train", order) for n, order in orders.items()})

    def apply(self, packed: Mapping[int, bytes], sent_at: int, lr: float) -> None:
        """All at once: every actor reads the payloads itself."""
        shared = ray.put(dict(packed))
        self._ask({n: _calling("apply", shared, sent_at, lr) for n in self.living()})

    def theta(self, number: int) -> Tensor | None:
        """A copy of a client's parameters."""
        found = self._one(number, "part", self.config.stored(number))
        return None if found is None else torch.from_numpy(found.copy())

    def digests(self) -> dict[int, str]:
        """A digest of every living client's parameters."""
        return self._ask({number: _calling("digest") for number in self.living()})

    def held_out_loss(self, number: int, text_BT: Tensor, step: int) -> float | None:
        """A client's loss on held-out text, in nats."""
        found: float | None = self._one(number, "held_out_loss", text_BT, step)
        return found

    def gradients(self, number: int) -> dict[str, np.ndarray] | None:
        """A client's last raw gradient of the first layer's feed-forward block."""
        found: dict[str, np.ndarray] | None = self._one(number, "gradients")
        return found

    def state(self, number: int) -> dict[str, np.ndarray] | None:
        """All that a client's next round depends on."""
        found: dict[str, np.ndarray] | None = self._one(number, "state")
        return found

    def restore(self, states: Mapping[int, Mapping[str, np.ndarray]]) -> None:
        """Start actors from states."""
        self.actors |= {number: self.seats.actor(number) for number in states}
        self._ask({number: _calling("restore", dict(state)) for number, state in states.items()})

    def kept(self) -> dict[int, dict[str, np.ndarray]]:
        """Nothing: clients keep it themselves."""
        return {}

    def _one(self, number: int, method: str, *arguments: Any) -> Any:
        """What one client answers; None if it died."""
        return self._ask({number: _calling(method, *arguments)}).get(number)

    def _ask(self, calls: Mapping[int, Callable[[Any], Any]]) -> dict[int, Any]:
        """Answers of several clients at once; who dies, or is silent for too long, is taken out."""
        pending = {n: call(self.actors[n]) for n, call in calls.items() if n in self.actors}
        found = {}
        for number, reference in pending.items():
            try:
                found[number] = _patiently(reference)
            except (RayActorError, ObjectLostError, GetTimeoutError):
                self.lose(number)
        return found


def _patiently(reference: Any) -> Any:
    """An answer, awaited in slices: so that a second Ctrl-C is heard."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ray.get(reference, timeout=SLICE_S)
        except GetTimeoutError:
            if time.monotonic() > end:
                raise


def _calling(method: str, *arguments: Any) -> Callable[[Any], Any]:
    return lambda actor: getattr(actor, method).remote(*arguments)
