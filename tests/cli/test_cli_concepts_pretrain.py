"""`assay concepts pretrain`: as the README says it, resumed, and by two processes as by one."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from project import ASSAY
from transformers import AutoModelForMaskedLM, AutoTokenizer

import assay.engines.concepts.models  # noqa: F401  (makes the models known to the library)
from assay.cli.concepts_pretrain import What

SMALL = [
    "--corpus", "texts.txt", "--hidden", "32", "--layers", "1", "--slots", "4", "--steps", "10", "--quiet", "--threads", "1",
    "--set", "vocab_size=300", "seq_len=32", "held_blocks=8", "batch=8", "eval_interval=5", "packed=false",
    "warmup=2", "lr=0.003",
]  # fmt: skip


TORCHRUN = [
    str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2", "--no-python",
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


def environment(place):
    return {"PATH": "/usr/bin:/bin", "HOME": str(place), "ASSAY_DATA": str(place)}


def run(place, *arguments, launcher=()):
    command = [*launcher, ASSAY, "concepts", *arguments]
    return subprocess.run(
        command, cwd=place, env=environment(place), capture_output=True, text=True
    )


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
    assert "was trained before" in again.stdout
    assert "test/loss_nats" in again.stdout
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
    for name, launcher in (("one", ()), ("two", TORCHRUN)):
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
        losses = {name for name in mine if name.startswith("train/")}
        assert len(losses) == (3 if architecture == "concepts" else 2)
        for name in losses:
            assert mine[name] == pytest.approx(yours[name], rel=2e-5)
    folders = [place / f"{name}-{architecture}" for name in ("one", "two")]
    finals = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert finals[0]["test/loss_nats"] == pytest.approx(finals[1]["test/loss_nats"], rel=1e-5)


def begun(place, name, longer, launcher=()):
    """A training that has made its first steps, in a process group of its own as a terminal has it."""
    process = subprocess.Popen(
        [*launcher, ASSAY, "concepts", "pretrain", name, *longer], cwd=place, env=environment(place),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    log = place / name / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") > 3):
        time.sleep(0.02)
    return process


def lasting(steps):
    longer = [*SMALL, "batch=4", "eval_interval=25"]
    longer[longer.index("--steps") + 1] = steps
    return longer


@pytest.mark.timeout(300)
@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_the_same_command_goes_on(place, asked):
    """To the same rows, but for the last bits of nothing: CPU, bit for bit. SIGTERM is what a cluster sends."""
    longer, whole, cut = lasting("60"), f"whole-{asked.name}", f"cut-{asked.name}"
    done = run(place, "pretrain", whole, *longer)
    assert done.returncode == 0, done.stderr
    process = begun(place, cut, longer)
    process.send_signal(asked)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "the same command goes on" in told
    done = run(place, "pretrain", cut, *longer)
    assert done.returncode == 0, done.stderr
    assert rows(place / cut) == rows(place / whole)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("asked", ["all", "one"])
def test_ctrl_c_saves_where_two_processes_train(place, asked):
    """A terminal tells all of them at once, and torchrun tells its own once more; all leave after the same step."""
    name, longer = f"cut-{asked}", lasting("3000")
    process = begun(place, name, longer, TORCHRUN)
    if asked == "all":
        os.killpg(process.pid, signal.SIGINT)
    else:
        psutil.Process(process.pid).children()[1].send_signal(signal.SIGINT)
    try:
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    log = (place / name / "metrics.jsonl").read_text().splitlines()
    state = (place / name / "state.bin").read_bytes()
    assert int.from_bytes(state[:8], "little") == len(log) < 3000, told


@pytest.mark.timeout(300)
def test_a_folder_has_one_writer_and_a_whole_state(place):
    """A second command would mix its rows in; half a state is no state."""
    longer = lasting("3000")
    process = begun(place, "damaged", longer)
    beside = run(place, "pretrain", "damaged", *longer)
    assert beside.returncode == 2
    assert "another one trains there" in " ".join(beside.stderr.split())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    state = place / "damaged" / "state.bin"
    state.write_bytes(state.read_bytes()[:2000])
    done = run(place, "pretrain", "damaged", *longer)
    assert done.returncode == 2
    assert "cannot be unpacked" in " ".join(done.stderr.split())


def test_a_training_that_diverged_says_so(place):
    done = run(place, "pretrain", "lost", *SMALL, "lr=1e20", "clip=0", "warmup=0")
    assert done.returncode == 1
    assert "lost: diverged: the training loss is no number at step" in done.stderr
    final = json.loads((place / "lost" / "summary.json").read_text(), parse_constant=pytest.fail)
    assert final["test/loss_nats"] is None
    published = run(place, "publish", "lost", "a/b", "--dry-run")
    assert published.returncode == 2
    assert "the training diverged" in " ".join(published.stderr.split())


def test_a_model_that_learned_only_frequencies_says_so(place):
    done = run(place, "pretrain", "guesses", *SMALL, "lr=1e-9")
    assert done.returncode == 0
    assert "hardly more than how often tokens occur" in done.stderr


def test_errors_are_told_in_a_sentence(place):
    for arguments, told in (
        (["--corpus", "nowhere"], "got 'nowhere'"),
        (["--set", "slot=3"], "Did you mean 'slots'"),
        (["--slots", "500"], "slots must be at most seq_len"),
        (["--set", "slots=3"], "give it as --slots"),
        (
            ["--set", "batch=1", 'concept_losses=["input-variance"]'],
            "compares the texts of a batch",
        ),
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
