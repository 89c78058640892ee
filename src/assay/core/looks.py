"""What the figures of the log have in common: lines and colours of the arms, legends, and how they are stored."""

import io
import itertools
import math
from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB", "#000000")
"""Paul Tol's bright scheme: told apart by colour-blind readers."""
LINES = ("-", "--", ":", "-.")
"""Of the mean: the next one where an arm's colour is taken."""
LOOKS = tuple(itertools.product(LINES, COLOURS))
"""Line and colour of the arms, one after another."""
LARGEST = 1e30
"""What an axis can show."""


def new_figure(width: float, height: float) -> Figure:
    """An empty one, without a window and without pyplot's global state; in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure, title: str) -> bytes:
    """Its file: the same bytes for the same figure, on one version of matplotlib."""
    figure.suptitle(title, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def legend_beside(figure: Figure, axes: Iterable[Axes]) -> None:
    """One for all panels, beside them: inside, it would hide curves."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()), list(handles), loc="outside right center", frameon=False, fontsize=9
    )


def plain(axis: Axes) -> None:
    """A faint grid, and no frame above and to the right."""
    axis.grid(visible=True, alpha=0.25, linewidth=0.5)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def spans(values: Iterable[float], ratio: float) -> bool:
    """Whether all finite values are positive, and the largest is more than `ratio` times the smallest."""
    finite = [y for y in values if math.isfinite(y)]
    return bool(finite) and min(finite) > 1 / LARGEST and max(finite) > ratio * min(finite)
