"""Estimators side by side: the same nets, data and seeds at several depths and curvatures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars

from assay.core.config import build
from assay.core.errors import ConfigError
from assay.engines.credit.config import TrainConfig
from assay.engines.credit.estimators.base import Estimator
from assay.engines.credit.estimators.registry import find
from assay.engines.credit.memory import Memory
from assay.engines.credit.train import train

Choice = str | type[Estimator] | Mapping[str, Any]
KEYS = ("method", "alpha", "depth")
SHOWN = ("accuracy", "majority_rate", "gamma", "rho", "nudge_nats", "copy_gamma", "valid_rate")
"""Metrics of the test part that are printed."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of it.

    Attributes:
        runs: A row a run: method, alpha, depth, seed and every final metric.
    """

    runs: polars.DataFrame

    def table(self) -> polars.DataFrame:
        """A row for each method, alpha and depth: n, and of each metric its mean and deviation.

        The deviation is that of a sample (n - 1); of one seed there is none.
        """
        metrics = [name for name in self.runs.columns if name not in (*KEYS, "seed")]
        means = [polars.col(name).mean() for name in metrics]
        stds = [polars.col(name).std().alias(f"{name}_std") for name in metrics]
        grouped = self.runs.group_by(KEYS, maintain_order=True)
        return grouped.agg(polars.len().alias("n"), *means, *stds)

    def __str__(self) -> str:
        """The table of what matters most, as text."""
        lines = [[*KEYS, "n", *SHOWN]]
        for row in self.table().iter_rows(named=True):
            cells = [
                mean_and_std(name, row[f"test/{name}"], row[f"test/{name}_std"]) for name in SHOWN
            ]
            lines.append(
                [row["method"], f"{row['alpha']:g}", str(row["depth"]), str(row["n"]), *cells]
            )
        wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(size) for cell, size in zip(line, wide, strict=True)).rstrip()
            for line in lines
        )

    def figure(self, path: str | Path) -> None:
        """Gamma and rho against depth, a column of panels for each alpha; .svg, .png or .pdf."""
        from assay.engines.credit.figure import draw  # noqa: PLC0415

        draw(self.table(), Path(path))


def mean_and_std(metric: str, mean: float, std: float | None) -> str:
    """A mean and its deviation as text; loss changes are small and get a digit more."""
    digits = 4 if metric.endswith("_nats") else 3
    return f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


def compare(
    methods: Mapping[str, Choice],
    *,
    data: str = "ladder",
    alphas: Sequence[float] = (1.0,),
    depths: Sequence[int] = (4,),
    seeds: int | Sequence[int] = 3,
    data_dir: str | Path | None = None,
    say: Callable[[str], object] | None = None,
    **settings: Any,
) -> Comparison:
    """Train a net with every method at every depth and alpha, from every seed.

    All methods get the same data, the same first nets and the same order of samples; what they draw
    themselves comes from streams of their own. Runs of one method and depth are trained as one
    stack. Blocks are "tanh", whose alpha says how curved they are.

    Args:
        methods: Label → a method's name, a class of your own, or a table of settings with `method`
            among them.
        data: As the setting `data`.
        alphas: Shares of tanh.
        depths: Numbers of blocks.
        seeds: How many (from 0), or which.
        data_dir: The data folder.
        say: Is told about every stack that has ended, such as `print`.
        settings: Of all runs, as in a study's [config]: epochs = 5, width = 64, …

    Raises:
        ConfigError: A setting breaks a rule, or a class cannot be found by its name.
    """
    if not isinstance(methods, Mapping):
        raise ConfigError(
            f'methods must map a label to a method, such as {{"dfa": "dfa", "mine": Mine}}; got {methods!r:.100}.'
        )
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    common = {"data": data, "block": "tanh"} | settings
    _check({"methods": list(methods), "alphas": alphas, "depths": depths, "seeds": chosen}, common)
    plans = [
        (label, [_config(label, choice, common, depth, alpha) for alpha in alphas])
        for label, choice in methods.items()
        for depth in depths
    ]
    place = None if data_dir is None else Path(data_dir)
    rows: list[dict[str, Any]] = []
    for label, configs in plans:
        many = [config for config in configs for _ in chosen]
        contexts = [Memory({"init": s, "data": s}, place) for _ in configs for s in chosen]
        train(many, contexts)
        for config, context in zip(many, contexts, strict=True):
            key = {"method": label, "alpha": config.alpha, "depth": config.depth}
            rows.append(key | {"seed": context.seeds["init"]} | context.final)
        if say is not None:
            say(f"{label}, depth {configs[0].depth}: {len(many)} runs")
    order = {label: number for number, label in enumerate(methods)}
    rows.sort(key=lambda row: (order[row["method"]], row["alpha"], row["depth"]))
    return Comparison(polars.DataFrame(rows))


def _check(axes: Mapping[str, Sequence[Any]], common: Mapping[str, Any]) -> None:
    for name, given in axes.items():
        if not given or len(set(given)) != len(given):
            raise ConfigError(f"{name} must be different ones, at least one; got {given!r}.")
    if common["block"] != "tanh" and len(axes["alphas"]) > 1:
        raise ConfigError(
            f'alphas differ only in blocks "tanh"; got {axes["alphas"]} with block = {common["block"]!r}. '
            "Give one of them."
        )


def _config(
    label: str, choice: Choice, common: Mapping[str, Any], depth: int, alpha: float
) -> TrainConfig:
    own = dict(choice) if isinstance(choice, Mapping) else {"method": choice}
    values = {**common, "depth": depth, "alpha": float(alpha), **own}
    if not isinstance(values.get("method"), str):
        values["method"] = name_of(values.get("method"))
    config = build(TrainConfig, values, where=f"compare, {label}")
    find(config.method)
    return config


def name_of(kind: object) -> str:
    """`module:Class` of an estimator, by which a run can name it.

    Raises:
        ConfigError: It is no estimator, or is not to be found where it says.
    """
    if not (isinstance(kind, type) and issubclass(kind, Estimator)):
        raise ConfigError(
            f"A method must be a name, a subclass of assay.engines.credit.Estimator, or settings with one of "
            f"these as `method`; got {kind!r}."
        )
    name = f"{kind.__module__}:{kind.__qualname__}"
    if not kind.__qualname__.isidentifier() or find(name) is not kind:
        raise ConfigError(
            f"An estimator must be found by its name, since a run stores that; {name} is not. Define the "
            "class at the top level of a module or script, once."
        )
    return name
