"""Figures of a study: its results, and one a metric over steps, every seed thin, mean and its 95 % band thick."""

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy import special

from assay.core.engine import Metric
from assay.core.evidence import Selection
from assay.core.files import write_atomic, write_error
from assay.core.index import Index
from assay.core.looks import LARGEST, LOOKS, legend_beside, new_figure, plain, png, spans
from assay.core.plan import cell_label, cells
from assay.core.result_figure import draw_results, result_metrics
from assay.core.study import Study

RESULTS = "results"
"""Name of the figure of final values."""
MOST_INSIDE = 6
"""Arms that a legend inside the one panel may name: more would hide curves."""
MAX_PANELS = 16
MAX_POINTS = 512
LEAST_RATIO = 3.0
"""Of a loss's largest to its smallest value where the axis is logarithmic: within less, it would have no round numbers."""
DIGEST_LENGTH = 12
Curve = tuple[NDArray[np.int64], NDArray[np.float64]]


def figure_metrics(study: Study, selection: Selection, index: Index) -> list[str]:
    """Metrics that have a direction, and a curve that is not the same at every step in a run that counts."""
    counting = {run.id for run in selection.counting.values()}
    return [
        name
        for name, metric in study.metrics.items()
        if metric.goal != "none"
        and any(
            run in counting and not (values == values[0]).all()
            for run, (_, values) in index.curves(study.id, name).items()
        )
    ]


def figure_path(folder: Path, study: Study, metric: str) -> Path:
    """Where the figure of a metric lies, below the folder of all figures."""
    return folder / study.id / f"{metric.replace('/', '-')}.png"


def figure_paths(study: Study, selection: Selection, index: Index, folder: Path) -> list[Path]:
    """Every file that `draw_figures` writes, in its order."""
    results = [RESULTS] if result_metrics(study, selection) else []
    names = [*results, *figure_metrics(study, selection, index)]
    return [figure_path(folder, study, name) for name in names]


def draw_figures(study: Study, selection: Selection, index: Index, folder: Path) -> dict[Path, str]:
    """Draw the results, and a figure for each metric of `figure_metrics`; returns the files with their digests.

    The same index gives the same bytes, on one version of matplotlib.

    Raises:
        StoreError: A file cannot be written.
    """
    results = draw_results(study, selection)
    drawn = {} if results is None else {RESULTS: results}
    for name in figure_metrics(study, selection, index):
        drawn[name] = _draw(study, selection, index, name)
    digests = {}
    for name, content in drawn.items():
        path = figure_path(folder, study, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(path.parent, error) from error
        write_atomic(path, content)
        digests[path] = figure_digest(content)
    return digests


def figure_digest(content: bytes) -> str:
    """What the log lists beside a figure: the beginning of the SHA-256 of its file."""
    return hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH]


def _draw(study: Study, selection: Selection, index: Index, metric: str) -> bytes:
    every = list(cells(study.grid))
    panels = every[:MAX_PANELS]
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    found = _curves(study, selection, index, metric)
    named = len({arm for arm, _ in found})
    beside = len(panels) > 1 or named > MOST_INSIDE
    width = 1.5 + 5.0 * columns + (2.0 if beside and columns == 1 else 0.0)
    height = max(0.9 + 3.1 * rows, 0.9 + 0.2 * named if beside else 0.0)
    figure = new_figure(width, height)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis, cell in zip(axes.flat, panels, strict=False):
        for look, arm in zip(itertools.cycle(LOOKS), study.arms, strict=False):
            _draw_arm(axis, found.get((arm, cell_label(cell)), []), arm, look)
        _style(axis, study.metrics.get(metric), metric, cell)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    if beside:
        legend_beside(figure, axes.flat)
    elif named:
        axes[0, 0].legend(frameon=False, fontsize=8)
    less = f"; {len(panels)} of {len(every)} cells" if len(every) > len(panels) else ""
    title = f"{study.id}: {metric} (every seed thin; mean and 95 % band thick{less})"
    return png(figure, title)


def _curves(
    study: Study, selection: Selection, index: Index, metric: str
) -> dict[tuple[str, str], list[Curve]]:
    """(Arm, cell) → the curves of its runs that count, in the order of the planned seeds."""
    known = index.curves(study.id, metric)
    found: dict[tuple[str, str], list[Curve]] = {}
    for planned in selection.planned:
        run = selection.counting.get(planned.key)
        if run is not None and run.id in known:
            steps, values = known[run.id]
            # A diverged value beyond what an axis can show is a gap.
            drawable = np.where(np.abs(values) <= LARGEST, values, np.nan)
            found.setdefault(planned.key[:2], []).append((steps, drawable))
    return found


def _draw_arm(axis: Axes, curves: Sequence[Curve], arm: str, look: tuple[str, str]) -> None:
    line, colour = look
    for steps, values in curves:
        axis.plot(steps, values, color=colour, linewidth=0.6, alpha=0.45)
    if not curves:
        return
    steps, mean, low, high = band(curves)
    axis.plot(steps, mean, line, color=colour, linewidth=2.2, label=f"{arm} [n={len(curves)}]")
    axis.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)


def band(
    curves: Sequence[Curve],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean and 95 % t band of several seeds, over the range that all of them cover.

    Curves with the same steps are averaged as they are. Others (thinned curves keep other points
    in each seed) are read off at common steps, linearly between their own points.

    Returns:
        Steps, mean, lower and upper limit; the band is the mean itself where it is not defined
        (one seed, or a value that is not finite).
    """
    ordered = [_in_order(curve) for curve in curves]
    steps = _common_steps([c[0] for c in ordered])
    values = np.stack([np.interp(steps, *curve) for curve in ordered])
    with np.errstate(invalid="ignore"):
        mean = values.mean(axis=0)
    low, high = mean.copy(), mean.copy()
    if len(curves) > 1:
        finite = np.isfinite(values).all(axis=0)
        half = -special.stdtrit(len(curves) - 1, 0.025) / math.sqrt(len(curves))
        spread = half * values[:, finite].std(axis=0, ddof=1)
        low[finite] -= spread
        high[finite] += spread
    return steps, mean, low, high


def _in_order(curve: Curve) -> Curve:
    """By step; of several values at one step the last that was logged."""
    order = np.argsort(curve[0], kind="stable")
    steps, values = curve[0][order], curve[1][order]
    last = np.append(steps[1:] != steps[:-1], True)
    return steps[last], values[last]


def _common_steps(all_steps: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The steps of all curves within the range of each, at most `MAX_POINTS`."""
    steps = np.unique(np.concatenate(all_steps))
    first, last = max(s[0] for s in all_steps), min(s[-1] for s in all_steps)
    inside: NDArray[np.int64] = steps[(steps >= first) & (steps <= last)]
    if inside.size > MAX_POINTS:
        inside = inside[np.linspace(0, inside.size - 1, MAX_POINTS).round().astype(np.int64)]
    return inside


def _style(axis: Axes, known: Metric | None, metric: str, cell: Mapping[str, object]) -> None:
    axis.set_xlabel("step")
    axis.set_ylabel(metric)
    if cell:
        axis.set_title(cell_label(cell), fontsize=9)
    shown = [y for line in axis.get_lines() for y in np.asarray(line.get_ydata()).tolist()]
    if known is not None and known.low == 0 and known.high == 1:
        axis.set_ylim(-0.02, 1.02)
    elif is_logarithmic(metric, shown):
        axis.set_yscale("log")
        # The band may reach below zero; the axis is for the seeds.
        axis.set_ylim(bottom=0.8 * min(filter(math.isfinite, shown)))
    plain(axis)


def is_logarithmic(metric: str, values: Iterable[float]) -> bool:
    """Whether the axis is: of a loss, where all values are positive and not all of one size."""
    return "loss" in metric and spans(values, LEAST_RATIO)
