"""Reported runs: what real TensorBoard and MLflow writers left, and what is damaged in it."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient
from torch.utils.tensorboard import SummaryWriter

from assay.core.errors import ConfigError, DataError
from assay.core.foreign import mlruns, read_mlruns, read_reported, read_tensorboard
from assay.core.foreign import tensorboard as tensorboard_reader

VALUES = [0.1, math.nan, math.inf, -math.inf, 1e-300]


# TensorBoard


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """Two runs of torch's SummaryWriter, with scalars, a text, a histogram and settings."""
    folder = tmp_path / "tb"
    for name, offset in (("one", 0.0), ("deep/two", 1.0)):
        with SummaryWriter(folder / name) as writer:
            for step, value in enumerate(VALUES):
                writer.add_scalar("train/loss", value + offset, 10 * step, walltime=1e9 + step)
            writer.add_scalar("new", 0.25, 3, new_style=True)
            writer.add_scalar(
                "double", torch.tensor(1 / 3), 3, new_style=True, double_precision=True
            )
            writer.add_text("note", "warm start")
            writer.add_histogram("weights", torch.arange(4.0))
            writer.add_hparams(
                {"lr": 0.1, "opt": "sgd", "nesterov": True, "n": 3}, {}, run_name="."
            )
    return folder


def test_what_a_summary_writer_wrote_is_read(events: Path) -> None:
    """Scalars of both styles with steps and times; texts as tags, settings as params."""
    read = read_reported(events)
    assert (read.kind, read.folder) == ("tensorboard", events)
    two, one = read.runs
    assert [run.source for run in read.runs] == ["deep/two", "one"]
    for run, offset in ((one, 0.0), (two, 1.0)):
        series = run.metrics["train/loss"]
        expected = np.array(VALUES, dtype=np.float64) + offset
        np.testing.assert_array_equal(series.values, expected.astype(np.float32))
        assert series.steps.tolist() == [0, 10, 20, 30, 40]
        assert series.times.tolist() == [1e9 + step for step in range(5)]
        assert run.metrics["new"].values.tolist() == [0.25]
        assert run.metrics["double"].values.tolist() == [float(torch.tensor(1 / 3))]
        assert set(run.metrics) == {"train/loss", "new", "double"}
        assert run.tags["note/text_summary"] == "warm start"
        # SummaryWriter writes truth values as numbers.
        assert run.params == {"lr": "0.1", "opt": "sgd", "nesterov": "1", "n": "3"}
        assert (run.torn_lines, run.bad_lines) == (0, 0)
        (problem,) = run.problems
        assert "weights: no scalar, not taken" in problem


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*tfevents*"), key=lambda path: path.stat().st_size)


def test_a_cut_off_file_gives_what_is_whole_and_counts_the_rest(events: Path) -> None:
    """Every length of the file is read without an error; what is read is a beginning of it."""
    (path,) = [p for p in files(events / "one") if p == files(events / "one")[-1]]
    content = path.read_bytes()
    whole = read_tensorboard(path.parent).runs[0].metrics["train/loss"].values
    ends = record_ends(content)
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        (run,) = read_tensorboard(path.parent).runs
        assert run.torn_lines == int(size not in ends), size
        assert run.bad_lines == 0
        values = run.metrics["train/loss"].values if "train/loss" in run.metrics else whole[:0]
        np.testing.assert_array_equal(values, whole[: len(values)])


def record_ends(content: bytes) -> set[int]:
    ends, at = {0}, 0
    while at < len(content):
        at += 16 + int.from_bytes(content[at : at + 8], "little")
        ends.add(at)
    return ends


def test_a_damaged_record_is_counted_with_all_after_it(events: Path) -> None:
    """TensorBoard itself stops there without a word."""
    path = files(events / "one")[-1]
    content = bytearray(path.read_bytes())
    ends = sorted(record_ends(bytes(content)))
    # A byte in the third value.
    content[ends[3] + 12 + 4] ^= 0xFF
    path.write_bytes(content)
    (run,) = read_tensorboard(path.parent).runs
    records = len(ends) - 1
    assert run.bad_lines == records - 3
    assert any(f"record 4 of {records} is damaged" in problem for problem in run.problems)
    assert run.metrics["train/loss"].values.size == 2


def test_a_file_that_is_none_gives_no_run_of_numbers(tmp_path: Path) -> None:
    """Random bytes under the right name: counted, never an exception."""
    noise = np.random.default_rng(1).bytes(500)
    (tmp_path / "events.out.tfevents.1").write_bytes(noise)
    (run,) = read_tensorboard(tmp_path).runs
    assert run.metrics == {}
    assert run.torn_lines + run.bad_lines >= 1


# MLflow


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `mlruns` folder as MLflow's own client writes it."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    folder = tmp_path / "mlruns"
    client = MlflowClient(tracking_uri=folder.as_uri())
    experiment = client.create_experiment("study: [one]")
    for number, name in enumerate(["first", "second: \"quoted\" 'name'\nin two lines"]):
        run = client.create_run(experiment, run_name=name, start_time=1000).info.run_id
        client.log_param(run, "lr", 0.1)
        client.log_param(run, "optim/name", "sgd\nwith a line")
        client.set_tag(run, "who", "me")
        for step, value in enumerate(VALUES):
            client.log_metric(run, "train/loss", value, timestamp=5000 + step, step=10 * step)
        client.log_metric(run, "acc", number / 3, timestamp=7, step=-1)
        client.set_terminated(run, "FINISHED" if number == 0 else "FAILED", end_time=9000)
    client.delete_run(run)
    return folder


def run_folder(folder: Path, name: str = "first") -> Path:
    (run,) = [run for run in read_mlruns(folder).runs if run.name == name]
    return folder / run.source


def test_what_mlflow_wrote_is_read(folder: Path) -> None:
    """Params, tags and whole histories, to the last bit; deleted runs are marked."""
    read = read_reported(folder)
    assert (read.kind, read.problems) == ("mlruns", [])
    by_name = {run.name: run for run in read.runs}
    first, second = by_name.pop("first"), by_name.popitem()[1]
    assert second.name == "second: \"quoted\" 'name'\nin two lines"
    assert (first.status, second.status) == ("FINISHED", "FAILED")
    assert "lifecycle_stage" not in first.tags
    assert second.tags["lifecycle_stage"] == "deleted"
    for number, run in enumerate((first, second)):
        # SummaryWriter writes truth values as numbers.
        assert run.params == {"lr": "0.1", "optim/name": "sgd\nwith a line"}
        assert run.tags["who"] == "me"
        assert run.tags["experiment"] == "study: [one]"
        series = run.metrics["train/loss"]
        np.testing.assert_array_equal(series.values, VALUES)
        assert series.steps.tolist() == [0, 10, 20, 30, 40]
        assert series.times.tolist() == [5.0, 5.001, 5.002, 5.003, 5.004]
        assert run.metrics["acc"].values.tolist() == [number / 3]
        assert run.metrics["acc"].steps.tolist() == [-1]


def test_an_experiment_or_a_run_alone_is_read_too(folder: Path) -> None:
    """The folder may be any of the three."""
    run = run_folder(folder)
    assert len(read_reported(run.parent).runs) == 2
    (alone,) = read_reported(run).runs
    assert (alone.name, alone.source) == ("first", ".")
    assert set(alone.metrics) == {"acc", "train/loss"}


def test_torn_and_damaged_lines_are_counted(folder: Path) -> None:
    """A last line without its end may have lost digits, so it is no value."""
    history = run_folder(folder) / "metrics" / "acc"
    history.write_text(
        "1 0.5 1\nno line\n1 0.5\n1 0.75 2 data digest\n1 0.5 1.5\n1 2 3 4\n"
        f"1 0.5 {2**63}\n1 1e400 3\n"
        "1 0.123 12"
    )
    run = read_mlruns(history.parents[1]).runs[0]
    assert run.metrics["acc"].values.tolist() == [0.5, 0.5, 0.75, math.inf]
    assert run.metrics["acc"].steps.tolist() == [1, 0, 2, 3]
    assert (run.torn_lines, run.bad_lines) == (1, 4)
    assert run.problems == ["metrics/acc: 4 damaged line(s) skipped"]
    assert run.metrics["train/loss"].values.size == len(VALUES)


def test_links_do_not_lead_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    """Neither a linked file nor a linked folder is read."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("hunter2")
    run = run_folder(folder)
    (run / "params" / "stolen").symlink_to(secret / "key")
    (run / "tags" / "stolen").symlink_to(secret)
    (folder / "linked").symlink_to(run.parent)
    read = read_mlruns(folder)
    assert len(read.runs) == 2
    assert "hunter2" not in repr(read)


BAD_META = {
    "code": "!!python/object/apply:os.system ['touch hacked']",
    "no table": "- a\n- b",
    "not YAML": "a: [1,",
    "binary": b"\xff\xfe\x00",
    "deep": "[" * 5000,
    "long": "run_id: " + "x" * (1 << 20),
}


@pytest.mark.parametrize("content", BAD_META.values(), ids=BAD_META)
def test_a_bad_meta_file_is_told_and_the_others_are_read(
    folder: Path, content: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is executed, and one bad run does not hide the other."""
    monkeypatch.chdir(folder)
    path = run_folder(folder) / "meta.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    read = read_mlruns(folder)
    assert len(read.runs) == 1
    (problem,) = read.problems
    assert "meta.yaml must be a table as MLflow writes it" in problem
    assert "\n" not in problem
    assert not (folder / "hacked").exists()


def test_a_parameter_that_is_no_text_is_told(folder: Path) -> None:
    """A file of a gigabyte in the place of a setting does not fill the memory."""
    run = run_folder(folder)
    with (run / "params" / "huge").open("wb") as file:
        file.truncate(1 << 30)
    (run / "params" / "latin").write_bytes(b"\xe9t\xe9")
    (read,) = read_mlruns(run).runs
    assert "huge" not in read.params
    assert read.params["latin"] == "�t�"
    assert read.problems == [f"params/huge is longer than {1 << 20} bytes"]


def test_names_that_are_no_unicode_are_told_apart(folder: Path) -> None:
    """Bytes of a file's name and escapes of a document come out as text that can be written."""
    run = run_folder(folder)
    for name in (b"bad-\xff", b"bad-\xfe"):
        (run / "metrics" / os.fsdecode(name)).write_text("1 0.5 1\n")
    meta = (run / "meta.yaml").read_text().replace("run_name: first", r'run_name: "a\ud800"')
    (run / "meta.yaml").write_text(meta)
    (read,) = read_mlruns(run).runs
    assert {"bad-\\udcff", "bad-\\udcfe"} <= set(read.metrics)
    assert read.name == "a\\ud800"
    repr(read).encode()


# Neither


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    """The error tells what was looked for."""
    (tmp_path / "file").write_text("x")
    for path, words in ((tmp_path / "file", "a file"), (tmp_path / "no", "not there")):
        with pytest.raises(DataError, match=words):
            read_reported(path)
    with pytest.raises(DataError, match="it has neither"):
        read_reported(tmp_path)
    with pytest.raises(DataError, match="A database of MLflow is not read"):
        read_mlruns(tmp_path)


@pytest.mark.parametrize(
    ("module", "extra"), [(mlruns, "mlflow"), (tensorboard_reader, "tensorboard")]
)
def test_a_missing_library_is_named_with_its_extra(
    module: Any, extra: str, folder: Path, events: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error tells what to install."""

    def refuse(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(module.importlib, "import_module", refuse)
    with pytest.raises(ConfigError, match=rf"pip install 'assay\[{extra}\]'"):
        read_reported(folder if extra == "mlflow" else events)


def test_a_metric_of_mlflows_own_batches_is_read(folder: Path) -> None:
    """What `log_batch` writes is the same format."""
    client = MlflowClient(tracking_uri=folder.as_uri())
    experiment = client.create_experiment("batch")
    run = client.create_run(experiment, run_name="batch").info.run_id
    client.log_batch(run, metrics=[Metric("m", i / 7, 1000 + i, i) for i in range(500)])
    (read,) = read_mlruns(folder / experiment).runs
    assert read.metrics["m"].values.tolist() == [i / 7 for i in range(500)]
