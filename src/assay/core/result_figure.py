"""The figure of a study's results: final values, every seed a dot, mean and 95 % interval of each arm."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from matplotlib.axes import Axes

from assay.core.evidence import Selection
from assay.core.looks import LARGEST, LINES, LOOKS, legend_beside, new_figure, plain, png, spans
from assay.core.plan import cell_label, cells
from assay.core.study import Study
from assay.core.table import Cell, build_table, default_metrics

MOST_METRICS = 9
MOST_COLUMNS = 4
COLUMNS = 3
"""Of panels, where they follow one another and no cells give them their columns."""
LEAST_RATIO = 100.0
"""Of the largest to the smallest value where the axis is logarithmic; to the middle one where some are negative."""
MARKERS = dict(zip(LINES, "os^D", strict=True))
"""Of the seeds: another one where an arm's colour is taken."""
Rows = Mapping[tuple[str, str, str], Cell]


def result_metrics(study: Study, selection: Selection) -> list[str]:
    """Of the metrics that the table shows, those whose values are not the same in every arm and cell."""
    found = []
    for metric in default_metrics(study, selection):
        values: dict[tuple[str, str], set[float]] = {}
        for run in selection.counting.values():
            row = selection.values.get(run.id, {}).get(metric)
            if row is not None and row.value is not None and abs(row.value) <= LARGEST:
                values.setdefault((run.arm, run.cell_label), set()).add(row.value)
        if len({frozenset(of_place) for of_place in values.values()}) > 1:
            found.append(metric)
    return found


def draw_results(study: Study, selection: Selection) -> bytes | None:
    """A panel a metric; where the study has a grid, its longest axis is the panels' own.

    Returns:
        A PNG file; None where there is nothing to draw.
    """
    metrics = result_metrics(study, selection)
    if not metrics:
        return None
    less = f"; {MOST_METRICS} of {len(metrics)} metrics" if len(metrics) > MOST_METRICS else ""
    metrics = metrics[:MOST_METRICS]
    table = build_table(study, selection, metrics)
    rows = {(row.arm, cell_label(row.cell), row.metric): row for row in table.rows}
    title = f"{study.id}: final values (every seed a dot; mean and 95 % interval{less}"
    drawn = _by_axis if study.grid else _by_arm
    return drawn(study, metrics, rows, title)


def _by_arm(study: Study, metrics: Sequence[str], rows: Rows, title: str) -> bytes:
    """Arms below one another, values to the right."""
    lines, columns = _wrapped(len(metrics))
    arms = list(study.arms)
    figure = new_figure(1.5 + 3.6 * columns, 0.6 + lines * (0.7 + 0.24 * len(arms)))
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis, metric in zip(axes.flat, metrics, strict=False):
        for place, (arm, look) in enumerate(zip(arms, itertools.cycle(LOOKS), strict=False)):
            _dots(axis, rows[arm, cell_label({}), metric], place, look, along="y")
        _scale(axis, [rows[arm, cell_label({}), metric] for arm in arms], along="y")
        axis.set_xlabel(metric)
        axis.set_yticks(range(len(arms)), arms)
        axis.set_ylim(len(arms) - 0.5, -0.5)
        plain(axis)
    for axis in axes.flat[len(metrics) :]:
        axis.set_visible(False)
    return png(figure, f"{title})")


def _wrapped(panels: int) -> tuple[int, int]:
    """Lines and columns of so many panels."""
    columns = 2 if panels == 4 else min(COLUMNS, panels)
    return math.ceil(panels / columns), columns


def _by_axis(study: Study, metrics: Sequence[str], rows: Rows, title: str) -> bytes:
    """The longest axis of the grid to the right, values upwards; a column a cell of the other axes."""
    longest = max(study.grid, key=lambda name: len(study.grid[name]))
    others = {name: values for name, values in study.grid.items() if name != longest}
    # Means are joined along numbers alone: between names there is nothing.
    joined = all(isinstance(value, int | float) for value in study.grid[longest])
    every = list(cells(others))
    columns = every[:MOST_COLUMNS]
    panels = len(metrics), len(columns)
    alone = len(columns) == 1
    high, wide = _wrapped(len(metrics)) if alone else panels
    figure = new_figure(3.0 + 3.4 * wide, 0.8 + 2.2 * high)
    every_axis = figure.subplots(
        high, wide, squeeze=False, sharey=False if alone else "row"
    ).ravel()
    for axis in every_axis[math.prod(panels) :]:
        axis.set_visible(False)
    axes = every_axis[: math.prod(panels)].reshape(panels)
    # Cells are labelled in the grid's order, whatever the order in which the axes are taken here.
    labels = [
        [
            cell_label({name: {**other, longest: value}[name] for name in study.grid})
            for value in study.grid[longest]
        ]
        for other in columns
    ]
    for line, metric in enumerate(metrics):
        for axis, other, along in zip(axes[line], columns, labels, strict=True):
            _arms(axis, list(study.arms), metric, rows, along, joined=joined)
            axis.set_xticks(range(len(along)), map(str, study.grid[longest]))
            if other and line == 0:
                axis.set_title(cell_label(other), fontsize=9)
            if alone or line == len(metrics) - 1:
                axis.set_xlabel(longest)
            plain(axis)
        axes[line, 0].set_ylabel(metric)
        every_label = itertools.chain.from_iterable(labels)
        shown = [rows[arm, label, metric] for label in every_label for arm in study.arms]
        _scale(axes[line, 0], shown, along="x")
    legend_beside(figure, axes.flat)
    less = f"; {len(columns)} of {len(every)} columns" if len(every) > len(columns) else ""
    return png(figure, f"{title}{less})")


def _arms(
    axis: Axes,
    arms: Sequence[str],
    metric: str,
    rows: Rows,
    labels: Sequence[str],
    *,
    joined: bool,
) -> None:
    """Each arm a little beside the one before, at the places of the cells with these labels."""
    for number, (arm, look) in enumerate(zip(arms, itertools.cycle(LOOKS), strict=False)):
        aside = 0.4 * ((number + 0.5) / len(arms) - 0.5)
        found = [(place + aside, rows[arm, label, metric]) for place, label in enumerate(labels)]
        means = [(place, row.mean) for place, row in found if row.mean is not None]
        if not means:
            continue
        axis.plot(
            *zip(*means, strict=True),
            color=look[1],
            linestyle=look[0] if joined else "",
            linewidth=1.2,
            marker=MARKERS[look[0]],
            markersize=3.0,
            label=arm,
        )
        for place, row in found:
            _dots(axis, row, place, look, along="x")


def _drawable(row: Cell) -> list[float]:
    """Values of the seeds that an axis can show."""
    return [value for value in row.seeds.values() if abs(value) <= LARGEST]


def _dots(
    axis: Axes, row: Cell, place: float, look: tuple[str, str], *, along: Literal["x", "y"]
) -> None:
    """One arm's seeds, mean and interval at a place along an axis."""
    points = [(place, value) for value in _drawable(row)]
    bar = [(place, end) for end in (row.low, row.high) if end is not None]
    mean = [] if row.mean is None else [(place, row.mean)]
    for many, style in (
        (points, {"marker": MARKERS[look[0]], "linestyle": "", "markersize": 3.0, "alpha": 0.45}),
        (bar, {"linewidth": 1.4}),
        (mean, {"marker": "|" if along == "y" else "_", "markersize": 9.0, "linestyle": ""}),
    ):
        if many:
            places, values = zip(*many, strict=True)
            both = (places, values) if along == "x" else (values, places)
            axis.plot(*both, color=look[1], **style)


def _scale(axis: Axes, rows: Sequence[Cell], *, along: Literal["x", "y"]) -> None:
    """Logarithmic where values span sizes: then the axis is for the seeds, since an interval may reach below zero."""
    seeds = [value for row in rows for value in _drawable(row)]
    set_scale, set_limits = (
        (axis.set_xscale, axis.set_xlim) if along == "y" else (axis.set_yscale, axis.set_ylim)
    )
    sizes = sorted(abs(v) for v in seeds if v)
    if spans(seeds, LEAST_RATIO):
        set_scale("log")
        set_limits(0.7 * min(seeds), None)
    elif sizes and sizes[-1] > LEAST_RATIO * sizes[len(sizes) // 2]:
        set_scale("symlog", linthresh=sizes[len(sizes) // 2])
        set_limits(min(seeds) - 0.5 * abs(min(seeds)), 1.5 * max(map(abs, seeds)))
