import math

import pytest
import torch
from torch.nn import functional as F

from assay.engines.addition import kernel as kernel_module
from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.data import Encoder, Exclusion, Pairs, Sampler, sequences
from assay.engines.addition.kernel import Kernel
from assay.engines.addition.layout import embedding_std, layout
from assay.engines.addition.model import Parameters, loss_and_grad, reference_logits

from .helpers import PUBLIC_456
from .test_config import TIES

CONFIGS = {
    "full-layernorm": {"d_model": 8, "d_ff": 28},
    "public-456": PUBLIC_456,
    "low-rank-layernorm": {"pos_rank": 2, "qkv_rank": 3, "attn_out_rank": 3, "ffn_rank": 3},
    "narrow": {"d_model": 3, "d_ff": 5, "norm": "rmsnorm"},
    **{f"tie-{tie}": {"tie_qkv": tie, "qkv_rank": 2} for tie in TIES},
    "tie-all-full": {"tie_qkv": "all"},
    "tie-kv-full": {"tie_qkv": "kv"},
    "tie-qk-full": {"tie_qkv": "qk"},
}


def operands(num, seed=1):
    nothing = Exclusion(Pairs(a=torch.tensor([0]), b=torch.tensor([0])))
    return Sampler(seed, nothing).draw(num, 1, 10)


def random_parameters(config, *, dtype=torch.float64, spread=0.7, num_seeds=1):
    made = Parameters.zeros(config, num_seeds, dtype)
    generator = torch.Generator().manual_seed(5)
    for index in range(num_seeds):
        for view in made.seed(index).values():
            view.copy_(torch.randn(view.shape, generator=generator, dtype=dtype) * spread)
    return made


def by_hand(config, parameters, a, b, dtype=torch.float64):
    num = a.shape[0]
    gradients = Parameters.zeros(config, 1, dtype)
    batch = Encoder(num, dtype).encode(a, b)
    kernel = Kernel(config, num, dtype)
    row = gradients.rows_SP[0]
    loss = loss_and_grad(parameters.seed(0), gradients.seed(0), row, batch, kernel)
    return loss, row


def by_autograd(config, parameters, a, b):
    rows = parameters.rows_SP.clone().requires_grad_()
    token = sequences(a, b)
    logits = reference_logits(config, Parameters(config, rows).stacked(), token[None, :, :33])
    target = token[:, 1:].clone()
    target[:, :21] = -100
    loss = F.cross_entropy(logits[0].reshape(-1, 14), target.reshape(-1), ignore_index=-100)
    loss.backward()
    return loss.detach(), rows.grad[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_by_hand_equals_autograd_over_the_whole_sequence(name):
    """Loss and gradient of the 12-row kernel equal those of the plain 33-position model."""
    config = AdditionConfig(**CONFIGS[name])
    parameters = random_parameters(config)
    a, b = operands(16)
    loss, grad = by_hand(config, parameters, a, b)
    expected_loss, expected = by_autograd(config, parameters, a, b)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-12)
    assert float(expected.abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["full-layernorm", "public-456"])
def test_gradient_in_float32_stays_near_float64(name):
    """Single precision loses no more than its own rounding."""
    config = AdditionConfig(**CONFIGS[name])
    exact = random_parameters(config)
    single = Parameters(config, exact.rows_SP.float())
    a, b = operands(512)
    loss, grad = by_hand(config, single, a, b, torch.float32)
    expected_loss, expected = by_hand(config, Parameters(config, single.rows_SP.double()), a, b)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-5, atol=0)
    scale = float(expected.abs().max())
    torch.testing.assert_close(grad.double(), expected, rtol=1e-4, atol=1e-5 * scale)


def test_a_softmax_bound_that_is_far_off_changes_nothing(monkeypatch):
    """Scores hundreds of nats below the bound: the exact maximum is used, and the result holds."""
    config = AdditionConfig(**CONFIGS["full-layernorm"])
    parameters = random_parameters(config)
    parameters.seed(0)["blocks.0.attn.qkv.weight"].mul_(40)
    used = []
    exactly = Kernel._attend_exactly
    monkeypatch.setattr(Kernel, "_attend_exactly", lambda self: used.append(1) or exactly(self))
    a, b = operands(16)
    loss, grad = by_hand(config, parameters, a, b)
    assert used, "the scores are not far enough apart for this test"
    expected_loss, expected = by_autograd(config, parameters, a, b)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(grad, expected, rtol=1e-8, atol=1e-9 * float(expected.abs().max()))


def test_exact_softmax_and_bounded_softmax_agree(monkeypatch):
    """Forcing the exact path on ordinary scores gives the same gradient."""
    config = AdditionConfig(**PUBLIC_456)
    parameters = random_parameters(config)
    a, b = operands(16)
    usual = by_hand(config, parameters, a, b)
    monkeypatch.setattr(kernel_module, "SMALLEST_SUM", math.inf)
    forced = by_hand(config, parameters, a, b)
    torch.testing.assert_close(usual, forced, rtol=1e-9, atol=1e-12)


def test_a_later_token_changes_no_earlier_row():
    """Causality: other sum digits at positions after a row leave its logits alone."""
    config = AdditionConfig(**CONFIGS["full-layernorm"])
    parameters = random_parameters(config)
    token = sequences(*operands(4))[:, :33]
    changed = token.clone()
    changed[:, 28:] = (changed[:, 28:] + 1) % 10
    first = reference_logits(config, parameters.stacked(), token[None])
    second = reference_logits(config, parameters.stacked(), changed[None])
    assert torch.equal(first[:, :, :28], second[:, :, :28])
    assert not torch.allclose(first[:, :, 28:], second[:, :, 28:])


def test_initialisation_of_a_seed_is_its_own():
    """Seed s has the same first weights alone and in any company."""
    config = AdditionConfig(**PUBLIC_456)
    stack = Parameters.initial(config, [3, 1, 4])
    assert torch.equal(stack.rows_SP[1], Parameters.initial(config, [1]).rows_SP[0])


def test_init_settings_scale_the_same_normals():
    """ "scaled" is "normal" times (1/sqrt(d_model)) / 0.02 for embeddings and full matrices."""
    normal, scaled = (
        Parameters.initial(AdditionConfig(d_model=8, d_ff=28, init=init), [9]).seed(0)
        for init in ("normal", "scaled")
    )
    for name, tensor in normal.items():
        factor = 1.0 if ".ln" in name or name.startswith("ln") else 1 / math.sqrt(8) / 0.02
        torch.testing.assert_close(scaled[name], tensor * factor, rtol=1e-6, atol=0)


@pytest.mark.parametrize("init", ["normal", "scaled"])
def test_initial_spread_is_as_documented(init):
    """Sample deviations lie within 6 standard errors (false alarm 2e-9) of the documented ones."""
    config = AdditionConfig(**{**PUBLIC_456, "init": init})
    stack = Parameters.initial(config, range(100)).stacked()
    for slot in layout(config).slots:
        values = stack[slot.name]
        if not slot.std:
            assert (values == slot.fill).all()
            continue
        low_rank = slot.name.startswith("blocks")
        known = math.sqrt(2 / sum(slot.shape)) if low_rank else embedding_std(config)
        assert abs(float(values.std()) / known - 1) < 6 / math.sqrt(2 * values.numel())
