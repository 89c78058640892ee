"""Runs as every exporter gets them: whole trajectories, and what a reader must know to judge them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from assay.core.analysis import read_results, rows_of
from assay.core.config import flatten
from assay.core.errors import StoreError
from assay.core.index import Index
from assay.core.ledger import Event
from assay.core.metrics import Series, read_metrics
from assay.core.read import IndexedRun
from assay.core.run import read_run, verify_seal

SUMMARY = "summary/"
"""Where a format has one kind of metric only: before the name of a run's final value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedRun:
    """One run with all its numbers.

    Attributes:
        name: Arm, cell, seed and id as a path; ends with "-invalidated" for an invalidated run.
        about: What the run is and whether it counts; text, numbers, truth values or None.
        params: What was asked for: `config.…`, `cell.…`, `seed.…`, `budget.…`.
        series: Metric → columns, unthinned.
        summary: Final values that the run gave itself.
        created_s: When it was made, Unix seconds.
        ended_s: When its last attempt ended; None while it is open.
        last_step: The highest step of any metric; 0 without one.
    """

    name: str
    about: Mapping[str, str | int | float | bool | None]
    params: Mapping[str, Any]
    series: Mapping[str, Series]
    summary: Mapping[str, float]
    created_s: float
    ended_s: float | None
    last_step: int

    @property
    def num_values(self) -> int:
        """Values of all series, and the final ones."""
        return sum(series.steps.size for series in self.series.values()) + len(self.summary)


@dataclass(slots=True)
class Gathered:
    """What an export took along; filled while it is written.

    Attributes:
        runs: Number of runs.
        values: Number of values.
        refused: Runs that could not be read or were changed after their end: path and reason.
    """

    runs: int
    values: int
    refused: list[tuple[str, str]]


def gather(
    index: Index,
    runs: Iterable[IndexedRun],
    *,
    struck: Mapping[str, Event],
    standings: Mapping[str, str],
    gathered: Gathered,
) -> Iterator[ExportedRun]:
    """Read runs one after another, so that a large study need not fit into memory.

    Args:
        index: Tells the provenance.
        runs: What to read.
        struck: Run or study → its invalidation (`assay.core.ledger.invalidations`).
        standings: Run id → whether it counts in its study, in a word.
        gathered: Counts, and takes the runs that are no longer as they were sealed.
    """
    for run in runs:
        try:
            exported = _read(index, run, _invalidation(run, struck), standings.get(run.id))
        except StoreError as error:
            gathered.refused.append((run.path, str(error)))
            continue
        gathered.runs += 1
        gathered.values += exported.num_values
        yield exported


def _invalidation(run: IndexedRun, struck: Mapping[str, Event]) -> Event | None:
    of_study = struck.get(run.study)
    # An event that lists its runs strikes those and no later ones.
    if of_study is not None and "runs" in of_study.body:
        of_study = None
    return struck.get(run.id) or of_study


def _read(index: Index, run: IndexedRun, event: Event | None, standing: str | None) -> ExportedRun:
    folder = index.runs_dir / run.path
    state = read_run(folder)
    # The index may trust a folder's time; what leaves the lab is compared with its seal.
    if state.end is not None and state.status == "completed":
        verify_seal(state, state.end)
    metrics = read_metrics(folder, state.starts)
    # Of every version: NAME@VERSION.
    analysed = {name: value for name, value, _ in rows_of(read_results(folder))}
    facts = index.facts(run.id)
    seed = run.seed_label or "none"
    mark = "" if event is None else "-invalidated"
    return ExportedRun(
        name=f"{run.arm}/{run.cell_label}/{seed}-{run.id}{mark}",
        about={
            "run": run.id,
            "study": run.study,
            "arm": run.arm,
            "cell": run.cell_label,
            "seed": run.seed_label,
            "phase": run.phase,
            "status": state.status,
            "invalidated": event is not None,
            "because": None if event is None else str(event.body["because"]),
            "standing": "invalidated" if event is not None else standing,
            "generation": run.generation,
            "attempts": state.attempts,
            "commit": _text(facts.get("code.commit")),
            "dirty": bool(facts["code.dirty"]) if "code.dirty" in facts else None,
            "engine": run.engine,
            "task": run.task,
            "command": None if run.cmd is None else " ".join(run.cmd),
            "created_at": run.created_at,
            "ended_at": None if state.end is None else state.end.ended_at,
            "duration_s": None if state.end is None else state.end.duration_s,
            "torn_lines": state.torn_lines,
            "problems": "; ".join([*state.problems, *metrics.problems]) or None,
        },
        params={
            f"{prefix}.{key}": value
            for prefix, values in (
                ("config", flatten(run.config)),
                ("cell", flatten(run.cell)),
                ("seed", run.seeds),
                ("budget", run.budget),
            )
            for key, value in values.items()
        },
        series=metrics.series,
        summary=state.summary | analysed,
        created_s=_seconds(run.created_at),
        ended_s=None if state.end is None else _seconds(state.end.ended_at),
        last_step=max((int(s.steps.max()) for s in metrics.series.values()), default=0),
    )


def _text(fact: object) -> str | None:
    return None if fact is None else str(fact)


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
