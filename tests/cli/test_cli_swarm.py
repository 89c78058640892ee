"""`assay swarm`, from a terminal."""

import json
import signal
import subprocess
import time

import pytest
from project import ASSAY, Project

SMALL = ("--model", "tiny", "--set", "seq_len=16", "batch=4", "eval_sequences=4", "chunk=16")


@pytest.fixture
def project(tmp_path):
    """An empty project."""
    return Project(tmp_path)


def test_local_agreement_and_export(project):
    """Train, compare small clients with the large one, write the tiers."""
    out = project("swarm", "local", "out", "--clients", "0,1,1", "--steps", "6", *SMALL,
                  'store=["payloads"]', "loss=0.2", "latency_ms=[50,150]").stdout  # fmt: skip
    assert "sync/replicas_equal              1" in out
    summary = json.loads((project.root / "out" / "summary.json").read_text())
    assert summary["faults/lost"] > 0
    assert len((project.root / "out" / "metrics.csv").read_text().splitlines()) == 7
    found = json.loads(project("swarm", "agreement", "out", "--json").stdout)
    assert found["agree/encoded_sign"] > found["agree/mlp_sign"]
    project("swarm", "export-tiers", "out", "tiers", "--tiers", "0,1")
    assert (project.root / "tiers" / "tier1" / "model.safetensors").is_file()
    assert "finished run" in project.refused("swarm", "local", "out", "--clients", "0,1,1", "--steps", "6", *SMALL,
                                             'store=["payloads"]', "loss=0.2", "latency_ms=[50,150]")  # fmt: skip


def test_an_interrupted_run_goes_on(project):
    """Ctrl-C saves the state; the same command ends as it would have."""
    arguments = ("--clients", "0,1,1", "--steps", "40", *SMALL)
    project("swarm", "local", "whole", *arguments, "--quiet")
    process = subprocess.Popen(
        [ASSAY, "swarm", "local", "parted", *arguments, "--quiet"],
        cwd=project.root,
        env=project.environment(),
    )
    rows = project.root / "parted" / "metrics.jsonl"
    for _ in range(600):
        if rows.exists() and rows.read_text().count("\n") > 2:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    project("swarm", "local", "parted", *arguments, "--quiet")
    a, b = (
        json.loads((project.root / name / "summary.json").read_text())
        for name in ("whole", "parted")
    )
    assert {k: v for k, v in a.items() if "speed" not in k} == {
        k: v for k, v in b.items() if "speed" not in k
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--clients", "0,x"), "tiers with commas"),
        (("--clients", "0,9"), "from 0 to 7"),
        (("--set", "loss"), "name=value"),
        (("--set", "los=0.1"), "los"),
        (("--set", "corpus=tinyshakespeare"), "ASSAY_DATA"),
        (("--model", "huge"), "nanogpt-34m"),
    ],
)
def test_mistakes(project, arguments, message):
    """One paragraph with the way out; nothing is left behind that looks like a run."""
    assert message in project.refused("swarm", "local", "out", "--steps", "2", *arguments)


def test_folders_that_are_no_runs(project):
    """Told with what they should be."""
    (project.root / "x").mkdir()
    assert "assay swarm local" in project.refused("swarm", "agreement", "x")
    assert "assay swarm local" in project.refused("swarm", "export-tiers", "x", "y")
