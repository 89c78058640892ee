"""`assay swarm`: train one nested model with clients of several sizes, without a study.

A study (`assay run`) is the way to results that can support a claim; this writes plain files.
"""

import json as json_module
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from assay.cli.common import Output, print_json
from assay.cli.options import SetOption, assigned
from assay.cli.swarm_files import LocalContext
from assay.core.config import build, to_plain
from assay.core.errors import ConfigError, StoreError
from assay.core.settings import Settings
from assay.engines.swarm.config import MODELS, SwarmConfig

app = App(name="swarm", help="One nested model, clients of different sizes, compressed updates.")


@app.command
def local(
    out: Path,
    *,
    clients: str = "0,1,1,1",
    steps: int = 100,
    model: str = "small",
    seed: int = 0,
    set_: SetOption = None,
    threads: int | None = None,
    quiet: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train with all clients in this process.

    Writes OUT/metrics.csv (every round), summary.json, config.json and model.safetensors (the full
    model), and what --set store=… asks for. Ctrl-C saves the state; the same command goes on from
    it, bit for bit. Network faults are simulated: --set loss=0.2 latency_ms=[50,150] churn=0.3
    epoch_rounds=20.

    Args:
        out: Folder for the run.
        clients: Tier of each client: client i trains the first 1 / 2^tier of each feed-forward block.
        steps: Rounds.
        model: nanogpt-34m, small or tiny.
        seed: Of initialisation, data and faults.
        set_: Further settings as name=value, as in a study's [config]; values are JSON.
        threads: CPU threads. Default: the cores there are.
        quiet: No progress lines.
    """
    from assay.engines.swarm.train import train

    config = _config(clients, steps, model, set_ or [])
    context = LocalContext(
        out, seed=seed, threads=threads or os.cpu_count() or 1, quiet=quiet,
        data_dir=Settings.from_environment().data_dir, config=to_plain(config),
    )  # fmt: skip
    with context.interruptible():
        train([config], [context])
    if not context.is_finished:
        Output().print(f"stopped; the same command goes on from round {context.step}")
        sys.exit(130)
    if not quiet:
        context.report(Output())


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


def _config(clients: str, steps: int, model: str, settings: list[str]) -> SwarmConfig:
    values: dict[str, Any] = {
        "tiers": _numbers("--clients", clients),
        "steps": steps,
        "model": model,
    }
    values |= assigned(settings, "loss=0.2")
    values["store"] = sorted({*values.get("store", ()), "model"})
    if "batch" not in values:
        values["batch"] = max(32, len(values["tiers"]))
    return build(SwarmConfig, values, where="--set")


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
