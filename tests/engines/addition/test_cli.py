import csv
import json

import pytest

from assay.cli.addition import app
from assay.cli.addition_files import PlainContext
from assay.cli.addition_settings import config_from
from assay.core.errors import AssayError, CheckpointError, ConfigError, DataError
from assay.engines.addition import leaderboard
from assay.engines.addition.config import AdditionConfig

from .helpers import SMALL

SETTINGS = [f"{name}={json.dumps(value)}" for name, value in SMALL.items()]


COLUMNS = ["step", "train_loss", "val_exact", "val_token_acc", "grad_norm", "lr", "elapsed_sec",
           "val_loss"]  # fmt: skip
KEYS = ("run_name", "params", "best_val_exact", "best_step", "train_steps", "elapsed_sec")
"""The keys of the source's summary.json, but for model_config."""


def call(*arguments):
    return app([str(a) for a in arguments], exit_on_error=False, result_action="return_value")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    call("train", out, "--seed", 3, 5, "--set", *SETTINGS, "--quiet")
    return out


def test_train_writes_plain_files(trained):
    """One folder a seed, with metrics, weights and results."""
    for seed in (3, 5):
        folder = trained / f"seed-{seed}"
        rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
        assert [int(row["step"]) for row in rows] == [25, 50, 60]
        assert (folder / "best.safetensors").exists()
        assert "test/exact_match" in json.loads((folder / "results.json").read_text())
        assert list(rows[0]) == COLUMNS
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["seeds"]["init"] == seed
        assert {*KEYS, "model_config"} <= set(summary)
        assert summary["params"] == 763
        assert summary["train_steps"] == 60
        best = max(float(row["val_exact"]) for row in rows)
        assert summary["best_val_exact"] == best
        for name in ("train_val_loss_per_step.png", "val_accuracy_per_step.png"):
            assert (folder / name).read_bytes().startswith(b"\x89PNG")
    root = json.loads((trained / "summary.json").read_text())
    assert root["num_models"] == 2
    assert root["params_total"] == 2 * 763
    assert [model["seed"] for model in root["models"]] == [3, 5]
    assert set(root["aggregate"]) == {f"best_val_exact_{s}" for s in ("mean", "min", "max")}


def test_evaluate_reports_every_test_set(trained, capsys):
    """Ten sets of 10,000, in text and in JSON."""
    path = trained / "seed-3" / "best.safetensors"
    call("evaluate", path, "--json")
    (result,) = json.loads(capsys.readouterr().out)
    assert result["parameters"] == 763
    assert len(result["multi_seed_validation"]["per_seed"]) == 10
    whole = result["multi_seed_validation"]
    assert whole["total_examples"] == 100_000
    failures = result["failures"]
    assert sum(failures["first_wrong_digit_by_place"]) == whole["aggregate_errors"] > 0
    assert sum(failures["carry_chain_at_first_wrong_digit"]) == whole["aggregate_errors"]
    assert len(failures["failure_samples"]) == 10
    for sample in failures["failure_samples"]:
        assert sample["A"] + sample["B"] == sample["ground_truth"] != sample["prediction"]
    call("evaluate", trained / "seed-3")  # a folder is its best checkpoint
    assert "errors by test set: 41: " in capsys.readouterr().out


def test_predict_says_whether_it_is_right(trained, capsys):
    """The answer and the truth."""
    call("predict", trained / "seed-3" / "best.safetensors", 12, 30, "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["ground_truth"] == 42
    assert result["correct"] == (result["prediction"] == 42)


def test_the_same_command_goes_on_after_ctrl_c(trained, tmp_path, monkeypatch):
    """Rows and weights equal those of the uninterrupted run, byte for byte."""
    command = ["train", tmp_path, "--seed", 3, 5, "--set", *SETTINGS, "--quiet"]
    asked = []

    def stop_at_the_third_time(context):
        asked.append(context)
        context.stop = len(asked) > 4  # two runs are asked each time
        return context.stop

    with monkeypatch.context() as patch:
        patch.setattr(PlainContext, "should_stop", stop_at_the_third_time)
        with pytest.raises(SystemExit) as caught:
            call(*command)
    assert caught.value.code == 130
    assert not (tmp_path / "seed-3" / "best.safetensors").exists()
    with (tmp_path / "seed-3" / "metrics.csv").open("a") as file:
        file.write("50,logged,after,the,checkpoint,of,32\n50,torn")
    call(*command)
    for seed in ("seed-3", "seed-5"):  # all but the clock
        both = [
            [
                {**row, "elapsed_sec": ""}
                for row in csv.DictReader((out / seed / "metrics.csv").read_text().splitlines())
            ]
            for out in (tmp_path, trained)
        ]
        assert both[0] == both[1]
        both = [
            {**json.loads((out / seed / "summary.json").read_text()), "elapsed_sec": 0}
            for out in (tmp_path, trained)
        ]
        assert both[0] == both[1]
    for name in ("best.safetensors", "last.safetensors"):
        for seed in ("seed-3", "seed-5"):
            assert (tmp_path / seed / name).read_bytes() == (trained / seed / name).read_bytes()


@pytest.mark.parametrize("bad", ["-1", "10000000000", "1.5", "x", "", "٣", "1e3"])
def test_bad_operands_are_refused(trained, bad):
    """Rule, value and way out; before any model is read."""
    with pytest.raises(DataError, match="whole number"):
        call("predict", trained / "none", "--", bad, "1")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["evaluate", "none.safetensors"], CheckpointError),
        (["predict", "none.safetensors", "1", "2"], CheckpointError),
        (["train", "out", "--set", "d_modle=3"], ConfigError),
        (["train", "out", "--set", "d_model"], ConfigError),
        (["train", "out", "--set", "d_model=wide"], ConfigError),
        (["train", "out", "--seed", "1", "1"], ConfigError),
    ],
)
def test_bad_input_is_an_error_of_one_paragraph(arguments, error, tmp_path, monkeypatch):
    """Nothing is half-written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        call(*arguments)
    assert issubclass(error, AssayError)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_schedule_follows_the_steps_where_it_is_not_given():
    """A short first try needs --set steps alone; what is given stays."""
    config = config_from(["steps=2700"])
    assert (config.warmup_steps, config.curriculum) == (
        135,
        ((1, 3, 200), (1, 6, 700), (1, 10, 2700)),
    )
    assert config_from(["steps=2"]).curriculum[-1] == (1, 10, 2)
    assert config_from(["steps=100", "warmup_steps=7"]).warmup_steps == 7
    assert config_from([]) == AdditionConfig()


def test_settings_lists_every_setting(capsys):
    """Name, default and meaning of each field."""
    call("settings")
    printed = capsys.readouterr().out
    for name in AdditionConfig.__dataclass_fields__:
        assert f"{name} = " in printed
    assert "Base of the rotary position embedding" in printed


def test_count_prints_the_ladder(capsys):
    """By component and total, from the tensors; frozen apart."""
    call("count", "--json")
    rows = json.loads(capsys.readouterr().out)
    assert rows["456"]["total"] == 456
    assert (rows["896"]["total"], rows["896"]["frozen"]) == (896, 448)
    call("count", "--set", "d_model=8", "d_ff=28")
    assert "1128" in capsys.readouterr().out


def test_export_and_verify(trained, tmp_path, monkeypatch, capsys):
    """An exported file is verified only when it may be run, and agrees with the checkpoint."""
    monkeypatch.setattr(leaderboard, "NUM_RANDOM", 20)
    path = tmp_path / "submission.py"
    call("export", trained / "seed-3", path)
    with pytest.raises(DataError, match="new file"):
        call("export", trained / "seed-3", path)
    with pytest.raises(DataError, match="--run-code"):
        call("verify", path)
    said = []
    for target in ((path, "--run-code"), (trained / "seed-3",)):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            call("verify", *target)
        assert caught.value.code == 1
        said.append(capsys.readouterr().out.partition(": ")[2])
    assert said[0] == said[1]
    assert "of 30 right" in said[0]
    assert "763 trained parameters" in said[0]


def test_attack_finds_the_errors_of_a_bad_model(trained, capsys):
    """An untrained adder has counterexamples in every class; exit code 1."""
    with pytest.raises(SystemExit) as caught:
        call("attack", trained / "seed-3", "--pairs-per-class", "2", "--json")
    assert caught.value.code == 1
    found = json.loads(capsys.readouterr().out)
    assert sum(found["errors_by_class"]) > 1000
    assert found["counterexamples"]
    with pytest.raises(DataError, match="at least 1"):
        call("attack", trained / "seed-3", "--pairs-per-class", "0")
