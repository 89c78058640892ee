"""What of a plan is done, what is not, and what goes on from a checkpoint: read from the disk.

`precedence` is the one rule by which, of several runs of one place in a study, one counts; the
evidence follows it too.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from assay.core.errors import StoreError
from assay.core.plan import PlannedRun
from assay.core.run import RunState, checkpoint_step, next_attempt, read_run, run_folder
from assay.core.study import PHASES

STATUS_ORDER = ("completed", "failed", "interrupted", "open")


def precedence(run_id: str, *, phase: str, generation: int, status: str) -> tuple[int | str, ...]:
    """Sorts first the run that counts, of those of one place that nobody invalidated.

    The highest phase, so that a further pilot run takes nothing from a frozen claim; then the
    latest generation, which no clock decides. Two of one generation meet when run directories
    are merged: what ended goes first, and then the id that sorts first.
    """
    return (-PHASES.index(phase), -generation, STATUS_ORDER.index(status), run_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A run that is not done.

    Attributes:
        planned: What to compute.
        folder: Directory of the unfinished run that goes on; None for a fresh one.
        attempt: The attempt that comes next.
        start_step: Step of the checkpoint from which it goes on; None: from scratch.
        generation: 1, or more when an earlier run of the same plan is invalid or repeated.
    """

    planned: PlannedRun
    folder: Path | None = None
    attempt: int = 1
    start_step: int | None = None
    generation: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A plan compared with the run directories.

    Attributes:
        done: Planned runs that need nothing more, with their state: completed, or failed when
            frozen (`failed`).
        pending: Those that do.
        broken: A sentence for every run directory that cannot be read.
    """

    done: tuple[tuple[PlannedRun, RunState], ...]
    pending: tuple[Pending, ...]
    broken: tuple[str, ...]

    @property
    def failed(self) -> tuple[tuple[PlannedRun, RunState], ...]:
        """Frozen runs that failed: the failure counts, and only `again` makes another run."""
        return tuple(pair for pair in self.done if pair[1].status == "failed")

    def cohorts(self, at_once: int = 1) -> list[list[Pending]]:
        """Pending runs grouped by what is computed together, the largest groups first.

        Runs of one cohort start at one step. The largest cohorts are divided until every process
        has as many of them, so that none is idle while the last ones are computed. Neither
        changes a result: a seed in a cohort equals the seed alone.

        Args:
            at_once: Processes.
        """
        groups: dict[tuple[str, int | None], list[Pending]] = {}
        for run in self.pending:
            groups.setdefault((run.planned.cohort, run.start_step), []).append(run)
        cohorts = list(groups.values())
        while len(cohorts) % at_once and len(cohorts) < len(self.pending):
            # Of equals the last, which would be computed last.
            place = max(range(len(cohorts)), key=lambda i: (len(cohorts[i]), i))
            largest = cohorts[place]
            half = (len(largest) + 1) // 2
            cohorts[place : place + 1] = [largest[:half], largest[half:]]
        return sorted(cohorts, key=len, reverse=True)


def survey(
    planned: Sequence[PlannedRun],
    runs_dir: Path,
    *,
    phase: str,
    invalid: Container[str] = frozenset(),
    again: bool = False,
) -> Survey:
    """Compare a plan with the run directories.

    Args:
        planned: The runs of a study.
        runs_dir: Where run directories lie.
        phase: Phase of a fresh run. A run of a lower phase is not done; an unfinished run of
            another phase does not go on, since the code or criteria behind it changed.
        invalid: Ids of invalidated runs; they count as not done.
        again: Plan a further generation even of what is done.

    Raises:
        TamperedError: The checkpoint of an unfinished run was changed.
    """
    done: list[tuple[PlannedRun, RunState]] = []
    pending: list[Pending] = []
    read = _Reader(runs_dir)
    for run in planned:
        states = read.of(run)
        standing = [s for s in states if s.record.id not in invalid]
        counts = min(standing, key=_precedence, default=None)
        if counts is not None and not _has_ended(counts) and counts.record.phase == phase:
            pending.append(_continued(run, counts))
        elif counts is not None and not again and _serves(counts, phase):
            done.append((run, counts))
        else:
            generation = 1 + max((s.record.generation for s in states), default=0)
            pending.append(Pending(planned=run, generation=generation))
    return Survey(done=tuple(done), pending=tuple(pending), broken=tuple(read.problems))


def _precedence(state: RunState) -> tuple[int | str, ...]:
    record = state.record
    return precedence(
        record.id, phase=record.phase, generation=record.generation, status=state.status
    )


def _has_ended(state: RunState) -> bool:
    """Whether no further attempt is made: trying until it works is for pilots."""
    failed = state.status == "failed" and state.record.phase == PHASES[-1]
    return failed or state.status == "completed"


def _serves(state: RunState, phase: str) -> bool:
    rank = PHASES.index
    return _has_ended(state) and rank(state.record.phase) >= rank(phase)


def _continued(run: PlannedRun, state: RunState) -> Pending:
    return Pending(
        planned=run,
        folder=state.path,
        attempt=next_attempt(state.path),
        start_step=checkpoint_step(state.path),
        generation=state.record.generation,
    )


class _Reader:
    """Run directories, each read once: the seeds of a cell lie in one folder."""

    def __init__(self, runs_dir: Path) -> None:
        self.problems: list[str] = []
        self._runs_dir = runs_dir
        self._read: dict[Path, dict[str, list[RunState]]] = {}

    def of(self, run: PlannedRun) -> list[RunState]:
        """The directories of a planned run."""
        cell = run_folder(self._runs_dir, run.study, run.arm, run.cell_label)
        if cell not in self._read:
            found: dict[str, list[RunState]] = {}
            for folder in sorted(cell.glob("*-*")):
                try:
                    state = read_run(folder)
                except StoreError as error:
                    self.problems.append(str(error))
                else:
                    found.setdefault(state.record.identity, []).append(state)
            self._read[cell] = found
        return self._read[cell].get(run.identity, [])
