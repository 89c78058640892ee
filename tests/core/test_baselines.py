"""Baselines with versions, deltas in units and in per cent, and group statistics that are right."""

import math
import statistics

import pytest
from lab import SCORE, STUDY, Project, edit, run_id

from assay.core.baselines import find_baseline, label_of, set_baseline, struck_runs, values_of
from assay.core.errors import StudyError
from assay.core.ledger import record
from assay.core.render import delta
from assay.core.table import build_table, difference, to_json

A, B = [0.1, 0.2, 0.35], [0.80, 0.91, 0.99]


@pytest.fixture
def project(tmp_path):
    made = Project(tmp_path)
    made.fill(a=A, b=B)
    return made


def put(project, name="glue", arm="a", because="the first"):
    return set_baseline(name, project.study, arm, project.select(), project.settings,
                        project.events(), because)  # fmt: skip


def rows(project):
    return {row.arm: row for row in build_table(project.study, project.select(), [SCORE]).rows}


def test_a_new_version_leaves_the_old_one(project):
    """S3 'sets new GLUE baselines': both stand, each with its values and runs."""
    first = put(project)
    second = put(project, arm="b", because="a better one")
    assert [label_of(e) for e in (first, second)] == ["glue@1", "glue@2"]
    events = project.events()
    assert find_baseline("glue", events).digest == second.digest
    assert find_baseline("glue@1", events).digest == first.digest
    assert list(values_of(first, SCORE, "all").values()) == A
    assert list(values_of(second, SCORE, "all").values()) == B
    for name in ("glue@3", "squad"):
        with pytest.raises(StudyError, match="glue@1, glue@2"):
            find_baseline(name, events)


def test_what_cannot_be_a_baseline_is_refused(project, tmp_path):
    """No such arm, no reason, no runs: nothing is recorded."""
    for arm, because, told in (("c", "x", "unknown arm 'c'"), ("a", " ", "a reason")):
        with pytest.raises(StudyError, match=told):
            put(project, arm=arm, because=because)
    with pytest.raises(StudyError, match="has none that count"):
        put(Project(tmp_path / "empty"))
    assert project.events() == []


def test_a_baseline_whose_runs_were_struck_is_told(project):
    """Its values stay on record; whoever compares with it is told."""
    event = put(project)
    (folder,) = (f for f in project.runs.glob("s/a/*/*") if f.name.startswith("2-"))
    assert struck_runs(event, project.events()) == []
    body = {"target": run_id(folder), "because": "leak"}
    record(project.settings.ledger_dir, "invalidate", "s", body)
    assert struck_runs(event, project.events()) == [run_id(folder)]


def test_deltas_say_their_unit(project):
    """In the metric's unit, and in per cent of the baseline's mean: S3 mixed the two."""
    found = rows(project)["b"]
    assert delta(found).startswith("+0.6833 (")
    # Three seeds cannot tell this baseline from zero: per cent of it have no limits.
    assert delta(found, percent=True) == "+315.4 %, 3 pairs"
    assert found.delta.percent == pytest.approx(100 * (statistics.mean(B) / statistics.mean(A) - 1))
    steady = difference({"1": 0.55, "2": 0.66, "3": 0.6}, {"1": 0.5, "2": 0.6, "3": 0.55})
    assert steady.percent_low < steady.percent < steady.percent_high
    zero = difference({"1": 0.5, "2": 0.6}, {"1": 0.0, "2": 0.0})
    assert zero.percent is None


def test_standard_error_and_spread_of_a_group(project):
    """std over seeds (n - 1), standard error std / sqrt n, and n."""
    row = next(r for r in to_json(build_table(project.study, project.select(), [SCORE]))["rows"]
               if r["arm"] == "a")  # fmt: skip
    assert row["std"] == pytest.approx(statistics.stdev(A))
    assert row["stderr"] == pytest.approx(statistics.stdev(A) / math.sqrt(3))
    assert row["n"] == 3


def test_no_group_statistic_lies_outside_its_runs(project):
    """A known mistake of a tracker: the largest value of a group was below its largest run's."""
    row = rows(project)["b"]
    assert max(row.seeds.values()) == max(B)
    assert min(B) <= row.mean <= max(B)


def test_showing_a_group_changes_no_other(project, tmp_path):
    """A known mistake of a tracker: with one group shown, another's mean was different."""
    alone = Project(
        tmp_path / "alone", edit(STUDY, ('[arms.b]\nmethod = "b"\n', "")).partition("[claims")[0]
    )
    alone.fill(a=A)
    both, one = rows(project)["a"], rows(alone)["a"]
    assert (both.mean, both.std, both.n, both.seeds) == (one.mean, one.std, one.n, one.seeds)
    narrow = build_table(project.study, project.select(), [SCORE, "train/loss_nats"])
    assert next(r for r in narrow.rows if (r.arm, r.metric) == ("a", SCORE)).mean == both.mean
