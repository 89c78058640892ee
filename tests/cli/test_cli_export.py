"""`assay export` and `assay import-runs`, as a user types them."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from project import Project
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

FORMATS = ("csv", "parquet", "tensorboard", "mlflow", "wandb")
LOGGED = """
import math
import assay
run = assay.init(arm="odd", config={"lr": 0.1}, seeds={"init": 7})
for i, value in enumerate([0.1, math.nan, math.inf, -math.inf]):
    run.log({"train/loss": value}, step=i)
run.summary({"test/score": 0.75})
run.finish()
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A study of two arms and three seeds that has run, one run of it invalidated, and one ad hoc."""
    project = Project(tmp_path_factory.mktemp("export")).toy()
    project("run", "toy")
    project("invalidate", project.json("ls", "toy")[0]["id"], "--because", "the disk was full")
    project.write("logged.py", LOGGED)
    words = [sys.executable, "logged.py"]
    subprocess.run(words, cwd=project.root, env=project.environment(), check=True)
    return project


@pytest.fixture(scope="module")
def exports(project: Project, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The study in every format."""
    folder = tmp_path_factory.mktemp("out")
    for name in FORMATS:
        done = project("export", "toy", "--to", name, folder / name)
        assert done.stdout == f"6 run(s), 66 value(s) written to {folder / name} ({name}).\n"
        assert done.stderr == ""
    return {name: folder / name for name in FORMATS}


def logged(project: Project) -> dict[tuple[str, int], float]:
    """Run and step → value, from the run directories themselves."""
    rows = {}
    for folder in project.folders("toy"):
        for line in (folder / "metrics-0-1.jsonl").read_text().splitlines():
            row = json.loads(line)
            rows[folder.name.rpartition("-")[2], row["step"]] = row["values"]["val/score"]
    return rows


def test_the_tables_hold_what_was_logged(project: Project, exports: dict[str, Path]) -> None:
    """Every row of every run directory, and which of them count."""
    with exports["csv"].open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["metric"] == "val/score"]
    found = {(line["run"], int(line["step"])): float(line["value"]) for line in lines}
    assert found == logged(project)
    assert len(lines) == len(found) == 60
    standings = {line["run"]: line["standing"] for line in lines}
    assert sorted(standings.values()) == ["counts"] * 5 + ["invalidated"]
    struck = {line["because"] for line in lines if line["invalidated"] == "true"}
    assert struck == {"the disk was full"}
    assert {line["config.rate"] for line in lines} == {"0.25", "0.75"}
    assert {line["commit"] for line in lines} == {project.git("rev-parse", "HEAD").strip()}
    frame = pl.read_parquet(exports["parquet"])
    assert frame.filter(metric="val/score")["value"].to_list() == list(found.values())
    assert frame.filter(source="summary").height == 6


def test_tensorboard_reads_the_export(project: Project, exports: dict[str, Path]) -> None:
    """One folder a run, the invalidated one marked, with every step."""
    folders = sorted(path.parent for path in exports["tensorboard"].rglob("*tfevents*"))
    assert len(folders) == 6
    assert sum(folder.name.endswith("-invalidated") for folder in folders) == 1
    for folder in folders:
        accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
        accumulator.Reload()
        assert [event.step for event in accumulator.Tensors("val/score")] == [*range(10)]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_what_was_exported_is_read_back(
    project: Project, exports: dict[str, Path], name: str
) -> None:
    """The round trip through the command line: same numbers, said to be reported."""
    read = project.json("import-runs", exports[name])
    assert read["standing"] == "reported, not evidence"
    values = {}
    for run in read["runs"]:
        tags = run["tags"]
        id_ = tags.get("assay.run") or tags["assay/run"]
        metric = run["metrics"]["val/score"]
        values |= {
            (id_, step): value
            for step, value in zip(metric["steps"], metric["values"], strict=True)
        }
    assert values == logged(project)


def test_one_run_is_exported_by_its_id(project: Project, tmp_path: Path) -> None:
    """With NaN and infinities, in a table and through MLflow and back into a table."""
    run = project.json("ls", "scratch")[0]["id"]
    assert "1 run(s), 5 value(s)" in project("export", run, "--to", "csv", tmp_path / "c").stdout
    with (tmp_path / "c").open(newline="") as file:
        values = [float(line["value"]) for line in csv.DictReader(file)]
    assert values[0] == 0.1
    assert math.isnan(values[1])
    assert values[2:] == [math.inf, -math.inf, 0.75]
    project("export", run, "--to", "mlflow", tmp_path / "mlruns")
    done = project("import-runs", tmp_path / "mlruns", "--csv", tmp_path / "r.csv")
    assert "reported, not evidence" in done.stdout
    with (tmp_path / "r.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["standing"] for line in lines} == {"reported, not evidence"}
    assert {line["param.seed.init"] for line in lines} == {"7"}
    by_metric = [(line["metric"], line["step"], line["value"]) for line in lines]
    assert by_metric == [
        ("summary/test/score", "3", "0.75"), ("train/loss", "0", "0.1"),
        ("train/loss", "1", "nan"), ("train/loss", "2", "inf"), ("train/loss", "3", "-inf"),
    ]  # fmt: skip


def test_the_listing_says_what_it_is_and_steers_no_terminal(
    project: Project, tmp_path: Path
) -> None:
    """Names of somebody else's are shown, not obeyed; damage is counted."""
    run = project.json("ls", "scratch")[0]["id"]
    project("export", run, "--to", "mlflow", tmp_path / "mlruns")
    (meta,) = (path for path in tmp_path.rglob("meta.yaml") if "run_id" in path.read_text())
    lines = [
        r'run_name: "evil\e[2J\nname"' if line.startswith("run_name") else line
        for line in meta.read_text().splitlines()
    ]
    meta.write_text("\n".join(lines))
    with (meta.parent / "metrics" / "train" / "loss").open("a") as file:
        file.write("damage\n1000 0.5 9")
    shown = project("import-runs", tmp_path / "mlruns").stdout
    assert "1 run(s), reported, not evidence." in shown
    assert "evil�[2J�name" in shown
    assert "\x1b" not in shown
    assert "1 row(s) cut off at the end" in shown
    assert "metrics/train/loss: 1 damaged line(s) skipped" in shown


def test_a_changed_run_is_named_and_left_out(tmp_path: Path) -> None:
    """The others are exported; if there is no other, nothing is."""
    project = Project(tmp_path).toy()
    project("run", "toy")
    for number, folder in enumerate(project.folders("toy")):
        events = folder / "events.jsonl"
        events.write_text(events.read_text() + "\n")
        if number == 0:
            done = project("export", "toy", "--to", "csv", tmp_path / "one")
            assert done.stdout.startswith("5 run(s)")
            assert done.stderr.count("\n") == 1
            assert folder.name in done.stderr
            assert "changed after the run ended" in done.stderr
    said = project.refused("export", "toy", "--to", "csv", tmp_path / "none")
    assert "can be exported" in said or "nothing to export" in said
    assert not (tmp_path / "none").exists()


def test_mistakes_are_explained(project: Project, tmp_path: Path) -> None:
    """One paragraph each, and nothing is written."""
    out = tmp_path / "out"
    assert "neither a study" in project.refused("export", "nope", "--to", "csv", out)
    assert "Choose from" in project.refused("export", "toy", "--to", "xlsx", out)
    assert "--to" in project.refused("export", "toy", out)
    assert "Make the folder" in project.refused("export", "toy", "--to", "csv", out / "deep")
    assert "it has neither" in project.refused("import-runs", tmp_path)
    assert "not there" in project.refused("import-runs", out)
    assert "not both" in project.refused("import-runs", tmp_path, "--json", "--csv", out)
    assert not out.exists()
    out.write_text("mine")
    for name in FORMATS:
        assert "never overwrites" in project.refused("export", "toy", "--to", name, out)
    assert out.read_text() == "mine"


def test_help_names_both_commands_and_all_of_their_options(project: Project) -> None:
    """What a user can find without the documentation."""
    listed = project("--help").stdout
    assert "│ export " in listed
    assert "│ import-runs " in listed
    for command, words in (("export", ["--to", *FORMATS]), ("import-runs", ["--json", "--csv"])):
        text = project(command, "--help", COLUMNS="200").stdout
        assert f"assay {command}" in text
        for word in words:
            assert word in text, (command, word)
