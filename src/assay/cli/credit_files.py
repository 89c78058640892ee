"""Runs of `assay credit`: where they lie, and how they are read again."""

import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.cli.common import open_index
from assay.cli.local_files import LocalContext, interruptible, read_json
from assay.core.artifacts import ArtifactStore
from assay.core.config import build, to_plain
from assay.core.errors import AssayError, DataError, StoreError
from assay.core.files import read_bytes
from assay.core.run import read_run
from assay.core.rundir import attempt_name
from assay.core.settings import Settings
from assay.engines.credit.config import TrainConfig
from assay.engines.credit.engine import ENGINE

if TYPE_CHECKING:
    from assay.engines.credit.probe import Stored

WEIGHTS = "last.safetensors"
READABLE = ("train", "frozen")
"""Tasks whose runs hold a net that was trained on data."""


def find_own_modules() -> None:
    """Let modules of the user's, in the project and in this folder, be imported; they shadow nothing."""
    sys.path += [str(Settings.from_environment().root), str(Path.cwd())]


def contexts_of(
    out: Path, config: TrainConfig, seeds: Sequence[int], *, quiet: bool
) -> list[LocalContext]:
    """A folder for each seed; nothing is made before the settings, the data and the method are checked.

    Raises:
        AssayError: Something is not there, or the folder holds other runs.
    """
    from assay.engines.credit.data import load
    from assay.engines.credit.estimators.registry import find

    task, data_dir = ENGINE.tasks["train"], Settings.from_environment().data_dir
    find(config.method)
    load(config, data_dir, seeds[0])
    contexts = []
    for seed in seeds:
        roles = {"init": seed, "data": seed}
        told = {
            "config": to_plain(config),
            "seeds": roles,
            "data": task.fingerprint(config, roles, data_dir),
        }
        folder = out / f"seed-{seed}"
        contexts.append(
            LocalContext(folder, told=told, seeds=roles, quiet=quiet, data_dir=data_dir)
        )
    return contexts


def train_pending(config: TrainConfig, contexts: Sequence[LocalContext]) -> bool:
    """Train those that are not finished; returns whether all are now.

    Runs that would go on from different steps (some were added, or the process was killed between
    two saves) are stacked apart.
    """
    from assay.engines.credit.train import train

    pending = [context for context in contexts if not context.is_finished]
    pending.sort(key=LocalContext.checkpoint_step)
    with interruptible(contexts):
        for _, group in groupby(pending, LocalContext.checkpoint_step):
            stack = list(group)
            if not stack[0].stop:
                train([config] * len(stack), stack)
    return all(context.is_finished for context in contexts)


def read(run: str) -> "Stored":
    """A run, by its folder or by its id in the lab.

    Raises:
        StoreError: There is none, or it is no finished run of this engine with a net.
        DataError: The data are no longer those that it learned from.
    """
    folder = Path(run)
    if (folder / "config.json").is_file():
        return _plain(folder)
    if (folder / "run.json").is_file():
        return _of_lab(folder)
    if folder.is_dir():
        inside = ", ".join(sorted(path.name for path in folder.glob("seed-*")))
        raise StoreError(
            f"{run} must be the folder of one run, with config.json and {WEIGHTS}; it has "
            f"{f'{inside}: give one of these' if inside else 'none'}."
        )
    if len(folder.parts) > 1:
        raise StoreError(
            f"{run} must be the folder of a run of `assay credit train` (OUT/seed-N); there is none. Correct it, or give "
            "the id of a run of the lab."
        )
    settings = Settings.from_environment()
    with open_index(settings) as index:
        return _of_lab(settings.runs_dir / index.find(run).path)


def _plain(folder: Path) -> "Stored":
    told, path = read_json(folder / "config.json"), folder / "config.json"
    try:
        config = build(TrainConfig, told["config"], where=str(path))
        seeds = {name: int(told["seeds"][name]) for name in ("init", "data")}
        known = dict(told["data"])
    except (AssayError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path} must tell configuration, seeds and data of a run of `assay credit train`; it does not: "
            f"{error if isinstance(error, AssayError) else f'{error!r}.'} Give the folder of such a run."
        ) from error
    if not (folder / WEIGHTS).is_file():
        raise StoreError(
            f"{folder} must hold {WEIGHTS}, which a run has when it is finished. Give the same command again "
            "to finish it."
        )
    return _stored("train", config, seeds, known, read_bytes(folder / WEIGHTS), str(folder))


def _of_lab(folder: Path) -> "Stored":
    state = read_run(folder)
    record = state.record
    if record.engine != "credit" or record.task not in READABLE:
        raise StoreError(
            f"Run {record.id} must be of the engine credit, of task {' or '.join(READABLE)}; it is of engine "
            f"{record.engine}, task {record.task}."
        )
    config = build(ENGINE.tasks[record.task].config, record.config, where=f"run {record.id}")
    facts = read_json(folder / attempt_name("provenance.json", state.attempts))
    content = ArtifactStore(folder).read(WEIGHTS)
    return _stored(record.task, config, record.seeds, facts["data"], content, f"run {record.id}")


def _stored(
    task: str,
    config: TrainConfig,
    seeds: Mapping[str, int],
    known: Mapping[str, Any],
    content: bytes,
    where: str,
) -> "Stored":
    from assay.engines.credit.probe import Stored

    data_dir = Settings.from_environment().data_dir
    found = ENGINE.tasks[task].fingerprint(config, seeds, data_dir)
    if found != known:
        raise DataError(
            f"The data {config.data!r} must be those that {where} learned from, {known}; they are {found} now. "
            "Put the old ones back: measured on others, the numbers would mean something else."
        )
    return Stored(config=config, seeds=seeds, data_dir=data_dir, content=content, where=where)
