"""What an audit looks at: the completed runs of a study that count, with values and curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from assay.core.criterion import parse
from assay.core.engine import Metric
from assay.core.evidence import Selection
from assay.core.grammar import Measure
from assay.core.index import Curve, Index
from assay.core.read import MACHINE_METRICS, IndexedRun, MetricRow
from assay.core.study import PHASES, Study


@dataclass(frozen=True)
class Audited:
    """The evidence of one study, for the checks.

    Attributes:
        study: The study.
        selection: Its runs.
        facts: Run id → realised provenance, flat.
        index: For curves.
        phase: The lowest phase of the runs to look at.
    """

    study: Study
    selection: Selection
    facts: Mapping[str, Mapping[str, Any]]
    index: Index
    phase: str = PHASES[0]

    @cached_property
    def runs(self) -> list[IndexedRun]:
        """The completed runs that count, of the phase or later."""
        lowest = PHASES.index(self.phase)
        return [
            run
            for run in self.selection.counting.values()
            if run.status == "completed" and PHASES.index(run.phase) >= lowest
        ]

    @cached_property
    def measures(self) -> list[Measure]:
        """Every function of runs in the study's claims."""
        nodes = [n for c in self.study.claims.values() for n in parse(c.criterion).nodes()]
        return [node for node in nodes if isinstance(node, Measure)]

    @cached_property
    def rows(self) -> dict[str, list[tuple[IndexedRun, MetricRow]]]:
        """Metric → runs that have it, with its values; measurements of the machine left out."""
        found: dict[str, list[tuple[IndexedRun, MetricRow]]] = {}
        for run in self.runs:
            for name, row in self.selection.values.get(run.id, {}).items():
                if not name.startswith(MACHINE_METRICS):
                    found.setdefault(name, []).append((run, row))
        return found

    def curve(self, run: IndexedRun, metric: str) -> Curve | None:
        """Steps and values of a run, thinned."""
        return self.index.curve(run.id, metric)

    def meaning(self, metric: str) -> Metric:
        """What is declared of a metric."""
        return self.study.metrics.get(metric, Metric(says=""))


def arms_of(rows: Sequence[tuple[IndexedRun, MetricRow]]) -> tuple[str, ...]:
    """The arms of some runs."""
    return tuple(sorted({run.arm for run, _ in rows}))


def runs_of(rows: Sequence[tuple[IndexedRun, MetricRow]]) -> str:
    """Some runs in words, the first three by name."""
    names = sorted(f"{run.arm} seed {run.seed_label}" for run, _ in rows)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
