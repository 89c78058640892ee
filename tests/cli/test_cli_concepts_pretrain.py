"""`assay concepts pretrain`: as the README says it, resumed, and by two processes as by one."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from project import ASSAY
from transformers import AutoModelForMaskedLM, AutoTokenizer

import assay.engines.concepts.models  # noqa: F401  (makes the models known to the library)
from assay.cli.concepts_pretrain import What

SMALL = [
    "--corpus", "texts.txt", "--hidden", "32", "--layers", "1", "--slots", "4", "--steps", "10", "--quiet",
    "--set", "vocab_size=300", "seq_len=32", "held_blocks=8", "batch=8", "eval_interval=5", "packed=false",
    "warmup=2", "lr=0.003",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data folder, in which commands are run."""
    folder = tmp_path_factory.mktemp("concepts")
    lines = [
        f"The {a} of {p} eats {f}."
        for a in ("dog", "cat")
        for p in ("Rome", "Bern")
        for f in ("hay", "meat")
    ]
    (folder / "texts.txt").write_text("\n".join(lines * 10))
    return folder


def run(place, *arguments, launcher=()):
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(place), "ASSAY_DATA": str(place)}
    command = [*launcher, ASSAY, "concepts", *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [{name: float(v) for name, v in row.items() if v} for row in csv.DictReader(file)]


def test_a_model_is_trained_and_stored(place):
    done = run(place, "pretrain", "plain", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "test/loss_nats" in done.stdout
    assert len(rows(place / "plain")) == 10
    model = AutoModelForMaskedLM.from_pretrained(place / "plain" / "model")
    tokenizer = AutoTokenizer.from_pretrained(place / "plain" / "model")
    assert model.config.vocab_size == len(tokenizer)
    assert len(tokenizer("dog " * 200, truncation=True)["input_ids"]) == 32
    again = run(place, "pretrain", "plain", *SMALL)
    assert again.returncode == 0
    other = run(place, "pretrain", "plain", *SMALL, "--seed", "1")
    assert other.returncode != 0
    assert "holds a run of another configuration or seed" in other.stderr


def test_a_run_that_was_refused_does_not_hold_its_folder(place):
    refused = run(place, "pretrain", "mended", *SMALL, "vocab_size=5")
    assert "vocab_size must be" in refused.stderr
    assert (place / "mended" / "config.json").exists()
    done = run(place, "pretrain", "mended", *SMALL)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(300)
@pytest.mark.parametrize("architecture", ["concepts", "bert"])
def test_two_processes_compute_what_one_does(place, architecture):
    """Each with half of every batch, gloo, over more than an epoch: the same losses and gradients."""
    own = 'concept_losses=["uniformity"]' if architecture == "concepts" else "weight_decay=0.02"
    torchrun = [
        str(Path(sys.executable).parent / "torchrun"),
        "--nproc-per-node",
        "2",
        "--no-python",
    ]
    for name, launcher in (("one", ()), ("two", torchrun)):
        done = run(
            place,
            "pretrain",
            f"{name}-{architecture}",
            *SMALL,
            "dropout=0",
            f"architecture={architecture}",
            own,
            launcher=launcher,
        )
        assert done.returncode == 0, done.stderr
    one, two = (rows(place / f"{name}-{architecture}") for name in ("one", "two"))
    assert len(one) == len(two) == 10
    for mine, yours in zip(one, two, strict=True):
        for name in ("train/loss_nats", "train/grad_norm"):
            assert mine[name] == pytest.approx(yours[name], rel=2e-5)
    folders = [place / f"{name}-{architecture}" for name in ("one", "two")]
    finals = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert finals[0]["test/loss_nats"] == pytest.approx(finals[1]["test/loss_nats"], rel=1e-5)


@pytest.mark.timeout(300)
def test_ctrl_c_saves_and_the_same_command_goes_on(place):
    """To the same rows, but for the last bits of nothing: CPU, bit for bit."""
    longer = [*SMALL, "batch=4", "eval_interval=60"]
    longer[longer.index("--steps") + 1] = "150"
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(place), "ASSAY_DATA": str(place)}
    whole = run(place, "pretrain", "whole", *longer)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [ASSAY, "concepts", "pretrain", "cut", *longer], cwd=place, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = place / "cut" / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") > 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "the same command goes on" in told
    done = run(place, "pretrain", "cut", *longer)
    assert done.returncode == 0, done.stderr
    assert rows(place / "cut") == rows(place / "whole")


def test_errors_are_told_in_a_sentence(place):
    for arguments, told in (
        (["--corpus", "nowhere"], "got 'nowhere'"),
        (["--set", "slot=3"], "Did you mean 'slots'"),
        (["--slots", "500"], "slots must be at most seq_len"),
        (["--set", "slots=3"], "give it as --slots"),
    ):
        done = run(place, "pretrain", "bad", *arguments)
        assert done.returncode != 0
        assert told in done.stderr.replace("\n", " ")
        assert "Traceback" not in done.stderr


def test_an_objective_brings_its_decoder_and_rate():
    """TSDAE is 60 % deletion and a decoder of positions unless told otherwise; others keep their defaults."""
    usual = What(objective="tsdae").config
    assert (usual.decoder, usual.mask_rate) == ("position", 0.6)
    assert What(objective="tsdae", set_=["mask_rate=0.3"]).config.mask_rate == 0.3
    assert What(objective="prefix").config.decoder == "diffusion"
    assert What().config.mask_rate == 0.15
