"""Estimators side by side: what is compared is the same but for the estimator."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from assay.core.errors import ConfigError
from assay.engines import credit
from assay.engines.credit import CreditError, Estimator, TrainConfig, compare
from assay.engines.credit.memory import Memory
from assay.engines.credit.train import train

SMALL = {"epochs": 1, "width": 12, "train_size": 256, "measured": 64}


class Mine(Estimator):
    """One matrix for all layers."""

    def __init__(self, setting):
        super().__init__(setting)
        self.matrix = setting.randn(1, setting.shape.classes, setting.shape.width)

    def credit(self, trajectory, view):
        found = torch.matmul(trajectory.error_SBC.unsqueeze(1), self.matrix)
        return found.expand_as(trajectory.h_SLBD[:, :-1])

    def state(self):
        return {"matrix": self.matrix}


class Forgetful(Mine):
    """One that does not tell what it keeps."""

    def state(self):
        return {}


class Counting(Mine):
    """One that names a number."""

    def state(self):
        return {"a": 3}


@pytest.fixture(scope="module")
def found():
    """Two methods, two alphas, two depths, two seeds."""
    return compare({"mine": Mine, "dfa": "dfa"}, alphas=(0.0, 1.0), depths=(1, 2), seeds=2, **SMALL)


def test_a_row_is_the_run_alone(found):
    """Bit for bit: neither other methods nor the stack change a run."""
    config = TrainConfig(data="ladder", block="tanh", method="dfa", alpha=0.0, depth=2, **SMALL)
    alone = Memory({"init": 1, "data": 1})
    train([config], [alone])
    (row,) = found.runs.filter(
        (found.runs["method"] == "dfa") & (found.runs["alpha"] == 0) & (found.runs["depth"] == 2)
        & (found.runs["seed"] == 1)
    ).to_dicts()  # fmt: skip
    for name, value in alone.final.items():
        assert row[name] == value or name.startswith("speed/"), name


def test_means_and_deviations_are_those_of_the_runs(found):
    """Over seeds, n - 1 in the denominator; one row for each method, alpha and depth."""
    table = found.table()
    assert table.height == 8
    assert table["n"].to_list() == [2] * 8
    row = table.row(3, named=True)
    keys = {name: row[name] for name in ("method", "alpha", "depth")}
    own = [r for r in found.runs.to_dicts() if keys.items() <= r.items()]
    values = [r["test/gamma"] for r in own]
    assert row["test/gamma"] == pytest.approx(np.mean(values), abs=1e-15)
    assert row["test/gamma_std"] == pytest.approx(np.std(values, ddof=1), abs=1e-15)


def test_methods_are_a_table():
    with pytest.raises(ConfigError, match=r"methods must map a label .* got \['dfa'\]"):
        compare(["dfa"])


def test_methods_begin_from_the_same_nets_and_data():
    """One method under two names gives the same numbers, whatever its own settings are not."""
    same = compare({"a": "bp", "b": {"method": "bp", "est_lr": 0.5}}, depths=(2,), seeds=1, **SMALL)
    a, b = same.runs.drop("method", "speed/seconds_per_step").rows()
    assert a == b


def test_the_text_has_what_matters(found):
    """A line for each row of the table, its mean and deviation; of one seed no deviation."""
    lines = str(found).splitlines()
    assert lines[0].split()[:6] == ["method", "alpha", "depth", "n", "accuracy", "majority_rate"]
    assert len(lines) == 9
    assert re.match(r"mine +0 +1 +2 +0\.\d{3} ± 0\.\d{3}  ", lines[1])
    one = compare({"bp": "bp"}, depths=(1,), seeds=[3], **SMALL)
    assert "±" not in str(one)
    assert one.runs["seed"].to_list() == [3]


def test_the_figure_has_a_panel_for_each_alpha(found, tmp_path):
    """A line with bars for each method, and its dashed ceiling; other formats are refused."""
    path = tmp_path / "found.svg"
    found.figure(path)
    drawn = path.read_text()
    for text in ("α = 0", "α = 1", "blocks", "mine", "dfa", "copying, same nets"):
        assert f"<!-- {text} -->" in drawn, text
    # Two methods and the legend's own, in each of two panels, are dashed.
    assert drawn.count("stroke-dasharray") >= 4
    found.figure(tmp_path / "found.png")
    with pytest.raises(ConfigError, match=r"\.svg, \.png, \.pdf; got .*found.jpg"):
        found.figure(tmp_path / "found.jpg")


def test_one_is_told_what_has_ended():
    """A line for each stack."""
    told = []
    compare({"bp": "bp", "zero": "zero"}, depths=(1,), seeds=2, say=told.append, **SMALL)
    assert told == ["bp, depth 1: 2 runs", "zero, depth 1: 2 runs"]


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        ({"x": 3}, {}, "must be a name, a subclass"),
        ({"x": dict}, {}, "must be a name, a subclass"),
        ({"x": "dfa2"}, {}, "method must be one of bp"),
        ({"x": "nowhere:Mine"}, {}, "can be imported"),
        ({"x": {"est_lr": 1.0}}, {}, "must be a name, a subclass"),
        ({"x": "dfa"}, {"batches": 3}, "compare, x: unknown key 'batches'. Did you mean 'batch'"),
        ({"x": "dfa"}, {"depths": (0,)}, "depth must be positive; got 0"),
        ({"x": "dfa"}, {"seeds": [1, 1]}, r"seeds must be different ones.*\[1, 1\]"),
        ({"x": "dfa"}, {"seeds": 0}, "seeds must be different ones, at least one"),
        ({}, {}, "methods must be"),
        ({"x": "dfa"}, {"block": "gelu", "alphas": (0, 1)}, 'alphas differ only in blocks "tanh"'),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(methods, options, message):
    """With the rule and the value."""
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        compare(methods, **options)


def test_a_class_must_be_found_by_its_name():
    """One inside a function cannot be, and a run could not be read again."""

    class Local(Mine):
        pass

    with pytest.raises(ConfigError, match="top level of a module"):
        compare({"x": Local})


def test_an_estimator_that_hides_its_tensors_is_told_so():
    """It trains in float32, and cannot be measured in float64."""
    with pytest.raises(CreditError, match=r"Forgetful must compute in float64.*state\(\)"):
        compare({"x": Forgetful}, depths=(1,), seeds=1, **SMALL)


def test_what_an_estimator_keeps_must_be_tensors():
    with pytest.raises(CreditError, match=r"Counting must give tensors in state\(\).*'a' is int"):
        compare({"x": Counting}, depths=(1,), seeds=1, **SMALL)


def test_the_package_is_light_and_has_what_it_names():
    """Importing it loads no torch; every name is there; others are refused."""
    code = "import sys, assay.engines.credit, assay.engines.credit.engine; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    for name in credit.__all__:
        assert getattr(credit, name).__module__.startswith("assay.engines.credit")
    with pytest.raises(AttributeError, match="nothing"):
        _ = credit.nothing
