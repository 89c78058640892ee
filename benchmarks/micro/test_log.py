"""Caller's time of one `log` of 10 scalars, and of its parts.

pytest benchmarks/micro/test_log.py            (or --benchmark-disable for a smoke test)
"""

import itertools
import math
import os

import pytest

from assay.core.metrics import (
    MetricWriter,
    encode_row,
    read_metrics,
    read_metrics_file,
)
from assay.core.run import RunWriter, create_run, new_record
from assay.core.seal import seal

TEN = {f"train/metric{i}": (i + 1) / 7 for i in range(10)}
NON_FINITE = {**TEN, "train/metric3": math.nan}


@pytest.mark.benchmark(group="log of 10 scalars")
def test_run_log(benchmark, tmp_path):
    folder = create_run(tmp_path, new_record(study="s", arm="a", identity="0"))
    writer = RunWriter(folder, attempt=1)
    steps = itertools.count()
    benchmark(lambda: writer.log(TEN, step=next(steps)))
    writer.close()


@pytest.mark.benchmark(group="log of 10 scalars")
def test_writer_log_with_a_nan(benchmark, tmp_path):
    writer = MetricWriter(tmp_path)
    steps = itertools.count()
    benchmark(lambda: writer.log(NON_FINITE, step=next(steps)))
    writer.close()


@pytest.mark.benchmark(group="log of 10 scalars")
def test_encode_alone(benchmark):
    benchmark(lambda: encode_row(TEN, step=3, now=0.5))


@pytest.mark.benchmark(group="log of 10 scalars")
def test_floor_one_write(benchmark, tmp_path):
    line = encode_row(TEN, step=3, now=0.5)
    fd = os.open(tmp_path / "rows", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    benchmark(lambda: os.write(fd, line))
    os.close(fd)


@pytest.mark.benchmark(group="1,000,000 scalars")
def test_sustained(benchmark, tmp_path):
    """100,000 rows of 10, until synced: at least 1,000,000 scalars/s is below one second."""
    attempts = itertools.count(1)

    def write():
        writer = MetricWriter(tmp_path, attempt=next(attempts))
        for step in range(100_000):
            writer.log(TEN, step=step)
        writer.close()

    benchmark.pedantic(write, rounds=3)


@pytest.fixture(scope="module")
def million(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    writer = MetricWriter(folder)
    for step in range(100_000):
        writer.log(TEN, step=step)
    writer.close()
    return folder


@pytest.mark.benchmark(group="1,000,000 scalars")
def test_decode(benchmark, million):
    benchmark.pedantic(lambda: read_metrics_file(million / "metrics-0-1.jsonl"), rounds=3)


@pytest.mark.benchmark(group="1,000,000 scalars")
def test_read_columns(benchmark, million):
    read = benchmark.pedantic(lambda: read_metrics(million), rounds=3)
    assert read.num_rows == 100_000


@pytest.mark.benchmark(group="1,000,000 scalars")
def test_seal(benchmark, million):
    benchmark.pedantic(lambda: seal(million, {}), rounds=3)


@pytest.mark.benchmark(group="one run of 1,000 points")
def test_read_a_small_run(benchmark, tmp_path):
    writer = MetricWriter(tmp_path)
    for step in range(1000):
        writer.log({"train/loss_nats": 1 / (step + 1)}, step=step)
    writer.close()
    read = benchmark(lambda: read_metrics(tmp_path))
    assert read.num_rows == 1000
