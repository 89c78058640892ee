"""Figures of a study: one a metric, every seed thin, mean and its 95 % band thick."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from assay.core.evidence import Selection
from assay.core.files import write_atomic
from assay.core.index import Index
from assay.core.plan import cell_label, cells
from assay.core.statistics import mean_interval
from assay.core.study import Study

COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB", "#000000")
"""Paul Tol's bright scheme: told apart by colour-blind readers."""
MAX_PANELS = 16
Curve = tuple[NDArray[np.int64], NDArray[np.float64]]


def figure_metrics(study: Study, selection: Selection, index: Index) -> list[str]:
    """Metrics that have a direction and a curve."""
    runs = list(selection.counting.values())
    if not runs:
        return []
    return [
        name
        for name, metric in study.metrics.items()
        if metric.goal != "none" and any(index.curve(run.id, name) for run in runs)
    ]


def figure_path(folder: Path, study: Study, metric: str) -> Path:
    """Where the figure of a metric lies, below the folder of all figures."""
    return folder / study.id / f"{metric.replace('/', '-')}.png"


def draw_figures(study: Study, selection: Selection, index: Index, folder: Path) -> list[Path]:
    """Draw a figure for each metric of `figure_metrics`; returns the files.

    The same index gives the same bytes.
    """
    paths = []
    for name in figure_metrics(study, selection, index):
        path = figure_path(folder, study, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, _draw(study, selection, index, name))
        paths.append(path)
    return paths


def _draw(study: Study, selection: Selection, index: Index, metric: str) -> bytes:
    panels = list(cells(study.grid))[:MAX_PANELS]
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(1.5 + 5.0 * columns, 0.9 + 3.1 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis, cell in zip(axes.flat, panels, strict=False):
        for colour, arm in zip(COLOURS * 9, study.arms, strict=False):
            curves = _curves(selection, index, arm, cell_label(cell), metric)
            _draw_arm(axis, curves, arm, colour)
        _style(axis, study, metric, cell_label(cell))
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    axes.flat[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{study.id}: {metric} (every seed; mean and 95 % band)", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def _curves(
    selection: Selection, index: Index, arm: str, cell: str, metric: str
) -> dict[str, Curve]:
    found = {}
    for (run_arm, run_cell, seed), run in selection.counting.items():
        curve = index.curve(run.id, metric) if (run_arm, run_cell) == (arm, cell) else None
        if curve is not None:
            found[seed] = curve
    return found


def _draw_arm(axis: Axes, curves: Mapping[str, Curve], arm: str, colour: str) -> None:
    for steps, values in curves.values():
        axis.plot(steps, values, color=colour, linewidth=0.6, alpha=0.45)
    if not curves:
        return
    steps, mean, low, high = band(list(curves.values()))
    axis.plot(steps, mean, color=colour, linewidth=2.2, label=f"{arm} [n={len(curves)}]")
    axis.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)


def band(
    curves: Sequence[Curve],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean and 95 % t band of several seeds, at the steps that all of them have.

    Returns:
        Steps, mean, lower and upper limit; the band is the mean itself where it is not defined
        (one seed, or a value that is not finite).
    """
    common = set(curves[0][0].tolist()).intersection(*(c[0].tolist() for c in curves))
    steps = np.array(sorted(common), dtype=np.int64)
    values = np.stack([_at(curve, steps) for curve in curves])
    mean = values.mean(axis=0)
    low, high = mean.copy(), mean.copy()
    if len(curves) > 1:
        for i in np.flatnonzero(np.isfinite(values).all(axis=0)):
            interval = mean_interval(values[:, i].tolist())
            low[i], high[i] = interval.low, interval.high
    return steps, mean, low, high


def _at(curve: Curve, steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Values of a curve at some of its steps."""
    order = np.argsort(curve[0], kind="stable")
    found = np.searchsorted(curve[0][order], steps)
    return curve[1][order][found]


def _style(axis: Axes, study: Study, metric: str, label: str) -> None:
    known = study.metrics.get(metric)
    axis.set_xlabel("step")
    axis.set_ylabel(metric)
    if label != "all":
        axis.set_title(label, fontsize=9)
    if known is not None and known.low == 0 and known.high == 1:
        axis.set_ylim(-0.02, 1.02)
    elif "loss" in metric:
        axis.set_yscale("log")
    axis.grid(visible=True, alpha=0.25, linewidth=0.5)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
