import math

import pytest
import torch

from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.optim import AdamW, learning_rate


def test_schedule_is_the_specified_one():
    """Linear warm-up of (step + 1) / warmup, then a cosine to the ratio at the last step."""
    config = AdditionConfig(steps=1000, warmup_steps=100, lr=0.02, min_lr_ratio=0.1)
    assert learning_rate(config, 0) == pytest.approx(0.02 / 100)
    assert learning_rate(config, 49) == pytest.approx(0.01)
    assert learning_rate(config, 99) == 0.02
    assert learning_rate(config, 100) == pytest.approx(0.02)
    middle = 0.002 + 0.018 * 0.5
    assert learning_rate(config, 550) == pytest.approx(middle)
    quarter = 0.002 + 0.018 * 0.5 * (1 + math.cos(math.pi / 4))
    assert learning_rate(config, 325) == pytest.approx(quarter)
    assert learning_rate(config, 1000) == pytest.approx(0.002)
    rates = [learning_rate(config, step) for step in range(100, 1001)]
    assert rates == sorted(rates, reverse=True)


def test_no_warmup_starts_at_the_peak():
    """warmup_steps = 0 is allowed and divides by nothing."""
    config = AdditionConfig(steps=10, warmup_steps=0, lr=0.02)
    assert learning_rate(config, 0) == pytest.approx(0.02)


@pytest.mark.parametrize("scale", [0.01, 30.0])
def test_updates_equal_those_of_torch(scale):
    """Clipping and AdamW equal torch's, with decay on every parameter, in float64."""
    config = AdditionConfig(steps=50, warmup_steps=5, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(48, generator=generator, dtype=torch.float64)
    ours, theirs = start.clone(), torch.nn.Parameter(start.clone())
    mine = AdamW(ours[None], [config])
    other = torch.optim.AdamW([theirs], lr=1.0, weight_decay=0.1)
    for step in range(50):
        grad = torch.randn(48, generator=generator, dtype=torch.float64) * scale
        theirs.grad = grad.clone()
        norm = torch.nn.utils.clip_grad_norm_([theirs], config.grad_clip)
        other.param_groups[0]["lr"] = learning_rate(config, step)
        other.step()
        assert float(mine.step(grad[None], step=step)[0]) == pytest.approx(float(norm))
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-9, atol=1e-12)
