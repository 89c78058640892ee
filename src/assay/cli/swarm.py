"""`assay swarm`: train one nested model with clients of several sizes, without a study.

A study (`assay run`) is the way to results that can support a claim; this writes plain files.
"""

import json as json_module
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter, validators

from assay.cli.common import Output, print_json
from assay.cli.local_files import LocalContext, interruptible
from assay.cli.options import SetOption, assigned, checked, numbers, tell_settings
from assay.cli.swarm_cluster import (
    cluster,
    open_desk,
    own_actors,
    reporting,
    say,
    seated,
    take_part,
)
from assay.core.config import build, to_plain
from assay.core.errors import ConfigError, DataError, StoreError
from assay.core.settings import Settings
from assay.engines.swarm.config import SwarmConfig
from assay.engines.swarm.engine import METRICS, check

if TYPE_CHECKING:
    from torch import Tensor

    from assay.engines.swarm.crew import Crew
    from assay.engines.swarm.session import Session

CLIENTS_EVERY_S = 5.0

app = App(name="swarm", help="One nested model, clients of different sizes, compressed updates.")


class Rounds(LocalContext):
    """The folder of a swarm."""

    unit = "round"
    state = "state.npz"


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
    seed: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 0
    """Of initialisation, data and faults."""
    begin_from: Path | None = None
    """Folder of `export-tiers` whose full model the run begins from, instead of a drawn one."""
    set_: SetOption = None
    """Further settings as name=value, as in a study's [config]; values are JSON."""

    @cached_property
    def config(self) -> SwarmConfig:
        """All of it, checked."""
        values: dict[str, Any] = {
            "tiers": numbers("--clients", self.clients, "tiers", "0,1,1,1"),
            "steps": self.steps,
            "model": self.model,
        }
        others = assigned(self.set_ or [], "loss=0.2")
        for name, option in (("tiers", "--clients"), ("steps", "--steps"), ("model", "--model")):
            if name in others:
                raise ConfigError(f"--set {name}: give it as {option}.")
        values |= others
        store = values.get("store", [])
        values["store"] = sorted({*store, "model"}) if isinstance(store, list) else store
        if "batch" not in values:
            values["batch"] = max(32, len(values["tiers"]))
        if isinstance(values.get("corpus"), str):
            values["corpus"] = _text(values["corpus"])
        return checked(SwarmConfig, values, listing="assay swarm settings")

    @property
    def start(self) -> "Tensor | None":
        """The full model to begin from, if one is given: of the same schema."""
        if self.begin_from is None:
            return None
        from assay.engines.swarm.export import read_tier, schema_hash

        loaded, wanted = read_tier(self.begin_from, 0), self.config.shape
        if schema_hash(loaded.shape) != schema_hash(wanted):
            raise ConfigError(
                f"--begin-from needs a model of the run's schema; {self.begin_from} holds {loaded.shape}, "
                f"the run's is {wanted}. Give its --model and gates."
            )
        return loaded.theta


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
    threads: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None
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
    what, where = what or What(), where or Where()
    config, start = what.config, what.start
    if where.on == "process":
        threads = where.threads or os.cpu_count() or 1
        _run(config, _context(what, out, threads, quiet=quiet), start)
        return
    threads = where.threads or 1
    context = _context(what, out, threads, quiet=quiet)
    with cluster(where.address):
        crew = own_actors(
            config, out, context.identity, address=where.address, cpus=where.cpus, threads=threads
        )
        _run(config, context, start, crew)


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
    what = what or What()
    config, start = what.config, what.start
    context = _context(what, out, 1, quiet=quiet)
    with cluster(address) as ray:
        desk = open_desk(ray, config, context.identity)
        if not quiet:
            here = ray.get_runtime_context().gcs_address
            line = f"RAY_AUTH_MODE=token assay swarm join --address {here}"
            say(f"{len(config.tiers)} seats; take one with `{line}`")
        watch = reporting(desk, _watcher(quiet=quiet))
        _run(config, context, start, seated(config, desk, wait), watch)


@app.command
def join(
    *,
    address: str = "auto",
    tier: int | None = None,
    disk: Path | None = None,
    cpus: float = 0.0,
    threads: int = 1,
) -> None:
    """Take a seat in a run that `assay swarm serve` coordinates, until it is over.

    Args:
        address: Of the Ray cluster; "auto" is the one that this machine is part of.
        tier: Of the seat. Default: the first that is free.
        disk: Folder for what the client has not sent, so that it is not lost if the client dies.
        cpus: CPUs of this machine that it keeps others of the cluster from; 0 keeps none.
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
    _export(run, config, numbers("--tiers", tiers, "tiers", "0,1,2"), out)
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
    wanted = [analyses.encoded, analyses.decoded, analyses.overlap, analyses.first_layer]
    wanted += [analyses.applied, analyses.support]
    if any(name.startswith("gradient-") for name in files):
        wanted.append(analyses.raw)
    found: dict[str, float] = {}
    for function in wanted:
        try:
            found |= function(files, {"config": config})
        except DataError as error:
            # Supports, for one, can only be compared where all tiers have equal chunks.
            if function is not analyses.support:
                raise
            say(f"support: {error}")
    if json:
        print_json(found)
        return
    for name, value in found.items():
        Output().print(f"{name:36} {value:.4f}")


def _context(what: What, out: Path, threads: int, *, quiet: bool) -> Rounds:
    data_dir = Settings.from_environment().data_dir
    check([what.config], data_dir)
    told: dict[str, Any] = {"config": to_plain(what.config), "seed": what.seed}
    if what.begin_from is not None:
        told["begin_from"] = str(what.begin_from.resolve())
    seeds = dict.fromkeys(("init", "data", "faults"), what.seed)
    context = Rounds(out, told=told, seeds=seeds, quiet=quiet, threads=threads, data_dir=data_dir)
    if context.is_finished:
        raise StoreError(f"{out} holds a finished run. Give a new folder.")
    return context


def _run(
    config: SwarmConfig,
    context: Rounds,
    start: "Tensor | None" = None,
    crew: "Crew | None" = None,
    watch: "Callable[[Session], None] | None" = None,
) -> None:
    """Train to the end, or until Ctrl-C."""
    import torch

    from assay.engines.swarm.train import train_one

    torch.set_num_threads(context.threads)
    with interruptible([context]):
        train_one(config, context, crew, watch or _watcher(quiet=context.quiet), start)
    if not context.is_finished:
        Output().print(f"stopped; the same command goes on from round {context.step}")
        sys.exit(130)
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
            loss = session.losses.get(number)
            say(
                f"  client {number:3}  tier {tier}  {'trains' if number in members else 'is away':7}  "
                f"{done.get('rounds', 0):5} rounds  sent {done.get('sent_bytes', 0) / 1000:9,.0f} kB  "
                f"received {done.get('received_bytes', 0) / 1000:9,.0f} kB  "
                f"died {done.get('deaths', 0)}  loss {loss if loss is None else round(loss, 4)}"
            )

    return watch


def _text(name: str) -> str:
    """A corpus; one of the user's own by its place, from here or in the data folder, and its digest."""
    from assay.engines.swarm.corpus import NAMES, PIN, pinned

    path, pin, digest = name.partition(PIN)
    if name not in NAMES and path and Path(path).exists():
        name = f"{Path(path).resolve()}{pin}{digest}"
    return pinned(name, Settings.from_environment().data_dir)


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
    from assay.engines.swarm.client import scaling_of
    from assay.engines.swarm.export import from_bytes, write_tiers

    path = run / "model.safetensors"
    if not path.is_file():
        raise StoreError(f"{run} must hold a finished run's model.safetensors; it does not.")
    if config.mode == "local-adamw":
        raise ConfigError(
            f"{run} exchanged nothing (mode 'local-adamw'): its clients have no common model whose tiers "
            "could be exported."
        )
    for tier in tiers:
        try:
            config.shape.width(tier)
        except ValueError as error:
            raise ConfigError(f"--tiers: {error}") from error
        if tier not in config.tiers:
            say(
                f"tier {tier}: no client of this width was trained; it is cut from the others' neurons"
            )
    theta = from_bytes(path.read_bytes(), config.shape, 0)
    scalings = {tier: scaling_of(config, tier, config.steps) for tier in tiers}
    write_tiers(theta, config.shape, out, tiers, scalings)


@app.command
def settings() -> None:
    """All settings of a run, for --set and for a study's [config], and the metrics that it reports."""
    # Metrics of the other tiers differ in their number alone.
    others = tuple(f"tier{t}" for t in range(1, 8))
    told = {name: metric for name, metric in METRICS.items() if not name.endswith(others)}
    tell_settings(SwarmConfig, told)
