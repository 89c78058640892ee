import math
import os
import random
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.core import rows, rundir
from assay.core.engine import RunContext
from assay.core.errors import CheckpointError, StoreError, TamperedError
from assay.core.metrics import metrics_files, read_metrics, read_metrics_file
from assay.core.run import (
    RunWriter,
    attempt_name,
    create_run,
    new_record,
    next_attempt,
    read_checkpoint,
    read_record,
    read_run,
    verify_run,
    write_checkpoint,
)


def make(runs_dir, **fields):
    return create_run(runs_dir, new_record(**{"study": "s", "arm": "a", "identity": "0", **fields}))


def test_a_run_writer_is_a_run_context(tmp_path):
    """What an engine is promised is what it gets."""
    context: RunContext = RunWriter(make(tmp_path, seeds={"init": 3}), attempt=1)
    wanted = {name for name in dir(RunContext) if not name.startswith("_")}
    wanted |= set(RunContext.__annotations__)
    assert wanted <= set(dir(context))
    assert context.seeds == {"init": 3}


def test_a_run_lies_where_its_study_arm_cell_and_seed_say(tmp_path):
    """`runs/<study>/<arm>/<cell>/<seed>-<ulid>`."""
    folder = make(tmp_path, arm="dfa", cell={"depth": 2}, cell_label="depth=2", seed_label="42")
    record = read_record(folder)
    assert folder == tmp_path / "s" / "dfa" / "depth=2" / f"42-{record.id}"
    assert record.cell == {"depth": 2}


@given(study=st.text(max_size=20), arm=st.text(max_size=20))
@settings(deadline=None, max_examples=60)
def test_no_name_leads_out_of_the_runs_folder(study, arm, tmp_path_factory):
    """Whatever a study and an arm are called, the run lies four levels below `runs/`."""
    runs_dir = tmp_path_factory.mktemp("runs")
    folder = make(runs_dir, study=study, arm=arm)
    assert len(folder.resolve().relative_to(runs_dir.resolve()).parts) == 4
    assert read_record(folder).arm == arm


def test_names_that_differ_have_folders_that_differ(tmp_path):
    """Replaced characters do not make two arms one."""
    folders = {make(tmp_path, arm=arm).parent for arm in ("a/b", "a b", "a:b", "a_b", "a\\b")}
    assert len(folders) == 5


@pytest.mark.parametrize(
    ("name", "attempt", "expected"),
    [("stdout.log", 1, "stdout.log"), ("stdout.log", 2, "stdout-2.log"),
     ("end.json", 12, "end-12.json")],
)  # fmt: skip
def test_attempt_names(name, attempt, expected):
    """Attempt 1 carries no number."""
    assert attempt_name(name, attempt) == expected


def test_a_finished_run_reads_back(tmp_path):
    """Summary (also non-finite), spent, rows, status and the digests of what was sealed."""
    folder = make(tmp_path)
    writer = RunWriter(folder, attempt=1)
    assert read_run(folder).status == "open"
    for step in range(5):
        writer.log({"a": step}, step=step)
    writer.summary({"best": math.inf, "worst": 1})
    writer.summary({"worst": math.nan})
    writer.spent(steps=5)
    writer.save("x.bin", b"x")
    writer.save_checkpoint(5, b"state")
    writer.event("fallback", "took the slow kernel", reason="avx2", loss=math.nan)
    writer.finish("completed")
    state = read_run(folder)
    assert (state.status, state.attempts, state.starts) == ("completed", 1, {1: None})
    assert state.summary["best"] == math.inf
    assert math.isnan(state.summary["worst"])
    assert state.spent == {"steps": 5.0}
    assert state.end.rows == 5
    assert set(state.end.files) == {
        "run.json", "events.jsonl", "metrics-0-1.jsonl", "metrics.parquet",
        "artifacts/manifest.jsonl",
    }  # fmt: skip
    assert state.events[0].kind == "started"
    assert state.events[0].details["start_step"] is None
    assert not (folder / "checkpoint").exists()
    assert (state.problems, state.torn_lines) == ([], 0)
    verify_run(state)


def test_a_failed_run_keeps_its_traceback_and_checkpoint(tmp_path):
    """A failure is a result: it is stored with its reason, and can be gone on with."""
    folder = make(tmp_path)
    writer = RunWriter(folder, attempt=1)
    writer.save_checkpoint(3, b"state")
    writer.finish("failed", "Traceback: boom")
    state = read_run(folder)
    assert (state.status, state.end.error) == ("failed", "Traceback: boom")
    assert read_checkpoint(folder) == (3, b"state")
    assert next_attempt(folder) == 2


@pytest.mark.parametrize(
    "name",
    ["run.json", "events.jsonl", "provenance.json", "env.json", "diff.patch", "metrics-0-1.jsonl",
     "metrics.parquet", "artifacts/manifest.jsonl"],
)  # fmt: skip
def test_a_change_after_the_end_is_found(name, tmp_path):
    """Sealed files cannot be edited unseen."""
    folder = make(tmp_path)
    writer = RunWriter(folder, attempt=1)
    writer.log({"a": 1.0}, step=0)
    writer.save("x", b"1")
    for other in ("provenance.json", "env.json", "diff.patch"):
        (folder / other).write_bytes(b"{}")
    writer.finish("completed")
    verify_run(read_run(folder))
    with (folder / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(TamperedError, match=Path(name).name):
        verify_run(read_run(folder))


def test_nothing_is_recorded_after_the_end(tmp_path):
    """Every way to write into an ended run is refused."""
    writer = RunWriter(make(tmp_path), attempt=1)
    writer.log({"a": 1.0}, step=0)
    writer.finish("completed")
    for late in (
        lambda: writer.log({"a": 1.0}, step=1),
        lambda: writer.summary({"a": 1.0}),
        lambda: writer.spent(steps=1),
        lambda: writer.save("x", b""),
        lambda: writer.save_checkpoint(1, b""),
        lambda: writer.event("late", "too late"),
        lambda: writer.finish("completed"),
    ):
        with pytest.raises(StoreError):
            late()


def test_an_attempt_ends_once(tmp_path):
    """Two processes that believe to own one attempt cannot overwrite how it ended."""
    folder = make(tmp_path)
    first, second = RunWriter(folder, attempt=1), RunWriter(folder, attempt=1)
    first.finish("completed")
    with pytest.raises(StoreError, match="ends once"):
        second.finish("failed")
    assert read_run(folder).status == "completed"
    assert sum(e.kind == "started" for e in read_run(folder).events) == 1


def test_a_resumed_attempt_starts_at_its_checkpoint(tmp_path):
    """The merged view is what an uninterrupted run would have logged."""
    folder = make(tmp_path)
    first = RunWriter(folder, attempt=1)
    for step in range(8):
        if step == 5:
            first.save_checkpoint(5, b"five")
        first.log({"a": step}, step=step)
    first.finish("interrupted")
    second = RunWriter(folder, attempt=2)
    step, state = second.load_checkpoint()
    assert (step, state) == (5, b"five")
    for later in range(step, 10):
        second.log({"a": later}, step=later)
    second.finish("completed")
    run = read_run(folder)
    assert (run.status, run.attempts, run.starts) == ("completed", 2, {1: None, 2: 5})
    merged = read_metrics(folder, run.starts)
    assert merged.series["a"].steps.tolist() == list(range(10))
    assert merged.hidden_rows == 3
    verify_run(run)


def test_an_attempt_that_ignores_the_checkpoint_starts_from_scratch(tmp_path):
    """Rows of an engine that does not resume are not glued to those of the attempt before."""
    folder = make(tmp_path)
    first = RunWriter(folder, attempt=1)
    first.log({"a": 1.0}, step=0)
    first.save_checkpoint(1, b"")
    first.close()
    second = RunWriter(folder, attempt=2)
    second.log({"a": 2.0}, step=0)
    second.close()
    run = read_run(folder)
    assert run.starts == {1: None, 2: None}
    assert read_metrics(folder, run.starts).series["a"].values.tolist() == [2.0]


def test_a_joined_writer_adds_to_the_attempt_that_started(tmp_path):
    """A program and its runner write one attempt: one start, summaries of both."""
    folder = make(tmp_path)
    runner = RunWriter(folder, attempt=1, rank=1)
    program = RunWriter(folder, attempt=1)
    program.log({"a": 1.0}, step=0)
    program.summary({"from_program": 1.0})
    program.close()
    runner.log({"b": 2.0}, step=0)
    runner.summary({"from_runner": 2.0})
    end = runner.finish("completed")
    assert end.summary == {"from_program": 1.0, "from_runner": 2.0}
    assert end.rows == 2
    assert sorted(read_metrics(folder).series) == ["a", "b"]


def test_every_half_written_run_json_is_an_error(tmp_path):
    """No prefix of `run.json` reads as a run."""
    folder = make(tmp_path, config={"lr": 0.1})
    path = folder / "run.json"
    content = path.read_bytes()
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        with pytest.raises(StoreError, match=r"run\.json"):
            read_run(folder)


def test_a_missing_run_json_is_an_error(tmp_path):
    """A directory without `run.json` is no run."""
    folder = make(tmp_path)
    (folder / "run.json").unlink()
    with pytest.raises(StoreError, match=r"run\.json.*No such file"):
        read_run(folder)


def test_an_unknown_schema_is_an_error(tmp_path):
    """A run of a later version is not read by guesswork."""
    folder = make(tmp_path)
    path = folder / "run.json"
    path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | {"schema": 2}))
    with pytest.raises(StoreError, match="schema 1; got 2"):
        read_run(folder)


@pytest.mark.parametrize(
    "change", [{"seeds": {"init": "x"}}, {"arm": None}, {"config": []}, {"generation": 1.5}]
)
def test_a_wrong_type_in_run_json_is_an_error(change, tmp_path):
    """Types are checked when read."""
    folder = make(tmp_path)
    path = folder / "run.json"
    path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | change))
    with pytest.raises(StoreError, match=next(iter(change))):
        read_run(folder)


@pytest.mark.parametrize(
    "change", [{"status": "fine"}, {"summary": {"a": None}}, {"summary": {"a": "high"}},
               {"summary": [1]}, {"spent": {"a": True}}, {"attempt": "1"}]
)  # fmt: skip
def test_a_wrong_end_json_is_an_error(change, tmp_path):
    """A number that is not one is never taken for a result."""
    folder = make(tmp_path)
    RunWriter(folder, attempt=1).finish("completed")
    path = folder / "end.json"
    path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | change))
    with pytest.raises(StoreError, match=r"end\.json"):
        read_run(folder)


def test_a_torn_event_costs_only_itself(tmp_path):
    """An attempt after a kill in the middle of an event is read whole, and the loss is told."""
    folder = make(tmp_path)
    RunWriter(folder, attempt=1).close()
    with (folder / "events.jsonl").open("ab") as file:
        file.write(b'{"at":"2026')
    assert read_run(folder).torn_lines == 1
    RunWriter(folder, attempt=2).close()
    state = read_run(folder)
    assert state.starts == {1: None, 2: None}
    assert state.problems == ["events.jsonl: 1 unreadable line(s) skipped"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "header", "empty"])
def test_a_damaged_checkpoint_is_never_loaded(damage, tmp_path):
    """A checkpoint that is not what was saved is an error with the way out."""
    folder = make(tmp_path)
    write_checkpoint(folder, 7, b"state" * 100)
    path = folder / "checkpoint"
    content = path.read_bytes()
    path.write_bytes(
        {"cut": content[:-1], "flipped": content[:-1] + b"X", "header": content[3:], "empty": b""}[
            damage
        ]
    )
    with pytest.raises(TamperedError, match="Delete it to start this run from scratch"):
        read_checkpoint(folder)


@given(step=st.integers(-(2**62), 2**62), content=st.binary())
@settings(deadline=None, max_examples=50)
def test_checkpoint_round_trip(step, content, tmp_path_factory):
    """Any bytes and any step come back; a second save replaces the first."""
    folder = tmp_path_factory.mktemp("run")
    write_checkpoint(folder, 0, b"before")
    write_checkpoint(folder, step, content)
    assert read_checkpoint(folder) == (step, content)


def test_rows_reach_the_disk_before_their_checkpoint(tmp_path, monkeypatch):
    """After a power cut no checkpoint stands without the rows before it."""
    writer = RunWriter(make(tmp_path), attempt=1)
    writer.log({"a": 1.0}, step=0)
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino) or real(fd))
    writer.save_checkpoint(1, b"state")
    rows_file, checkpoint = (writer.folder / n for n in ("metrics-0-1.jsonl", "checkpoint"))
    assert synced[:2] == [rows_file.stat().st_ino, checkpoint.stat().st_ino]
    writer.close()


def test_a_checkpoint_step_is_a_whole_number(tmp_path):
    """The start of the next attempt is computed with it."""
    with pytest.raises(CheckpointError, match="whole number"):
        write_checkpoint(tmp_path, 1.5, b"")


@pytest.mark.parametrize("place", ["below a file", "/proc"])
def test_a_folder_that_cannot_be_written_is_a_store_error(place, tmp_path):
    """Places where root cannot write either: the error names the folder and the way out."""
    if place == "below a file":
        runs_dir = tmp_path / "file" / "runs"
        (tmp_path / "file").write_bytes(b"")
    else:
        if not Path("/proc/self").exists():
            pytest.skip("no /proc here")
        runs_dir = Path("/proc/assay")
    with pytest.raises(StoreError, match=r"must be writable.*ASSAY_ROOT"):
        make(runs_dir)


def test_a_disk_that_fills_up_leaves_a_readable_run(tmp_path):
    """Whatever is refused raises; what was acknowledged is read; the checkpoint is the old one."""
    folder = make(tmp_path)
    script = """
        import resource, sys
        from pathlib import Path
        from assay.core.errors import StoreError
        from assay.core.run import RunWriter
        writer = RunWriter(Path(sys.argv[1]), attempt=1)
        writer.save_checkpoint(0, b"old")
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
        rows = 0
        refused = []
        for attempt in (
            lambda: writer.save_checkpoint(1, bytes(5000)),
            lambda: writer.save("big", bytes(5000)),
            lambda: [writer.event("note", "x" * 100) for _ in range(100)],
        ):
            try:
                attempt()
            except StoreError as error:
                refused.append(str(error))
        try:
            while True:
                writer.log({"a": 1.0}, step=rows)
                rows += 1
        except StoreError as error:
            refused.append(str(error))
        print(rows, len(refused))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(folder)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    num_rows, refused = map(int, done.stdout.split())
    assert refused == 4
    state = read_run(folder)
    assert (state.status, state.torn_lines, state.problems) == ("open", 0, [])
    assert read_metrics(folder, state.starts).num_rows == num_rows > 10
    assert read_checkpoint(folder) == (0, b"old")
    assert list(folder.rglob("*.tmp")) == []


KILLED_IN_A_WRITE = {
    "artifact": 'writer.save("big.bin", bytes(1000))',
    "copy": 'writer.save_file("big.bin", folder / "run.json")',
    "checkpoint": "writer.save_checkpoint(2, bytes(1000))",
}


@pytest.mark.parametrize("write", KILLED_IN_A_WRITE.values(), ids=KILLED_IN_A_WRITE)
def test_what_a_kill_left_half_written_goes_with_the_next_attempt(write, tmp_path):
    """It may be gigabytes, and nobody reads it; of one attempt, no process removes another's."""
    folder = make(tmp_path)
    script = f"""
        import os, signal, sys
        from pathlib import Path
        from assay.core.run import RunWriter
        folder = Path(sys.argv[1])
        writer = RunWriter(folder, attempt=1)
        writer.save("small.bin", b"kept")
        writer.save_checkpoint(1, b"kept too")
        os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
        {write}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(folder)], check=False
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    (half,) = folder.rglob("*.tmp")
    RunWriter(folder, attempt=1, rank=1)
    assert half.exists()
    writer = RunWriter(folder, attempt=2)
    assert not half.exists()
    assert writer.artifacts.read("small.bin") == b"kept"
    assert read_checkpoint(folder) == (1, b"kept too")


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path, monkeypatch):
    """Order comes from files, attempts and steps; durations from the monotonic clock."""
    clock = iter(range(2_000_000_000, 0, -86_400))
    monkeypatch.setattr(rows.time, "time", lambda: float(next(clock)))
    monkeypatch.setattr(
        rundir, "now", lambda: datetime.fromtimestamp(next(clock), tz=UTC).isoformat()
    )
    folder = make(tmp_path)
    first = RunWriter(folder, attempt=1)
    for step in range(4):
        first.log({"a": 1.0}, step=step)
    first.save_checkpoint(2, b"")
    first.finish("interrupted")
    second = RunWriter(folder, attempt=2)
    second.load_checkpoint()
    for step in range(2, 5):
        second.log({"a": 2.0}, step=step)
    end = second.finish("completed")
    state = read_run(folder)
    merged = read_metrics(folder, state.starts)
    assert (state.status, state.attempts, state.starts) == ("completed", 2, {1: None, 2: 2})
    assert merged.series["a"].steps.tolist() == [0, 1, 2, 3, 4]
    assert merged.series["a"].values.tolist() == [1, 1, 2, 2, 2]
    assert merged.series["a"].times[0] > merged.series["a"].times[-1]
    assert 0 <= end.duration_s < 60


KILLED = """
    import os, sys
    from pathlib import Path
    from assay.core.run import RunWriter
    writer = RunWriter(Path(sys.argv[1]), attempt=int(sys.argv[2]))
    loaded = writer.load_checkpoint()
    step = 0
    if loaded is not None:
        step, state = loaded
        assert state == str(step).encode() * 1000, "a torn checkpoint"
    while True:
        if step % 20 == 0:
            writer.save_checkpoint(step, str(step).encode() * 1000)
        writer.log({f"m{i}": step + i / 7 for i in range(10)}, step=step)
        os.write(1, b"%d\\n" % step)
        step += 1
"""


def test_sigkill_loses_no_acknowledged_row(tmp_path):
    """50 kills at random moments of one run: every acknowledged row is there, and the merged
    view is what one uninterrupted run would have logged."""
    folder = make(tmp_path)
    rng = random.Random(20261120)
    last = -1
    torn = 0
    for attempt in range(1, 51):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(KILLED), str(folder), str(attempt)],
            stdout=subprocess.PIPE,
        )
        seen = os.read(process.stdout.fileno(), 1 << 16) if rng.random() < 0.9 else b""
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.expovariate(1 / 0.02))
        process.send_signal(signal.SIGKILL)
        seen += process.communicate()[0]
        assert process.returncode == -signal.SIGKILL
        # The acknowledgement itself may be cut by the kill.
        acknowledged = [int(line) for line in seen.split(b"\n")[:-1]]
        path = folder / f"metrics-0-{attempt}.jsonl"
        if acknowledged:
            read = read_metrics_file(path)
            assert [row.step for row in read.rows][: len(acknowledged)] == acknowledged
            torn += read.torn_lines
            last = max(last, acknowledged[-1])
        state = read_run(folder)
        assert state.status == "open"
        assert all("events" not in p for p in state.problems) or state.torn_lines
    merged = read_metrics(folder, read_run(folder).starts)
    steps = merged.series["m3"].steps.tolist()
    assert steps == list(range(len(steps)))
    assert merged.series["m3"].values.tolist() == [step + 3 / 7 for step in steps]
    assert len(steps) > 100
    assert merged.bad_lines == 0
    assert len(metrics_files(folder)) > 25
    assert merged.torn_lines == torn


WRITER = """
    import sys
    from pathlib import Path
    from assay.core.run import RunWriter, create_run, new_record
    record = new_record(study="s", arm="a", identity="0", seed_label=sys.argv[2])
    folder = create_run(Path(sys.argv[1]), record)
    writer = RunWriter(folder, attempt=1)
    for step in range(2000):
        writer.log({"seed": int(sys.argv[2]), "b": step / 3}, step=step)
        if step % 500 == 0:
            writer.save("artifact", str(step).encode())
            writer.save_checkpoint(step, b"state")
    writer.summary({"seed": int(sys.argv[2])})
    writer.finish("completed")
"""


def test_sixteen_writers_at_once(tmp_path):
    """16 processes with runs in one study: no lock error, no lost row, no mixed row."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path), str(seed)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(16)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert errors == [""] * 16
    states = [read_run(path) for path in (tmp_path / "s" / "a" / "all").iterdir()]
    assert {state.status for state in states} == {"completed"}
    assert sorted(state.summary["seed"] for state in states) == list(range(16))
    for state in states:
        verify_run(state)
        merged = read_metrics(state.path, state.starts)
        assert merged.num_rows == state.end.rows == 2000
        assert merged.series["b"].steps.tolist() == list(range(2000))
        assert set(merged.series["seed"].values) == {state.summary["seed"]}


def test_progress_and_stop_go_to_the_runner(tmp_path):
    """Progress is one line of JSON for the display, and is not recorded."""
    lines = []
    folder = make(tmp_path)
    writer = RunWriter(folder, attempt=1, on_progress=lines.append, stop=lambda: True)
    before = sorted(folder.iterdir())
    writer.progress(3, 10, {"loss": math.nan})
    assert writer.should_stop()
    assert orjson.loads(lines[0])["shown"] == {"loss": "nan"}
    assert sorted(folder.iterdir()) == before
    quiet = RunWriter(folder, attempt=1)
    quiet.progress(3, 10, {})
    assert not quiet.should_stop()
