"""Distillation with a tail bucket, against numpy in float64."""

import numpy as np
import pytest
import torch

from assay.engines.swarm.distill import beta_at, distillation_loss, mixed, targets


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def by_hand(student, teacher, k, temperature):
    """The formula of specs/swarm.md §1, token by token."""
    q_all, p_all = softmax(teacher / temperature), softmax(student / temperature)
    total, masses = 0.0, []
    for q_full, p_full in zip(
        q_all.reshape(-1, q_all.shape[-1]), p_all.reshape(-1, p_all.shape[-1]), strict=True
    ):
        ids = np.argsort(-q_full)[:k]
        q, p = q_full[ids], p_full[ids]
        q_tail, p_tail = max(1 - q.sum(), 1e-8), max(1 - p.sum(), 1e-8)
        total += (q * np.log(q / p)).sum() + q_tail * np.log(q_tail / p_tail)
        masses.append(q.sum())
    mean_mass = min(max(np.mean(masses), 0.05), 1.0)
    return temperature**2 * total / len(masses) / mean_mass


@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_formula(k, temperature):
    """Any k and temperature; with all classes kept it is the divergence itself."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(2, 3, 40, generator=generator, dtype=torch.float64) * 3
    student = torch.randn(2, 3, 40, generator=generator, dtype=torch.float64)
    got = distillation_loss(student, targets(teacher, k, temperature))
    assert float(got) == pytest.approx(
        by_hand(student.numpy(), teacher.numpy(), k, temperature), rel=1e-6
    )


def test_a_student_like_its_teacher_learns_nothing():
    """Zero loss, zero gradient."""
    teacher = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    value = distillation_loss(student, targets(teacher, 4, 1.0))
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-12)
    assert float(student.grad.abs().max()) == pytest.approx(0, abs=1e-12)


def test_the_gradient():
    """Autograd agrees with differences."""
    generator = torch.Generator().manual_seed(2)
    given = targets(torch.randn(1, 2, 12, generator=generator, dtype=torch.float64), 3, 1.5)
    student = torch.randn(1, 2, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: distillation_loss(x, given), (student,))


def test_mixing_and_ramp():
    """Both ways of mixing, and the weight over the rounds."""
    ce, kd = torch.tensor(2.0), torch.tensor(1.0)
    assert float(mixed(ce, kd, 0.25, add=True)) == 2.25
    assert float(mixed(ce, kd, 0.25, add=False)) == 1.75
    assert [beta_at(step, 10, 4, 0.8) for step in (1, 10, 12, 14, 99)] == [0, 0, 0.4, 0.8, 0.8]
    assert beta_at(11, 10, 0, 0.8) == 0.8
