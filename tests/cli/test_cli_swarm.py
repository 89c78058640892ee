"""`assay swarm`, from a terminal."""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import time

import pytest
from project import ASSAY, Project, wait_for, workers

from assay.core.metrics import read_metrics
from assay.core.run import CHECKPOINT_NAME, read_run
from assay.engines.swarm.corpus import corpus
from assay.engines.swarm.data import Text
from assay.engines.swarm.export import read_tier
from assay.engines.swarm.matformer import layout
from assay.engines.swarm.model import loss

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


@pytest.mark.parametrize(
    "settings",
    [(), ("width_power=0.5",), ("tier_gates=true",), ("suffix_gate=linear", "gate_warmup=40", "gate_learned=true")],
)  # fmt: skip
def test_an_exported_tier_is_what_was_measured(project, settings):
    """Its loss on the test text is the run's, gates and factors included; a run can begin from it."""
    small = ("--model", "tiny", "--set", "seq_len=16", "batch=4", "eval_sequences=4", "lr=0.01")
    project("swarm", "local", "out", "--clients", "0,1,1", "--steps", "20", *small, *settings)
    project("swarm", "export-tiers", "out", "tiers", "--tiers", "0,1")
    final, text = values(project, "out"), Text(corpus("python", None), 16).test(4)
    for tier in (0, 1):
        loaded = read_tier(project.root / "tiers", tier, "sliced")
        views = layout(loaded.shape, tier).views(loaded.theta)
        found = float(loss(views, loaded.shape, text, loaded.scaling))
        assert found == pytest.approx(final[f"test/loss_nats_tier{tier}"], abs=1e-5)
    project("swarm", "local", "more", "--clients", "0,1,1", "--steps", "1", "--begin-from", "tiers", *small, *settings,
            "warmup_steps=100")  # fmt: skip
    assert values(project, "more")["test/loss_nats_tier0"] == pytest.approx(
        final["test/loss_nats_tier0"], abs=0.05
    )


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


PARTED = """
[study]
id = "parted"
question = "Does a killed run keep its rows?"
engine = "swarm"
task = "train"
factor = ["batch"]
seeds = { init = [0], data = "init", faults = "init" }
budget = { steps = 30 }
[config]
model = "tiny"
seq_len = 16
eval_sequences = 4
checkpoint_interval = 1
chunk = 16
[arms.plain]
batch = 4
"""


def test_a_resumed_run_keeps_the_row_of_its_checkpoint(project):
    """Every round is in the metrics once, whichever attempt logged it."""
    project.write("studies/parted.toml", PARTED)
    project.commit()
    process = project.start("run", "studies/parted.toml")
    checkpoints = wait_for(lambda: list(project.runs.glob(f"parted/*/*/*/{CHECKPOINT_NAME}")))
    process.send_signal(signal.SIGKILL)
    for pid in workers(project):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert not (checkpoints[0].parent / "end.json").exists()
    project("run", "studies/parted.toml")
    state = read_run(checkpoints[0].parent)
    assert len(state.starts) == 2
    found = read_metrics(state.path, state.starts).series["sync/members"]
    assert found.steps.tolist() == list(range(1, 31))


def values(project, name):
    """A run's final values, but its speed."""
    found = json.loads((project.root / name / "summary.json").read_text())
    return {k: v for k, v in found.items() if "speed" not in k}


def start(project, *arguments):
    """A command that goes on in the background; its lines are read from a file."""
    number = len(list(project.root.glob("log-*")))
    path = project.root / f"log-{number}"
    with path.open("w") as log:
        process = subprocess.Popen(
            [ASSAY, "swarm", *arguments], cwd=project.root,
            env=project.environment() | {"RAY_AUTH_MODE": "token"}, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    return process, path


def rounds(project, name):
    """How many rounds a run has logged."""
    rows = project.root / name / "metrics.jsonl"
    return rows.read_text().count("\n") if rows.exists() else 0


def test_a_killed_coordinator_goes_on(project):
    """SIGKILL in three rounds, under faults and churn: the run ends as it would have."""
    arguments = ("--clients", "0,0,1,1", "--steps", "40", *SMALL, "checkpoint_interval=1", "churn=0.3",
                 "epoch_rounds=6", "loss=0.2", "latency_ms=[50,150]", "--quiet")  # fmt: skip
    project("swarm", "local", "whole", *arguments)
    for least in (3, 11, 24):
        process, _ = start(project, "local", "parted", *arguments)
        wait_for(lambda least=least: rounds(project, "parted") >= least)
        process.kill()
        process.wait()
    assert rounds(project, "parted") < 40
    project("swarm", "local", "parted", *arguments)
    assert values(project, "parted") == values(project, "whole")
    model = "model.safetensors"
    whole, parted = ((project.root / name / model).read_bytes() for name in ("whole", "parted"))
    assert whole == parted


@pytest.mark.timeout(600)
def test_clients_that_join(project):
    """Seats of a coordinator, taken by other programs; one is killed, and another takes its seat."""
    patience = 200.0  # ten processes start, perhaps on a busy machine
    run = (
        "--clients",
        "0,0,1,1",
        "--steps",
        "300",
        *SMALL,
        "epoch_rounds=5",
        "checkpoint_interval=10",
    )
    serve, log = start(project, "serve", "out", *run, "--wait", str(patience))
    address = wait_for(lambda: re.search(r"--address (\S+:\d+)`", log.read_text()), patience)[1]
    joined = [
        start(project, "join", "--address", address, "--cpus", "0.1", "--disk", f"disk{n}")[0]
        for n in range(4)
    ]
    wait_for(lambda: rounds(project, "out") >= 4, patience)
    joined[1].kill()
    joined[1].wait()
    joined.append(start(project, "join", "--address", address, "--cpus", "0.1")[0])
    assert serve.wait(2 * patience) == 0, log.read_text()
    for process in (*joined[2:], joined[0]):
        process.wait(60)
    found = values(project, "out")
    assert found["faults/kills"] >= 1
    assert found["faults/rejoins"] >= 1
    assert found["sync/replicas_equal"] == 1
    assert found["spent/rounds"] == 300


def test_nobody_to_join(project):
    """No cluster, nobody who serves, nobody who joins: told, with the way out."""
    assert "ray start" in project.refused("swarm", "join", "--address", "127.0.0.1:1")
    assert "swarm join" in project.refused(
        "swarm", "serve", "out", *SMALL, "--steps", "2", "--wait", "0.5", "--quiet"
    )
    assert not (project.root / "out" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--clients", "0,x"), "tiers with commas"),
        (("--clients", "0,9"), "from 0 to 7"),
        (("--set", "loss"), "name=value"),
        (
            ("--set", "los=0.1"),
            "--set: unknown setting 'los'. Did you mean 'loss'? `assay swarm settings`",
        ),
        (
            ("--set", "decay=1.5"),
            "settings: decay must be from 0 to 1; got 1.5. `assay swarm settings`",
        ),
        (("--set", "lr=x"), "lr must be a number"),
        (("--set", "corpus=tinyshakespeare"), "ASSAY_DATA"),
        (("--model", "huge"), "nanogpt-34m"),
        (("--set", "mode=legcy"), "It takes assay, legacy"),
        (("--set", "store=payloads"), "store"),
        (("--set", "tiers=[0]"), "--clients"),
        (("--seed", "-1"), "--seed"),
        (("--threads", "0"), "--threads"),
        (("--begin-from", "nowhere"), "manifest"),
        (("--set", "cold_rounds=3"), "cold_rounds = 3 does nothing here"),
    ],
)
def test_mistakes(project, arguments, message):
    """One paragraph with the way out; nothing is left behind that looks like a run."""
    assert message in project.refused("swarm", "local", "out", "--steps", "2", *arguments)


STUDY = """
[study]
id = "text"
question = "Does the rate matter?"
engine = "swarm"
factor = "lr"
seeds = { init = [1, 2], data = "init", faults = "init" }
budget = { steps = 2 }
[config]
model = "tiny"
[arms.low]
lr = 0.001
[arms.high]
lr = 0.01
"""


def study(project, settings):
    """A study with further lines in its [config]."""
    project.write("studies/text.toml", STUDY.replace("[config]", f"[config]\n{settings}"))
    return "studies/text.toml"


@pytest.mark.parametrize(
    ("settings", "message"),
    [("cold_rounds = 3", "cold_rounds = 3 does nothing here"), ('corpus = "tinyshakespeare"', "ASSAY_DATA is not set"), ("seq_len = 100000000", "make 0 of seq_len 100000000")],
)  # fmt: skip
def test_what_would_fail_or_do_nothing_is_told_before_the_first_run(project, settings, message):
    """By the dry run, the run and `local`, once; and no run or folder is made."""
    path = study(project, settings)
    for words in (("run", path, "--dry-run"), ("run", path)):
        told = project.refused(*words)
        assert message in told
        assert "text.toml: " in told
    assert not project.runs.exists()
    words = ("--set", settings.replace(" ", "").replace('"', ""))
    assert message in project.refused("swarm", "local", "out", *words)
    assert not (project.root / "out").exists()


def test_a_text_of_ones_own(project):
    """`local` finds it from here and keeps its digest; a study in the data folder, with the digest it is told."""
    text = project.write("own.txt", "It was a dark and stormy night. " * 100)
    run = ("swarm", "local", "out", "--clients", "0,1,1", "--steps", "2", *SMALL, "corpus=own.txt")
    project(*run, "--quiet")
    kept = json.loads((project.root / "out" / "config.json").read_text())["config"]["corpus"]
    sha256 = hashlib.sha256(text.read_bytes()).hexdigest()
    assert kept == f"{text}@sha256:{sha256}"
    told = project.refused(
        "run", study(project, 'corpus = "own.txt"'), "--dry-run", ASSAY_DATA=str(project.root)
    )
    name = re.search(r'Write (corpus = "own.txt@sha256:\w+")', told)[1]
    path = study(project, f"{name}\nseq_len = 16\nbatch = 4")
    project("run", path, ASSAY_DATA=str(project.root))
    for folder in project.folders("text"):
        provenance = json.loads((folder / "provenance.json").read_text())
        assert provenance["data"] == {"corpus own.txt": sha256}
    (project.root / "out" / "summary.json").unlink()
    text.write_text("It was a bright day. " * 100)
    assert "corpus: " in project.refused(*run)
    assert "restore the text" in project.refused(
        "run", path, "--again", ASSAY_DATA=str(project.root)
    )


def test_folders_that_cannot_be_gone_on_with(project):
    """A file, another run's folder, and one that is damaged: told with the way out."""
    run = ("--clients", "0,1,1", "--steps", "2", *SMALL)
    (project.root / "file").write_text("x")
    assert "it is a file" in project.refused("swarm", "local", "file", *run)
    project("swarm", "local", "out", *run)
    (project.root / "out" / "summary.json").unlink()
    assert "steps: 2 → 3" in project.refused(
        "swarm", "local", "out", "--clients", "0,1,1", "--steps", "3", *SMALL
    )
    (project.root / "out" / "config.json").write_text('{"config"')
    assert "new folder" in project.refused("swarm", "local", "out", *run)
    project("swarm", "local", "adamw", *run, "mode=local-adamw")
    assert "no common model" in project.refused("swarm", "export-tiers", "adamw", "t")
    project("swarm", "local", "plain", *run)
    assert "from 0 to" in project.refused("swarm", "export-tiers", "plain", "t", "--tiers", "0,9")
    assert not (project.root / "t").exists()


def test_settings_are_listed(project):
    """Every setting and metric with what it says."""
    out = project("swarm", "settings").stdout
    assert "helper_fractions = []" in out
    assert "sync/taught_bytes" in out
    assert "\n    \n" not in out


def test_folders_that_are_no_runs(project):
    """Told with what they should be."""
    (project.root / "x").mkdir()
    assert "assay swarm local" in project.refused("swarm", "agreement", "x")
    assert "assay swarm local" in project.refused("swarm", "export-tiers", "x", "y")
