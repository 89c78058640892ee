"""Full disks, read-only folders, half-written files, clocks: a clear error or a clean recovery."""

import hashlib
import json
import os
import resource
import subprocess

import pytest
from project import Project, attempts, wait_for, workers


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path).toy()


def limit_files() -> None:
    # As a full disk: a write fails, and SIGXFSZ is ignored by Python.
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))


def test_full_disk_ends_in_an_error_and_the_next_run_recovers(tmp_path):
    """When files cannot grow any more, runs fail with the reason; with room again they complete."""
    project = Project(tmp_path).toy(steps="3000", every="100000")
    done = project.start("run", "toy", preexec_fn=limit_files)
    out, err = done.communicate(timeout=100)
    assert done.returncode == 2, (out, err)
    assert "Traceback" not in err
    assert "full" in out + err or "large" in out + err
    wait_for(lambda: not workers(project))
    project("run", "toy")
    reference = Project(tmp_path / "reference").toy(steps="3000", every="100000")
    reference("run", "toy")
    assert project.results("toy") == reference.results("toy")


def mounted(kind: list[str], folder) -> bool:
    return subprocess.run(["mount", *kind, str(folder)], capture_output=True, check=False).returncode == 0  # fmt: skip


def test_full_tmpfs(tmp_path):
    """On a real file system without space: one paragraph or failed runs, and a clean recovery."""
    project = Project(tmp_path).toy(steps="3000", every="100000")
    project.runs.mkdir()
    if not mounted(["-t", "tmpfs", "-o", "size=256k", "none"], project.runs):
        pytest.skip("mounting is not allowed here")
    try:
        done = project("run", "toy", code=2)
        assert "Traceback" not in done.stderr
        wait_for(lambda: not workers(project))
        assert project.json("verdict", "toy", code=None)["judgements"][0]["verdict"] == "UNTESTED"
        subprocess.run(["mount", "-o", "remount,size=64m", str(project.runs)], check=True)
        project("run", "toy")
        assert {attempts(folder)[-1] for folder in project.folders()} == {"completed"}
    finally:
        subprocess.run(["umount", "-l", str(project.runs)], check=True)


def test_read_only_project(project):
    """In a project on a read-only file system, reading works and writing is refused in words."""
    project("run", "toy")
    before = project("table", "toy").stdout
    if not mounted(["--bind", str(project.root)], project.root):
        pytest.skip("mounting is not allowed here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(project.root)], check=True)
        assert project("table", "toy").stdout == before
        assert "Read-only" in project.refused("run", "toy", "--again")
        assert "Read-only" in project.refused("log")
    finally:
        subprocess.run(["umount", "-l", str(project.root)], check=True)


def test_runs_that_cannot_be_written(project):
    """Where run directories cannot be made, nothing starts, and one paragraph says so."""
    project.write("runs", "a file where the folder should be")
    assert "runs/toy" in project.refused("run", "toy")


def test_cache_that_cannot_be_written(project):
    """Where the index cannot be made, one paragraph names ASSAY_CACHE."""
    project.write("cache", "a file")
    said = project.refused("ls", ASSAY_CACHE=str(project.root / "cache"))
    assert "ASSAY_CACHE" in said


def tear(path) -> None:
    """Put the first half of a file in its place, as a copy that broke off does."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def test_half_written_record_is_told_and_made_good(project):
    """A torn run.json is named, counts as no run, and its seed is computed again."""
    project("run", "toy")
    before = project.results("toy")
    tear(project.folders()[0] / "run.json")
    assert "not readable" in project("ls", "toy").stdout
    done = project("run", "toy")
    assert "not readable" in done.stdout
    assert "1 run(s) completed" in done.stdout
    assert project.results("toy") == before


def test_half_written_end_is_no_result(project):
    """A torn end.json is never read as a completed run."""
    project("run", "toy")
    tear(project.folders()[0] / "end.json")
    assert "[2]" in project("table", "toy").stdout
    assert "1 run(s) completed" in project("run", "toy").stdout
    assert "[2]" not in project("table", "toy").stdout


def test_garbage_as_index_is_replaced(project):
    """An index that is no database is made anew, with the same answers."""
    project("run", "toy")
    before = project("table", "toy").stdout
    (index,) = project.cache.glob("index-*.sqlite")
    index.write_bytes(b"garbage" * 1000)
    assert project("table", "toy").stdout == before


@pytest.mark.parametrize("year", ["1970", "2199"])
def test_clocks_decide_nothing(project, year):
    """Records and files from another clock change no number, and are not computed again."""
    project("run", "toy")
    before = project("table", "toy", "--seeds").stdout
    for folder in project.folders()[:3]:
        for name in ("run.json", "end.json"):
            record = json.loads((folder / name).read_text())
            for key in ("created_at", "ended_at"):
                if key in record:
                    record[key] = f"{year}-01-01T00:00:00+00:00"
            if name == "end.json":  # Sealed with the other clock as well.
                content = (folder / "run.json").read_bytes()
                record["files"]["run.json"] = hashlib.sha256(content).hexdigest()
            (folder / name).write_text(json.dumps(record))
        for path in (folder / "metrics-0-1.jsonl", folder / "end.json", folder):
            os.utime(path, (0, 0) if year == "1970" else (2**32, 2**32))
    assert project("table", "toy", "--seeds").stdout == before
    project("index", "--rebuild")
    assert project("table", "toy", "--seeds").stdout == before
    assert "6 done, 0 to do" in project("run", "toy").stdout
