"""The loop that all tasks share: advance, evaluate, save, stop, finish."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from assay.core.engine import RunContext
from assay.engines import memory
from assay.engines.credit.cohort import check_cohort, shared

SHOW_EVERY_S = 1.0
CACHED_BYTES = 3 << 20
"""States that are computed together: more leave the second-level cache, and every pass pays for it."""


class Work(Protocol):
    """Runs that are computed together, as the loop sees them."""

    contexts: Sequence[RunContext]
    step: int
    steps: int
    loss_S: Tensor

    def restore(self) -> None:
        """Go on from checkpoints, where there are any."""

    def advance(self) -> None:
        """One step of every run."""

    def at_evaluation(self) -> bool:
        """Whether this step is followed by an evaluation."""

    def evaluate(self) -> None:
        """Measure, log, save."""

    def save(self) -> None:
        """Checkpoints of all runs."""

    def finish(self, seconds_per_step: float) -> None:
        """Final values."""


def compute(
    begin: Callable[[Sequence[Any], Sequence[RunContext]], Work],
    configs: Sequence[Any],
    contexts: Sequence[RunContext],
    *,
    stackable: frozenset[str],
    state_bytes: int,
    alike: frozenset[str] = frozenset(),
) -> None:
    """Compute a cohort to the end, or until it is asked to stop.

    Args:
        begin: Makes the work of some runs.
        configs: One a run.
        contexts: One a run.
        stackable: Settings in which the runs may differ.
        state_bytes: Bytes of one run's states of one batch; decides how many runs are stacked, which
            changes no result.
        alike: Settings that change nothing of a run's training: runs that differ in no other are computed
            as one.
    """
    check_cohort(configs, contexts, stackable)
    size = together(state_bytes)
    memory.keep()
    with one_thread():
        groups = shared(configs, contexts, alike)
        for first in range(0, len(groups), size):
            part = [place for group in groups[first : first + size] for place in group]
            if not _to_the_end(begin([configs[i] for i in part], [contexts[i] for i in part])):
                return


def together(state_bytes: int) -> int:
    """How many runs of different training are stacked, by the bytes of one run's states."""
    return max(1, CACHED_BYTES // state_bytes)


def _to_the_end(work: Work) -> bool:
    """False if it was asked to stop before."""
    work.restore()
    clock = Clock(work)
    while work.step < work.steps:
        work.advance()
        clock.show()
        stop = any(context.should_stop() for context in work.contexts)
        if work.at_evaluation():
            work.evaluate()
        elif stop:
            work.save()
        if stop and work.step < work.steps:
            return False
    work.finish(clock.seconds_per_step())
    return True


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on the calling thread: a second changes last bits with the size of a cohort."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Clock:
    """Speed, and when to tell the live display.

    Args:
        work: Whose.
    """

    def __init__(self, work: Work) -> None:
        self.work, self.first = work, work.step
        self.began = self.shown = time.perf_counter()

    def show(self) -> None:
        """Pass progress on, at most once a second."""
        now = time.perf_counter()
        if now - self.shown < SHOW_EVERY_S:
            return
        self.shown = now
        for run, context in enumerate(self.work.contexts):
            shown = {"loss": float(self.work.loss_S[run])}
            context.progress(self.work.step, self.work.steps, shown)

    def seconds_per_step(self) -> float:
        """Wall time of a step of the runs that are stacked, evaluations included."""
        return (time.perf_counter() - self.began) / max(1, self.work.step - self.first)
