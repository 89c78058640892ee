"""The figure of a comparison."""

from pathlib import Path

import polars
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from assay.core.errors import ConfigError

FORMATS = (".svg", ".png", ".pdf")
ROWS = {"gamma": "Γ: mean cosine", "rho": "ρ: correlation"}


def draw(table: polars.DataFrame, path: Path) -> None:
    """Gamma and rho against depth, a column of panels for each alpha, a line for each method.

    Bars are one standard deviation over seeds. Dashed, in a method's colour, is what copying the
    credit of h_L would have on the same nets.

    Args:
        table: Of a `Comparison`.
        path: Where to.

    Raises:
        ConfigError: Its format is unknown.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(f"A figure's name must end in {', '.join(FORMATS)}; got {str(path)!r}.")
    alphas = sorted(table["alpha"].unique())
    figure = Figure(figsize=(1.2 + 2.9 * len(alphas), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(alphas), sharex=True, sharey="row", squeeze=False)
    for column, alpha in enumerate(alphas):
        own = table.filter(polars.col("alpha") == alpha)
        for row, (metric, label) in enumerate(ROWS.items()):
            _panel(axes[row, column], own, metric)
            if column == 0:
                axes[row, column].set_ylabel(label)
        axes[0, column].set_title(f"α = {alpha:g}", fontsize=10)
        axes[1, column].set_xlabel("blocks")
        axes[1, column].set_xticks(sorted(own["depth"].unique()))
    copying, *lines = axes[0, 0].get_legend_handles_labels()[0]
    handles = [*lines, copying]
    names = [str(handle.get_label()) for handle in handles]
    columns = 2 * len(alphas)
    figure.legend(
        handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )
    figure.savefig(path, dpi=150)


def _panel(axes: Axes, own: polars.DataFrame, metric: str) -> None:
    axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    for number, method in enumerate(own["method"].unique(maintain_order=True)):
        rows = own.filter(polars.col("method") == method).sort("depth")
        depths, colour = rows["depth"].to_list(), f"C{number % 10}"
        spread = rows[f"test/{metric}_std"].fill_null(0.0).to_list()
        axes.errorbar(
            depths,
            rows[f"test/{metric}"].to_list(),
            spread,
            color=colour,
            marker="o",
            markersize=4,
            linewidth=1.4,
            capsize=3,
            label=method,
        )
        if metric == "gamma":
            ceiling = rows["test/copy_gamma"].to_list()
            axes.plot(depths, ceiling, "--", color=colour, linewidth=0.9, alpha=0.7)
    if metric == "gamma":
        axes.plot([], [], "--", color="0.4", linewidth=0.9, label="copying, same nets")
    axes.spines[["top", "right"]].set_visible(False)
