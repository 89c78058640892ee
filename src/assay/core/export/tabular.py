"""CSV and Parquet: one table, one line a value, with everything that says what the value is.

Columns: what the run is (`ExportedRun.about`), its parameters, then metric, source ("series" or
"summary"), step, time (Unix seconds) and value. A run without any value has one line, without
metric: a failed run stays in every count.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from assay.core.export.gather import ExportedRun
from assay.core.export.whole import whole
from assay.core.metrics import Series

_POINTS = {
    "number": pl.UInt32,
    "metric": pl.String,
    "source": pl.String,
    "step": pl.Int64,
    "time": pl.Float64,
    "value": pl.Float64,
}
_INT64 = range(-(2**63), 2**63)


def write_csv(runs: Iterable[ExportedRun], out: Path) -> None:
    """Write runs as CSV: NaN and infinities as `NaN`, `inf` and `-inf`, nothing as nothing.

    Raises:
        StoreError: `out` exists or cannot be written.
    """
    with whole(out) as temporary:
        table(runs).write_csv(temporary)


def write_parquet(runs: Iterable[ExportedRun], out: Path) -> None:
    """Write runs as Parquet.

    Raises:
        StoreError: `out` exists or cannot be written.
    """
    with whole(out) as temporary:
        table(runs).write_parquet(temporary, compression="zstd")


def table(runs: Iterable[ExportedRun]) -> pl.DataFrame:
    """Runs as one table."""
    about: list[dict[str, Any]] = []
    points = [pl.DataFrame(schema=_POINTS)]
    for number, run in enumerate(runs):
        about.append({**run.about, **run.params})
        points += [
            _points(number, name, "series", series) for name, series in sorted(run.series.items())
        ]
        time = run.created_s if run.ended_s is None else run.ended_s
        for name, value in sorted(run.summary.items()):
            final = Series(*(np.array([x]) for x in (run.last_step, value, time)))
            points.append(_points(number, name, "summary", final))
    names = list(dict.fromkeys(name for row in about for name in row))
    # What the runs are stands before what was asked of them, whatever the first run has.
    names.sort(key=lambda name: "." in name)
    columns = [_column(name, [row.get(name) for row in about]) for name in names]
    described = pl.DataFrame([*columns, pl.Series("number", range(len(about)), dtype=pl.UInt32)])
    joined = described.join(pl.concat(points), on="number", how="left", maintain_order="left_right")
    return joined.drop("number")


def _points(number: int, name: str, source: str, series: Series) -> pl.DataFrame:
    return pl.DataFrame(
        {"step": series.steps, "time": series.times, "value": series.values}
    ).select(
        pl.lit(number, dtype=pl.UInt32).alias("number"),
        pl.lit(name).alias("metric"),
        pl.lit(source).alias("source"),
        *(pl.col(column).cast(_POINTS[column]) for column in ("step", "time", "value")),
    )


def _column(name: str, values: Sequence[Any]) -> pl.Series:
    """A column of one type: of the values' own if they share one, else of text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pl.Series(name, values, dtype=pl.Boolean)
    if kinds == {int} and all(value is None or value in _INT64 for value in values):
        return pl.Series(name, values, dtype=pl.Int64)
    if kinds in ({float}, {int, float}):
        numbers = [None if value is None else float(value) for value in values]
        return pl.Series(name, numbers, dtype=pl.Float64)
    return pl.Series(name, [_text(value) for value in values], dtype=pl.String)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)
