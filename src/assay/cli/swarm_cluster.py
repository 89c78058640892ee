"""Clients as Ray actors, from a terminal: `assay swarm local --on ray`, `serve` and `join`."""

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.core.errors import AssayError, ConfigError
from assay.engines.swarm.config import SwarmConfig

if TYPE_CHECKING:
    from assay.engines.swarm.crew import Crew
    from assay.engines.swarm.session import Session

DESK = "desk"
LOOK_EVERY_S = 0.5
REACH_S = 5.0
TRIES_S = 30.0
"""A joiner looks for the coordinator for so long."""


@contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster, or to one of this machine that ends with the program.

    Errors that Assay raised in an actor are raised here as what they were.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
    """
    try:
        import ray
        from ray.exceptions import RayTaskError
    except ImportError as error:
        raise ConfigError(
            "Clients as actors need Ray: install the extra, `pip install 'assay[ray]'`."
        ) from error
    begin = partial(
        ray.init, namespace="assay-swarm", log_to_driver=False, logging_level=logging.ERROR
    )
    try:
        _reach(address)
        if address is None:
            begin(address="local", include_dashboard=False)
        else:
            begin(address=address)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"A Ray cluster must answer at {address!r}; none does: {error}. If it asks for a token, set "
            "RAY_AUTH_MODE=token, with its ~/.ray/auth_token on this machine; `ray start --head` starts one."
        ) from error
    try:
        yield ray
    except RayTaskError as error:
        if isinstance(error.cause, AssayError):
            raise error.cause from None
        raise
    finally:
        ray.shutdown()


def _reach(address: str | None) -> None:
    """Whether anything listens there: Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=REACH_S).close()


def own_actors(
    config: SwarmConfig,
    folder: Path,
    run: str,
    *,
    address: str | None,
    cpus: float | None,
    threads: int,
) -> "Crew":
    """A crew of actors that this program starts.

    Args:
        config: Of the run.
        folder: Its; clients keep there what they have not sent.
        run: Its identity.
        address: Of the cluster; None is one of this machine.
        cpus: Of the cluster, for each client; by default 1, or an equal share of this machine.
        threads: Of each client.
    """
    from assay.engines.swarm.actors import ActorCrew, LocalSeats

    if cpus is None:
        cpus = 1.0 if address else min(1.0, (os.cpu_count() or 1) / len(config.tiers))
    disk = folder.resolve() / "clients"
    disk.mkdir(parents=True, exist_ok=True)
    return ActorCrew(config, LocalSeats(config, disk, cpus, threads, run), say)


def open_desk(ray: Any, config: SwarmConfig, run: str) -> Any:
    """The place where joiners report.

    Raises:
        ConfigError: Another coordinator uses this cluster.
    """
    from assay.engines.swarm.desk import Desk

    try:
        return ray.remote(Desk).options(name=DESK, num_cpus=0).remote(config, run)
    except ValueError as error:
        raise ConfigError(
            "A cluster can serve one swarm at a time; this one has a coordinator. End it first."
        ) from error


def seated(config: SwarmConfig, desk: Any, wait_s: float) -> "Crew":
    """A crew of those who join: the run begins when all seats are taken."""
    from assay.engines.swarm.actors import ActorCrew
    from assay.engines.swarm.desk import DeskSeats

    return ActorCrew(config, DeskSeats(desk, len(config.tiers), wait_s), say)


def reporting(desk: Any, watch: Callable[["Session"], None]) -> Callable[["Session"], None]:
    """Tell those who joined how far the run is, after every round."""

    def told(session: "Session") -> None:
        watch(session)
        clients = {n: dict(each) for n, each in session.done.items()}
        desk.tell.remote({"step": session.state.step, "of": session.config.steps, "done": clients})

    return told


def take_part(
    ray: Any,
    tier: int | None,
    disk: Path | None,
    cpus: float,
    threads: int,
    say: Callable[[str], None],
) -> None:
    """Hold a seat until the run is over; a client that was dropped asks for a seat again.

    Raises:
        ConfigError: Nobody serves, no seat is free, or the models differ.
    """
    from ray.exceptions import GetTimeoutError, RayActorError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from assay.engines.swarm.actors import Worker
    from assay.engines.swarm.desk import START_S
    from assay.engines.swarm.export import schema_hash

    desk = _find_desk(ray)
    about = ray.get(desk.about.remote())
    config = about.config
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    folder = None if disk is None else str(disk.resolve())
    worker = ray.remote(Worker).options(num_cpus=cpus, scheduling_strategy=here)
    number, actor, step = None, None, -1
    while True:
        try:
            told = ray.get(desk.told.remote())
            if number is None or number not in ray.get(desk.seated.remote()):
                number = ray.get(desk.take.remote(tier, schema_hash(config.shape)))
                actor = worker.remote(config, number, folder, threads, about.run)
                ray.get(actor.pid.remote(), timeout=START_S)
                ray.get(desk.sit.remote(number, actor))
                say(f"client {number}, tier {config.tiers[number]}: waits for the next epoch")
        except RayActorError:
            say("the coordinator has ended")
            return
        except GetTimeoutError as error:
            raise ConfigError(
                f"A client must start within {START_S:g} s, and needs {cpus:g} free CPUs of this machine's share "
                "of the cluster; it did not start. Take fewer with --cpus, or let the machine do less else."
            ) from error
        if told.get("step", 0) != step:
            step = told.get("step", 0)
            mine = told.get("done", {}).get(number, {})
            say(
                f"round {step}/{config.steps}  client {number}  rounds {mine.get('rounds', 0)}  "
                f"sent {mine.get('sent_bytes', 0) / 1000:.0f} kB"
            )
        time.sleep(LOOK_EVERY_S)


def _find_desk(ray: Any) -> Any:
    end = time.monotonic() + TRIES_S
    while True:
        try:
            return ray.get_actor(DESK)
        except ValueError as error:
            if time.monotonic() > end:
                raise ConfigError(
                    f"A coordinator must serve on this cluster; none did within {TRIES_S:g} s. Start "
                    "`assay swarm serve`."
                ) from error
            time.sleep(LOOK_EVERY_S)


def say(line: str) -> None:
    """A line on stderr."""
    print(line, file=sys.stderr, flush=True)
