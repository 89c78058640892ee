"""`assay export`: runs in the files of other tools."""

import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from assay.cli.common import Output, ledger, open_index, open_study, study_paths
from assay.core.errors import StoreError, StudyError
from assay.core.evidence import select
from assay.core.export.gather import Gathered, gather
from assay.core.index import Index
from assay.core.ledger import Event, invalidations
from assay.core.read import IndexedRun
from assay.core.settings import Settings

WRITERS = {
    "tensorboard": "assay.core.export.tensorboard:write_tensorboard",
    "mlflow": "assay.core.export.mlflow:write_mlflow",
    "wandb": "assay.core.export.wandb:write_wandb",
    "csv": "assay.core.export.tabular:write_csv",
    "parquet": "assay.core.export.tabular:write_parquet",
}


def export(
    what: str, out: Path, *, to: Literal["tensorboard", "mlflow", "wandb", "csv", "parquet"]
) -> None:
    """Write the runs of a study, or one run, for another tool: every value of every metric.

    All runs go along, also failed, invalidated and superseded ones, each with its arm, seeds,
    configuration, commit, phase and whether it counts. OUT must not exist; it is whole or not there.

    Args:
        what: Study id or file; or the id of a run, or the first letters of it.
        out: File (csv, parquet) or folder (tensorboard, mlflow, wandb) to write.
        to: The format.
    """
    settings = Settings.from_environment()
    events = ledger(settings)
    gathered = Gathered(runs=0, values=0, refused=[])
    with open_index(settings) as index:
        runs, standings = _chosen(what, settings, index, events)
        if not runs:
            raise StoreError(
                f"There is nothing to export: no run of {what!r} can be read. `assay ls {what}` "
                "tells what is there."
            )
        study = runs[0].study
        module, _, name = WRITERS[to].partition(":")
        write = getattr(importlib.import_module(module), name)
        exported = gather(
            index, runs, struck=invalidations(events), standings=standings, gathered=gathered
        )
        write(_some(exported, what, gathered), out)
        if len(runs) > 1:
            gathered.refused += index.broken(study)
    Output().print(f"{gathered.runs} run(s), {gathered.values} value(s) written to {out} ({to}).")
    for path, reason in dict(gathered.refused).items():
        sys.stderr.write(f"not exported: {path}: {reason}\n")


def _some(runs: Iterator[Any], what: str, gathered: Gathered) -> Iterator[Any]:
    """The same runs; an export without any would look like a study without runs."""
    yield from runs
    if gathered.runs == 0:
        path, reason = gathered.refused[0]
        raise StoreError(f"No run of {what!r} can be exported. {path}: {reason}")


def _chosen(
    what: str, settings: Settings, index: Index, events: list[Event]
) -> tuple[list[IndexedRun], Mapping[str, str]]:
    """The runs that are meant, and the standing of each where its study is known."""
    paths = study_paths(settings)
    counts = dict(index.studies())
    if what.endswith(".toml"):
        study = open_study(what, settings).id
    elif what in paths or what in counts:
        study = what
    else:
        try:
            runs = [index.find(what)]
        except StoreError as error:
            known = ", ".join(sorted({*paths, *counts})) or "none"
            raise StudyError(
                f"{what!r} is neither a study nor the id of one run. Known studies: {known}. "
                "`assay ls STUDY` lists ids; the first letters are enough if only one run has them."
            ) from error
        return runs, _standings(runs[0].study, what, settings, index, events)
    return index.runs(study), _standings(study, what, settings, index, events)


def _standings(
    study: str, what: str, settings: Settings, index: Index, events: list[Event]
) -> dict[str, str]:
    if what.endswith(".toml"):
        loaded = open_study(what, settings)
    elif study in study_paths(settings):
        loaded = open_study(study, settings)
    else:
        # Ad-hoc runs, or a study whose file is gone: nothing says which of them count.
        return {}
    chosen = select(loaded, index, events)
    return (
        {run.id: "counts" for run in chosen.counting.values()}
        | {run.id: "superseded" for run in chosen.superseded}
        | {run.id: "stale" for run in chosen.stale}
    )
