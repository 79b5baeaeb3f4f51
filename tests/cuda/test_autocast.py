"""Students under autocast: losses in float32, gradients near those of float64 on the CPU."""

import copy

import pytest
import torch
from torch import nn

from kdcache import DeferredLogits
from kdcache.losses import Objective
from tests.losses.fused.fused_cases import case, encoded, relative_error

C, P, D = 203, 37, 16
LOSSES = {"kd_loss": 0.6, "reverse_kl": 0.1, "jensen_shannon": 0.2, "student_loss": 0.1}
HALF = (torch.float16, torch.bfloat16)


class Student(nn.Module):
    """Two layers; what comes out are logits, or hidden states with the second layer."""

    def __init__(self, head):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first, self.last = nn.Linear(D, D), nn.Linear(D, C)
        self.head = head
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2

    def forward(self, inputs):
        hidden = self.first(inputs).tanh()
        if self.head == "hidden":
            return DeferredLogits(hidden=hidden, weight=self.last.weight, bias=self.last.bias)
        return self.last(hidden)


def evaluated(student, inputs, targets, labels, scale=1.0):
    """(total, gradients of all parameters) of scale times the objective."""
    found = Objective(losses=LOSSES, temperature=2.0).evaluate(student(inputs), targets, labels)
    gradients = torch.autograd.grad(scale * found.total, list(student.parameters()))
    return found, torch.cat([gradient.reshape(-1).double().cpu() for gradient in gradients])


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("k", [None, 5])
@pytest.mark.parametrize("head", ["logits", "hidden"])
def test_near_float64_without_it(head, k, dtype, device):
    given = case(num_classes=C, num_positions=P, dtype=torch.float32)
    targets, student = encoded(given.teacher, k), Student(head)
    inputs = torch.randn(P, D, generator=torch.Generator().manual_seed(1))
    # Of logits, since those of float64 hidden states would be computed just the same.
    reference = copy.deepcopy(student).double()
    reference.head = "logits"
    wanted, wanted_gradient = evaluated(reference, inputs.double(), targets, given.labels)
    student, targets = student.to(device), targets.to(device)
    # float16 is trained with its loss scaled.
    scale = 2.0**12 if dtype == torch.float16 else 1.0
    with torch.autocast(torch.device(device).type, dtype=dtype):
        found, gradient = evaluated(
            student, inputs.to(device), targets, given.labels.to(device), scale
        )
    assert found.total.dtype == torch.float32
    assert all(term.sum.dtype == torch.float32 for term in found.terms.values())
    allowed = 8 * torch.finfo(dtype).eps
    assert relative_error(found.total.detach().cpu(), wanted.total.detach()) < allowed
    assert relative_error(gradient / scale, wanted_gradient) < allowed


@pytest.mark.parametrize("dtype", HALF)
def test_large_logits_stay_finite(dtype, device):
    """T ** 2 times a sum over logits of some hundreds is more than float16 holds."""
    given = case(num_classes=C, num_positions=P, dtype=torch.float32)
    targets = encoded(given.teacher).to(device)
    logits = (100 * given.logits).to(dtype).to(device).requires_grad_()
    with torch.autocast(torch.device(device).type, dtype=dtype):
        found = Objective(losses=LOSSES, temperature=8.0).evaluate(
            logits, targets, given.labels.to(device)
        )
    (gradient,) = torch.autograd.grad(found.total, logits)
    assert found.total.isfinite()
    assert gradient.isfinite().all()
    assert gradient.any()
