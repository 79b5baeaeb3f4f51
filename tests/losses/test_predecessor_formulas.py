"""The losses of Knowledge-Distillation-Toolkit, with its softmax on the class axis, and ours."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdcache.errors import UsageError
from kdcache.losses import Objective, StepCounts
from kdcache.targets import DenseTargets

LOSSES = ("kd_loss", "cos_embed_loss")


def theirs(student, teacher, temperature):
    """What it minimised, by name; for models that divide their logits by T, on (..., C)."""
    z, t = student / temperature, teacher / temperature
    log_q, p = F.log_softmax(z, dim=-1), F.softmax(t, dim=-1)
    return {
        "kd_loss": F.kl_div(log_q, p, reduction="batchmean") * temperature**2,
        "cos_embed_loss": 1 - torch.mean(F.cosine_similarity(z, t, dim=-1)),
    }


def logits(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *shape, generator=generator).unbind()


def targets(teacher):
    positions = teacher[..., 0].numel() // len(teacher)
    return DenseTargets(
        num_positions=torch.full((len(teacher),), positions),
        num_classes=teacher.shape[-1],
        values=teacher.reshape(-1, teacher.shape[-1]),
    )


def ours(student, teacher, name, temperature, **options):
    objective = Objective(losses={name: 1.0}, temperature=temperature, **options)
    flat = student.reshape(-1, student.shape[-1])
    return objective.evaluate(flat, targets(teacher))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((32, 10), {}),
        ((32, 10), {"reduction": "per_sample_sum"}),
        ((6, 7, 10), {"reduction": "per_sample_sum"}),
    ],
)
def test_values_and_gradients_are_equal(name, temperature, shape, options):
    student, teacher = logits(*shape)
    student.requires_grad_()
    wanted = theirs(student, teacher, temperature)[name]
    (wanted_gradient,) = torch.autograd.grad(wanted, student)
    found = ours(student, teacher, name, temperature, **options)
    (gradient,) = torch.autograd.grad(found.total, student)
    torch.testing.assert_close(found.total, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.terms[name].mean(), wanted.detach(), rtol=1e-6, atol=1e-6)


def test_the_mean_over_positions_is_another_one():
    """Where samples have several positions: so the default is not what it minimised."""
    student, teacher = logits(6, 7, 10)
    wanted = theirs(student, teacher, 1.0)["kd_loss"]
    found = ours(student, teacher, "kd_loss", 1.0).total
    torch.testing.assert_close(found * 7, wanted)


def test_a_step_of_several_batches_is_divided_by_its_samples():
    student, teacher = logits(6, 7, 10)
    objective = Objective(losses={"kd_loss": 1.0}, reduction="per_sample_sum")
    whole = ours(student, teacher, "kd_loss", 1.0, reduction="per_sample_sum").total
    counts = StepCounts(positions=42, labelled=None, batches=2, samples=6)
    parts = [
        objective.evaluate(
            student[part].reshape(-1, 10), targets(teacher[part]), counts=counts
        ).total
        for part in (slice(4), slice(4, 6))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_counts_without_samples_are_refused():
    student, teacher = logits(4, 10)
    objective = Objective(losses={"kd_loss": 1.0}, reduction="per_sample_sum")
    counts = StepCounts(positions=4, labelled=None, batches=1)
    with pytest.raises(UsageError, match=r"divided by the samples.*StepCounts\(samples=...\)"):
        objective.evaluate(student, targets(teacher), counts=counts)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(UsageError, match="no reduction 'batchmean'"):
        Objective(losses={"kd_loss": 1.0}, reduction="batchmean")


def test_softmax_over_the_batch_is_no_loss():
    """What the predecessor's example did: another constant for each class changes nothing."""
    student, teacher = logits(64, 10)
    teacher = student + 5 * torch.randn(10, generator=torch.Generator().manual_seed(1))
    over_batch = F.kl_div(F.log_softmax(student, 0), F.softmax(teacher, 0), reduction="batchmean")
    assert over_batch.abs() < 1e-6
    assert ours(student, teacher, "kd_loss", 1.0).total > 1
