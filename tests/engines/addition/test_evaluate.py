from pathlib import Path

import pytest
import torch

from assay.core.errors import DataError
from assay.engines.addition.backend import Eager, choose
from assay.engines.addition.block import targets
from assay.engines.addition.checkpoint import Model, assemble, load_model, parse
from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.data import Pairs, holdout
from assay.engines.addition.evaluate import (
    decode,
    number,
    predict,
    report,
    score,
    score_test_sets,
)
from assay.engines.addition.layout import num_parameters
from assay.engines.addition.model import Parameters
from assay.engines.addition.prompt import format_of
from assay.engines.addition.train import train

from .helpers import MemoryContext, small

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


@pytest.mark.parametrize("way", ["fused", "eager"])
def test_teacher_forced_exact_is_greedy_exact(model, way):
    """Over right and wrong sums alike, one forward and twelve greedy steps judge alike."""
    backend = Eager("test") if way == "eager" else choose(model.config, device="cpu", threads=1)
    digit = torch.arange(10, dtype=torch.float64)
    pairs = Pairs(a=digit.repeat(10), b=digit.repeat_interleave(10))
    truth = targets(format_of("msd"), pairs.a[None], pairs.b[None])[0, :, :11]
    greedy = (decode(model.parameters, pairs)[:, :11] == truth).all(1)
    forced = backend.judge(model.parameters, 0, pairs).wrong_N == 0
    assert forced.tolist() == greedy.tolist()
    assert 0 < int(greedy.sum()) < 100, "the model must be right on some and wrong on others"
    found = score(model.parameters, 0, pairs, backend)
    assert found.errors == 100 - int(greedy.sum())
    assert sum(found.wrong_digits) >= found.errors


def test_an_untrained_model_has_the_loss_of_guessing():
    """All weights zero: every token is equally likely, log 14 nats; digit 0 is said everywhere."""
    config = AdditionConfig()
    pairs = holdout(5, 1500, 10).val
    nothing = Parameters.zeros(config, 1)
    for backend in (Eager("test"), choose(config, device="cpu", threads=1)):
        found = score(nothing, 0, pairs, backend)
        assert found.loss_nats == pytest.approx(2.6390573, rel=1e-6)
        assert found.num_examples == 1500
        wrong = (targets(format_of("msd"), pairs.a[None], pairs.b[None])[0, :, :11] != 0).sum(0)
        assert list(found.wrong_digits) == wrong.tolist()


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
@pytest.mark.parametrize("way", ["fused", "eager"])
def test_the_released_456_parameter_model_makes_no_error(way):
    """The public checkpoint, read without unpickling code: 0 errors in its 100,000 sums."""
    released = load_model(RELEASED)
    assert num_parameters(released.config) == 456
    backend = Eager("test") if way == "eager" else choose(released.config, device="cpu", threads=1)
    result = report(score_test_sets(AdditionConfig(), released.parameters, 0, backend))
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
