import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

import assay
from assay.core.errors import ConfigError, StoreError
from assay.core.metrics import read_metrics
from assay.core.run import RunWriter, create_run, new_record, read_run, verify_run


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder without runs, and a cache of its own."""
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.setenv("ASSAY_ROOT", str(root))
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ASSAY_RUN_DIR", raising=False)
    monkeypatch.delenv("ASSAY_ATTEMPT", raising=False)
    return root


def script(text, *, check=True):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)], capture_output=True, text=True, check=check
    )


def only_run(root):
    (path,) = root.glob("runs/*/*/*/*")
    return read_run(path)


def test_three_lines_record_a_run(project):
    """`init`, `log`, `finish`: a completed run with its metrics, seeds, config and provenance."""
    run = assay.init(config={"lr": 0.1}, seeds={"init": 43})
    for i in range(3):
        run.log({"train/loss_nats": 1 / (i + 1)}, step=i)
    run.finish()
    run.finish()
    state = only_run(project)
    assert (state.status, state.record.study, state.record.phase) == (
        "completed",
        "scratch",
        "debug",
    )
    assert (state.record.config, state.record.seeds) == ({"lr": 0.1}, {"init": 43})
    assert read_metrics(run.path).series["train/loss_nats"].values.tolist() == [1, 1 / 2, 1 / 3]
    provenance = orjson.loads((run.path / "provenance.json").read_bytes())
    assert provenance["machine"]
    assert (run.path / "env.json").exists()
    assert provenance["argv"] == state.record.cmd
    verify_run(state)


def test_without_a_step_rows_count_up(project):
    """The step is one more than the last one given."""
    with assay.init() as run:
        run.log({"a": 1})
        run.log({"a": 1})
        run.log({"a": 1}, step=10)
        run.log({"a": 1})
    assert read_metrics(run.path).series["a"].steps.tolist() == [0, 1, 10, 11]


def test_the_module_functions_go_to_the_latest_run(project):
    """`assay.log` and `assay.finish` need no variable."""
    run = assay.init()
    assay.log({"a": 2.0}, step=4)
    assay.finish()
    assert read_metrics(run.path).series["a"].values.tolist() == [2.0]
    with pytest.raises(StoreError, match=r"assay\.init"):
        assay.log({"a": 2.0})


def test_an_exception_in_the_block_is_a_failure_with_its_traceback(project):
    """The context manager records why, and the exception goes on."""
    with pytest.raises(ZeroDivisionError), assay.init():
        1 / 0  # noqa: B018 - raises
    state = only_run(project)
    assert state.status == "failed"
    assert "ZeroDivisionError" in state.end.error
    assert "test_session.py" in state.end.error


@pytest.mark.parametrize(
    ("ending", "status"),
    [("", "interrupted"), ("sys.exit(3)", "interrupted"), ("raise KeyboardInterrupt", "interrupted"),
     ("raise ValueError('boom')", "failed"), ("run.finish()", "completed")],
)  # fmt: skip
def test_how_a_program_ends_is_how_its_run_ends(ending, status, project):
    """A program that forgets `finish` has not completed; one that raised has failed."""
    script(
        f"import sys, assay\nrun = assay.init()\nrun.log({{'a': 1.0}}, step=0)\n{ending}",
        check=False,
    )
    state = only_run(project)
    assert state.status == status
    assert state.end.rows == 1
    assert ("boom" in (state.end.error or "")) == (status == "failed")


@pytest.mark.parametrize(
    ("code", "status"), [("sys.exit()", "completed"), ("sys.exit(0)", "completed"),
                         ("sys.exit(3)", "failed"), ("raise KeyboardInterrupt", "interrupted")]
)  # fmt: skip
def test_leaving_the_block(code, status, project):
    """Exit code 0 completes, another one fails, Ctrl-C interrupts."""
    script(f"import sys, assay\nwith assay.init():\n    {code}", check=False)
    assert only_run(project).status == status


def test_a_forked_child_does_not_end_the_run(project):
    """Workers inherit the exit handler, but the run is their parent's to end."""
    script("""
        import os, sys, assay
        run = assay.init()
        run.log({"a": 1.0}, step=0)
        if os.fork() == 0:
            sys.exit(0)
        os.wait()
        run.log({"a": 2.0}, step=1)
        run.finish()
    """)
    state = only_run(project)
    assert (state.status, state.end.rows) == ("completed", 2)


def test_under_assay_run_a_program_joins(project, monkeypatch):
    """The run and attempt are the runner's, and so is the end."""
    record = new_record(study="s", arm="a", identity="0", seeds={"init": 7}, config={"lr": 1})
    folder = create_run(project / "runs", record)
    RunWriter(folder, attempt=1).finish("failed", "first try")
    monkeypatch.setenv("ASSAY_RUN_DIR", str(folder))
    monkeypatch.setenv("ASSAY_ATTEMPT", "2")
    runner = RunWriter(folder, attempt=2, rank=1)
    with assay.init(study="ignored") as run:
        assert (run.joined, run.seeds, run.config) == (True, {"init": 7}, {"lr": 1})
        run.log({"a": 1.0}, step=0)
        run.summary({"best": 1.0})
    assert only_run(project).status == "open"
    assert (folder / "metrics-0-2.jsonl").exists()
    assert runner.finish("completed").summary == {"best": 1.0}
    kinds = [e.kind for e in only_run(project).events]
    assert kinds == ["started", "ended", "started", "summary"]


def test_artifacts_of_bytes_and_files(project, tmp_path):
    """`save` takes bytes or a Path; text is an error that says how."""
    (tmp_path / "weights").write_bytes(b"w")
    with assay.init() as run:
        assert run.save("a.bin", b"w") == run.save("b.bin", tmp_path / "weights")
        with pytest.raises(StoreError, match="encode"):
            run.save("c.txt", "text")


@dataclass(frozen=True)
class Config:
    width: int = 8
    rates: tuple[float, ...] = (0.1, 0.2)


@pytest.mark.parametrize(
    ("seeds", "label"),
    [({}, ""), ({"init": 43}, "43"), ({"init": 43, "data": 0}, "init=43,data=0")],
)
def test_seeds_are_labelled_as_in_a_study(seeds, label, project):
    """Runs of a script and runs of a study pair by the same label."""
    with assay.init(seeds=seeds) as run:
        pass
    assert read_run(run.path).record.seed_label == label
    assert run.path.name.startswith(f"{label or 'none'}-")


def test_a_script_that_changes_its_folder_is_a_run_too(project, tmp_path):
    """The interpreter was named relative to a folder that is not the current one any more."""
    (tmp_path / "deeper" / "still").mkdir(parents=True)
    code = "import os, assay; os.chdir('deeper/still'); assay.init().finish()"
    name = os.path.relpath(sys.executable, tmp_path)
    subprocess.run([name, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert only_run(project).status == "completed"


def test_a_dataclass_is_a_config(project):
    """Dataclasses are stored as plain tables."""
    with assay.init(config=Config(width=4)) as run:
        pass
    assert read_run(run.path).record.config == {"width": 4, "rates": [0.1, 0.2]}


@pytest.mark.parametrize(
    "bad",
    [{"config": {"path": Path("x")}}, {"config": {"lr": float("nan")}}, {"config": 3},
     {"seeds": {"init": "x"}}, {"seeds": {"init": True}}, {"seeds": {1: 1}}],
)  # fmt: skip
def test_bad_arguments_leave_nothing_behind(bad, project):
    """A refused `init` makes no run."""
    with pytest.raises(ConfigError, match=r"init\("):
        assay.init(**bad)
    assert not (project / "runs").exists()


def test_import_is_light():
    """`import assay` and even `assay.init` load neither torch nor numpy, polars or scipy."""
    done = script("""
        import sys, assay
        assay.init
        heavy = {"torch", "numpy", "polars", "scipy", "matplotlib", "pandas"}
        print(sorted(heavy & set(sys.modules)))
        import threading
        print(threading.active_count())
    """)
    assert done.stdout.split("\n")[:2] == ["[]", "1"]


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    """Lazy names do not hide slips."""
    with pytest.raises(AttributeError, match="'inti'"):
        assay.inti  # noqa: B018 - raises


@pytest.mark.parametrize(("given", "told"), [({"lr": 0.1}, False), ({"lr": 0.1, "width": 3}, True)])
def test_settings_that_the_study_does_not_declare_are_told(project, monkeypatch, given, told):
    """A joining program's own configuration is never dropped in silence."""
    record = new_record(study="s", arm="a", identity="0", config={"lr": 0.1}, cmd=["python"])
    folder = create_run(project / "runs", record)
    monkeypatch.setenv("ASSAY_RUN_DIR", str(folder))
    RunWriter(folder, attempt=1, rank=1).close()
    assay.init(config=given).finish()
    events = [e.message for e in read_run(folder).events if e.kind == "undeclared-config"]
    assert events == (["the program has settings of its own: width = 3"] if told else [])
