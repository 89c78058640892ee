"""Laws of comparing a plan with the run directories."""

import itertools

import pytest

from assay.core.plan import PlannedRun
from assay.core.run import (
    EndRecord,
    append_event,
    create_run,
    new_record,
    write_checkpoint,
    write_end,
)
from assay.core.survey import survey


def planned(seed: int = 1, *, cohort: str = "c", arm: str = "a") -> PlannedRun:
    return PlannedRun(
        study="s", arm=arm, cell={}, cell_label="all", seeds={"init": seed}, seed_label=str(seed),
        config={}, typed_config=None, cmd=None, env={}, budget={}, identity=f"{arm}-{seed}",
        cohort=cohort,
    )  # fmt: skip


def make(runs_dir, run: PlannedRun, *, status=None, generation=1, phase="pilot", checkpoint=None):
    """A run directory in some state; None is a run whose worker was killed."""
    record = new_record(
        study=run.study, arm=run.arm, identity=run.identity, cell_label=run.cell_label,
        seed_label=run.seed_label, generation=generation, phase=phase,
    )  # fmt: skip
    folder = create_run(runs_dir, record)
    append_event(folder, 1, "started", "from scratch", start_step=None)
    if checkpoint is not None:
        write_checkpoint(folder, checkpoint, b"state")
    if status is not None:
        end = EndRecord(status=status, attempt=1, ended_at="", duration_s=1.0, error=None,
                        summary={}, spent={}, rows=0, files={})  # fmt: skip
        write_end(folder, end)
    return folder


def look(runs_dir, *runs: PlannedRun, **options):
    return survey(runs or [planned()], runs_dir, **{"phase": "pilot"} | options)


def test_nothing_is_done_where_nothing_is(tmp_path):
    """Without run directories every run is fresh: attempt 1, generation 1, from scratch."""
    (pending,) = look(tmp_path).pending
    assert (pending.folder, pending.attempt, pending.start_step, pending.generation) == (None, 1, None, 1)  # fmt: skip


def test_completed_is_done(tmp_path):
    """A completed run is not computed again."""
    make(tmp_path, planned(), status="completed")
    assert len(look(tmp_path).done) == 1
    assert not look(tmp_path).pending


def test_frozen_run_that_failed_is_not_tried_until_it_works(tmp_path):
    """It is done and failed, for a later pilot too; only --again makes a further run of it."""
    make(tmp_path, planned(), status="failed", phase="frozen", checkpoint=40)
    for phase in ("frozen", "pilot"):
        found = look(tmp_path, phase=phase)
        assert (len(found.done), len(found.failed), found.pending) == (1, 1, ())
    (pending,) = look(tmp_path, phase="frozen", again=True).pending
    assert (pending.folder, pending.generation, pending.start_step) == (None, 2, None)


@pytest.mark.parametrize("status", [None, "interrupted"])
def test_frozen_run_that_was_stopped_goes_on(tmp_path, status):
    """A kill says nothing about the run."""
    folder = make(tmp_path, planned(), status=status, phase="frozen", checkpoint=40)
    (pending,) = look(tmp_path, phase="frozen").pending
    assert (pending.folder, pending.attempt) == (folder, 2)


def test_a_pilot_run_does_not_supersede_a_frozen_one(tmp_path):
    """The highest phase counts before the latest generation."""
    frozen = make(tmp_path, planned(), status="completed", phase="frozen")
    make(tmp_path, planned(), status="completed", phase="pilot", generation=2)
    ((_, state),) = look(tmp_path, phase="frozen").done
    assert state.path == frozen


@pytest.mark.parametrize("status", [None, "failed", "interrupted"])
def test_unfinished_goes_on_as_the_next_attempt(tmp_path, status):
    """Killed, failed and interrupted runs go on in their directory, from their checkpoint."""
    folder = make(tmp_path, planned(), status=status, checkpoint=40)
    (pending,) = look(tmp_path).pending
    assert (pending.folder, pending.attempt, pending.start_step) == (folder, 2, 40)


def test_invalid_is_not_done(tmp_path):
    """An invalidated run is computed afresh as the next generation; the old one stays."""
    folder = make(tmp_path, planned(), status="completed")
    (pending,) = look(tmp_path, invalid={folder.name.split("-", 1)[1]}).pending
    assert (pending.folder, pending.generation) == (None, 2)


def test_again_is_the_next_generation(tmp_path):
    """--again plans one generation more of what is done."""
    make(tmp_path, planned(), status="completed", generation=3)
    (pending,) = look(tmp_path, again=True).pending
    assert (pending.folder, pending.generation) == (None, 4)


@pytest.mark.parametrize(
    ("have", "want", "done"),
    list(
        zip(
            *zip(*itertools.product(["debug", "pilot", "frozen"], repeat=2), strict=True),
            [True, False, False, True, True, False, True, True, True],
            strict=True,
        )
    ),
)
def test_a_lower_phase_does_not_serve(tmp_path, have, want, done):
    """A run counts as done for its own phase and lower ones, never for a higher one."""
    make(tmp_path, planned(), status="completed", phase=have)
    assert bool(look(tmp_path, phase=want).done) == done


def test_unfinished_of_another_phase_does_not_go_on(tmp_path):
    """A checkpoint from before a freeze is not continued after it: the code may differ."""
    make(tmp_path, planned(), phase="pilot", checkpoint=40)
    (pending,) = look(tmp_path, phase="frozen").pending
    assert (pending.folder, pending.start_step, pending.generation) == (None, None, 2)


def test_of_two_with_one_generation_the_completed_counts(tmp_path):
    """Merged run directories: a completed run is done whatever else has its generation."""
    make(tmp_path, planned(), status=None)
    make(tmp_path, planned(), status="completed")
    make(tmp_path, planned(), status="failed")
    assert len(look(tmp_path).done) == 1


def test_other_identity_is_another_run(tmp_path):
    """A run of the same place in the study but of other content does not count."""
    make(tmp_path, planned(2), status="completed")
    assert len(look(tmp_path, planned(1)).pending) == 1


def test_unreadable_is_told_once_and_counts_as_nothing(tmp_path):
    """A directory that cannot be read is named once, however many seeds the cell has."""
    folder = make(tmp_path, planned(), status="completed")
    (folder / "run.json").write_text("{")
    found = look(tmp_path, planned(1), planned(2), planned(3))
    assert len(found.broken) == 1
    assert str(folder) in found.broken[0]
    assert len(found.pending) == 3


def test_cohorts_start_at_one_step(tmp_path):
    """Runs are computed together only from the same step."""
    runs = [planned(seed) for seed in range(4)]
    make(tmp_path, runs[1], checkpoint=40)
    make(tmp_path, runs[2], checkpoint=40)
    make(tmp_path, runs[3], checkpoint=20)
    cohorts = look(tmp_path, *runs).cohorts()
    assert [[r.planned.seed_label for r in c] for c in cohorts] == [["1", "2"], ["0"], ["3"]]


def test_cohorts_do_not_mix(tmp_path):
    """Runs of different cohorts are never computed together."""
    cohorts = look(tmp_path, planned(1, cohort="x"), planned(2, cohort="y")).cohorts()
    assert len(cohorts) == 2


@pytest.mark.parametrize(
    ("at_once", "sizes"),
    [(1, [3, 3, 3]), (2, [3, 3, 2, 1]), (3, [3, 3, 3]), (5, [3, 2, 2, 1, 1]), (20, [1] * 9)],
)
def test_no_process_is_idle_while_the_last_cohorts_are_computed(tmp_path, at_once, sizes):
    """Largest first, divided until each has as many; a run is not divided."""
    runs = [planned(seed, cohort=name, arm=name) for name in "xyz" for seed in range(3)]
    cohorts = look(tmp_path, *runs).cohorts(at_once)
    assert [len(cohort) for cohort in cohorts] == sizes
    assert {run.planned.identity for cohort in cohorts for run in cohort} == {
        run.identity for run in runs
    }
