"""Where clients on other machines report: an actor with a name, and the seats that it gives away."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from assay.core.errors import ConfigError
from assay.engines.swarm.config import SwarmConfig
from assay.engines.swarm.export import schema_hash

NAMESPACE = "assay-swarm"
START_S = 120.0
"""A client's process must have started by then; on a busy machine its imports alone can take a minute."""
RESERVED_S = START_S + 10.0
"""A seat that was given away is given away again if nobody sits on it by then."""
LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class About:
    """What a joiner must know: the run's configuration and identity, and its model's schema hash."""

    config: SwarmConfig
    schema: str
    run: str


class Desk:
    """Who sits where."""

    def __init__(self, config: SwarmConfig, run: str) -> None:
        """All seats are free."""
        self._about = About(config, schema_hash(config.shape), run)
        self._reserved: dict[int, float] = {}
        self._actors: dict[int, Any] = {}
        self._told: dict[str, Any] = {}

    def about(self) -> About:
        """What a joiner must know."""
        return self._about

    def take(self, tier: int | None, schema: str) -> int:
        """Give away a free seat, of a tier if one is asked for.

        Raises:
            ConfigError: The joiner has another model, or no such seat is free.
        """
        if schema != self._about.schema:
            raise ConfigError(
                f"A client must have the coordinator's model; its schema is {schema[:12]}…, the "
                f"coordinator's {self._about.schema[:12]}…. Install the same version of Assay."
            )
        now = time.monotonic()
        tiers = self._about.config.tiers
        for number, theirs in enumerate(tiers):
            waits = now < self._reserved.get(number, 0.0)
            if tier in (None, theirs) and number not in self._actors and not waits:
                self._reserved[number] = now + RESERVED_S
                return number
        wanted = "seat" if tier is None else f"seat of tier {tier}"
        raise ConfigError(
            f"A client needs a free {wanted}; the run's seats are {tiers}, taken are "
            f"{sorted(self._actors)}. Wait until one is free, or take another tier."
        )

    def sit(self, number: int, actor: Any) -> None:
        """A client is ready to begin."""
        self._actors[number] = actor
        self._reserved.pop(number, None)

    def seated(self) -> dict[int, Any]:
        """Client → its actor."""
        return self._actors

    def free(self, number: int) -> None:
        """A client is gone."""
        self._actors.pop(number, None)

    def tell(self, what: Mapping[str, Any]) -> None:
        """How far the run is, for those who wait."""
        self._told = dict(what)

    def told(self) -> dict[str, Any]:
        """The same."""
        return self._told


class DeskSeats:
    """The seats of a desk, for a crew."""

    def __init__(self, desk: Any, first: int, wait_s: float) -> None:
        """For one run.

        Args:
            desk: The actor.
            first: Clients without which the run does not begin.
            wait_s: How long to wait for them, and later for those without which it cannot go on.
        """
        self.desk, self.first, self.wait_s = desk, first, wait_s

    def at_hand(self, needed: int) -> Sequence[int]:
        """Numbers of those who sit.

        Raises:
            ConfigError: Too few came.
        """
        wanted, self.first = max(needed, self.first), 0
        return sorted(self._seated(lambda seated: len(seated) >= wanted, f"{wanted} clients"))

    def actor(self, number: int) -> Any:
        """Who sits there, once somebody does.

        Raises:
            ConfigError: Nobody came.
        """
        return self._seated(lambda seated: number in seated, f"client {number}")[number]

    def free(self, number: int) -> None:
        """Somebody else may sit there."""
        ray.get(self.desk.free.remote(number))

    def _seated(self, enough: Callable[[Mapping[int, Any]], bool], what: str) -> dict[int, Any]:
        end = time.monotonic() + self.wait_s
        while not enough(seated := ray.get(self.desk.seated.remote())):
            if time.monotonic() > end:
                raise ConfigError(
                    f"A run needs {what}; within {self.wait_s:g} s {len(seated)} joined. Start "
                    "`assay swarm join` for more, or wait longer with --wait."
                )
            time.sleep(LOOK_EVERY_S)
        return dict(seated)
