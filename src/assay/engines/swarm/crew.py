"""Where the clients are: what a session asks of them, and the answer of a single process."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from assay.engines.swarm import exchange
from assay.engines.swarm.client import Client, Order, Trained
from assay.engines.swarm.config import SwarmConfig


class Crew(Protocol):
    """All clients of a run, wherever they live. Who dies is no longer among `living`."""

    def living(self) -> Sequence[int]:
        """Numbers of the clients that hold a replica, in order."""

    def at_hand(self, needed: int) -> Sequence[int]:
        """Numbers of the clients that could join now; waits until there are so many."""

    def admit(self, given: Mapping[int, Tensor | int], step: int) -> None:
        """Clients begin: with given parameters of the tier that they store, or those of a living peer.

        They take up what they have kept themselves of an earlier life, unless that is of a round after
        `step`, the last that is done: a run that went back to a checkpoint has not been there.
        """

    def lose(self, number: int) -> None:
        """A client is gone; it keeps the part of its update that it has not sent."""

    def train(self, orders: Mapping[int, Order]) -> dict[int, Trained]:
        """One gradient of each client; who died meanwhile is missing."""

    def apply(self, packed: Mapping[int, bytes], sent_at: int, lr: float) -> None:
        """All living clients apply the agreed payloads of a round."""

    def theta(self, number: int) -> Tensor | None:
        """A client's parameters, of the tier that it stores; None, here and below: it just died."""

    def digests(self) -> dict[int, str]:
        """A digest of every living client's parameters."""

    def held_out_loss(self, number: int, text_BT: Tensor, step: int) -> float | None:
        """A client's loss on held-out text, in nats."""

    def gradients(self, number: int) -> dict[str, np.ndarray] | None:
        """A client's last raw gradient of the first layer's feed-forward block."""

    def state(self, number: int) -> dict[str, np.ndarray] | None:
        """All that a client's next round depends on."""

    def restore(self, states: Mapping[int, Mapping[str, np.ndarray]]) -> None:
        """Put clients back as `state` gave them."""

    def kept(self) -> dict[int, dict[str, np.ndarray]]:
        """What clients that are gone have kept, where the crew keeps it for them."""


class LocalCrew:
    """All clients in this process: deterministic, no service."""

    def __init__(self, config: SwarmConfig) -> None:
        """Nobody lives yet."""
        self.config = config
        self.clients: dict[int, Client] = {}
        self.disk: dict[int, dict[str, np.ndarray]] = {}

    def living(self) -> Sequence[int]:
        """Numbers of the clients that hold a replica."""
        return sorted(self.clients)

    def at_hand(self, needed: int) -> Sequence[int]:
        """Everybody."""
        del needed
        return range(len(self.config.tiers))

    def admit(self, given: Mapping[int, Tensor | int], step: int) -> None:
        """Begin with given parameters, and with what was kept of an earlier life."""
        del step
        for number, what in given.items():
            if isinstance(what, int):
                what = self.clients[what].part(self.config.stored(number))
            self.clients[number] = Client(self.config, number, what)
            self.clients[number].restore(self.disk.pop(number, {}))

    def lose(self, number: int) -> None:
        """Keep what was not sent."""
        client = self.clients.pop(number, None)
        if client is not None:
            self.disk[number] = client.unsent()

    def train(self, orders: Mapping[int, Order]) -> dict[int, Trained]:
        """One after the other: each uses all threads."""
        return {number: self.clients[number].train(order) for number, order in orders.items()}

    def apply(self, packed: Mapping[int, bytes], sent_at: int, lr: float) -> None:
        """Together those that store one tier."""
        peers = exchange.read_all(self.config, packed, sent_at)
        for stored in sorted({client.stored for client in self.clients.values()}):
            thetas = [each.theta for each in self.clients.values() if each.stored == stored]
            exchange.apply(self.config, thetas, stored, peers, lr)

    def theta(self, number: int) -> Tensor:
        """A client's own row, not a copy."""
        return self.clients[number].theta

    def digests(self) -> dict[int, str]:
        """A digest of every client's parameters."""
        return {number: client.digest() for number, client in sorted(self.clients.items())}

    def held_out_loss(self, number: int, text_BT: Tensor, step: int) -> float:
        """A client's loss on held-out text, in nats."""
        return self.clients[number].held_out_loss(text_BT, step)

    def gradients(self, number: int) -> dict[str, np.ndarray]:
        """A client's last raw gradient of the first layer's feed-forward block."""
        return self.clients[number].first_layer()

    def state(self, number: int) -> dict[str, np.ndarray]:
        """A client's rows, not copies."""
        return self.clients[number].state()

    def restore(self, states: Mapping[int, Mapping[str, np.ndarray]]) -> None:
        """Put clients back as `state` gave them."""
        for number, state in states.items():
            self.clients[number] = Client.empty(self.config, number)
            self.clients[number].restore(state)

    def kept(self) -> dict[int, dict[str, np.ndarray]]:
        """What the dead have on their disks."""
        return self.disk
