"""A submission is the model: self-contained, strictly counted, judged by its public interface."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from assay.engines.addition import leaderboard
from assay.engines.addition.checkpoint import Model, load_model
from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.evaluate import predict
from assay.engines.addition.ladder import ladder
from assay.engines.addition.layout import num_parameters
from assay.engines.addition.model import Parameters

from .test_evaluate import RELEASED, needs_released

MORE = {
    "no-norm-sinusoidal": AdditionConfig(norm="none", positions="sinusoidal"),
    "tied-low-rank": AdditionConfig(
        d_model=8, heads=2, tie_qkv="qk", qkv_rank=3, rope_theta=3.0, tie_down="up", prompt="lsd"
    ),
    "share-b-frozen": AdditionConfig(
        tie_qkv="shareB_tieKV", qkv_rank=2, attn_out_rank=2, fixed_full_rank_attn=True
    ),
}
CONFIGS = {**ladder(), **MORE}


def random_model(config) -> Model:
    parameters = Parameters.initial(config, [3])
    noise = torch.randn(parameters.rows_SP.shape, generator=torch.Generator().manual_seed(5))
    parameters.rows_SP += 0.5 * noise
    return Model(config=config, parameters=parameters, about={})


@pytest.mark.parametrize("name", CONFIGS)
def test_an_exported_model_says_what_the_model_says(name):
    """Every configuration of the ladder: the same sums, right or wrong, and the strict count."""
    config = CONFIGS[name]
    model = random_model(config)
    module = leaderboard.module_of(leaderboard.source(model))
    built, about = module.build_model()
    assert about["params"] == num_parameters(config) == leaderboard.strict_count(built)
    draw = torch.Generator().manual_seed(1)
    pairs = [*torch.randint(0, 10**10, (6, 2), generator=draw).tolist(), [0, 9_999_999_999]]
    answers = [module.add(built, a, b) for a, b in pairs]
    assert answers == [predict(model, a, b) for a, b in pairs]


def test_a_submission_needs_nothing_of_assay(tmp_path):
    """The file runs in a Python that cannot import the package."""
    path = tmp_path / "submission.py"
    path.write_text(leaderboard.source(random_model(ladder()["36"])))
    code = (
        "import sys; sys.modules['assay'] = None; import submission as s; m, about = s.build_model();"
        "print(about['params'], s.add(m, 1, 2) >= 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["36", "True"]


def test_the_protocol_is_repeatable():
    """Ten edge cases, then 10,000 pairs of random.Random(2025)."""
    pairs = list(leaderboard.cases())
    assert len(pairs) == 10_010
    assert pairs == list(leaderboard.cases())
    assert len(set(leaderboard.EDGE_CASES)) == 10
    assert all(0 <= x < 10**10 for pair in pairs for x in pair)


def adder(wrong_every):
    calls = {"count": 0}

    def add(model, a, b):
        calls["count"] += 1
        return a + b + (calls["count"] % wrong_every == 0)

    return SimpleNamespace(build_model=lambda: (torch.nn.Linear(2, 3), {}), add=add)


def test_the_bar_is_99_percent():
    """One wrong in 101 passes, one in 99 does not; parameters are counted by us."""
    good, bad = leaderboard.verify(adder(101)), leaderboard.verify(adder(99))
    assert good.passes
    assert not bad.passes
    assert len(bad.failures) == 10_010 // 99
    assert good.parameters == 9
    assert good.failures[0][2] == sum(good.failures[0][:2]) + 1


def test_shared_parameters_count_once_and_hidden_ones_count():
    """Unique storage: a second name of a parameter adds nothing, another parameter does."""
    module = torch.nn.Module()
    module.first = torch.nn.Parameter(torch.zeros(3, 4))
    module.second = module.first
    assert leaderboard.strict_count(module) == 12
    module.third = torch.nn.Parameter(torch.zeros(5))
    assert leaderboard.strict_count(module) == 17
    assert leaderboard.strict_count(object()) is None


@needs_released
def test_the_released_model_passes_the_edge_cases():
    """Through the exported interface, autoregressively."""
    module = leaderboard.module_of(leaderboard.source(load_model(RELEASED)))
    model, about = module.build_model()
    assert about["params"] == 456
    for a, b in leaderboard.EDGE_CASES:
        assert module.add(model, a, b) == a + b
    with pytest.raises(ValueError, match="from 0 to 9999999999"):
        module.add(model, -1, 0)
