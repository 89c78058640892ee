import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import LOSS, SCORE, STUDY, Project, add_run, edit

from assay.core.figures import (
    MOST_INSIDE,
    RESULTS,
    band,
    draw_figures,
    figure_digest,
    figure_metrics,
    figure_path,
    is_logarithmic,
)
from assay.core.looks import LOOKS
from assay.core.result_figure import result_metrics
from assay.core.statistics import mean_interval


def curve(steps, values):
    return np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def draw(project):
    with project.index() as index:
        return draw_figures(project.study, project.select(), index, project.settings.figures_dir)


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=4), min_size=2, max_size=6))
def test_band_is_the_t_interval_at_each_step(values):
    """On common steps the band is the mean's 95 % t interval, step by step."""
    steps, mean, low, high = band([curve([0, 1, 2, 5], v) for v in values])
    assert steps.tolist() == [0, 1, 2, 5]
    for i in range(4):
        expected = mean_interval([v[i] for v in values])
        got = (mean[i], low[i], high[i])
        assert got == pytest.approx((expected.estimate, expected.low, expected.high), abs=1e-6)


def test_band_covers_the_range_that_all_seeds_have():
    """A run that stopped early ends the band; it does not bend the mean."""
    steps, mean, _, _ = band([curve([0, 1, 2, 3], [0, 1, 2, 3]), curve([1, 2], [1, 2])])
    assert steps.tolist() == [1, 2]
    assert mean.tolist() == [1, 2]


def test_thinned_curves_keep_a_full_band():
    """Curves that kept other points in each seed still have a mean over their whole range."""
    a = curve(range(0, 1000, 2), range(0, 1000, 2))
    b = curve([0, *range(1, 998, 2), 998], [0, *range(1, 998, 2), 998])
    steps, mean, low, high = band([a, b])
    assert steps.size > 400
    assert np.allclose(mean, steps)
    assert np.allclose(low, steps)
    assert np.allclose(high, steps)


def test_one_seed_has_no_band():
    """One seed: the band is the mean."""
    _, mean, low, high = band([curve([0, 1], [1, 2])])
    assert mean.tolist() == low.tolist() == high.tolist() == [1, 2]


def test_non_finite_values_leave_a_gap():
    """Where a seed is not finite there is no mean and no band; elsewhere both stand."""
    _, mean, low, _ = band([curve([0, 1, 2], [1, math.nan, 3]), curve([0, 1, 2], [2, 2, math.inf])])
    assert mean[0] == 1.5
    assert low[0] < 1.5
    assert math.isnan(mean[1])
    assert not math.isfinite(mean[2])


def test_steps_out_of_order_and_twice():
    """Rows in any order are sorted; of two at one step the last counts."""
    steps, mean, _, _ = band([curve([2, 0, 1, 1], [5, 3, 9, 4])])
    assert steps.tolist() == [0, 1, 2]
    assert mean.tolist() == [3, 4, 5]


def test_seeds_without_a_common_range_have_no_mean():
    """Curves that do not overlap give an empty mean, not an error."""
    assert band([curve([0, 1], [1, 1]), curve([5, 6], [1, 1])])[0].size == 0


def test_metrics_with_direction_and_curve(project):
    """Only a metric with a direction that has a curve is drawn."""
    project.add("a", 1, 0.5, series={LOSS: [2.0, 1.0], "model/parameters": [1.0, 1.0]})
    with project.index() as index:
        assert figure_metrics(project.study, project.select(), index) == [LOSS]


def test_curves_that_never_change_are_not_drawn(project):
    """A net that is not trained has the same loss at every step; one run that changes is enough."""
    project.add("a", 1, 0.5, series={LOSS: [2.0, 2.0]})
    project.add("a", 2, 0.5, series={LOSS: [3.0, 3.0]})
    with project.index() as index:
        assert figure_metrics(project.study, project.select(), index) == []
    project.add("a", 3, 0.5, series={LOSS: [3.0, 2.0]})
    with project.index() as index:
        assert figure_metrics(project.study, project.select(), index) == [LOSS]


def test_results_are_drawn_where_arms_or_cells_differ(project):
    """A value that all arms have alike is no result; what is no number is left out."""
    for seed in (1, 2):
        project.add("a", seed, seed / 10)
        project.add("b", seed, seed / 10)
    project.add("a", 3, math.nan)
    assert result_metrics(project.study, project.select()) == []
    assert draw(project) == {}
    project.add("b", 3, 0.9)
    assert result_metrics(project.study, project.select()) == [SCORE]
    (path,) = draw(project)
    assert path == figure_path(project.settings.figures_dir, project.study, RESULTS)
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG")
    draw(project)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("grid", "columns"),
    [("alpha = [0.1, 0.2]", 1), ("alpha = [0.1, 0.2]\nwidth = [1, 2, 3]", 2)],
)
def test_results_along_a_grid(project, grid, columns):
    """A column a cell of all axes but the longest; seeds that are missing, or no number, leave gaps."""
    text = STUDY.partition("[claims")[0].replace("width = 8\n", "")
    project.write(edit(text, ("[config]", f"[grid]\n{grid}\n[config]")))
    for number, planned in enumerate([*project.plan("a"), *project.plan("b")[::2]]):
        value = (math.nan, math.inf, 1e300)[number] if number < 3 else 10.0 ** (number % 7)
        add_run(project.runs, planned, summary={SCORE: value})
    (path,) = draw(project)
    width, _ = struct.unpack(">II", path.read_bytes()[16:24])
    assert width == pytest.approx(130 * (3.0 + 3.4 * columns), abs=2)


def test_invalid_runs_are_not_drawn(project):
    """A run that does not count has no curve in a figure."""
    project.add("a", 1, 0.5, series={LOSS: [2.0, 1.0]})
    project.write(edit(STUDY, ("width = 8", "width = 9")))
    assert draw(project) == {}


def test_same_index_same_bytes(project):
    """A figure is a pure function of the runs."""
    for seed in (1, 2, 3):
        project.add("a", seed, 0.5, series={LOSS: [3.0, 2.0, seed / 10]})
    ((path, digest),) = draw(project).items()
    assert path == figure_path(project.settings.figures_dir, project.study, LOSS)
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG")
    assert digest == figure_digest(first)
    assert draw(project) == {path: digest}
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    "values", [[math.nan, math.nan], [0.0, -1.0], [math.inf, 1.0], [1e300, 1e-300], [1.0, 1.0]]
)
def test_odd_values_can_be_drawn(project, values):
    """NaN, zero, negative, infinite and enormous values draw without a warning."""
    project.add("a", 1, 0.5, series={LOSS: values})
    project.add("b", 1, 0.5, series={LOSS: [2.0, 1.0]})
    assert figure_path(project.settings.figures_dir, project.study, LOSS) in draw(project)


@pytest.mark.parametrize(
    ("metric", "values", "logarithmic"),
    [
        ("val/loss_nats", [6.5, 6.3], False),
        ("val/loss_nats", [6.5, 0.2, math.nan, math.inf], True),
        ("val/loss_nats", [6.5, 0.0], False),
        ("val/loss_nats", [math.nan], False),
        ("val/accuracy", [0.9, 0.01], False),
    ],
)
def test_a_loss_has_a_logarithmic_axis_where_it_spans_sizes(metric, values, logarithmic):
    assert is_logarithmic(metric, values) is logarithmic


def test_one_panel_a_cell(project):
    """A grid gives panels; more cells than fit are said, and cells without runs stay empty."""
    text = STUDY.partition("[claims")[0]
    grid = f"[grid]\nalpha = {[i / 10 for i in range(20)]}\n[config]"
    project.write(edit(text, ("[config]", grid)))
    add_run(project.runs, project.plan("b")[3], summary={SCORE: 1.0}, series={LOSS: [2.0, 1.0]})
    (path,) = draw(project)
    assert path.stat().st_size > 1000


def test_arms_do_not_look_alike_and_many_are_named_beside_the_panel(project):
    """Beyond eight arms the line changes; beyond six the picture is wider, for the names."""
    assert len(set(LOOKS)) == len(LOOKS) >= 32
    head, _, _ = STUDY.partition("[claims")[0].partition("[arms")
    widths = []
    for count in (MOST_INSIDE, MOST_INSIDE + 1):
        names = ["a", "b", "c", "d", "e", "f", "g"][:count]
        arms = "".join(f'[arms.{n}]\nmethod = "{n}"\n' for n in names)
        project.write(head + arms)
        for name in names:
            project.add(name, 1, 0.5, series={LOSS: [2.0, 1.0]})
        (path,) = draw(project)
        widths.append(struct.unpack(">II", path.read_bytes()[16:24])[0])
    assert widths[1] > widths[0]
