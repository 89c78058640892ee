"""The in-process transport: payloads between clients, with the faults that a run asks for.

Time is simulated: nothing sleeps. Every draw is a function of the run's fault seed, the round and the
two clients, so that a run is the same however it is interrupted, and one client's luck does not
depend on how many others there are.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from assay.engines.swarm.config import SwarmConfig

TIMEOUT_S = 0.1
"""A receiver asks again after this time and twice the longest latency."""
MOST_TRIES = 1000
PUSH, KILL = 1, 2


@dataclass(frozen=True, slots=True)
class Arrival:
    """A payload at a receiver: when it was there, after how many altered copies."""

    at: float
    altered: int


@dataclass
class Network:
    """Delivers payloads late, again, altered or slowly, and counts what happened.

    Attributes:
        config: Says which faults.
        seed: Of the faults.
        events: What happened, as `counts` names it.
        moved_bytes: Bytes that crossed the network, repeated ones included.
    """

    config: SwarmConfig
    seed: int
    events: Counter[str] = field(default_factory=Counter)
    moved_bytes: int = 0

    def draws(self, what: int, *numbers: int) -> np.random.Generator:
        """The generator of one thing that may happen."""
        return np.random.default_rng([self.seed, what, *numbers])

    def send(self, data: bytes, sender: int, receiver: int, step: int, at: float) -> Arrival:
        """One payload from one client to another, tried until it is there unaltered.

        Args:
            data: The payload.
            sender: Client that made it.
            receiver: Client that is to have it.
            step: Round.
            at: When it is ready, in seconds.
        """
        config = self.config
        self.moved_bytes += len(data)
        if not config.has_faults:
            return Arrival(at, 0)
        rng = self.draws(PUSH, step, sender, receiver)
        low, high = (ms / 1000 for ms in config.latency_ms)
        altered = 0
        for tries in range(1, MOST_TRIES + 1):
            at += rng.uniform(low, high) + (
                len(data) / config.bandwidth if config.bandwidth else 0.0
            )
            lost, broken = rng.random() < config.loss, rng.random() < config.corrupt
            if not lost and not broken:
                self.events["lost"] += tries - 1 - altered
                self.events["altered"] += altered
                self.moved_bytes += (tries - 1) * len(data)
                return Arrival(at, altered)
            altered += not lost
            at += TIMEOUT_S + 2 * high
        raise RuntimeError(f"client {receiver} did not get a payload in {MOST_TRIES} tries")

    def altered(self, data: bytes, sender: int, receiver: int, step: int) -> bytes:
        """A payload with one byte changed, as a bad line would deliver it."""
        rng = self.draws(PUSH, step, sender, receiver)
        out = bytearray(data)
        out[int(rng.integers(len(out)))] ^= int(rng.integers(1, 256))
        return bytes(out)

    def kills(self, epoch: int, first: int, rounds: int, members: Sequence[int]) -> dict[int, int]:
        """Which members die in an epoch, and in which round: a share `churn` of them, drawn one by one.

        Args:
            epoch: Its number.
            first: Its first round.
            rounds: How many it has.
            members: Who trains in it.
        """
        found: dict[int, int] = {}
        for client in members if self.config.churn else ():
            rng = self.draws(KILL, epoch, client)
            if rng.random() < self.config.churn:
                found[client] = first + int(rng.integers(rounds))
        return found

    def compute_s(self, client: int) -> float:
        """Simulated seconds that a client needs for a gradient."""
        times = self.config.compute_s
        return times[client % len(times)] if times else 1.0

    def counts(self) -> dict[str, float]:
        """What happened so far, as metrics."""
        names = ("lost", "altered", "refused", "late", "kills", "rejoins", "untaught")
        return {f"faults/{name}": float(self.events[name]) for name in names} | {
            "sync/moved_bytes": float(self.moved_bytes)
        }
