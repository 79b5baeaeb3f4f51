"""All losses, plain and fused: values and gradients of a float64 reference on the CPU."""

import pytest
import torch

from kdcache import DeferredLogits
from kdcache.losses import fused_losses
from kdcache.losses.fused import heads
from tests.losses.fused.fused_cases import NAMES, TEMPERATURES, case, encoded, plain, relative_error

# More classes than a block of threads, and no round numbers.
C, P, D = 1003, 37, 16
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ON_DENSE_ONLY = ("mse_logits", "cos_embed_loss")
WEIGHTS = {name: 0.1 + 0.2 * number for number, name in enumerate(NAMES)}


def tolerance(dtype):
    """Sums over 1,003 classes in float32; a half type rounds once, where it is stored."""
    return 64 * torch.finfo(torch.float32).eps + 4 * (dtype.itemsize < 4) * torch.finfo(dtype).eps


def given(rows, dtype):
    found = case(rows=rows, num_classes=C, num_positions=P, dtype=dtype)
    found.labels[1] = -100
    return found


def reference(found, targets, weights, temperature):
    """(total, its gradient) from the same numbers."""
    logits = found.logits.double().requires_grad_()
    total, _ = plain(logits, targets, found.labels, weights, temperature, found.rows)
    return total.detach(), torch.autograd.grad(total, logits)[0]


def moved(found, device):
    rows = None if found.rows is None else found.rows.to(device)
    return found.logits.to(device).requires_grad_(), found.labels.to(device), rows


@pytest.fixture(params=[4 * C, 1 << 26], ids=["blocks", "whole"])
def block(request, monkeypatch):
    """Positions that are looked at together."""
    monkeypatch.setattr(heads, "_MOST_NUMBERS", request.param)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("k", [None, 5])
@pytest.mark.parametrize("name", [*NAMES, *ON_DENSE_ONLY])
def test_plain(name, k, temperature, dtype, device):
    if k and name in ON_DENSE_ONLY:
        return  # refused on top-k targets
    found, weights = given(rows=True, dtype=dtype), {name: 0.5}
    targets = encoded(found.teacher, k)
    wanted, wanted_gradient = reference(found, targets, weights, temperature)
    logits, labels, rows = moved(found, device)
    total, terms = plain(logits, targets.to(device), labels, weights, temperature, rows)
    (gradient,) = torch.autograd.grad(total, logits)
    assert terms[name].sum.dtype == torch.float32
    assert relative_error(total.detach().cpu(), wanted) < tolerance(torch.float32)
    assert relative_error(gradient.cpu(), wanted_gradient) < tolerance(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [None, 5, C])
@pytest.mark.parametrize("rows", [False, True])
def test_fused_on_logits(rows, k, temperature, dtype, device, block):
    found = given(rows, dtype)
    targets = encoded(found.teacher, k)
    wanted, wanted_gradient = reference(found, targets, WEIGHTS, temperature)
    logits, labels, rows = moved(found, device)
    total, _ = fused_losses(
        logits, targets.to(device), labels, weights=WEIGHTS, temperature=temperature, rows=rows
    )
    (gradient,) = torch.autograd.grad(total, logits)
    assert gradient.dtype == dtype
    assert relative_error(total.detach().cpu(), wanted) < tolerance(torch.float32)
    assert relative_error(gradient.cpu(), wanted_gradient) < tolerance(dtype)


def deferred(device, dtype, found):
    generator = torch.Generator().manual_seed(9)

    def random(*shape):
        values = torch.randn(*shape, generator=generator).to(dtype)
        return values.to(device).requires_grad_()

    return DeferredLogits(
        hidden=random(len(found.logits), D),
        weight=random(C, D),
        bias=random(C),
        scale=0.5,
        softcap=20.0,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("k", [None, 5])
@pytest.mark.parametrize("rows", [False, True])
def test_fused_on_hidden_states(rows, k, temperature, dtype, device, block):
    found = given(rows, torch.float32)
    targets = encoded(found.teacher, k)
    small = deferred("cpu", dtype, found)
    wide = DeferredLogits(
        hidden=small.hidden.detach().double().requires_grad_(),
        weight=small.weight.detach().double().requires_grad_(),
        bias=small.bias.detach().double().requires_grad_(),
        scale=small.scale,
        softcap=small.softcap,
    )
    wanted, _ = plain(wide.logits(), targets, found.labels, WEIGHTS, temperature, found.rows)
    wanted_gradients = torch.autograd.grad(wanted, [wide.hidden, wide.weight, wide.bias])
    student = deferred(device, dtype, found)
    _, labels, rows = moved(found, device)
    total, _ = fused_losses(
        student, targets.to(device), labels, weights=WEIGHTS, temperature=temperature, rows=rows
    )
    gradients = torch.autograd.grad(total, [student.hidden, student.weight, student.bias])
    # Logits in a half type are rounded before the losses see them.
    allowed = 512 * torch.finfo(torch.float32).eps
    if dtype.itemsize < 4:
        allowed += 16 * torch.finfo(dtype).eps
    assert relative_error(total.detach().cpu(), wanted.detach()) < allowed
    for gradient, wanted_gradient in zip(gradients, wanted_gradients, strict=True):
        assert relative_error(gradient.cpu(), wanted_gradient) < allowed
