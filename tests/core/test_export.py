"""Exports, each read back with the library that it is for, value by value."""

import csv
import dataclasses
import json
import math
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from lab import LOSS, SCORE, Project, attempt, edit_json, run_id
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import _validate_metric_name
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.context import RequestContext
from tensorboard.data import server_ingester
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util import grpc_util, tensor_util
from wandb.proto import wandb_internal_pb2

from assay.core.analysis import analyse
from assay.core.definition import Analysis
from assay.core.errors import ConfigError, DataError, StoreError
from assay.core.export import mlflow as mlflow_export
from assay.core.export import tensorboard as tensorboard_export
from assay.core.export.gather import ExportedRun, Gathered, gather
from assay.core.export.mlflow import valid_names, write_mlflow
from assay.core.export.tabular import write_csv, write_parquet
from assay.core.export.tensorboard import write_tensorboard
from assay.core.export.wandb import write_wandb
from assay.core.export.whole import whole
from assay.core.foreign import ReportedRun, read_mlruns, read_reported, read_tensorboard
from assay.core.ledger import invalidations, record
from assay.core.run import read_record

# A third is no 32-bit number; the others are what a spreadsheet loses.
CURVE = [1 / 3, math.nan, math.inf, -math.inf, 1e-300, -0.0, 12345678.901234567]
ODD = "acc@1 (%)"
UNDER = f"{LOSS}/ema"


def equal(a: float, b: float) -> bool:
    """Bit for bit, but that one NaN is like another."""
    return (math.isnan(a) and math.isnan(b)) or (
        a == b and math.copysign(1, a) == math.copysign(1, b)
    )


def same(found: Sequence[float], expected: Sequence[float]) -> bool:
    return len(found) == len(expected) and all(map(equal, found, expected))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A study with a long run, one that was resumed, failed, invalidated, and one without values."""
    project = Project(tmp_path_factory.mktemp("export") / "project")
    project.add("a", 1, 0.25, series={LOSS: CURVE, ODD: [0.5, 0.75], UNDER: [9.0]})
    resumed = project.add("a", 2, None, series={LOSS: [3.0, 2.0]}, status="interrupted")
    attempt(resumed, {SCORE: math.nan}, {LOSS: [1.5]})
    project.add("a", 3, None, series={LOSS: [7.0]}, status="failed", error="Traceback\nBoom: no")
    wrong = project.add("b", 1, 0.5, series={LOSS: CURVE[:2]})
    project.add("b", 2, None, status="failed", error="Boom: at once")
    project.add("b", 3, 1.0, series={LOSS: [4.0]}, status=None)
    body = {"target": run_id(wrong), "because": "the disk was full"}
    record(project.settings.ledger_dir, "invalidate", "s", body)
    return project


def gathered(project: Project) -> tuple[list[ExportedRun], Gathered]:
    events = project.events()
    counts = Gathered(runs=0, values=0, refused=[])
    with project.index() as index:
        standings = {run.id: "counts" for run in project.select().counting.values()}
        runs = gather(
            index,
            index.runs("s"),
            struck=invalidations(events),
            standings=standings,
            gathered=counts,
        )
        return list(runs), counts


@pytest.fixture(scope="module")
def runs(project: Project) -> list[ExportedRun]:
    return gathered(project)[0]


def test_every_value_of_every_run_is_gathered(runs: list[ExportedRun]) -> None:
    """Whole series in order, final values, and what is needed to judge them."""
    long, resumed, failed, wrong, empty, open_ = runs
    assert same(long.series[LOSS].values, CURVE)
    assert long.series[LOSS].steps.tolist() == [*range(len(CURVE))]
    assert long.summary == {SCORE: 0.25}
    assert long.num_values == len(CURVE) + 2 + 1 + 1
    assert long.about["commit"] == "c" * 40
    assert long.about["dirty"] is False
    assert long.params["config.method"] == "a"
    assert long.params["seed.init"] == 1
    # The second attempt began anew, so what the first logged was computed again.
    assert resumed.series[LOSS].values.tolist() == [1.5]
    assert resumed.about["attempts"] == 2
    assert [r.about["status"] for r in runs] == [
        "completed", "completed", "failed", "completed", "failed", "open",
    ]  # fmt: skip
    assert [r.about["standing"] for r in runs] == [
        "counts", "counts", "counts", "invalidated", "counts", "counts",
    ]  # fmt: skip
    assert [r.about["invalidated"] for r in runs] == [r is wrong for r in runs]
    assert wrong.about["because"] == "the disk was full"
    assert wrong.name.endswith("-invalidated")
    assert failed.about["phase"] == "pilot"
    assert empty.num_values == 0
    assert open_.ended_s is None


def test_values_of_analyses_go_along(tmp_path: Path) -> None:
    """Under their versioned names, beside what the run measured."""
    project = Project(tmp_path)
    folder = project.add("a", 1, 0.25, artifact=b"7")
    (tmp_path / "sevens.py").write_text(
        "def count(artifacts, run):\n    return {'n': float(artifacts['artifact'].read_bytes())}\n"
    )
    analysis = Analysis(function="sevens:count", version=3, says="Count.", metrics=("n",))
    assert analyse("sevens", analysis, folder, read_record(folder), tmp_path)
    (run,) = gathered(project)[0]
    assert run.summary == {SCORE: 0.25, "n@3": 7.0}


def test_a_run_changed_after_its_end_is_not_exported(tmp_path: Path) -> None:
    """The index trusts the time of a folder; an export compares with the seal, and tells."""
    project = Project(tmp_path / "project")
    project.add("a", 1, 0.25)
    folder = project.add("a", 2, 0.5)
    with project.index():
        pass
    edit_json(folder / "end.json", summary={SCORE: 0.9})
    found, counts = gathered(project)
    assert [run.about["seed"] for run in found] == ["1"]
    ((path, reason),) = counts.refused
    assert path.endswith(folder.name)
    assert "changed after the run ended" in reason


# Tables


def expected_lines(
    runs: list[ExportedRun],
) -> Iterator[tuple[str, str, str, int | None, float | None]]:
    for run in runs:
        name = str(run.about["run"])
        for metric, series in sorted(run.series.items()):
            for step, value in zip(series.steps.tolist(), series.values.tolist(), strict=True):
                yield name, metric, "series", step, value
        for metric, value in sorted(run.summary.items()):
            yield name, metric, "summary", run.last_step, value
        if not run.num_values:
            yield name, "", "", None, None


def test_csv_holds_every_value_and_says_what_it_is(runs: list[ExportedRun], tmp_path: Path) -> None:
    """Read with the csv module: numbers to the last bit, NaN and infinities, one line an empty run."""
    out = tmp_path / "runs.csv"
    write_csv(iter(runs), out)
    with out.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    expected = list(expected_lines(runs))
    assert len(lines) == len(expected)
    by_id = {str(run.about["run"]): run for run in runs}
    for line, (name, metric, source, step, value) in zip(lines, expected, strict=True):
        assert (line["run"], line["metric"], line["source"]) == (name, metric, source)
        assert line["step"] == ("" if step is None else str(step))
        if value is None:
            assert line["value"] == line["time"] == ""
        else:
            assert equal(float(line["value"]), value)
        run = by_id[name]
        assert line["config.method"] == run.params["config.method"]
        assert line["seed.init"] == str(run.params["seed.init"])
        assert line["commit"] == "c" * 40
        assert line["invalidated"] == str(run.about["invalidated"]).lower()
        assert line["because"] == (run.about["because"] or "")
        assert line["phase"] == "pilot"
    times = [float(line["time"]) for line in lines if line["metric"] == LOSS][: len(CURVE)]
    assert times == runs[0].series[LOSS].times.tolist()


def test_parquet_holds_the_same_with_types(runs: list[ExportedRun], tmp_path: Path) -> None:
    """Read with polars: whole numbers, truth values and 64-bit floats, None where nothing is."""
    out = tmp_path / "runs.parquet"
    write_parquet(iter(runs), out)
    frame = pl.read_parquet(out)
    assert frame.schema["value"] == pl.Float64
    assert frame.schema["step"] == pl.Int64
    assert frame.schema["seed.init"] == pl.Int64
    assert frame.schema["config.lr"] == pl.Float64
    assert frame.schema["invalidated"] == pl.Boolean
    keys = ("run", "metric", "source", "step", "value")
    found = [tuple(row[key] for key in keys) for row in frame.iter_rows(named=True)]
    for row, wanted in zip(found, expected_lines(runs), strict=True):
        assert row[:4] == tuple(x or None if isinstance(x, str) else x for x in wanted[:4])
        assert row[4] == wanted[4] or equal(row[4], wanted[4])
    assert frame.filter(pl.col("value").is_nan()).height == 3


def test_a_column_whose_runs_disagree_on_the_type_is_text(
    runs: list[ExportedRun], tmp_path: Path
) -> None:
    """A setting that is a number here and a list there loses nothing."""
    values = [3, [1, 2], "x", None, 2**70, 0.5]
    mixed = [
        dataclasses.replace(run, params={"config.width": value})
        for run, value in zip(runs, values, strict=True)
    ]
    write_parquet(iter(mixed), tmp_path / "mixed.parquet")
    frame = pl.read_parquet(tmp_path / "mixed.parquet").unique("run", maintain_order=True)
    assert frame["config.width"].to_list() == ["3", "[1, 2]", "x", None, str(2**70), "0.5"]


# TensorBoard


def load_events(folder: Path) -> EventAccumulator:
    """Everything, nothing thinned."""
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


def as_shown(values: Any) -> list[float]:
    """As 32 bits, which is all that TensorBoard has."""
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype=np.float64).astype(np.float32).astype(np.float64).tolist()


def test_tensorboard_reads_every_value(runs: list[ExportedRun], tmp_path: Path) -> None:
    """EventAccumulator gives the values in its 32 bits, and the steps and times that were logged."""
    out = tmp_path / "tb"
    write_tensorboard(iter(runs), out)
    for run in runs:
        folder = out.joinpath(*run.name.split("/"))
        accumulator = load_events(folder)
        scalars = set(accumulator.summary_metadata) & {
            tag
            for tag, data in accumulator.summary_metadata.items()
            if data.plugin_data.plugin_name == "scalars"
        }
        assert scalars == {*run.series, *(f"summary/{name}" for name in run.summary)}
        for name, series in run.series.items():
            events = accumulator.Tensors(name)
            values = [float(tensor_util.make_ndarray(event.tensor_proto)) for event in events]
            assert same(values, as_shown(series.values))
            assert same([event.tensor_proto.double_val[0] for event in events], series.values)
            assert [event.step for event in events] == series.steps.tolist()
            assert [event.wall_time for event in events] == series.times.tolist()
        for name, value in run.summary.items():
            (event,) = accumulator.Tensors(f"summary/{name}")
            shown = float(tensor_util.make_ndarray(event.tensor_proto))
            assert same([shown], as_shown([value]))


@contextmanager
def data_server(logdir: Path, port: Path) -> Iterator[str]:
    """The address of the server that `tensorboard` starts."""
    words = [server_ingester.get_server_binary().path, f"--logdir={logdir}", "--reload=once",
             "--port=0", f"--port-file={port}", "--die-after-stdin"]  # fmt: skip
    with subprocess.Popen(words, stdin=subprocess.PIPE) as server:
        for _ in range(500):
            if port.exists() and port.read_text().endswith("\n"):
                break
            time.sleep(0.01)
        yield f"localhost:{port.read_text().strip()}"
        assert server.stdin is not None
        server.stdin.close()


def test_the_server_of_tensorboard_shows_every_value(
    runs: list[ExportedRun], tmp_path: Path
) -> None:
    """The data server behind its pages; it passes over what it does not like without a word."""
    write_tensorboard(iter(runs), tmp_path / "tb")
    with data_server(tmp_path / "tb", tmp_path / "port") as address:
        provider = server_ingester.ExistingServerDataIngester(
            address, channel_creds_type=grpc_util.ChannelCredsType.LOCAL
        ).data_provider
        found: Any = {}
        for _ in range(200):
            found = provider.read_scalars(
                RequestContext(), experiment_id="", plugin_name="scalars", downsample=1000
            )
            points = sum(len(data) for tags in found.values() for data in tags.values())
            # It answers while it is still reading.
            if points == sum(run.num_values for run in runs):
                break
            time.sleep(0.05)
    assert set(found) == {run.name for run in runs if run.num_values}
    for run in runs:
        for name, series in run.series.items():
            data = found[run.name][name]
            assert same([point.value for point in data], as_shown(series.values))
            assert [point.step for point in data] == series.steps.tolist()


def test_tensorboard_shows_what_a_run_is(runs: list[ExportedRun], tmp_path: Path) -> None:
    """Texts for arm, commit and state; hyper-parameters for the settings; the mark in the name."""
    out = tmp_path / "tb"
    write_tensorboard(iter(runs), out)
    for run in runs:
        accumulator = load_events(out.joinpath(*run.name.split("/")))

        def text(tag: str, accumulator: EventAccumulator = accumulator) -> str:
            (event,) = accumulator.Tensors(tag)
            return tensor_util.make_ndarray(event.tensor_proto).item().decode()

        assert text("assay/arm") == run.about["arm"]
        assert text("assay/commit") == "c" * 40
        assert text("assay/invalidated") == json.dumps(run.about["invalidated"])
        content = accumulator.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
        assert start.hparams["config.method"].string_value == run.params["config.method"]
        assert start.hparams["config.lr"].number_value == run.params["config.lr"]
        assert start.hparams["seed.init"].number_value == run.params["seed.init"]
    marked = [path.name for path in out.rglob("*-invalidated")]
    assert len(marked) == 1


def test_tensorboard_files_are_the_same_each_time(runs: list[ExportedRun], tmp_path: Path) -> None:
    """Equal runs give equal bytes, and no name of this machine is in them."""
    for name in ("one", "two"):
        write_tensorboard(iter(runs), tmp_path / name)
    files = [sorted((tmp_path / name).rglob("events*")) for name in ("one", "two")]
    assert len(files[0]) == len(runs)
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]
    assert not any(socket.gethostname().encode() in file.read_bytes() for file in files[0])


# MLflow


@pytest.fixture
def client(runs: list[ExportedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real client on an exported folder."""
    write_mlflow(iter(runs), tmp_path / "mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())


def test_mlflow_reads_every_value(client: Any, runs: list[ExportedRun]) -> None:
    """Params, tags and the whole history of each metric, as the client gives them."""
    experiment = client.get_experiment_by_name("s")
    found = {
        run.data.tags["assay.run"]: run for run in client.search_runs(experiment.experiment_id)
    }
    assert len(found) == len(runs)
    for run in runs:
        seen = found[str(run.about["run"])]
        tags, names = seen.data.tags, valid_names([*run.series, f"summary/{SCORE}"])
        assert tags["assay.arm"] == run.about["arm"]
        assert tags["assay.commit"] == tags["mlflow.source.git.commit"] == "c" * 40
        assert tags["assay.invalidated"] == json.dumps(run.about["invalidated"])
        assert tags["assay.phase"] == "pilot"
        assert seen.data.params["config.method"] == run.params["config.method"]
        assert seen.data.params["seed.init"] == str(run.params["seed.init"])
        assert seen.info.run_name == run.name
        for name, series in run.series.items():
            history = client.get_metric_history(seen.info.run_id, names[name])
            assert same([point.value for point in history], series.values)
            assert [point.step for point in history] == series.steps.tolist()
            wanted = [round(time * 1000) for time in series.times.tolist()]
            assert [point.timestamp for point in history] == wanted
            # A name that MLflow cannot have is told.
            assert names[name] == name or tags[f"assay.name.{names[name]}"] == name
        assert len(seen.data.metrics) == len(run.series) + len(run.summary)
    states = [found[str(run.about["run"])].info.status for run in runs]
    assert states == ["FINISHED", "FINISHED", "FAILED", "FINISHED", "FAILED", "RUNNING"]
    (wrong,) = [r for r in found.values() if r.data.tags["assay.invalidated"] == "true"]
    assert "the disk was full" in wrong.data.tags["mlflow.note.content"]


def test_mlflow_records_name_the_final_folder(client: Any, tmp_path: Path) -> None:
    """Artifacts that a user adds later go below OUT, not to where the export was written."""
    for experiment in client.search_experiments():
        assert experiment.artifact_location.startswith((tmp_path / "mlruns").as_uri())
    assert not any(".tmp" in path.read_text() for path in tmp_path.rglob("meta.yaml"))


def test_the_export_leaves_the_environment_as_it_was(
    runs: list[ExportedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders are allowed, and reports turned off, only while it writes."""
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    write_mlflow(iter(runs[:1]), tmp_path / "mlruns")
    assert "MLFLOW_ALLOW_FILE_STORE" not in os.environ
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"


def test_names_for_mlflow_are_valid_and_different() -> None:
    """Any names become names that its own check takes, no two the same, no file a folder."""
    names = ["loss", "loss/train", "a@b", "a#b", "a_b", "..", "../x", "/x", "x", "a//b", "a/b", ".",
             "é ü", "n" * 300, "n" * 301, "a/b/../c"]  # fmt: skip
    found = valid_names(names)
    assert set(found) == set(names)
    values = [*found.values()]
    assert len(set(values)) == len(values)
    for name in values:
        _validate_metric_name(name)
        assert not any(other.startswith(f"{name}/") for other in values)
    assert found["loss"] == "loss"


@pytest.mark.parametrize("study", ['it\'s "mine"', "Default", "a" * 600, "50% `x`; [a]"])
def test_any_study_becomes_an_experiment(
    study: str, runs: list[ExportedRun], tmp_path: Path
) -> None:
    """Names that MLflow refuses or keeps for itself are changed; the tag tells the real one."""
    renamed = dataclasses.replace(runs[0], about={**runs[0].about, "study": study})
    write_mlflow(iter([renamed, renamed]), tmp_path / "mlruns")
    read = read_mlruns(tmp_path / "mlruns")
    assert [run.tags["assay.study"] for run in read.runs] == [study, study]
    assert len({run.tags["experiment"] for run in read.runs}) == 1


def test_a_text_too_long_for_mlflow_says_that_it_was_cut(
    runs: list[ExportedRun], tmp_path: Path
) -> None:
    """MLflow itself would cut it without a word."""
    long = dataclasses.replace(runs[0], params={"config.prompt": "x" * 7000})
    write_mlflow(iter([long]), tmp_path / "mlruns")
    (run,) = read_mlruns(tmp_path / "mlruns").runs
    assert "cut: 7000 characters" in run.params["config.prompt"]


# Round trips


def check_metrics(run: ExportedRun, found: ReportedRun, name: Any, *, unit_s: float) -> None:
    assert len(found.metrics) == len(run.series) + len(run.summary)
    for metric, series in run.series.items():
        read = found.metrics[name(metric)]
        assert same(read.values.tolist(), series.values.tolist())
        assert read.steps.tolist() == series.steps.tolist()
        assert np.abs(read.times - series.times).max() <= unit_s / 2
    for metric, value in run.summary.items():
        assert same(found.metrics[f"summary/{metric}"].values.tolist(), [value])


def test_exported_and_read_again_tensorboard_gives_the_same(
    runs: list[ExportedRun], tmp_path: Path
) -> None:
    """Our own reader: same numbers, steps and times; params and state as text."""
    write_tensorboard(iter(runs), tmp_path / "tb")
    read = read_reported(tmp_path / "tb")
    assert (read.kind, read.problems) == ("tensorboard", [])
    by_name = {run.name: run for run in read.runs}
    for run in runs:
        found = by_name[run.name]
        check_metrics(run, found, lambda name: name, unit_s=0.0)
        assert found.params["config.method"] == run.params["config.method"]
        assert found.params["seed.init"] == str(run.params["seed.init"])
        assert found.tags["assay/because"] if run.about["invalidated"] else True
        assert (found.torn_lines, found.bad_lines, found.problems) == (0, 0, [])


def test_exported_and_read_again_mlruns_gives_the_same(
    runs: list[ExportedRun], tmp_path: Path
) -> None:
    """Our own reader, without mlflow; times to the millisecond that MLflow keeps."""
    write_mlflow(iter(runs), tmp_path / "mlruns")
    read = read_reported(tmp_path / "mlruns")
    assert (read.kind, read.problems) == ("mlruns", [])
    by_id = {run.tags["assay.run"]: run for run in read.runs}
    for run in runs:
        found = by_id[str(run.about["run"])]
        names = valid_names([*run.series, *(f"summary/{name}" for name in run.summary)])
        check_metrics(run, found, names.__getitem__, unit_s=0.0011)
        assert found.params["config.method"] == run.params["config.method"]
        assert found.tags["experiment"] == "s"
        assert found.name == run.name
        assert (found.torn_lines, found.bad_lines, found.problems) == (0, 0, [])


# Whole or not there


WRITERS = [write_csv, write_parquet, write_tensorboard, write_mlflow]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_nothing_is_overwritten(write: Any, runs: list[ExportedRun], tmp_path: Path) -> None:
    """What is at OUT stays as it was, be it a file, a folder or a link to nowhere."""
    file, folder, link = (tmp_path / name for name in ("file", "folder", "link"))
    file.write_text("mine")
    folder.mkdir()
    link.symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.iterdir())
    for out in (file, folder, link, folder / ".."):
        with pytest.raises(StoreError, match="never overwrites"):
            write(iter(runs), out)
    assert sorted(tmp_path.iterdir()) == before
    assert file.read_text() == "mine"


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_nothing_half_written_is_left(write: Any, runs: list[ExportedRun], tmp_path: Path) -> None:
    """A run that cannot be read in the middle leaves neither OUT nor a temporary one."""

    def broken() -> Iterator[ExportedRun]:
        yield runs[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(broken(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The folder of OUT is the user's to make."""
    with pytest.raises(StoreError, match="Make the folder"), whole(tmp_path / "no" / "out") as path:
        path.write_text("x")
    with whole(tmp_path / "out") as path:
        path.write_text("x")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out").read_text() == "x"


def test_what_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    """Two exports to one place: the second loses, not the first."""

    def late() -> Iterator[ExportedRun]:
        (tmp_path / "out").write_text("early")
        yield from ()

    with pytest.raises(StoreError, match="never overwrites"):
        write_csv(late(), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "early"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize(
    ("module", "write", "extra"),
    [
        (tensorboard_export, write_tensorboard, "tensorboard"),
        (mlflow_export, write_mlflow, "mlflow"),
    ],
    ids=["tensorboard", "mlflow"],
)
def test_a_missing_library_is_named_with_its_extra(
    module: Any, write: Any, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error tells what to install, and nothing is written."""

    def refuse(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(module.importlib, "import_module", refuse)
    with pytest.raises(ConfigError, match=rf"pip install 'assay\[{extra}\]'"):
        write(iter([]), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_read_tensorboard_wants_event_files(tmp_path: Path) -> None:
    """Neither reader takes a folder without its files."""
    with pytest.raises(DataError, match="tfevents"):
        read_tensorboard(tmp_path)


# Weights & Biases


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run: LevelDB's log format, in it the library's own messages."""
    data, at, message = path.read_bytes(), 7, b""
    while at < len(data):
        block_left = 32768 - at % 32768
        if block_left < 7:
            at += block_left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        message += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            message = b""
            yield record


def wandb_values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.fixture(scope="module")
def wandb_runs(runs: list[ExportedRun], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run id → its records, by kind."""
    out = tmp_path_factory.mktemp("wandb") / "out"
    write_wandb(iter(runs), out)
    found = {}
    for path in out.glob("wandb/offline-run-*/*.wandb"):
        kinds: dict[str, list[Any]] = {}
        for message in wandb_records(path):
            kind = message.WhichOneof("record_type")
            kinds.setdefault(kind, []).append(getattr(message, kind))
        found[kinds["run"][0].run_id] = kinds
    assert {path.name for path in out.rglob("*.log")} == set()
    return found


def test_wandb_reads_every_value(runs: list[ExportedRun], wandb_runs: dict[str, Any]) -> None:
    """Settings, standing and every value with its step and time, in the library's own messages."""
    assert set(wandb_runs) == {run.about["run"] for run in runs}
    for run in runs:
        kinds = wandb_runs[str(run.about["run"])]
        (made,) = kinds["run"]
        config = wandb_values(made.config.update)
        assert config["config.method"] == run.params["config.method"]
        assert config["assay.commit"] == "c" * 40
        assert config["assay.invalidated"] is run.about["invalidated"]
        assert (made.project, made.run_group) == ("s", run.about["arm"])
        assert made.display_name == run.name
        assert list(made.tags) == ([run.about["standing"]] if run.about["standing"] else [])
        assert made.host == ""
        assert config["assay.created_at"] == run.about["created_at"]
        lines = [wandb_values(line.item) for line in kinds.get("history", [])]
        for name, series in run.series.items():
            logged = [line for line in lines if name in line]
            # W&B has no negative zero; all other values are the same, to the last bit.
            found = np.array([line[name] for line in logged], dtype=float)
            assert np.array_equal(found, series.values, equal_nan=True)
            assert [line["assay_step"] for line in logged] == series.steps.tolist()
            # The values of one line may be of several moments.
            times = zip([line["_timestamp"] for line in logged], series.times.tolist(), strict=True)
            assert all(0 <= shown - time < 1 for shown, time in times)
        kept = wandb_values(u for s in kinds.get("summary", []) for u in s.update)
        for name, value in run.summary.items():
            assert equal(kept[f"summary/{name}"], value)
    (wrong,) = [k["run"][0] for k in wandb_runs.values() if "invalidated" in k["run"][0].tags]
    assert "the disk was full" in wrong.notes
    codes = {
        str(run.about["status"]): wandb_runs[run.about["run"]]["exit"][0].exit_code for run in runs
    }
    assert codes == {"completed": 0, "failed": 1, "open": 1}


def test_wandb_keeps_two_values_of_one_step(runs: list[ExportedRun], tmp_path: Path) -> None:
    """As a program logs them that counts its steps anew."""
    first = runs[0].series[LOSS]
    twice = type(first)(*(np.concatenate([column, column[:1]]) for column in first))
    write_wandb(
        iter([dataclasses.replace(runs[0], series={LOSS: twice}, summary={})]), tmp_path / "out"
    )
    (path,) = (tmp_path / "out").glob("wandb/*/*.wandb")
    lines = [wandb_values(r.history.item) for r in wandb_records(path) if r.HasField("history")]
    assert [line["assay_step"] for line in lines] == [0, 0, *range(1, len(CURVE))]
    assert same([lines[0][LOSS], lines[1][LOSS]], CURVE[:1] * 2)


def test_without_wandb_the_way_out_is_told(
    runs: list[ExportedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'assay\[wandb\]'"):
        write_wandb(iter(runs), tmp_path / "out")
    assert not (tmp_path / "out").exists()
