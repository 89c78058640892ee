"""The figure of an analysis. Imports matplotlib: import it where it is drawn."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from assay.core.errors import ConfigError
from assay.engines.concepts.analysis import Analysis
from assay.engines.concepts.analysis_metrics import DISTINCT

FORMATS = (".svg", ".png", ".pdf")
DEEP = 1e-4
"""Singular values below this share of the largest are not shown: a layer norm leaves one near 0."""
NAMED = 6
"""Layers that the legend names, the first and the last among them."""


def check(path: Path) -> None:
    """A figure can be written there, as far as its name tells.

    Raises:
        ConfigError: Its format is unknown, or its folder is not there.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(f"A figure's name must end in {', '.join(FORMATS)}; got {str(path)!r}.")
    if not path.parent.is_dir():
        raise ConfigError(
            f"A figure must be written into a folder that exists; {path.parent} does not. Make it, or give another."
        )


def draw(analysis: Analysis, path: Path, *, title: str = "") -> None:
    """Singular values, and of each slot its input dependence and how it reads, layer by layer.

    Args:
        analysis: Of `analyse`; without attention, the two panels of reading are left out.
        path: Where to.
        title: Above all, such as the model's name.

    Raises:
        ConfigError: As `check`.
    """
    check(path)
    rows = 2 if analysis.attention else 1
    figure = Figure(figsize=(9.6, 0.4 + 3.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 2, squeeze=False)
    texts, slots = len(analysis.text_TK), len(analysis.dependence_C)
    _spectra(axes[0, 0], analysis)
    _dependence(axes[0, 1], analysis)
    if analysis.attention:
        _reading(axes[1, 0], [use.entropy for use in analysis.attention], 1.0)
        axes[1, 0].set_ylabel("entropy of reading / log tokens")
        axes[1, 0].set_title("How evenly a slot reads (1: all tokens alike)", fontsize=10)
        distances = [use.distance for use in analysis.attention]
        # From 0, but not always to 1: in most models all slots read much alike.
        most = max(2 * DISTINCT, *(float(values.max()) for values in distances))
        _reading(axes[1, 1], distances, min(1.0, 1.1 * most))
        axes[1, 1].axhline(DISTINCT, color="0.4", linestyle=":", linewidth=1)
        axes[1, 1].set_ylabel("total variation distance")
        axes[1, 1].set_title(
            f"How far from the mean slot it reads (dotted: distinct, {DISTINCT:g})", fontsize=10
        )
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
    counts = f"{slots} slots, n = {texts} texts"
    figure.suptitle(f"{title}: {counts}" if title else counts, fontsize=11)
    figure.savefig(path, dpi=150)


def _spectra(panel: Axes, analysis: Analysis) -> None:
    numbers = np.arange(1, len(analysis.mean_K) + 1)
    many = {
        "single texts": (analysis.text_TK, "C0"),
        "single texts less the mean": (analysis.input_TK, "C1"),
    }
    top = 0.0
    for label, (values_TK, colour) in many.items():
        low, middle, high = np.quantile(values_TK.cpu().numpy(), [0.05, 0.5, 0.95], axis=0)
        panel.fill_between(numbers, low, high, color=colour, alpha=0.2, linewidth=0)
        panel.plot(numbers, middle, ".-", color=colour, markersize=4, linewidth=1.2, label=label)
        top = max(top, float(high.max()))
    mean_K = analysis.mean_K.cpu().numpy()
    panel.plot(
        numbers, mean_K, ".--", color="0.2", markersize=4, linewidth=1.2, label="mean of all texts"
    )
    top = max(top, float(mean_K.max()))
    if top > 0:
        panel.set_yscale("log")
        every = np.concatenate([mean_K, analysis.text_TK.cpu().numpy().ravel()])
        smallest = float(every[every > DEEP * top].min(initial=top))
        panel.set_ylim(max(DEEP * top, 0.3 * smallest), 2 * top)
    panel.set_xlim(1 - 0.02 * len(numbers), 1.02 * len(numbers))
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("k, the largest first")
    panel.set_ylabel("k-th singular value of concepts [C, H]")
    panel.set_title("Spectrum (median, 5th to 95th percentile of texts)", fontsize=10)
    panel.legend(frameon=False, fontsize=8, loc="best")


def _dependence(panel: Axes, analysis: Analysis) -> None:
    whole = analysis.measures["input_dependence"]
    values = analysis.dependence_C.cpu().numpy()
    panel.bar(np.arange(len(values)), values, width=0.85, color="C0", linewidth=0)
    panel.axhline(
        whole, color="0.2", linestyle="--", linewidth=1.2, label=f"all slots: {whole:.3f}"
    )
    panel.set_ylim(0, 1.18)
    panel.set_yticks(np.linspace(0, 1, 6))
    panel.set_xlim(-0.6, len(values) - 0.4)
    panel.set_xlabel("slot")
    panel.set_ylabel("variance over texts / total variance")
    panel.set_title("Input dependence (0: static, 1: the text's alone)", fontsize=10)
    panel.legend(frameon=False, fontsize=8, loc="upper right")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def _reading(panel: Axes, layers: list[Tensor], top: float) -> None:
    """A value of each slot, a colour for each layer."""
    colours = colormaps["viridis"]
    named = {round(i) for i in np.linspace(0, len(layers) - 1, min(NAMED, len(layers)))}
    for number, values in enumerate(layers):
        label = f"layer {number + 1}" if number in named else None
        shade = colours(0.9 * number / max(1, len(layers) - 1))
        panel.plot(values.numpy(), ".", color=shade, markersize=5, label=label)
    panel.set_ylim(0, 1.18 * top)
    panel.set_xlim(-0.6, len(layers[0]) - 0.4)
    panel.set_xlabel("slot")
    panel.legend(
        frameon=False,
        fontsize=8,
        loc="upper right",
        ncols=NAMED,
        columnspacing=0.7,
        handletextpad=0.1,
    )
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
