from pathlib import Path

import pytest
import torch

from assay.core.errors import DataError
from assay.engines.addition.checkpoint import Model, assemble, load_model, parse
from assay.engines.addition.config import AdditionConfig, num_parameters
from assay.engines.addition.data import Pairs, holdout, sequences
from assay.engines.addition.evaluate import (
    Workspace,
    decode,
    number,
    predict,
    report,
    score,
    score_test_sets,
)
from assay.engines.addition.model import Parameters
from assay.engines.addition.train import train

from .helpers import MemoryContext, small
from .test_model import random_parameters

RELEASED = Path(__file__).parents[4] / "shared" / "checkpoints" / "best_456p_s43.pt"
needs_released = pytest.mark.skipif(not RELEASED.exists(), reason="no released checkpoint here")


def half_trained() -> Model:
    """A model that is right on some sums and wrong on others."""
    config = small(
        d_model=8, d_ff=28, init="scaled", steps=500, batch_size=128, lr=0.015, warmup_steps=50,
        eval_interval=500, curriculum=((1, 1, 500),),
    )  # fmt: skip
    context = MemoryContext(1)
    train([config], [context])
    tensors, about = parse(context.files["last.safetensors"], where="test")
    return assemble(about["config"], tensors, about, where="test")


@pytest.fixture(scope="module")
def model() -> Model:
    return half_trained()


def test_teacher_forced_exact_is_greedy_exact(model):
    """Over right and wrong sums alike, one forward and twelve greedy steps judge alike."""
    digit = torch.arange(10)
    pairs = Pairs(a=digit.repeat(10), b=digit.repeat_interleave(10))
    work = Workspace(model.config, 32)
    p = model.parameters.seed(0)
    truth = sequences(pairs.a, pairs.b)[:, 22:33]
    greedy = (decode(model.config, model.parameters.stacked(), pairs)[:, :11] == truth).all(1)
    forced = [
        score(p, Pairs(a=pairs.a[i : i + 1], b=pairs.b[i : i + 1]), work).errors == 0
        for i in range(len(pairs))
    ]
    assert forced == greedy.tolist()
    assert 0 < int(greedy.sum()) < 100, "the model must be right on some and wrong on others"
    assert score(p, pairs, work).errors == 100 - int(greedy.sum())


@pytest.mark.parametrize("spread", [0.7, 0.0])
def test_score_does_not_depend_on_the_block_size(spread):
    """Blocks, and a last block that is not full, count every pair once.

    With all weights zero the model says 0 everywhere, which is right for the filling of a block.
    """
    config = AdditionConfig()
    p = random_parameters(config, dtype=torch.float64, spread=spread).seed(0)
    pairs = holdout(5, 90, 10).val
    scores = [score(p, pairs, Workspace(config, n, torch.float64)) for n in (1, 7, 90, 128)]
    assert {s.num_examples for s in scores} == {90}
    assert len({(s.errors, s.right_digits) for s in scores}) == 1
    for other in scores[1:]:
        assert other.loss_nats == pytest.approx(scores[0].loss_nats, rel=1e-9)


def test_an_untrained_model_has_the_loss_of_guessing():
    """All weights zero: every token is equally likely, log 14 nats."""
    config = AdditionConfig()
    result = score(
        Parameters.zeros(config, 1).seed(0), holdout(5, 40, 10).val, Workspace(config, 8)
    )
    assert result.loss_nats == pytest.approx(2.6390573, rel=1e-6)


@pytest.mark.parametrize(
    ("tokens", "value"),
    [([4, 3, 2, 1] + [0] * 7 + [13], 1234), ([13] * 12, 0), ([5, 13, 9, 9], 5), ([5, 10], 5)],
)
def test_decoding_stops_at_the_first_token_that_is_no_digit(tokens, value):
    """Units first; what follows EOS or another symbol is ignored."""
    assert number(tokens) == value


@pytest.mark.parametrize(("a", "b"), [(-1, 0), (0, 10**10), (10**12, 1)])
def test_operands_out_of_range_are_refused(a, b, model):
    """The model has 10 digit positions an operand and no sign."""
    with pytest.raises(DataError, match="whole number from 0 to 9999999999"):
        predict(model, a, b)


@needs_released
def test_the_released_456_parameter_model_makes_no_error():
    """The public checkpoint, read without unpickling code: 0 errors in its 100,000 sums."""
    released = load_model(RELEASED)
    assert num_parameters(released.config) == 456
    work = Workspace(released.config, 500)
    sets = score_test_sets(AdditionConfig(), released.parameters.seed(0), work)
    result = report(sets)
    assert result["total_examples"] == 100_000
    assert result["aggregate_errors"] == 0


@needs_released
@pytest.mark.parametrize(
    ("a", "b"),
    [(0, 0), (9_999_999_999, 9_999_999_999), (1, 9_999_999_999), (1234567890, 987654321)],
)
def test_the_released_model_predicts(a, b):
    """Greedy decoding of the plain model adds right, carries included."""
    assert predict(load_model(RELEASED), a, b) == a + b
