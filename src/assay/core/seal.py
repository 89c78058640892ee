"""Sealing a finished run's metrics to Parquet. Apart from `metrics`, because polars loads slowly."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl

from assay.core.files import sha256_of, write_atomic
from assay.core.metrics import Row, visible_rows

PARQUET_NAME = "metrics.parquet"
_SCHEMA = {
    "attempt": pl.Int32,
    "rank": pl.Int32,
    "step": pl.Int64,
    "time": pl.Float64,
    "name": pl.String,
    "value": pl.Float64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """What was sealed.

    Attributes:
        sha256: Digest of `metrics.parquet`.
        num_rows: Rows of the merged view (a row may hold several values).
    """

    sha256: str
    num_rows: int


def seal(folder: Path, starts: Mapping[int, int | None]) -> Sealed:
    """Write the merged view of a run's metrics to `metrics.parquet`, one line a value.

    Args:
        folder: The run directory.
        starts: Attempt → the step at which it resumed (`RunState.starts`).

    Raises:
        StoreError: Metrics cannot be read or the file cannot be written.
    """
    view, _ = visible_rows(folder, starts)
    frames = [_frame(rows, attempt=file.attempt, rank=file.rank) for file, rows in view]
    buffer = io.BytesIO()
    pl.concat([pl.DataFrame(schema=_SCHEMA), *frames]).write_parquet(buffer, compression="zstd")
    path = folder / PARQUET_NAME
    write_atomic(path, buffer.getvalue())
    return Sealed(sha256=sha256_of(path), num_rows=sum(len(rows) for _, rows in view))


def _frame(rows: list[Row], *, attempt: int, rank: int) -> pl.DataFrame:
    counts = np.fromiter((len(row.values) for row in rows), np.int64, len(rows))
    steps = np.fromiter((row.step for row in rows), np.int64, len(rows))
    times = np.fromiter((row.time for row in rows), np.float64, len(rows))
    # numpy reads "nan", "inf" and "-inf" as the numbers that they name.
    values = chain.from_iterable(row.values.values() for row in rows)
    columns = {
        "step": np.repeat(steps, counts),
        "time": np.repeat(times, counts),
        "name": list(chain.from_iterable(row.values for row in rows)),
        "value": np.fromiter(values, np.float64, int(counts.sum())),
    }
    constant = [pl.lit(attempt).alias("attempt"), pl.lit(rank).alias("rank")]
    schema = {name: _SCHEMA[name] for name in columns}
    return (
        pl.DataFrame(columns, schema=schema)
        .with_columns(constant)
        .select(pl.col(name).cast(kind) for name, kind in _SCHEMA.items())
    )
