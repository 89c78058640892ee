"""`assay swarm`: train one nested model with clients of several sizes, without a study.

A study (`assay run`) is the way to results that can support a claim; this writes plain files.
"""

import json as json_module
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from assay.cli.common import Output, print_json
from assay.cli.options import SetOption, assigned
from assay.cli.swarm_cluster import (
    cluster,
    open_desk,
    own_actors,
    reporting,
    say,
    seated,
    take_part,
)
from assay.cli.swarm_files import LocalContext
from assay.core.config import build, to_plain
from assay.core.errors import ConfigError, StoreError
from assay.core.settings import Settings
from assay.engines.swarm.config import MODELS, SwarmConfig

if TYPE_CHECKING:
    from assay.engines.swarm.crew import Crew
    from assay.engines.swarm.session import Session

CLIENTS_EVERY_S = 5.0

app = App(name="swarm", help="One nested model, clients of different sizes, compressed updates.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class What:
    """What is trained."""

    clients: str = "0,1,1,1"
    """Tier of each client: client i trains the first 1 / 2^tier of each feed-forward block."""
    steps: int = 100
    """Rounds."""
    model: str = "small"
    """nanogpt-34m, small or tiny."""
    seed: int = 0
    """Of initialisation, data and faults."""
    set_: SetOption = None
    """Further settings as name=value, as in a study's [config]; values are JSON."""

    @property
    def config(self) -> SwarmConfig:
        """All of it, checked."""
        values: dict[str, Any] = {
            "tiers": _numbers("--clients", self.clients),
            "steps": self.steps,
            "model": self.model,
        }
        values |= assigned(self.set_ or [], "loss=0.2")
        values["store"] = sorted({*values.get("store", ()), "model"})
        if "batch" not in values:
            values["batch"] = max(32, len(values["tiers"]))
        return build(SwarmConfig, values, where="--set")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Where:
    """Where the clients are."""

    on: Literal["process", "ray"] = "process"
    """In this process, or actors that train at the same time and whose death the run survives."""
    address: str | None = None
    """Of a Ray cluster; by default one of this machine is started for the run."""
    cpus: float | None = None
    """CPUs of the cluster for each actor. Default: 1; on this machine an equal share."""
    threads: int | None = None
    """CPU threads; of each client, if they are actors. Default: the cores there are; 1 for actors."""


@app.command
def local(
    out: Path,
    what: What | None = None,
    where: Where | None = None,
    *,
    quiet: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train with all clients on this machine, or on a Ray cluster of yours.

    Writes OUT/metrics.csv (every round), summary.json, config.json and model.safetensors (the full
    model), and what --set store=… asks for. Ctrl-C saves the state; the same command goes on from
    it, bit for bit. Network faults are simulated: --set loss=0.2 latency_ms=[50,150] churn=0.3
    epoch_rounds=20.

    Args:
        out: Folder for the run.
        what: What is trained.
        where: Where the clients are.
        quiet: No progress lines.
    """
    config, where = (what or What()).config, where or Where()
    seed = (what or What()).seed
    if where.on == "process":
        threads = where.threads or os.cpu_count() or 1
        _run(config, _context(config, out, seed, threads, quiet=quiet))
        return
    threads = where.threads or 1
    context = _context(config, out, seed, threads, quiet=quiet)
    with cluster(where.address):
        crew = own_actors(config, out, address=where.address, cpus=where.cpus, threads=threads)
        _run(config, context, crew)


@app.command
def serve(
    out: Path,
    what: What | None = None,
    *,
    address: str | None = None,
    wait: float = 600.0,
    quiet: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Coordinate clients that come with `assay swarm join`, from this machine or others.

    The run begins when every seat is taken. Who dies is replaced by who joins next, from the next
    epoch on (--set epoch_rounds=20). Folder, Ctrl-C and files are as with `local`.

    Args:
        out: Folder for the run.
        what: What is trained; its clients are the seats.
        address: Of a Ray cluster ("auto": the one of this machine); by default a new one.
        wait: Seconds to wait for clients.
        quiet: No progress lines.
    """
    config, seed = (what or What()).config, (what or What()).seed
    context = _context(config, out, seed, 1, quiet=quiet)
    with cluster(address) as ray:
        desk = open_desk(ray, config)
        if not quiet:
            here = ray.get_runtime_context().gcs_address
            line = f"RAY_AUTH_MODE=token assay swarm join --address {here}"
            say(f"{len(config.tiers)} seats; take one with `{line}`")
        _run(config, context, seated(config, desk, wait), reporting(desk, _watcher(quiet=quiet)))


@app.command
def join(
    *,
    address: str = "auto",
    tier: int | None = None,
    disk: Path | None = None,
    cpus: float = 1.0,
    threads: int = 1,
) -> None:
    """Take a seat in a run that `assay swarm serve` coordinates, until it is over.

    Args:
        address: Of the Ray cluster; "auto" is the one that this machine is part of.
        tier: Of the seat. Default: the first that is free.
        disk: Folder for what the client has not sent, so that it is not lost if the client dies.
        cpus: CPUs of the cluster that it takes.
        threads: Of the client.
    """
    if disk is not None:
        disk.mkdir(parents=True, exist_ok=True)
    with cluster(address) as ray:
        take_part(ray, tier, disk, cpus, threads, say)


@app.command
def export_tiers(run: Path, out: Path, *, tiers: str = "0,1,2") -> None:
    """Write the models of several tiers, each cut from the full one, with a manifest.

    Args:
        run: Folder of `assay swarm local`.
        out: New folder for the tiers.
        tiers: Which, with commas.
    """
    config = _read_config(run)
    _export(run, config, _numbers("--tiers", tiers), out)
    Output().print(f"wrote tiers {tiers} to {out}")


@app.command
def agreement(run: Path, *, json: bool = False) -> None:
    """How much the small clients' updates agree with the large one's, by every definition.

    Needs the stored payloads of a run: --set store=["payloads"], and "gradients" for the raw ones.

    Args:
        run: Folder of `assay swarm local`.
        json: Plain data.
    """
    from assay.engines.swarm import agreement as analyses

    config = to_plain(_read_config(run))
    files = {path.name: path for path in sorted(run.iterdir()) if path.is_file()}
    wanted = [analyses.encoded, analyses.decoded, analyses.overlap, analyses.support]
    if any(name.startswith("gradient-") for name in files):
        wanted.append(analyses.raw)
    found: dict[str, float] = {}
    for function in wanted:
        found |= function(files, {"config": config})
    if json:
        print_json(found)
        return
    for name, value in found.items():
        Output().print(f"{name:36} {value:.4f}")


def _context(
    config: SwarmConfig, out: Path, seed: int, threads: int, *, quiet: bool
) -> LocalContext:
    return LocalContext(
        out, seed=seed, threads=threads, quiet=quiet,
        data_dir=Settings.from_environment().data_dir, config=to_plain(config),
    )  # fmt: skip


def _run(
    config: SwarmConfig,
    context: LocalContext,
    crew: "Crew | None" = None,
    watch: "Callable[[Session], None] | None" = None,
) -> None:
    """Train to the end, or until Ctrl-C."""
    import torch

    from assay.engines.swarm.train import train_one

    torch.set_num_threads(context.threads)
    with context.interruptible():
        train_one(config, context, crew, watch or _watcher(quiet=context.quiet))
    if not context.is_finished:
        Output().print(f"stopped; the same command goes on from round {context.step}")
        sys.exit(130)
    if not context.quiet:
        context.report(Output())


def _watcher(*, quiet: bool) -> "Callable[[Session], None]":
    """Print what each client has done, at most every few seconds."""
    last = time.monotonic()

    def watch(session: "Session") -> None:
        nonlocal last
        if quiet or time.monotonic() - last < CLIENTS_EVERY_S:
            return
        last = time.monotonic()
        members = {member.client for member in session.state.members}
        for number, tier in enumerate(session.config.tiers):
            done: Mapping[str, int] = session.done.get(number, {})
            say(
                f"  client {number:3}  tier {tier}  {'trains' if number in members else 'is away':7}  "
                f"{done.get('rounds', 0):5} rounds  sent {done.get('sent_bytes', 0) / 1000:9,.0f} kB  "
                f"received {done.get('received_bytes', 0) / 1000:9,.0f} kB  "
                f"died {done.get('deaths', 0)}  loss {session.losses.get(number, float('nan')):.4f}"
            )

    return watch


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"{option} takes tiers with commas, such as 0,1,1,1; got {text!r}."
        ) from error


def _read_config(run: Path) -> SwarmConfig:
    path = run / "config.json"
    try:
        return build(
            SwarmConfig, json_module.loads(path.read_text("utf-8"))["config"], where=str(path)
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{run} must be a folder that `assay swarm local` wrote; its config.json cannot be read: "
            f"{error}. Give that folder."
        ) from error


def _export(run: Path, config: SwarmConfig, tiers: list[int], out: Path) -> None:
    from assay.engines.swarm.export import from_bytes, write_tiers

    path = run / "model.safetensors"
    if not path.is_file():
        raise StoreError(f"{run} must hold a finished run's model.safetensors; it does not.")
    theta = from_bytes(path.read_bytes(), MODELS[config.model], 0)
    write_tiers(theta, MODELS[config.model], out, tiers)
