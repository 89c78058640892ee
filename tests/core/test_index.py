import math
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from lab import (
    LOSS,
    SCORE,
    STUDY,
    Project,
    attempt,
    edit,
    edit_json,
    establish,
    reseal,
    run_id,
)

from assay.core import index as index_module
from assay.core import scan
from assay.core.errors import StoreError
from assay.core.index import Index
from assay.core.run import RunWriter


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def answers(index):
    """All that an index can be asked."""
    runs = index.runs()
    return {
        "studies": index.studies(),
        "runs": runs,
        "values": {run.id: index.run_values(run.id) for run in runs},
        "study values": {s: sorted(index.values(s)) for s, _ in index.studies()},
        "facts": {run.id: index.facts(run.id) for run in runs},
        "curves": {
            (run.id, name): [part.tolist() for part in curve]
            for run in runs
            for name in (LOSS, SCORE)
            if (curve := index.curve(run.id, name)) is not None
        },
        "broken": index.broken(),
    }


def fresh(project, name="other.sqlite"):
    """The answers of an index made now."""
    path = project.settings.cache_dir / name
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    with project.index(name) as index:
        return answers(index)


def test_run_table_has_what_was_run(project):
    """A run comes back with its place, status, values and provenance."""
    folder = project.add("a", 1, 0.5, series={LOSS: [3.0, 2.0, 1.0]})
    with project.index() as index:
        (run,) = index.runs("s")
        assert (run.id, run.arm, run.seed_label, run.status) == (
            run_id(folder),
            "a",
            "1",
            "completed",
        )
        rows = {row.name: row for row in index.run_values(run.id)}
        assert (rows[SCORE].value, rows[SCORE].source) == (0.5, "summary")
        loss = rows[LOSS]
        assert (loss.value, loss.source, loss.last_step) == (1.0, "last", 2)
        assert (loss.num_points, loss.low, loss.high) == (3, 1.0, 3.0)
        facts = index.facts(run.id)
        assert facts["config.method"] == "a"
        assert facts["packages.numpy"] == "2.0.0"
        assert facts["seed.init"] == 1
        assert index.study_facts("s") == {run.id: facts}
        assert [part.tolist() for part in index.curve(run.id, LOSS)] == [[0, 1, 2], [3.0, 2.0, 1.0]]
        assert list(index.curves("s", LOSS)) == [run.id]


def test_non_finite_values_survive(project):
    """NaN is told from a missing value, infinities stay, and extremes are of finite values."""
    planned = project.add("a", 1, math.nan, series={LOSS: [1.0, math.nan, 2.0, math.inf]})
    del planned
    project.add("a", 2, -math.inf)
    with project.index() as index:
        one, two = index.runs("s")
        rows = {row.name: row for row in index.run_values(one.id)}
        assert rows[SCORE].value is None
        assert rows[LOSS].value == math.inf
        assert (rows[LOSS].non_finite, rows[LOSS].low, rows[LOSS].high) == (2, 1.0, 2.0)
        assert index.run_values(two.id)[0].value == -math.inf
        points = index.curve(one.id, LOSS)[1]
        assert math.isnan(points[1])


def test_final_value_is_at_the_highest_step(project):
    """Rows may be logged in any order; of two at one step the later one counts."""
    folder = project.add("a", 1, None, status=None)
    with project.index() as index:
        assert index.runs()[0].status == "open"
    writer = RunWriter(folder, attempt=2)
    establish(writer)
    for step, value in [(5, 1.0), (9, 2.0), (9, 3.0), (7, 4.0)]:
        writer.log({LOSS: value}, step=step)
    writer.finish("completed")
    with project.index() as index:
        (row,) = index.run_values(run_id(folder))
        assert (row.value, row.last_step) == (3.0, 9)


def test_completed_run_is_not_read_again(project, monkeypatch):
    """A completed run is skipped by its folder's time alone: its files are not even listed."""
    project.fill(a=[0.1, 0.2])
    with project.index():
        pass
    monkeypatch.setattr(scan, "_open_signature", lambda entry: pytest.fail(f"listed {entry.path}"))
    with Index(project.settings.index_path, project.runs) as index:
        found = index.refresh()
    assert (found.read, found.removed, found.unchanged) == (0, 0, 2)


def test_open_run_is_read_again_when_it_grows(project):
    """Rows of a live run show after the next refresh; without new rows nothing is read."""
    folder = project.add("a", 1, None, status=None)
    writer = RunWriter(folder, attempt=2)
    establish(writer)
    writer.log({LOSS: 1.0}, step=0)
    with project.index() as index:
        assert index.refresh().read == 0
        writer.log({LOSS: 2.0}, step=1)
        assert index.refresh().read == 1
        assert index.run_values(run_id(folder))[0].num_points == 2
        writer.finish("completed")
        assert index.refresh().read == 1
        assert index.runs()[0].status == "completed"
        assert index.refresh().read == 0


def test_failed_run_that_goes_on_is_read_again(project):
    """A further attempt of a failed run shows."""
    folder = project.add("a", 1, None, status="failed", error="Boom")
    with project.index() as index:
        assert index.runs()[0].error == "Boom"
        attempt(folder, {SCORE: 0.9})
        index.refresh()
        (run,) = index.runs()
        assert (run.status, run.attempts) == ("completed", 2)


def test_fact_that_changed_between_attempts_shows_both(project):
    """A resumed run with another package has both versions on record."""
    folder = project.add("a", 1, None, status="interrupted")
    attempt(folder, {SCORE: 0.9}, provenance={"packages": {"decisive": {"numpy": "2.1.0"}}})
    with project.index() as index:
        assert index.facts(run_id(folder))["packages.numpy"] == "2.0.0 → 2.1.0"


def test_incremental_equals_rebuilt(tmp_path):
    """Any sequence of creation, ending, resuming, copying and deletion: an index kept up to date
    gives the answers of one made now, and of itself rebuilt."""
    for seed in range(4):
        chance = random.Random(seed)
        project = Project(tmp_path / str(seed))
        plan = project.plan()
        for _ in range(14):
            change(project, plan, chance)
            with project.index() as index:
                kept = answers(index)
                assert kept == fresh(project), f"seed {seed}"
        with project.index() as index:
            index.rebuild()
            assert answers(index) == kept


def change(project, plan, chance):
    """One random thing that happens to run directories."""
    folders = sorted(p.parent for p in project.runs.glob("*/*/*/*/run.json"))
    what = chance.choice(["new", "new", "end", "resume", "delete", "copy", "damage"])
    if what == "new" or not folders:
        run = chance.choice(plan)
        status = chance.choice([None, "completed", "failed", "interrupted"])
        series = {LOSS: [chance.random() for _ in range(chance.randrange(4))]}
        add = {"status": status, "series": series, "generation": chance.randrange(1, 4)}
        project.add(run.arm, run.seed_label, chance.random(), **add)
        return
    folder = chance.choice(folders)
    if what == "delete":
        shutil.rmtree(folder)
    elif what == "copy":
        beside = folder.with_name(chance.choice(["0-copy", folder.name + "-copy"]))
        away = project.runs / "s" / chance.choice("ab") / "all" / folder.name
        target = chance.choice([beside, away])
        if not target.exists():
            shutil.copytree(folder, target)
    elif what == "damage":
        # A completed run is told by its folder's time: an edit in place is for `verify`.
        (folder / "run.json").unlink()
        (folder / "run.json").write_bytes(b'{"half')
    else:
        with suppress(StoreError):  # Damaged before.
            attempt(folder, {SCORE: chance.random()}, status="completed" if what == "end" else None)


def test_deleted_index_is_made_anew(project):
    """The index is disposable: without its file the answers are the same."""
    project.fill(a=[0.1], b=[0.2])
    with project.index() as index:
        before = answers(index)
    project.settings.index_path.unlink()
    with project.index() as index:
        assert answers(index) == before


def test_garbage_instead_of_an_index(project):
    """A file that is no database is replaced."""
    project.fill(a=[0.1])
    before = fresh(project)
    path = project.settings.index_path
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(random.Random(0).randbytes(50_000))
    with project.index() as index:
        assert answers(index) == before


@pytest.mark.parametrize("keep", [0, 10, 100, 4096, 8192, 0.5, 0.9])
def test_truncated_index(project, keep):
    """An index cut off anywhere is replaced, and never answers with less."""
    project.fill(a=[0.1, 0.2, 0.3], b=[0.4, 0.5, 0.6])
    with project.index() as index:
        before = answers(index)
    path = project.settings.index_path
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with project.index() as index:
        assert answers(index) == before


@pytest.mark.parametrize("start", range(0, 60_000, 4096))
def test_overwritten_page(project, start):
    """A page of garbage gives the right answers or a clear error, never a wrong answer."""
    project.fill(a=[0.1, 0.2, 0.3], b=[0.4, 0.5, 0.6])
    with project.index() as index:
        before = answers(index)
    path = project.settings.index_path
    content = bytearray(path.read_bytes())
    if start + 4096 > len(content):
        return
    content[start : start + 4096] = b"\xa5" * 4096
    path.write_bytes(content)
    told = ""
    try:
        with project.index() as index:
            assert answers(index) == before
    except StoreError as error:
        told = str(error)
    assert not told or "delete it" in told


@pytest.mark.parametrize("version", [1, 999])
def test_other_version_is_made_anew(project, version):
    """An index of an older or newer version is not read."""
    project.fill(a=[0.1])
    before = fresh(project)
    path = project.settings.index_path
    path.parent.mkdir(exist_ok=True)
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE runs (nonsense)")
        db.execute('CREATE TABLE "odd""name" (x)')
        db.execute(f"PRAGMA user_version = {version}")
    db.close()
    with project.index() as index:
        assert answers(index) == before


def test_unwritable_cache_is_told(project):
    """A cache folder that cannot be made is told with the way out."""
    project.settings.cache_dir.write_text("a file in the way")
    with pytest.raises(StoreError, match="ASSAY_CACHE"):
        Index(project.settings.index_path, project.runs)


def test_locked_index_is_told(project, monkeypatch):
    """A lock that is never released is an error, not a wait for ever or a wrong answer."""
    monkeypatch.setattr(index_module, "LOCK_TIMEOUT_S", 0.05)
    with project.index():
        pass
    project.fill(a=[0.1])
    other = sqlite3.connect(project.settings.index_path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"), project.index():
        pass
    other.execute("ROLLBACK")
    other.close()
    with project.index() as index:
        assert len(index.runs()) == 1


REFRESH = """
import sys
from pathlib import Path
from assay.core.index import Index
for _ in range(5):
    with Index(Path(sys.argv[1]), Path(sys.argv[2])) as index:
        index.rebuild() if len(sys.argv) > 3 else index.refresh()
        assert len(index.runs()) == 12, len(index.runs())
        assert len(index.values("s")) == 24, len(index.values("s"))
"""


def test_two_processes_at_once(project):
    """Refreshing and rebuilding at once: no error, and no answer that lacks a run."""
    for arm in "aabb":
        for seed in (1, 2, 3):
            project.add(arm, seed, seed / 10, series={LOSS: [1.0]})
    before = fresh(project)
    args = [sys.executable, "-c", REFRESH, str(project.settings.index_path), str(project.runs)]
    processes = [subprocess.Popen(args), subprocess.Popen([*args, "rebuild"])]
    assert [p.wait(60) for p in processes] == [0, 0]
    with project.index() as index:
        assert answers(index) == before


def test_rebuilding_hides_nothing(project, monkeypatch):
    """Whoever reads while the index is rebuilt sees all runs, at any moment."""
    project.fill(a=[0.1, 0.2, 0.3])
    with project.index() as index:
        before = answers(index)
        seen = []

        def slow(runs_dir, paths):
            for one in scan.load(runs_dir, paths):
                with Index(project.settings.index_path, project.runs) as other:
                    seen.append(answers(other))
                yield one

        monkeypatch.setattr(index_module, "load", slow)
        index.rebuild()
        assert seen == [before] * 3
        assert answers(index) == before


BROKEN = {
    "no run.json": lambda f: (f / "run.json").unlink(),
    "half-written run.json": lambda f: (f / "run.json").write_bytes(b'{"id": "x'),
    "empty end.json": lambda f: (f / "end.json").write_bytes(b""),
    "other schema": lambda f: (f / "run.json").write_bytes(b'{"schema": 99}'),
    "provenance of another shape": lambda f: (f / "provenance.json").write_bytes(b'{"scripts": [1]}'),
    "provenance is a list": lambda f: (f / "provenance.json").write_bytes(b"[]"),
    "env without key": lambda f: (f / "env.json").write_bytes(b'{"digests": {"A": "b"}}'),
    "end.json is a folder": lambda f: ((f / "end.json").unlink(), (f / "end.json").mkdir()),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_run_is_listed_and_never_counted(project, name):
    """A directory that cannot be read is listed with the reason, and the others are read."""
    folder = project.add("a", 1, 0.5)
    project.add("a", 2, 0.7)
    with project.index() as index:
        assert len(index.runs()) == 2
        BROKEN[name](folder)
        os.utime(folder)
        index.refresh()
        assert [run.seed_label for run in index.runs("s")] == ["2"]
        ((path, reason),) = index.broken("s")
        assert path == f"s/a/all/{folder.name}"
        assert reason
        assert index.refresh().read == 0


def broken(project):
    with project.index() as index:
        assert index.refresh().read == 0
        index.verify("s")
        runs = [run.seed_label for run in index.runs()]
        return runs, [reason for _, reason in index.broken()]


IN_PLACE = {
    "run.json": lambda f: edit_json(f / "run.json", generation=7),
    "events.jsonl": lambda f: change_text(f / "events.jsonl", "0.5", "0.9"),
    "provenance.json": lambda f: edit_json(f / "provenance.json", device="cuda"),
    "env.json": lambda f: edit_json(f / "env.json", values={}),
    "metrics-0-1.jsonl": lambda f: change_text(f / "metrics-0-1.jsonl", ":3.0}", ":1.0}"),
    "metrics.parquet": lambda f: (f / "metrics.parquet").write_bytes(b""),
    "artifacts/manifest.jsonl": lambda f: (f / "artifacts/manifest.jsonl").write_bytes(b""),
    "the summary that events.jsonl tells": lambda f: edit_json(f / "end.json", summary={SCORE: 1}),
    "the spent that events.jsonl tells": lambda f: edit_json(f / "end.json", spent={"steps": 1}),
    "lacks events.jsonl": lambda f: edit_json(f / "end.json", files={}),
}  # fmt: skip


def change_text(path, old, new):
    path.write_text(edit(path.read_text(), (old, new)))


@pytest.mark.parametrize("name", IN_PLACE)
def test_edited_run_is_broken_never_a_wrong_number(project, name):
    """An edit of any file of a completed run, in place, is found by `verify`; the run is out."""
    folder = project.add("a", 1, 0.5, series={LOSS: [3.0]}, artifact=b"1")
    project.add("a", 2, 0.7)
    assert broken(project) == (["1", "2"], [])
    IN_PLACE[name](folder)
    runs, (reason,) = broken(project)
    assert runs == ["2"]
    assert name.split()[-1] in reason
    assert "Restore it from a copy" in reason


def test_edit_is_seen_by_a_rebuild_and_gone_when_undone(project):
    """A fresh index finds it too; a file restored in place makes the run count again."""
    path = project.add("a", 1, 0.5) / "run.json"
    content = path.read_bytes()
    assert broken(project) == (["1"], [])
    path.write_bytes(content.replace(b"pilot", b"fr0st"))
    with project.index() as index:
        assert len(index.runs()) == 1, "a sealed folder is not read again"
        index.rebuild()
        assert index.runs() == []
        path.write_bytes(content)
        index.refresh()
        assert index.broken() == []


ADDED = {
    "metrics-7-1.jsonl": b'{"step":9,"time":0.0,"values":{"test/score":0.9}}\n',
    "env-1.json": b"{}",
}


@pytest.mark.parametrize("name", ADDED)
def test_added_file_breaks_the_seal(project, name):
    """Rows that another process added after the end are no result of the run."""
    folder = project.add("a", 1, None, series={LOSS: [1.0]})
    (folder / name).write_bytes(ADDED[name])
    assert name in broken_now(project)


def broken_now(project):
    with project.index() as index:
        assert index.runs() == []
        return index.broken()[0][1]


def test_failed_run_is_not_made_completed_by_an_edit(project):
    """Its status is told by its events as well, even for who records all digests anew."""
    folder = project.add("a", 1, 0.5, status="failed", error="Boom")
    edit_json(folder / "end.json", status="completed")
    reseal(folder)
    assert "the status that events.jsonl tells" in broken_now(project)


def test_only_the_last_attempt_seals(project):
    """What an earlier attempt sealed may grow: events are appended by the next one."""
    folder = project.add("a", 1, None, status="interrupted", series={LOSS: [1.0]})
    attempt(folder, {SCORE: 0.5})
    assert broken(project) == (["1"], [])
    edit_json(folder / "end.json", status="failed")
    _, (reason,) = broken(project)
    assert "end.json must have the digest sealed in end-2.json" in reason


@pytest.mark.parametrize("name", ["provenance.json", "env.json"])
def test_completed_run_without_provenance_is_no_evidence(project, name):
    """What ran is not on record: broken, even where the seal knows of no such file."""
    folder = project.add("a", 1, 0.5)
    (folder / name).unlink()
    assert f"lacks {name}" in broken_now(project)
    reseal(folder)
    os.utime(folder)
    assert f"has no {name}: what ran in attempt 1 is not on record" in broken_now(project)


def test_attempt_that_gave_rows_needs_provenance(project):
    """An attempt that was killed before it began has none and needs none; one with rows does."""
    folder = project.add("a", 1, None, status="interrupted")
    RunWriter(folder, attempt=2).close()
    third = attempt(folder, {SCORE: 0.5})
    assert third.attempt == 3
    assert broken(project) == (["1"], [])
    writer = RunWriter(project.add("a", 2, None, status=None), attempt=2)
    writer.log({LOSS: 1.0}, step=0)
    writer.save_checkpoint(1, b"")
    writer.close()
    last = RunWriter(writer.folder, attempt=3)
    last.load_checkpoint()
    establish(last)
    last.finish("completed")
    runs, (reason,) = broken(project)
    assert runs == ["1"]
    assert "what ran in attempt 2 is not on record" in reason


def test_every_failure_and_all_time_stay_on_record(project):
    """Attempts that failed before the run was completed are told, and what they cost."""
    folder = project.add("a", 1, None, status="failed", error="Traceback\n  x\nValueError: no\n")
    attempt(folder, status="failed")
    attempt(folder, status="interrupted")
    attempt(folder, {SCORE: 0.5})
    with project.index() as index:
        (run,) = index.runs()
    assert run.failures == [
        "attempt 1 failed: ValueError: no",
        "attempt 2 failed: no reason was recorded",
    ]
    assert (run.process_s, run.spent["process_s"]) == (8.0, 2.0)


def test_empty_folder_is_listed(project):
    """What a crash between two system calls leaves is listed as broken."""
    (project.runs / "s" / "a" / "all" / "1-X").mkdir(parents=True)
    with project.index() as index:
        assert index.runs() == []
        assert [path for path, _ in index.broken()] == ["s/a/all/1-X"]


def test_copy_of_a_run_counts_once(project):
    """Of a run and its copy the original counts, in whatever order they were seen."""
    folder = project.add("a", 2, 0.5)
    shutil.copytree(folder, folder.with_name("1-copy"))
    with project.index() as index:
        (run,) = index.runs()
        assert run.path.endswith(folder.name)
        ((path, reason),) = index.broken()
        assert path == "s/a/all/1-copy"
        assert f"copy of s/a/all/{folder.name}" in reason
        shutil.rmtree(folder)
        index.refresh()
        assert index.runs()[0].path == "s/a/all/1-copy"
        assert index.broken() == []


def test_misplaced_run_is_broken(project):
    """A directory under another arm would count there, or be run again; it is told."""
    folder = project.add("a", 1, 0.5)
    target = project.runs / "s" / "b" / "all" / folder.name
    target.parent.mkdir(parents=True)
    folder.rename(target)
    with project.index() as index:
        assert index.runs() == []
        assert "run.json says, s/a/all" in index.broken()[0][1]


def test_refresh_of_one_study_leaves_others(project):
    """Refreshing a study forgets nothing of studies whose names are alike."""
    for name in ("s-b", "S", "s2", "s"):
        other = Project(project.root, edit(STUDY, ('id = "s"', f'id = "{name}"')), name=name)
        other.add("a", 1, 0.5)
    with project.index() as index:
        before = answers(index)
        assert len(before["runs"]) == 4
        found = index.refresh("s")
        assert (found.removed, found.unchanged) == (0, 1)
        assert answers(index) == before


def test_find_by_prefix_and_path(project):
    """The first letters of an id are enough if one run has them; wildcards are no wildcards."""
    one, two = project.add("a", 1, 0.5), project.add("a", 2, 0.5)
    with project.index() as index:
        assert index.find(run_id(one)).id == run_id(one)
        assert index.find(f"runs/s/a/all/{two.name}").id == run_id(two)
        for name, count in (("%", "No run"), ("_", "No run"), ("", "2 runs"), ("zz", "No run")):
            with pytest.raises(StoreError, match=count):
                index.find(name)


def test_no_runs_folder(project):
    """A project without runs has an empty index."""
    with project.index() as index:
        assert (index.runs(), index.studies(), index.broken()) == ([], [], [])


def test_many_runs_are_read_in_a_pool(project, monkeypatch):
    """Reading in several processes gives the same rows."""
    project.fill(a=[0.1, 0.2, 0.3], b=[0.4, 0.5, 0.6])
    before = fresh(project)
    monkeypatch.setattr(scan, "POOL_FROM", 1)
    monkeypatch.setattr(scan, "MAX_PROCESSES", 1)
    assert fresh(project) == before
