import csv
import io
import json
import math
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import LOSS, SCORE, STUDY, Project, add_run, attempt, edit, edit_json, run_id

from assay.core import render
from assay.core.evidence import select
from assay.core.ledger import record
from assay.core.statistics import moments
from assay.core.study import Claim
from assay.core.table import build_table, default_metrics, known_metrics, to_csv, to_json


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def table(project, metrics=(SCORE,)):
    return build_table(project.study, project.select(), metrics)


def row(project, arm="a", metric=SCORE, metrics=None):
    return next(
        r for r in table(project, metrics or [metric]).rows if (r.arm, r.metric) == (arm, metric)
    )


def test_mean_std_and_interval_by_hand(project):
    """0.2, 0.4, 0.9: mean 0.5, std sqrt(0.13), interval 0.5 ± 4.302653 sqrt(0.13 / 3)."""
    project.fill(a=[0.2, 0.4, 0.9])
    cell = row(project)
    half = 4.302652729911275 * math.sqrt(0.13 / 3)
    assert cell.mean == pytest.approx(0.5, rel=1e-12)
    assert cell.std == pytest.approx(math.sqrt(0.13), rel=1e-12)
    assert (cell.low, cell.high) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-9)
    assert (cell.n, cell.failed, cell.missing) == (3, 0, 0)


def test_delta_is_paired_by_seed(project):
    """Differences 0.1, 0.2, 0.3 by seed: mean 0.2, std 0.1, three pairs, whatever the order."""
    project.fill(a=[0.1, 0.5, 0.2])
    for seed, value in ((3, 0.5), (1, 0.2), (2, 0.7)):
        project.add("b", seed, value)
    delta = row(project, "b").delta
    half = 4.302652729911275 * 0.1 / math.sqrt(3)
    assert (delta.mean, delta.n, delta.paired) == (pytest.approx(0.2), 3, True)
    assert (delta.low, delta.high) == pytest.approx((0.2 - half, 0.2 + half))
    assert row(project, "a").delta is None


def test_delta_uses_common_seeds_only(project):
    """A seed that one arm lacks is in no pair."""
    project.fill(a=[0.1, 0.5, 0.6])
    project.add("b", 2, 0.6)
    project.add("b", 3, 0.8)
    assert (row(project, "b").delta.n, row(project, "b").delta.mean) == (2, pytest.approx(0.15))


def test_delta_without_common_seeds_is_of_means(project):
    """Arms without a common seed are compared by their means, and it is said."""
    project.add("a", 1, 0.1)
    project.add("b", 2, 0.4)
    delta = row(project, "b").delta
    assert (delta.mean, delta.paired, delta.low) == (pytest.approx(0.3), False, None)


def test_failed_runs_stay_in_every_count(project):
    """A failed run is counted beside mean and n, in the text and in a note."""
    project.fill(a=[0.2, 0.4])
    project.add("a", 3, 0.9, status="failed", error="Boom")
    cell = row(project)
    assert (cell.n, cell.failed, cell.missing) == (2, 1, 0)
    assert render.mean_std(cell) == "0.3 ± 0.1414 [2] (1 failed)"
    assert "1 run(s) failed and stay in every count." in table(project).notes


def test_a_run_without_the_value_has_not_failed(project):
    """A metric that a run did not reach is told as that, not as a failure."""
    project.fill(a=[0.2, 0.4])
    project.add("a", 3, None)
    cell = row(project)
    assert (cell.n, cell.failed, cell.no_value) == (2, 0, 1)
    assert render.mean_std(cell).endswith("[2] (1 without it)")


def test_open_runs_are_missing(project):
    """Runs that have not ended are told, in the cell and in a note."""
    project.add("a", 1, 0.2)
    project.add("a", 2, 0.9, status=None)
    assert row(project).missing == 2
    assert "5 of 6 planned runs have not ended (1 started)." in table(project).notes


def test_non_finite_values_are_counted_and_left_out(project):
    """NaN and infinities are shown and counted, and spoil no mean."""
    project.fill(a=[0.2, math.nan, math.inf])
    cell = row(project)
    assert (cell.mean, cell.n, cell.non_finite) == (0.2, 1, 2)
    assert render.mean_std(cell) == "0.2 [1] (2 not finite)"
    assert render.seed_values(cell) == "1: 0.2, 2: nan, 3: inf"


def test_enormous_values_do_not_break_the_table(project):
    """Values beyond what a mean can take are counted as not finite."""
    project.fill(a=[1e300, -1e300, 1.0], b=[2.0, 3.0, 9e99])
    assert (row(project).mean, row(project).non_finite) == (1.0, 2)
    delta = row(project, "b").delta
    assert (delta.mean, delta.paired) == (1.5, False)


def test_equal_values_have_no_spread(project):
    """Three equal values: std exactly 0, although their mean is not exact in binary."""
    project.fill(a=[0.1, 0.1, 0.1])
    assert (row(project).std, row(project).low, row(project).high) == (0.0, 0.1, 0.1)


def test_one_run_has_no_spread_and_no_interval(project):
    """n = 1 says nothing about spread."""
    project.add("a", 1, 0.2)
    cell = row(project)
    assert (cell.std, cell.low, cell.high) == (None, None, None)
    assert render.mean_std(cell) == "0.2 [1] (2 not ended)"
    assert render.interval(cell.low, cell.high) == "–"


def test_group_extremes_are_those_of_the_runs(project):
    """wandb#8154: mean and interval of a group lie where its runs do; no value is lost."""
    project.fill(a=[0.1, 0.2, 0.9])
    project.add("b", 1, 0.9999)
    cell = row(project)
    assert max(cell.seeds.values()) == 0.9
    assert min(cell.seeds.values()) <= cell.mean <= max(cell.seeds.values())


def test_a_further_arm_changes_no_other_mean(project):
    """wandb#6672: what is shown of one arm does not depend on which others are there."""
    project.fill(a=[0.1, 0.2, 0.9])
    alone = row(project)
    project.fill(b=[0.7, 0.8, 0.9])
    assert row(project) == alone
    assert row(project, metrics=[LOSS, SCORE]) == alone


def test_thinning_of_curves_does_not_change_final_values(project):
    """The final value is read from all rows, not from the thinned curve."""
    planned = project.plan("a", "1")[0]
    add_run(project.runs, planned, series={LOSS: [float(i % 7) for i in range(1500)]})
    assert row(project, metric=LOSS).seeds == {"1": float(1499 % 7)}


def test_json_round_trip(project):
    """The JSON has every seed with its run, and NaN as a word that JSON readers keep."""
    folders = project.fill(a=[0.2, math.nan, -math.inf], b=[0.1, 0.2, 0.3])
    read = json.loads(json.dumps(to_json(table(project)), allow_nan=False))
    first = read["rows"][0]
    assert first["seeds"] == {"1": 0.2, "2": "nan", "3": "-inf"}
    assert first["run_ids"]["1"] == run_id(folders["a", "1"])
    assert (first["n"], first["non_finite"], read["confidence"]) == (1, 2, 0.95)
    assert read["rows"][1]["delta"]["n"] == 1


def test_csv_round_trip(project):
    """The CSV has one line a seed with the exact value; a failed run has an empty one."""
    text = STUDY.partition("[claims")[0]
    project.write(edit(text, ("[config]", "[grid]\nalpha = [0.5]\n[config]")))
    for planned, value in zip(project.plan("a"), (1 / 3, math.nan, 0.7), strict=True):
        status = "failed" if value == 0.7 else "completed"
        add_run(project.runs, planned, summary={SCORE: value}, status=status)
    lines = list(csv.DictReader(io.StringIO(to_csv(table(project)))))
    assert [line["value"] for line in lines] == [repr(1 / 3), "nan", ""]
    assert {(line["study"], line["arm"], line["alpha"], line["metric"]) for line in lines} == {
        ("s", "a", "0.5", SCORE)
    }
    assert len({line["run"] for line in lines}) == 3


def test_markdown_has_a_line_a_cell(project):
    """A Markdown table has heads, a line a cell, and the notes; bars are escaped."""
    project.fill(a=[0.2, 0.4, 0.9], b=[0.3, 0.5, 1.0])
    text = render.table_markdown(table(project), seeds=True).splitlines()
    assert text[0] == "| arm | metric | mean ± std [n] | 95 % interval | Δ to a | seeds |"
    assert text[2].startswith("| a | `test/score` | 0.5 ± 0.3606 [3] | -0.3957 to 1.396 |  |")
    assert "+0.1 (0.1 to 0.1), 3 pairs" in text[3]
    assert render.row_markdown(["a|b"]) == "| a\\|b |"


def test_a_single_arm_has_no_delta_column(project):
    """Without another arm there is nothing to compare with."""
    text = STUDY.partition("[claims")[0]
    project.write(edit(text, ('[arms.b]\nmethod = "b"\n', "")))
    project.add("a", 1, 0.2)
    assert "Δ" not in render.table_markdown(table(project))


def test_notes_tell_what_is_not_in_the_table(project):
    """Invalidated (with reason), superseded and stale runs are told."""
    struck = project.add("a", 1, 0.2)
    body = {"target": run_id(struck), "because": "env leaked"}
    event = record(project.settings.ledger_dir, "invalidate", "s", body)
    project.add("a", 1, 0.3, generation=2)
    project.add("a", 1, 0.4, generation=3)
    project.add("a", 2, 0.4)
    project.write(edit(STUDY, ("[1, 2, 3]", "[1, 3]")))
    notes = "\n".join(table(project).notes)
    assert f"s/a/all/{struck.name}: invalidated {event.at[:10]}: env leaked" in notes
    assert "1 earlier run(s) were run again" in notes
    assert "1 run(s) have another configuration" in notes
    broken = project.add("b", 1, 0.3)
    edit_json(broken / "end.json", summary={SCORE: 0.9})
    attempt(project.add("b", 3, None, status="failed"), {SCORE: 0.4})
    notes = "\n".join(table(project).notes)
    assert f"1 broken run directory(ies), not counted: s/b/all/{broken.name}" in notes
    assert "1 run(s) failed in an earlier attempt" in notes


def test_invalidated_is_told_from_not_ended(project):
    """A place whose only run was struck is missing for that reason, also after seeds were added."""
    text = edit(STUDY, ('data = "init"', "data = 0"))
    project.write(text)
    struck = project.add("a", 1, 0.2)
    body = {"target": run_id(struck), "because": "env leaked"}
    record(project.settings.ledger_dir, "invalidate", "s", body)
    assert (row(project).missing, row(project).invalid) == (3, 1)
    project.write(edit(text, ("data = 0", "data = [0, 1]")))
    assert (row(project).missing, row(project).invalid) == (6, 1)
    project.write(text)
    project.add("a", 1, 0.3, generation=2)
    assert (row(project).missing, row(project).invalid) == (2, 0)


def test_default_metrics_have_a_direction(project):
    """Unasked, a table shows directed metrics that were measured, test before train."""
    project.add("a", 1, 0.2, series={LOSS: [1.0], "extra/x": [2.0]})
    selection = project.select()
    assert default_metrics(project.study, selection) == [SCORE, LOSS]
    assert known_metrics(project.study, selection) == [SCORE, LOSS, "extra/x"]


def test_a_table_shows_what_claims_are_about(project):
    """Metrics of claims come first, with or without a direction; the study's own choice is all."""
    project.add("a", 1, 0.2, series={LOSS: [1.0], "extra/x": [2.0]})
    selection = project.select()
    about = Claim(says="x is positive.", criterion='mean("extra/x", "a") > 0')
    study = replace(project.study, claims={"x": about})
    assert default_metrics(study, selection) == ["extra/x", SCORE, LOSS]
    chosen = replace(study, table=replace(study.table, shown=[LOSS, "extra/never"]))
    assert default_metrics(chosen, selection) == [LOSS]


def test_empty_study(project):
    """Without runs a table has cells without values, and says what is missing."""
    cell = row(project)
    assert (cell.mean, cell.n, cell.missing) == (None, 0, 3)
    assert render.mean_std(cell) == "– [0] (3 not ended)"
    with project.index() as index:
        assert default_metrics(project.study, select(project.study, index, [])) == []


@given(st.floats(-1e300, 1e300))
def test_a_number_is_never_rounded_to_a_false_integer(value):
    """What is shown is close to the value, and an integer only if the value is one."""
    shown = float(render.number(value).replace(",", ""))
    assert shown == pytest.approx(value, rel=6e-4)
    if abs(value) < 1e6 and abs(value - round(value)) > 1e-12 * max(1, abs(value)):
        assert not shown.is_integer()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.6640001, "0.664"), (0.99996, "0.99996"), (1.0, "1"), (-0.0, "0"), (12345.6, "12,345.6"),
        (1128.0, "1,128"), (-1096.0000000000002, "-1,096"), (1234567.8, "1.235e+06"), (0.00012344, "0.0001234"), (None, "–"),
        (math.nan, "nan"), (math.inf, "inf"), (-0.5, "-0.5"), (0.05, "0.05"),
    ],
)  # fmt: skip
def test_number_as_text(value, text):
    """Four significant digits, thousands apart, and words for what is no number."""
    assert render.number(value) == text


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=9))
def test_std_is_the_sample_standard_deviation(sample):
    """The spread in a table is that of the statistics module."""
    assert moments(sample)[1] == pytest.approx(statistics.stdev(sample), rel=1e-9, abs=1e-9)
