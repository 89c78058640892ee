"""Which runs count, and what they say: the view of the index that criteria and tables share.

For every planned arm, cell and seed one run counts: of those that compute what the study file now
asks for and that nobody invalidated, the one that `survey.precedence` puts first: of the highest
phase, the latest generation. Generations are numbered, so no clock decides. A failed run counts
as failed; it never vanishes.
"""

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from assay.core.index import Index
from assay.core.ledger import Event, invalidations
from assay.core.plan import PlannedRun, cell_label, expand
from assay.core.read import IndexedRun, MetricRow
from assay.core.study import PHASES, Study
from assay.core.survey import precedence

ENDED = ("completed", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The runs of a study that count, and why the others do not.

    Attributes:
        planned: The study's plan.
        counting: Place in the study → the run that counts there.
        invalid: Invalidated runs, with the event.
        superseded: Runs that give way to another of their place: of a higher phase, or a later
            generation. Their values stay in `values`.
        stale: Runs whose configuration the study file no longer asks for.
        values: Run id → metric name → its final value; of every run, whether it counts or not.
        broken: Run directories that cannot be read or were changed after their end: path below
            `runs/` and reason. They count nowhere.
    """

    planned: tuple[PlannedRun, ...]
    counting: Mapping[tuple[str, str, str], IndexedRun]
    invalid: tuple[tuple[IndexedRun, Event], ...]
    superseded: tuple[IndexedRun, ...]
    stale: tuple[IndexedRun, ...]
    values: Mapping[str, Mapping[str, MetricRow]]
    broken: tuple[tuple[str, str], ...] = ()

    @property
    def missing(self) -> list[PlannedRun]:
        """Planned runs that have no run that ended."""
        return [p for p in self.planned if not self._has_ended(p)]

    def _has_ended(self, planned: PlannedRun) -> bool:
        run = self.counting.get(planned.key)
        return run is not None and run.status in ENDED


def select(study: Study, index: Index, events: Sequence[Event]) -> Selection:
    """Choose the runs of a study that count.

    A run is recognised by what it computes, not by its seed label, which changes when further
    roles get several seeds. Of several, the one counts that `assay run` takes as well.
    """
    with no_collection():
        return _select(study, index, invalidations(events))


def _select(study: Study, index: Index, struck: Mapping[str, Event]) -> Selection:
    planned = tuple(expand(study))
    places = {(run.arm, run.cell_label, run.identity): run.key for run in planned}
    candidates: dict[tuple[str, str, str], list[IndexedRun]] = {}
    invalid, stale = [], []
    with index.snapshot():
        runs, rows = index.runs(study.id), index.values(study.id)
        broken = index.broken(study.id)
    for run in runs:
        place = places.get((run.arm, run.cell_label, run.identity))
        event = struck.get(run.id) or _of_study(struck.get(study.id))
        if event is not None:
            invalid.append((run, event))
        elif place is None:
            stale.append(run)
        else:
            candidates.setdefault(place, []).append(run)
    for same in candidates.values():
        if len(same) > 1:
            same.sort(key=_precedence)
    values: dict[str, dict[str, MetricRow]] = {}
    by_id = {run.id: run for run in runs}
    for row in rows:
        if not row.source.startswith("analysis ") or not _is_struck(
            study.id, row.source.removeprefix("analysis "), by_id[row.run], struck
        ):
            values.setdefault(row.run, {})[row.name] = row
    _pin(study, values)
    return Selection(
        planned=planned,
        counting={place: same[0] for place, same in candidates.items()},
        invalid=tuple(invalid),
        superseded=tuple(run for same in candidates.values() for run in same[1:]),
        stale=tuple(stale),
        values=values,
        broken=tuple(broken),
    )


def _is_struck(study: str, analysis: str, run: IndexedRun, struck: Mapping[str, Event]) -> bool:
    """Whether a result was invalidated: by its analysis and version, or by an artifact it read."""
    inputs = run.analyses.get(analysis, {}).values()
    return f"analysis:{study}/{analysis}" in struck or any(
        f"artifact:{sha256}" in struck for sha256 in inputs
    )


def _pin(study: Study, values: Mapping[str, dict[str, MetricRow]]) -> None:
    """Give the metrics of each analysis, in the version that the study asks for, their own name.

    What the run itself measured under that name stands: an analysis adds, it does not replace.
    """
    pins = {f"analysis {name}@{one.version}" for name, one in study.analyses.items()}
    for found in values.values() if pins else ():
        for name, row in list(found.items()):
            if row.source in pins:
                found.setdefault(name.rpartition("@")[0], row)


def _precedence(run: IndexedRun) -> tuple[int | str, ...]:
    return precedence(run.id, phase=run.phase, generation=run.generation, status=run.status)


@contextmanager
def no_collection() -> Iterator[None]:
    """Make many objects at once without looking for cycles in them; there are none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _of_study(event: Event | None) -> Event | None:
    """An event that strikes all runs of a study, also later ones: one that lists none."""
    return None if event is None or "runs" in event.body else event


@dataclass(frozen=True)
class StudyEvidence:
    """What a criterion sees of a study (`assay.core.criterion.Evidence`).

    Attributes:
        study: The study.
        selection: Its runs.
        phase: The lowest phase whose runs are admitted.
    """

    study: Study
    selection: Selection
    phase: str = "debug"

    @property
    def arms(self) -> tuple[str, ...]:
        """Arm names of the study."""
        return tuple(self.study.arms)

    @property
    def grid(self) -> Mapping[str, tuple[Any, ...]]:
        """Grid keys and their values."""
        return self.study.grid

    @cached_property
    def seeds(self) -> tuple[str, ...]:
        """Labels of all planned seeds."""
        return tuple(dict.fromkeys(run.seed_label for run in self.selection.planned))

    @cached_property
    def metrics(self) -> frozenset[str]:
        """Metrics that are declared or were logged by runs that count."""
        known = set(self.study.metrics)
        known.update(*(analysis.known for analysis in self.study.analyses.values()))
        for run in self.selection.counting.values():
            known.update(self.selection.values.get(run.id, ()))
        return frozenset(known)

    def values(self, metric: str, arm: str, cell: Mapping[str, Any]) -> Mapping[str, float | None]:
        """Seed label → final value; None for a run that failed or has no such value."""
        label = cell_label({key: cell[key] for key in self.study.grid})
        lowest = PHASES.index(self.phase)
        found: dict[str, float | None] = {}
        for seed in self.seeds:
            run = self.selection.counting.get((arm, label, seed))
            if run is None or run.status not in ENDED or PHASES.index(run.phase) < lowest:
                continue
            row = self.selection.values.get(run.id, {}).get(metric)
            found[seed] = None if run.status == "failed" or row is None else number(row)
        return found


def number(row: MetricRow) -> float:
    """The final value; SQLite keeps NaN as NULL."""
    return math.nan if row.value is None else row.value


def by_phase(study: Study, selection: Selection) -> dict[str, StudyEvidence]:
    """For each phase, the evidence that a claim of that phase may rest on."""
    return {phase: StudyEvidence(study, selection, phase) for phase in PHASES}
