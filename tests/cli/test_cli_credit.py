"""`assay credit`, from a terminal."""

import json
import re
import signal
import subprocess
import time

import numpy as np
import pytest
from project import ASSAY, Project

SMALL = ("--width", "12", "--depth", "2", "--epochs", "1", "--set", "measured=64")
MINE = '''
import torch
from assay.engines.credit import Estimator

class Mine(Estimator):
    """The error through one matrix of ones."""

    def credit(self, trajectory, view):
        wide = trajectory.h_SLBD[:, :-1]
        return trajectory.error_SBC.square().sum(-1)[:, None, :, None].expand_as(wide)
'''
STUDY = """
[study]
id = "own"
question = "Does it run?"
engine = "credit"
task = "train"
factor = "method"
seeds = { init = [0], data = "init" }
budget = { epochs = 1 }
[config]
width = 12
depth = 2
measured = 64
[arms.mine]
method = "mine:Mine"
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with three finished runs in `out`."""
    project = Project(tmp_path_factory.mktemp("credit"))
    project.trained = project("credit", "train", "out", *SMALL, "--quiet")
    return project


def final(project, folder):
    """A run's final values, but its speed."""
    found = json.loads((project.root / folder / "summary.json").read_text())
    return {name: value for name, value in found.items() if "speed" not in name}


def test_training_writes_folders_and_a_table(project):
    """Mean and deviation over seeds, with the ceiling of copying; no progress where it is quiet."""
    out = project.trained.stdout
    gammas = [final(project, f"out/seed-{s}")["test/gamma"] for s in range(3)]
    assert f"{np.mean(gammas):.3f} ± {np.std(gammas, ddof=1):.3f}" in out
    for name in ("accuracy", "rho", "nudge, nats", "gamma of copying", "valid share"):
        assert f"\n{name} " in out
    assert "the credit of h_L" in out
    assert project.trained.stderr == ""
    files = {path.name for path in (project.root / "out" / "seed-1").iterdir()}
    assert files == {"config.json", "summary.json", "metrics.csv", "last.safetensors"}
    rows = (project.root / "out" / "seed-1" / "metrics.csv").read_text().splitlines()
    assert rows[0].startswith("step,train/loss_nats")
    assert len(rows) == 2


def test_finished_seeds_stay_and_others_are_added(project):
    """A seed beside others is the seed alone; the table is printed again."""
    before = (project.root / "out" / "seed-0" / "last.safetensors").stat().st_mtime_ns
    project("credit", "train", "out", *SMALL, "--quiet", "--seeds", "0,1,2,5")
    assert (project.root / "out" / "seed-0" / "last.safetensors").stat().st_mtime_ns == before
    project("credit", "train", "alone", *SMALL, "--quiet", "--seeds", "2")
    assert final(project, "alone/seed-2") == final(project, "out/seed-2")


def test_an_interrupted_run_goes_on(project):
    """Ctrl-C saves the state; the same command ends as it would have, also after a torn save."""
    command = ("credit", "train", "--width", "32", "--epochs", "30", "--method", "local-loss", "--seeds", "0,1")  # fmt: skip
    project(*command, "whole", "--quiet", "--set", "measured=64", "eval_interval=1")
    words = [*command, "parted", "--quiet", "--set", "measured=64", "eval_interval=1"]
    process = subprocess.Popen([ASSAY, *words], cwd=project.root, env=project.environment())
    rows = project.root / "parted" / "seed-0" / "metrics.jsonl"
    for _ in range(1200):
        if rows.exists() and rows.read_text().count("\n") > 2:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not (project.root / "parted" / "seed-0" / "summary.json").exists()
    # As if it had been killed before the second seed was saved for the first time.
    (project.root / "parted" / "seed-1" / "state.bin").unlink()
    project(*words)
    for seed in ("seed-0", "seed-1"):
        assert final(project, f"parted/{seed}") == final(project, f"whole/{seed}")
        both = [(project.root / name / seed / "metrics.csv").read_bytes() for name in ("whole", "parted")]  # fmt: skip
        assert both[0] == both[1]
        assert not (project.root / "parted" / seed / "state.bin").exists()


def test_probe_measures_what_training_did(project):
    """Its means are the final values; of the oracle all cosines are 1."""
    found = project.json("credit", "probe", "out/seed-1")
    known = final(project, "out/seed-1")
    assert found["method"] == "dfa"
    for name, value in found["mean"].items():
        assert value == pytest.approx(known[f"test/{name}"], abs=1e-12), name
    table = project("credit", "probe", "out/seed-1", "--method", "bp", "--samples", "20").stdout
    assert [line.split()[:2] for line in table.splitlines()[2:5]] == [
        ["h_0", "1.0000"], ["h_1", "1.0000"], ["mean", "1.0000"]
    ]  # fmt: skip


def test_linesearch_shows_the_controls(project):
    """The estimator, the true credit, and both with their sign turned round."""
    out = project("credit", "linesearch", "out/seed-0", "--batches", "2", "--batch", "32").stdout
    rows = [line.split()[:3] for line in out.splitlines()[2:]]
    assert len(rows) == 24
    assert {row[0] for row in rows} == {"dfa", "−dfa", "bp", "−bp"}
    found = project.json(
        "credit", "linesearch", "out/seed-0", "--batches", "2", "--batch", "32", "--method", "bp"
    )
    assert len(found["found"]) == 12
    assert all(len(each["fair"]) == 2 for each in found["found"])
    (true,) = (e for e in found["found"] if (e["sign"], e["where"], e["kind"]) == (1, "all", "raw"))
    assert max(true["same"]) < 0


def test_estimators_and_settings_are_listed(project):
    """Every method with what it uses; every setting with its meaning."""
    out = project("credit", "estimators").stdout
    assert re.search(r"^dni +block-vjp +DNI \(Jaderberg", out, re.MULTILINE)
    found = project.json("credit", "estimators")
    assert found["bp"]["derivatives"] == ["oracle"]
    assert all(each["says"].endswith((".", ":")) for each in found.values())
    out = project("credit", "settings").stdout
    assert 'normalise = "per-layer"\n    Credit divided by' in out
    assert "test/copy_gamma\n    What gamma would be" in out
    assert "snapshot_epochs" not in out
    frozen = project("credit", "settings", "--task", "frozen").stdout
    assert all(name in frozen for name in ("snapshot_epochs = 20", "exploit/all_raw_fair_nats\n"))
    assert "gain = 0.5" in project("credit", "settings", "--task", "lq").stdout


def test_an_estimator_of_ones_own(project):
    """By module:Class, from a terminal and in a study; runs of the lab are read by id and folder."""
    project.write("mine.py", MINE)
    project.write("studies/own.toml", STUDY)
    project.commit()
    project("credit", "train", "own", *SMALL, "--method", "mine:Mine", "--seeds", "0", "--quiet")
    found = project.json("credit", "probe", "own/seed-0")
    assert found["method"] == "mine:Mine"
    again = project.json("credit", "probe", "out/seed-0", "--method", "mine:Mine")
    assert again["mean"] != found["mean"]
    project("run", "own")
    (run,) = project.json("ls", "own")
    by_id = project.json("credit", "probe", run["id"])
    by_folder = project.json("credit", "probe", f"runs/{run['path']}")
    assert by_id["layers"] == by_folder["layers"]
    # The study's seeds and settings are those of the folder above: it is the same run.
    assert by_id["layers"] == found["layers"]
    artifact = next((project.runs / run["path"] / "artifacts").glob("*-last.safetensors"))
    artifact.write_bytes(artifact.read_bytes()[:-1])
    assert "digest" in project.refused("credit", "probe", run["id"], code=3)


def test_data_of_ones_own(project):
    """An .npz is named by its place and digest: others are no longer what the run learned from."""
    drawn = np.random.default_rng(0)
    arrays = {
        "x_train": drawn.integers(0, 256, (200, 4, 4), dtype=np.uint8),
        "y_train": drawn.integers(0, 3, 200),
        "x_test": drawn.integers(0, 256, (50, 4, 4), dtype=np.uint8),
        "y_test": drawn.integers(0, 3, 50),
    }
    np.savez(project.root / "mine.npz", **arrays)
    command = ("credit", "train", "npz", *SMALL, "--data", "mine.npz", "--seeds", "0", "--quiet")
    project(*command)
    project.json("credit", "probe", "npz/seed-0", "--method", "copy")
    np.savez(project.root / "mine.npz", **{**arrays, "x_test": arrays["x_test"][::-1]})
    assert "must be those that" in project.refused("credit", "probe", "npz/seed-0")
    assert "another configuration or seed" in project.refused(*command)
    np.savez(project.root / "mine.npz", **{**arrays, "x_test": arrays["x_test"][:, :3]})
    elsewhere = ("credit", "train", "new", "--data", "mine.npz")
    assert "images of one size" in project.refused(*elsewhere)
    assert not (project.root / "new").exists()
    (project.root / "mine.npz").unlink()
    assert "must be a file" in project.refused("credit", "probe", "npz/seed-0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "new", "--method", "dfb"), "method must be one of bp"),
        (("train", "new", "--method", "nowhere:Mine"), "can be imported"),
        (("train", "new", "--seeds", "0,a"), "--seeds takes seeds with commas, such as 0,1,2; got '0,a'"),
        (("train", "new", "--seeds", "1,1"), "each once"),
        (("train", "new", "--seeds=-1"), "numbers from 0 on"),
        (("train", "new", "--set", "batches=3"), "Did you mean 'batch'"),
        (("train", "new", "--set", "width=3"), "give it as --width"),
        (("train", "new", "--set", "code=eX"), "eT"),
        (("train", "new", "--data", "imagenet"), "data must be ladder, digits"),
        (("train", "new", "--data", "cifar10"), "ASSAY_DATA is not set"),
        (("train", "out", "--epochs", "3"), "another configuration or seed: depth: 2 → 4, epochs: 1 → 3"),
        (("probe", "out"), "it has seed-0, seed-1, seed-2"),
        (("probe", "nothing"), "No run with the id 'nothing'"),
        (("probe", "out/seed-0", "--method", "dni"), "without having learned it"),
        (("probe", "out/seed-0", "--samples", "0"), "--samples"),
        (("linesearch", "out/seed-0", "--batch", "1000"), "1 to 134 samples"),
        (("linesearch", "broken"), "only one of the two has"),
        (("linesearch", "other"), "must tell configuration, seeds and data"),
        (("linesearch", "unfinished"), "must hold last.safetensors"),
    ],
)  # fmt: skip
def test_mistakes(project, words, message):
    """One paragraph with the rule, and nothing is made."""
    for name in ("broken", "other", "unfinished"):
        folder = project.root / name
        folder.mkdir(exist_ok=True)
        told = json.loads((project.root / "out" / "seed-0" / "config.json").read_text())
        told["config"]["block"] = "plain"
        (folder / "config.json").write_text(json.dumps(told if name != "other" else {"a": 1}))
        if name == "broken":
            content = (project.root / "out" / "seed-0" / "last.safetensors").read_bytes()
            (folder / "last.safetensors").write_bytes(content)
    assert message in project.refused("credit", *words)
    assert not (project.root / "new").exists()
