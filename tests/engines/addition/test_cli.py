import csv
import json

import pytest

from assay.cli.addition import PlainContext, app
from assay.core.errors import AssayError, CheckpointError, ConfigError, DataError

from .helpers import SMALL

SETTINGS = [f"{name}={json.dumps(value)}" for name, value in SMALL.items()]


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
        assert json.loads((folder / "summary.json").read_text())["seeds"]["init"] == seed


def test_evaluate_reports_every_test_set(trained, capsys):
    """Ten sets of 10,000, in text and in JSON."""
    path = trained / "seed-3" / "best.safetensors"
    call("evaluate", path, "--json")
    (result,) = json.loads(capsys.readouterr().out)
    assert result["parameters"] == 763
    assert len(result["multi_seed_validation"]["per_seed"]) == 10
    assert result["multi_seed_validation"]["total_examples"] == 100_000


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
        file.write("50,logged,after,the,checkpoint,of,40\n50,torn")
    call(*command)
    for name in ("metrics.csv", "best.safetensors", "last.safetensors", "summary.json"):
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
