"""The fused kernel computes what the plain block computes."""

import math
import shutil

import pytest
import torch
from torch.nn import functional as F

from assay.core.errors import DataError
from assay.engines.addition import fused
from assay.engines.addition.backend import Eager, Fused, Stacked, choose
from assay.engines.addition.block import Shape, logits, targets, tokens
from assay.engines.addition.compose import shape_of
from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.data import Pairs
from assay.engines.addition.ladder import ladder
from assay.engines.addition.model import Parameters
from assay.engines.addition.prompt import format_of

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="no C++ compiler here, so the kernel was not built"
)
pytestmark = needs_compiler

VARIANTS = [  # width, heads, head width, norm, qk_norm, theta, gated
    (8, 1, 8, "layernorm", False, 0.0, False),
    (7, 1, 7, "rmsnorm", False, 0.0, False),
    (8, 2, 4, "layernorm", True, 3.0, False),
    (3, 1, 4, "rmsnorm", True, 3.0, True),
    (4, 1, 4, "none", False, 0.0, True),
    (5, 1, 5, "rmsnorm", True, 0.0, False),
    (6, 1, 6, "layernorm", False, 3.0, True),
]
SHAPES = {
    f"{prompt}-{width}-{heads}-{norm}": Shape(
        format=format_of(prompt), width=width, heads=heads, head_width=inner, hidden=7, norm=norm,
        qk_norm=qk, rope_theta=theta, gated=gated,
    )
    for prompt in ("msd", "lsd", "zeros", "pairs")
    for width, heads, inner, norm, qk, theta, gated in VARIANTS
}  # fmt: skip


def operands(seeds, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    power = 10 ** torch.randint(1, 11, (2, seeds, batch), generator=generator)
    pair = (torch.randint(0, 10**10, (2, seeds, batch), generator=generator) % power).double()
    pair[:, 0, 0] = 0
    pair[:, 0, batch // 2] = 9_999_999_999
    return pair[0].contiguous(), pair[1].contiguous()


def dense(shape, seeds, spread=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    row = torch.randn(seeds, shape.dense_size, generator=generator, dtype=torch.float64)
    return row * spread


def plain(shape, dense_SE, a_SB, b_SB):
    """Loss, gradient, logits and targets by autograd, in float64."""
    row = dense_SE.double().requires_grad_()
    weights, start = {}, 0
    for name, size in shape.dense().items():
        weights[name] = row[:, start : start + math.prod(size)].unflatten(1, size)
        start += math.prod(size)
    logit = logits(shape, weights, tokens(shape.format, a_SB, b_SB), shape.format.num_rows)
    target = targets(shape.format, a_SB, b_SB)
    loss = F.cross_entropy(logit.flatten(0, 2), target.flatten(), reduction="none")
    loss = loss.view(target.shape).mean((1, 2))
    (grad,) = torch.autograd.grad(loss.sum(), row)
    return loss.detach(), grad, logit.detach(), target


def error(found, true):
    """Largest difference, of losses relative, of gradients relative to the largest component."""
    loss, grad = found
    true_loss, true_grad = true[:2]
    scale = true_grad.abs().amax()
    return max(float(((loss - true_loss) / true_loss).abs().max()),
               float((grad.double() - true_grad).abs().max() / scale))  # fmt: skip


def test_the_kernel_is_built_here():
    """With a compiler on the machine, a missing extension is a failure, not a skipped test."""
    assert fused.unavailable(SHAPES["msd-8-1-layernorm"]) == ""
    assert fused.describe().startswith("fused C++")


@pytest.mark.parametrize("name", SHAPES)
def test_gradient_equals_autograd_in_float64(name):
    """Every prompt, norm, rotation, gate and number of heads; filled and unfilled lanes."""
    shape = SHAPES[name]
    for batch in (1, 17, 129):
        a_SB, b_SB = operands(2, batch)
        row = dense(shape, 2)
        assert (
            error(fused.loss_and_grad(shape, row, a_SB, b_SB), plain(shape, row, a_SB, b_SB)) < 1e-9
        )


@pytest.mark.parametrize("batch", [1, 7, 8, 9, 15, 16, 17, 127, 128, 129, 512])
def test_every_batch_size_counts_each_example_once(batch):
    """Lanes and tiles that are not full."""
    shape = SHAPES["msd-7-1-rmsnorm"]
    a_SB, b_SB = operands(1, batch)
    row = dense(shape, 1)
    true = plain(shape, row, a_SB, b_SB)
    assert error(fused.loss_and_grad(shape, row, a_SB, b_SB), true) < 1e-9
    assert error(fused.loss_and_grad(shape, row.float(), a_SB, b_SB), true) < 1e-5


@pytest.mark.parametrize("name", ladder())
def test_every_model_of_the_ladder(name):
    """Parameters to gradient of parameters: fused against autograd, float64 1e-9, float32 1e-5."""
    config = ladder()[name]
    assert fused.unavailable(shape_of(config)) == ""
    exact = Parameters.initial(config, [1, 2]).to("cpu", torch.float64)
    noise = torch.randn(exact.rows_SP.shape, generator=torch.Generator().manual_seed(3))
    exact.rows_SP += 0.3 * noise
    a_SB, b_SB = operands(2, 65)
    true = Eager("test").gradient(exact, a_SB, b_SB)
    way = Fused(config, 1)
    assert error(way.gradient(exact, a_SB, b_SB), true) < 1e-9
    single = exact.to("cpu", torch.float32)
    true32 = Eager("test").gradient(single.to("cpu", torch.float64), a_SB, b_SB)
    assert error(way.gradient(single, a_SB, b_SB), true32) < 1e-5
    stacked = Stacked("cpu").gradient(exact, a_SB, b_SB)
    assert error(stacked, true) < 1e-9


@pytest.mark.parametrize("tie", ["all", "qk", "kv", "shareA", "shareB", "shareA_tieQK",
                                 "shareB_tieKV", "rotated"])  # fmt: skip
def test_ties_and_frozen_terms_go_through_autograd(tie):
    """The tiny matrices around the kernel: every tie, with frozen terms, against plain autograd."""
    config = AdditionConfig(
        d_model=8, tie_qkv=tie, qkv_rank=2, attn_out_rank=2, ffn_rank=2,
        fixed_full_rank_attn=True, fixed_full_rank_mlp=True,
    )  # fmt: skip
    exact = Parameters.initial(config, [1, 2]).to("cpu", torch.float64)
    a_SB, b_SB = operands(2, 33)
    true = Eager("test").gradient(exact, a_SB, b_SB)
    assert error(Fused(config, 1).gradient(exact, a_SB, b_SB), true) < 1e-9


def test_large_scores_do_not_overflow():
    """Weights 30 times as large: a softmax without its maximum would be infinite."""
    for name in ("msd-8-1-layernorm", "zeros-3-1-rmsnorm"):
        shape = SHAPES[name]
        a_SB, b_SB = operands(1, 40)
        row = dense(shape, 1, spread=20.0)
        true = plain(shape, row, a_SB, b_SB)
        assert error(fused.loss_and_grad(shape, row, a_SB, b_SB), true) < 1e-9
        loss, grad = fused.loss_and_grad(shape, row.float(), a_SB, b_SB)
        assert float(loss) == pytest.approx(float(true[0]), rel=1e-4)
        assert bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("field", ["token", "query", "value", "up", "norm_f", "head"])
def test_no_number_in_no_number_out(dtype, field):
    """One NaN weight gives a NaN loss, never a finite one, and no right digit where it matters."""
    shape = SHAPES["msd-8-1-layernorm"]
    row = dense(shape, 1).to(dtype)
    start = 0
    for name, size in shape.dense().items():
        if name == field:
            row[:, start : start + math.prod(size)] = float("nan")
        start += math.prod(size)
    a_SB, b_SB = operands(1, 20)
    loss, _ = fused.loss_and_grad(shape, row, a_SB, b_SB)
    assert math.isnan(float(loss))
    wrong, loss_sum = fused.wrong_digits(shape, row[0], a_SB[0], b_SB[0])
    assert math.isnan(loss_sum)
    assert bool((wrong == 2**11 - 1).all())


def test_a_seed_does_not_depend_on_company_place_or_threads():
    """Bit for bit: alone, at every place among five, with one or two threads, again."""
    shape = SHAPES["msd-8-1-layernorm"]
    a_SB, b_SB = operands(5, 300)
    row = dense(shape, 5).float()
    loss, grad = fused.loss_and_grad(shape, row, a_SB, b_SB)
    for threads in (1, 2, 3):
        again = fused.loss_and_grad(shape, row, a_SB, b_SB, threads=threads)
        assert torch.equal(again[0], loss)
        assert torch.equal(again[1], grad)
    order = torch.tensor([3, 1, 4, 0, 2])
    for threads in (1, 2):
        for seed in range(5):
            alone = fused.loss_and_grad(
                shape, row[seed, None].clone(), a_SB[seed, None], b_SB[seed, None], threads=threads
            )
            assert torch.equal(alone[0][0], loss[seed])
            assert torch.equal(alone[1][0], grad[seed])
        moved = fused.loss_and_grad(shape, row[order], a_SB[order], b_SB[order], threads=threads)
        assert torch.equal(moved[1], grad[order])


@pytest.mark.parametrize("name", ["msd-8-1-layernorm", "zeros-4-1-none", "pairs-8-2-layernorm"])
@pytest.mark.parametrize("threads", [1, 2])
def test_wrong_digits_are_those_of_the_largest_logits(name, threads):
    """Bit k is digit k, for every pair, blocks that are not full included."""
    shape = SHAPES[name]
    a_SB, b_SB = operands(1, 2500)
    row = dense(shape, 1)
    loss, _, logit, target = plain(shape, row, a_SB, b_SB)
    is_wrong = (logit.argmax(-1) != target)[0, :, :11]
    expected = (is_wrong * (1 << torch.arange(11))).sum(-1)
    wrong, loss_sum = fused.wrong_digits(shape, row[0], a_SB[0], b_SB[0], threads=threads)
    assert wrong.tolist() == expected.tolist()
    assert loss_sum / target.numel() == pytest.approx(float(loss), rel=1e-9)


@pytest.mark.parametrize("bad", [-1.0, 1e10, 0.5, float("nan"), float("inf")])
def test_operands_without_tokens_are_refused(bad):
    """They would index outside a table: an error comes first."""
    shape = SHAPES["msd-8-1-layernorm"]
    a_SB, b_SB = operands(1, 4)
    b_SB[0, 2] = bad
    with pytest.raises(DataError, match="operand b must be from 0 to 9999999999"):
        fused.loss_and_grad(shape, dense(shape, 1), a_SB, b_SB)
    with pytest.raises(DataError, match="operand b"):
        fused.wrong_digits(shape, dense(shape, 1)[0], a_SB[0], b_SB[0])


def test_what_does_not_fit_is_refused():
    """Wrong row length, number type, layout."""
    shape = SHAPES["msd-8-1-layernorm"]
    a_SB, b_SB = operands(2, 4)
    row = dense(shape, 2)
    for dense_row, a in ((row[:, 1:].contiguous(), a_SB), (row.half(), a_SB), (row, a_SB.float()),
                         (row, a_SB[:, :3].contiguous()), (row[:1], a_SB)):  # fmt: skip
        with pytest.raises(ValueError, match=r"dense|float64|one shape"):
            fused.loss_and_grad(shape, dense_row, a, b_SB)


def test_shapes_without_a_kernel_have_a_reason():
    """A wide model is computed the eager way, and says why."""
    config = AdditionConfig(d_model=16, d_ff=14)
    assert "width 16" in fused.unavailable(shape_of(config))
    backend = choose(config, device="cpu", threads=1)
    assert isinstance(backend, Eager)
    assert "width 16" in backend.what
    assert isinstance(choose(AdditionConfig(), device="cpu", threads=1), Fused)


def test_without_a_library_there_is_a_reason(monkeypatch, tmp_path):
    """An installation without a compiler."""
    monkeypatch.setattr(fused, "_HERE", tmp_path)
    fused._load.cache_clear()
    assert "was not built" in fused.unavailable(SHAPES["msd-8-1-layernorm"])
    monkeypatch.undo()
    fused._load.cache_clear()


def test_judgements_of_all_backends_agree():
    """Fused and eager find the same wrong digits and the same loss."""
    config = AdditionConfig()
    parameters = Parameters.initial(config, [1, 2])
    a_SB, b_SB = operands(1, 1100)
    pairs = Pairs(a=a_SB[0], b=b_SB[0])
    one, other = (way.judge(parameters, 1, pairs) for way in (Fused(config, 1), Eager("test")))
    assert torch.equal(one.wrong_N, other.wrong_N)
    assert one.loss_sum_nats == pytest.approx(other.loss_sum_nats, rel=1e-5)
