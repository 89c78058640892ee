import math
import os
import subprocess
import sys
import textwrap
import threading
from decimal import Decimal
from fractions import Fraction

import numpy as np
import orjson
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.core.errors import MetricError, StoreError
from assay.core.metrics import (
    MetricWriter,
    downsample,
    encode_row,
    metrics_name,
    read_metrics,
    read_metrics_file,
)
from assay.core.seal import seal

NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)
STEPS = st.integers(-(2**63) + 1, 2**63 - 1)
VALUES = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True, width=64),
    st.integers(-(2**53), 2**53),
    st.floats(width=32).map(np.float32),
    st.floats(width=64).map(np.float64),
    st.integers(-(2**31), 2**31 - 1).map(np.int64),
    st.floats(width=32).map(torch.tensor),
)


def write(folder, rows, *, rank=0, attempt=1):
    writer = MetricWriter(folder, rank=rank, attempt=attempt)
    for step, values in rows:
        writer.log(values, step=step)
    writer.close()
    return writer.path


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.tuples(STEPS, st.dictionaries(NAMES, VALUES, max_size=6)), max_size=12))
def test_round_trip(rows, tmp_path_factory):
    """What is read is what was logged: any name, any step order, NaN and infinities, any type."""
    folder = tmp_path_factory.mktemp("run")
    write(folder, rows)
    read = read_metrics(folder)
    expected: dict[str, tuple[list[int], list[float]]] = {}
    for step, values in rows:
        for name, value in values.items():
            steps, column = expected.setdefault(name, ([], []))
            steps.append(step)
            column.append(float(value))
    assert read.num_rows == len(rows)
    assert (read.torn_lines, read.bad_lines, read.problems) == (0, 0, [])
    assert read.series.keys() == expected.keys()
    for name, (steps, column) in expected.items():
        assert read.series[name].steps.tolist() == steps
        assert np.array_equal(read.series[name].values, np.array(column), equal_nan=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("inf")])
def test_non_finite_values_are_written_explicitly(value):
    """No row holds `null`, which would read as a missing value."""
    line = encode_row({"loss": value, "null": 1.0}, step=0, now=0.0)
    assert orjson.loads(line)["values"] == {"loss": str(float(value)), "null": 1.0}


@pytest.mark.parametrize(
    "value",
    ["0.5", None, True, np.bool_(True), 1j, [1.0], {"a": 1.0}, np.ones(3), np.ones(1),
     torch.ones(1), torch.ones(2, 2), torch.tensor(1j), Decimal(1), Fraction(1, 2), object(),
     10**400],
)  # fmt: skip
def test_a_value_that_is_no_number_is_refused_by_name(value, tmp_path):
    """The error names metric and way out, and nothing of the row is written."""
    writer = MetricWriter(tmp_path)
    with pytest.raises(MetricError, match=r"(?s)'train/loss'.*Log "):
        writer.log({"ok": 1.0, "train/loss": value}, step=0)
    writer.close()
    assert writer.path.read_bytes() == b""


@pytest.mark.parametrize("name", ["", "a\ud800b", 3, None, b"loss"])
def test_a_name_that_is_no_text_is_refused(name, tmp_path):
    """Names are non-empty Unicode text."""
    writer = MetricWriter(tmp_path)
    with pytest.raises(MetricError, match="metric's name"):
        writer.log({name: 1.0}, step=0)
    writer.close()
    assert writer.path.read_bytes() == b""


@pytest.mark.parametrize("step", [0.5, 1.0, "3", None, True, 2**63, -(2**63), np.float64(2)])
def test_a_step_that_is_no_whole_number_is_refused(step, tmp_path):
    """Steps are whole numbers of 63 bits."""
    writer = MetricWriter(tmp_path)
    with pytest.raises(MetricError, match="step must"):
        writer.log({"a": 1.0}, step=step)
    writer.close()
    assert writer.path.read_bytes() == b""


@pytest.mark.parametrize("values", [1.0, None, [("a", 1.0)], "a"])
def test_values_must_be_a_table(values):
    """A bare number is a common slip; the error shows how to write it."""
    with pytest.raises(MetricError, match="table of names and numbers"):
        encode_row(values, step=0, now=0.0)


def test_integers_beyond_64_bits_become_floats(tmp_path):
    """A count that does not fit into 64 bits is kept to the precision of a float."""
    write(tmp_path, [(np.int64(3), {"tokens": 2**70, "edge": 2**64 - 1, "low": -(2**63) - 1})])
    series = read_metrics(tmp_path).series
    assert series["tokens"].values.tolist() == [2.0**70]
    assert series["edge"].values.tolist() == [2.0**64]
    assert series["low"].values.tolist() == [-(2.0**63)]


def test_one_write_a_row(tmp_path, monkeypatch):
    """A row is one `write()`: a kill between two system calls cannot split it."""
    writer = MetricWriter(tmp_path)
    calls = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: calls.append(data) or real(fd, data))
    writer.log({f"m{i}": math.nan for i in range(10)}, step=1)
    writer.log({"m": np.float64(1)}, step=2)
    monkeypatch.undo()
    writer.close()
    assert [call.count(b"\n") for call in calls] == [1, 1]


def test_a_second_writer_of_one_file_is_refused(tmp_path):
    """One writer a file, so no lock is needed and no row can be interleaved."""
    writer = MetricWriter(tmp_path)
    with pytest.raises(StoreError, match="its own rank"):
        MetricWriter(tmp_path)
    writer.close()


def test_threads_of_one_process_share_a_writer(tmp_path):
    """Rows of several threads are whole and complete."""
    writer = MetricWriter(tmp_path)

    def log(thread):
        for step in range(500):
            writer.log({f"thread{thread}": step}, step=step)

    threads = [threading.Thread(target=log, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    read = read_metrics(tmp_path)
    assert read.num_rows == writer.num_rows == 2000
    assert all(s.steps.tolist() == list(range(500)) for s in read.series.values())


def test_rows_are_synced_in_the_background(tmp_path, monkeypatch):
    """The sync thread calls fsync while rows arrive, and not when none did."""
    synced = threading.Event()
    count = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (real(fd), count.append(fd), synced.set()))
    writer = MetricWriter(tmp_path, sync_every_s=0.01)
    writer.log({"a": 1.0}, step=0)
    assert synced.wait(5)
    synced.clear()
    assert not synced.wait(0.1)
    writer.close()
    assert len(count) == 2


def test_no_thread_before_a_writer_and_none_after_close(tmp_path):
    """The thread is the writer's: it starts with it and ends with it."""
    before = threading.active_count()
    writer = MetricWriter(tmp_path)
    assert threading.active_count() == before + 1
    writer.close()
    writer.close()
    assert threading.active_count() == before


def test_log_after_close_is_refused(tmp_path):
    """A row that nobody would sync is an error."""
    writer = MetricWriter(tmp_path)
    writer.close()
    with pytest.raises(StoreError, match="closed"):
        writer.log({"a": 1.0}, step=0)


def test_a_failed_sync_is_told_by_the_next_log(tmp_path, monkeypatch):
    """An error of the background thread is not lost."""
    writer = MetricWriter(tmp_path, sync_every_s=0.01)
    failed = threading.Event()

    def broken(fd):
        failed.set()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    writer.log({"a": 1.0}, step=0)
    assert failed.wait(5)
    writer._thread.join(5)
    with pytest.raises(StoreError, match="Input/output error"):
        writer.log({"a": 1.0}, step=1)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="Input/output error"):
        writer.close()


def test_a_full_disk_tears_no_row(tmp_path):
    """A write that does not fit is taken back, and a later row stands on its own line."""
    script = """
        import resource, sys
        from pathlib import Path
        from assay.core.errors import StoreError
        from assay.core.metrics import MetricWriter
        writer = MetricWriter(Path(sys.argv[1]))
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        refused = 0
        for step in range(200):
            try:
                writer.log({f"m{i}": i / 7 for i in range(10)}, step=step)
            except StoreError as error:
                assert "metrics-0-1.jsonl" in str(error), error
                refused += 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        writer.log({"after": 1.0}, step=200)
        writer.close()
        print(writer.num_rows, refused)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    acknowledged, refused = map(int, done.stdout.split())
    read = read_metrics(tmp_path)
    assert refused > 100
    assert (read.num_rows, read.torn_lines, read.bad_lines) == (acknowledged, 0, 0)
    assert read.series["after"].steps.tolist() == [200]
    assert read.series["m0"].steps.tolist() == list(range(acknowledged - 1))


@given(cut=st.integers(1, 10_000))
@settings(deadline=None)
def test_a_torn_last_line_is_skipped_and_counted(cut, tmp_path_factory):
    """However a file is cut, the whole lines are read and the torn one is counted."""
    folder = tmp_path_factory.mktemp("run")
    path = write(folder, [(i, {"é": i / 3, "b": math.nan}) for i in range(20)])
    content = path.read_bytes()
    kept = content[: cut % len(content)]
    path.write_bytes(kept)
    read = read_metrics(folder)
    assert read.num_rows == kept.count(b"\n")
    assert read.torn_lines == int(bool(kept) and not kept.endswith(b"\n"))
    assert read.bad_lines == 0


@pytest.mark.parametrize(
    "damage",
    [b'{"step":1,"ti', b"\0" * 40, b"\xff\xfe", b'{"step":"x","time":0,"values":{}}', b"[]",
     b'{"step":1,"time":0,"values":{"a":null}}', b'{"step":1,"time":0,"values":{"a":"big"}}'],
)  # fmt: skip
def test_damage_inside_a_file_is_skipped_and_reported(damage, tmp_path):
    """A line that no writer leaves is never guessed at: it is skipped, counted and named."""
    path = write(tmp_path, [(i, {"a": i}) for i in range(4)])
    lines = path.read_bytes().split(b"\n")
    lines[1] = damage
    path.write_bytes(b"\n".join(lines))
    read = read_metrics(tmp_path)
    assert read.series["a"].steps.tolist() == [0, 2, 3]
    assert (read.bad_lines, read.torn_lines) == (1, 0)
    assert "metrics-0-1.jsonl: 1 damaged" in read.problems[0]


def test_a_resumed_attempt_hides_what_it_computed_again(tmp_path):
    """Attempt k counts only below the start of every later attempt; the files keep all."""
    write(tmp_path, [(i, {"a": 1}) for i in range(10)], attempt=1)
    write(tmp_path, [(i, {"a": 2}) for i in range(6, 9)], attempt=2)
    write(tmp_path, [(i, {"a": 3}) for i in range(4, 12)], attempt=3)
    read = read_metrics(tmp_path, {1: None, 2: 6, 3: 4})
    assert read.series["a"].steps.tolist() == list(range(12))
    assert read.series["a"].values.tolist() == [1] * 4 + [3] * 8
    assert (read.num_rows, read.hidden_rows) == (12, 9)
    assert len(read_metrics_file(tmp_path / metrics_name(0, 2)).rows) == 3


def test_an_attempt_from_scratch_hides_all_before_it(tmp_path):
    """`None` means from scratch, even when the later attempt logged nothing."""
    write(tmp_path, [(i, {"a": 1}) for i in range(3)])
    read = read_metrics(tmp_path, {1: None, 2: None})
    assert (read.series, read.num_rows, read.hidden_rows) == ({}, 0, 3)


def test_an_attempt_whose_start_is_unknown_is_an_error(tmp_path):
    """Without the start of a later attempt the merged view would be a guess."""
    write(tmp_path, [(0, {"a": 1})], attempt=1)
    write(tmp_path, [(5, {"a": 1})], attempt=2)
    with pytest.raises(StoreError, match="attempt 2"):
        read_metrics(tmp_path, {1: None})


def test_ranks_follow_one_another(tmp_path):
    """Rows of several processes are joined by rank (2 before 10), then attempt."""
    for rank in (10, 0, 2):
        write(tmp_path, [(0, {"a": rank})], rank=rank)
    assert read_metrics(tmp_path).series["a"].values.tolist() == [0, 2, 10]


def test_seal_holds_the_merged_view(tmp_path):
    """The Parquet file has one line a value, of exactly the rows that count."""
    write(tmp_path, [(i, {"a": i, "b": math.nan}) for i in range(4)], attempt=1)
    write(tmp_path, [(i, {"a": math.inf}) for i in range(2, 5)], attempt=2)
    sealed = seal(tmp_path, {1: None, 2: 2})
    frame = pl.read_parquet(tmp_path / "metrics.parquet")
    assert frame.columns == ["attempt", "rank", "step", "time", "name", "value"]
    assert (sealed.num_rows, frame.height) == (5, 7)
    a = frame.filter(pl.col("name") == "a")
    assert a["step"].to_list() == [0, 1, 2, 3, 4]
    assert a["value"].to_list() == [0, 1, math.inf, math.inf, math.inf]
    assert a["attempt"].to_list() == [1, 1, 2, 2, 2]
    assert frame.filter(pl.col("name") == "b")["value"].is_nan().all()


@given(
    values=st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=3000),
    points=st.integers(5, 600),
)
@settings(deadline=None, max_examples=150)
def test_downsample_keeps_ends_extremes_and_gaps(values, points):
    """At most `points` pairs, all of them given ones; first, last, min, max and a NaN stay."""
    values = np.array(values, dtype=np.float64)
    steps = np.arange(values.size, dtype=np.int64) * 3
    got_steps, got = downsample(steps, values, points)
    assert got.size <= max(points, 0)
    assert np.array_equal(values[got_steps // 3], got, equal_nan=True)
    assert np.all(np.diff(got_steps) > 0)
    if values.size:
        assert got_steps[0] == steps[0]
        assert got_steps[-1] == steps[-1]
        assert np.isnan(values).any() == np.isnan(got).any()
        if not np.isnan(values).all():
            assert np.nanmin(values) == np.nanmin(got)
            assert np.nanmax(values) == np.nanmax(got)


@given(
    size=st.integers(20, 5000),
    gap=st.floats(0, 1),
    spike=st.floats(0, 1),
    spike_value=st.sampled_from([1e9, -1e9, math.inf, -math.inf]),
    points=st.integers(5, 512),
)
@settings(deadline=None, max_examples=150)
def test_downsample_hides_no_single_step(size, gap, spike, spike_value, points):
    """One NaN or one spike in a long smooth curve stays, wherever it is."""
    values = np.sin(np.arange(size) / 50)
    gap_at, spike_at = int(gap * (size - 1)), int(spike * (size - 1))
    values[spike_at] = spike_value
    values[gap_at] = math.nan
    got_steps, got = downsample(np.arange(size, dtype=np.int64), values, points)
    assert got.size <= points
    assert gap_at in got_steps
    assert gap_at == spike_at or spike_at in got_steps


def test_downsample_puts_steps_in_order():
    """Steps logged out of order come back ascending, equal steps in the order they were logged."""
    steps = np.array([5, 1, 5, 0], dtype=np.int64)
    got_steps, got = downsample(steps, np.array([1.0, 2.0, 3.0, 4.0]))
    assert got_steps.tolist() == [0, 1, 5, 5]
    assert got.tolist() == [4.0, 2.0, 1.0, 3.0]
