import importlib
import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.tensorboard import SummaryWriter

from assay.core.collect import LINE_LIMIT, collect
from assay.core.definition import Collect
from assay.core.errors import ConfigError, DataError
from assay.core.metrics import read_metrics
from assay.core.run import RunWriter, create_run, new_record, read_run


class Recorder:
    """A run that remembers."""

    def __init__(self):
        self.rows, self.final, self.events = [], {}, []

    def log(self, values, *, step):
        self.rows.append((step, dict(values)))

    def summary(self, values):
        self.final.update(values)

    def event(self, kind, message, **details):
        self.events.append(message)


def take(folder, **spec):
    recorder = Recorder()
    collect(folder, Collect(**spec), recorder)
    return recorder


@pytest.mark.parametrize("name", ["step", "epoch", "iteration"])
def test_csv_with_a_step_column(name, tmp_path):
    """The step column gives the step; the others are metrics; an empty cell is no value."""
    (tmp_path / "metrics.csv").write_text(f"loss,{name},acc\n0.5,10,\nnan,20,0.25\n1e-3,30,1\n")
    got = take(tmp_path, csv="metrics.csv")
    assert got.rows[0] == (10, {"loss": 0.5})
    assert got.rows[1][0] == 20
    assert math.isnan(got.rows[1][1]["loss"])
    assert got.rows[2] == (30, {"loss": 0.001, "acc": 1})
    assert got.events == []


def test_csv_without_a_step_column_counts_rows(tmp_path):
    """The row's number is the step."""
    (tmp_path / "m.csv").write_text("loss\n3\n2\n\n1\n")
    assert take(tmp_path, csv="m.csv").rows == [
        (0, {"loss": 3}),
        (1, {"loss": 2}),
        (2, {"loss": 1}),
    ]


def test_csv_text_columns_are_told(tmp_path):
    """A column that is no number is named in an event, with what it held."""
    (tmp_path / "m.csv").write_text("step,loss,when\n0,0.5,monday\n1,0.4,tuesday\nx,1,z\n2,3,4,5\n")
    got = take(tmp_path, csv="m.csv")
    assert [step for step, _ in got.rows] == [0, 1, 2]
    assert "when: 'monday' is no number" in got.events[0]
    assert "step: row 3" in got.events[0]
    assert "beyond the header" in got.events[0]


@pytest.mark.parametrize("text", ["", "\n", "a,a\n1,2\n"])
def test_csv_without_a_usable_header_is_an_error(text, tmp_path):
    """Columns without names or with one name twice cannot be told apart."""
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError, match=r"collect\.csv must"):
        take(tmp_path, csv="m.csv")


@given(rows=st.lists(st.tuples(st.integers(-(2**53), 2**53), st.floats()), max_size=20))
@settings(deadline=None, max_examples=50)
def test_csv_round_trip(rows, tmp_path_factory):
    """What Python prints as a number is read as that number."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "m.csv").write_text("step,v\n" + "".join(f"{s},{v!r}\n" for s, v in rows))
    got = take(folder, csv="m.csv").rows
    assert [(s, repr(float(v["v"]))) for s, v in got] == [(s, repr(v)) for s, v in rows]


def test_summary_takes_numeric_leaves(tmp_path):
    """Nested names are dotted; non-finite words of Python's json are read; text is told."""
    table = {
        "test": {"acc": 0.5, "by": [1, 2]}, "best": math.inf, "worst": -math.inf, "x": math.nan,
        "note": "NaN Infinity", "ok": True, "none": None,
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(table))
    got = take(tmp_path, summary="summary.json", rename={"test.acc": "test/accuracy"})
    assert math.isnan(got.final.pop("x"))
    assert got.final == {
        "test/accuracy": 0.5, "test.by.0": 1, "test.by.1": 2, "best": math.inf, "worst": -math.inf
    }  # fmt: skip
    assert all(name in got.events[0] for name in ("note", "ok", "none"))


@pytest.mark.parametrize("text", ["", '{"a": 1', "[1, 2]", "3"])
def test_a_summary_that_is_no_table_is_an_error(text, tmp_path):
    """Half-written files are not guessed at."""
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(DataError, match=r"collect\.summary"):
        take(tmp_path, summary="summary.json")


def test_tensorboard_event_files(tmp_path):
    """Scalars keep tag, step and value; other summaries are told."""
    writer = SummaryWriter(str(tmp_path / "tb"))
    for step in range(5):
        writer.add_scalar("train/loss", step / 4, step * 10)
    writer.add_text("note", "hello")
    writer.close()
    got = take(tmp_path, tensorboard="tb", rename={"train/loss": "train/loss_nats"})
    assert got.rows == [(step * 10, {"train/loss_nats": step / 4}) for step in range(5)]
    assert "note" in got.events[0]


def test_tensorboard_folder_without_event_files_is_an_error(tmp_path):
    """An empty folder is a wrong name, not a run without metrics."""
    (tmp_path / "tb").mkdir()
    with pytest.raises(DataError, match="tfevents"):
        take(tmp_path, tensorboard="tb")


def test_missing_tensorboard_names_the_extra(tmp_path, monkeypatch):
    """The way out is one command."""
    (tmp_path / "tb").mkdir()
    real = importlib.import_module

    def without(name, *args):
        if name.startswith("tensorboard"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ConfigError, match=r"assay\[tensorboard\]"):
        take(tmp_path, tensorboard="tb")


def test_stdout_pattern(tmp_path):
    """Named groups are metrics; `step` is the step; lines of a progress bar count one by one."""
    (tmp_path / "stdout.log").write_bytes(
        b"hello\nstep 1 loss 0.5\rstep 2 loss 0.25\nnoise \xff\nstep 3 loss 1.2.3\n"
    )
    got = take(
        tmp_path,
        stdout=r"step (?P<step>\d+) loss (?P<train_loss>[\d.]+)",
        rename={"train_loss": "train/loss_nats"},
    )
    assert got.rows == [(1, {"train/loss_nats": 0.5}), (2, {"train/loss_nats": 0.25})]
    assert "train_loss: '1.2.3' is no number" in got.events[0]


def test_stdout_pattern_without_step_counts_matches(tmp_path):
    """The number of the match is the step."""
    (tmp_path / "stdout.log").write_text("acc=0.5\nx\nacc=0.75\n")
    assert take(tmp_path, stdout=r"acc=(?P<acc>\S+)").rows == [
        (0, {"acc": 0.5}),
        (1, {"acc": 0.75}),
    ]


def test_long_lines_are_not_searched_and_that_is_told(tmp_path):
    """A quadratic pattern on a megabyte would never end."""
    (tmp_path / "stdout.log").write_text("a" * 1_000_000 + "\nacc 1\n")
    before = time.monotonic()
    got = take(tmp_path, stdout=r"a+a+a+b|acc (?P<acc>\d+)")
    assert time.monotonic() - before < 10
    assert got.rows == [(0, {"acc": 1})]
    assert f"1 line(s) longer than {LINE_LIMIT}" in got.events[0]


def test_no_match_is_told(tmp_path):
    """A pattern that fits nothing is a remark of the run."""
    (tmp_path / "stdout.log").write_text("nothing here\n")
    assert "no line matches" in take(tmp_path, stdout=r"acc (?P<acc>\d+)").events[0]


@pytest.mark.parametrize("pattern", ["(", r"\d+", r"(?P<step>\d+)", "(?P<a>x"])
def test_a_pattern_that_can_give_nothing_is_an_error(pattern, tmp_path):
    """It must be a regular expression and name at least one metric."""
    (tmp_path / "stdout.log").write_text("")
    with pytest.raises(ConfigError, match=r"collect\.stdout"):
        take(tmp_path, stdout=pattern)


@pytest.mark.parametrize("key", ["csv", "summary", "tensorboard"])
def test_a_missing_file_is_an_error(key, tmp_path):
    """A program that left nothing is not a run without metrics."""
    with pytest.raises(DataError, match=f"collect.{key}.*nowhere"):
        take(tmp_path, **{key: "nowhere"})


def test_collected_numbers_end_up_in_the_run(tmp_path):
    """Beside a program that logs by itself, the runner collects as the next rank."""
    (tmp_path / "metrics.csv").write_text("step,loss,tag\n0,0.5,x\n1,nan,y\n")
    (tmp_path / "summary.json").write_text('{"acc": 1}')
    folder = create_run(tmp_path / "runs", new_record(study="s", arm="a", identity="0"))
    runner = RunWriter(folder, attempt=1, rank=1)
    program = RunWriter(folder, attempt=1)
    program.log({"own": 1.0}, step=0)
    program.close()
    spec = Collect(csv="metrics.csv", summary="summary.json")
    assert collect(tmp_path, spec, runner) == 2
    runner.finish("completed")
    state = read_run(folder)
    assert state.summary == {"acc": 1.0}
    assert sorted(read_metrics(folder, state.starts).series) == ["loss", "own"]
    assert [e.kind for e in state.events][:3] == ["started", "collect", "summary"]


@pytest.mark.parametrize(
    ("spec", "content"),
    [
        ({"csv": "sub/m.csv"}, None),
        ({"csv": "sub/m.csv"}, b""),
        ({"csv": "sub/m.csv"}, b"a,a\n"),
        ({"csv": "sub/m.csv"}, b"step,a\n0,x\n"),
        ({"summary": "sub/s.json"}, b"{"),
        ({"summary": "sub/s.json"}, b"[1]"),
        ({"summary": "sub/s.json"}, b'{"a": "x"}'),
        ({"summary": "sub"}, None),
        ({"tensorboard": "sub/tb"}, None),
        ({"stdout": "(?P<a>x)"}, b""),
    ],
)
def test_messages_name_files_relative_to_the_folder(spec, content, tmp_path):
    """What goes into the log holds no path of this machine, but the name as it was given."""
    ((key, name),) = spec.items()
    path = tmp_path / ("stdout.log" if key == "stdout" else name)
    (tmp_path / "sub").mkdir()
    if content is not None:
        path.write_bytes(content)
    recorder = Recorder()
    try:
        collect(tmp_path, Collect(**spec), recorder)
    except DataError as error:
        recorder.events.append(str(error))
    (message,) = recorder.events
    assert str(tmp_path) not in message
    assert ("stdout.log" if key == "stdout" else name) in message
