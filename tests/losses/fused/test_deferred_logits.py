"""fused_losses on hidden states and their output layer: the logits never exist as a whole."""

import dataclasses

import pytest
import torch
from torch import nn

from kdcache.errors import DataError
from kdcache.losses import fused_losses
from kdcache.losses.fused import heads
from kdcache.losses.fused import one_pass as fused
from kdcache.outputs import DeferredLogits
from tests.losses.fused.fused_cases import (
    NAMES,
    TEMPERATURES,
    C,
    D,
    P,
    case,
    encoded,
    plain,
    relative_error,
    weights_of,
)

SHAPES = {
    "bare": {},
    "biased": {"bias": True},
    "scaled": {"scale": 0.5},
    "softcapped": {"softcap": 3.0},
    "all": {"bias": True, "scale": 2.0, "softcap": 2.5},
}


@pytest.fixture(params=[1, 4 * C, 1 << 24], ids=["one", "four", "all"])
def block(request, monkeypatch):
    """Positions of a block; within it, two at a time."""
    monkeypatch.setitem(heads._CPU_NUMBERS, "layer", request.param)
    monkeypatch.setitem(heads._CPU_NUMBERS, "logits", 2 * C)


def student(given, *, bias=False, dtype=torch.float64, **settings):
    generator = torch.Generator().manual_seed(9)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    num_rows, num_classes = given.logits.shape
    return DeferredLogits(
        hidden=random(num_rows, D),
        weight=random(num_classes, D),
        bias=random(num_classes) if bias else None,
        **settings,
    )


def tensors_of(deferred):
    tensors = (deferred.hidden, deferred.weight, deferred.bias)
    return [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]


def compare(deferred, given, names, temperature, tolerance, k=3):
    targets, weights = encoded(given.teacher, k), weights_of(names)
    total, terms = fused_losses(
        deferred, targets, given.labels, weights=weights, temperature=temperature, rows=given.rows
    )
    wanted, plain_terms = plain(
        deferred.logits(), targets, given.labels, weights, temperature, given.rows
    )
    assert relative_error(total.detach(), wanted.detach()) < tolerance
    for name, term in terms.items():
        assert term.count == plain_terms[name].count
        torch.testing.assert_close(
            term.sum, plain_terms[name].sum.detach(), rtol=tolerance, atol=tolerance
        )
    tensors = tensors_of(deferred)
    for tensor, gradient, wanted_gradient in zip(
        tensors,
        torch.autograd.grad(3 * total, tensors),
        torch.autograd.grad(3 * wanted, tensors),
        strict=True,
    ):
        assert (gradient.dtype, gradient.shape) == (tensor.dtype, tensor.shape)
        assert relative_error(gradient, wanted_gradient) < tolerance


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("rows", [False, True])
def test_float64_equals_the_plain_functions(shape, temperature, k, rows, block):
    given = case(rows=rows)
    deferred = student(given, **SHAPES[shape])
    for names in (["kd_loss", "student_loss"], list(NAMES)):
        compare(deferred, given, names, temperature, 1e-9, k)


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_equals_the_plain_functions(shape, block):
    given = case(rows=True)
    deferred = student(given, dtype=torch.float32, **SHAPES[shape])
    compare(deferred, given, list(NAMES), 2.0, 1e-5)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias", "weight and bias"])
def test_what_needs_no_gradient_gets_none(frozen, monkeypatch):
    """And nothing is computed for it: a frozen head, or one that is trained alone."""
    given = case()
    deferred = student(given, bias=True, softcap=3.0)
    for name in frozen.split(" and "):
        getattr(deferred, name).requires_grad_(False)
    found = []
    through = fused.through_layer

    def through_layer(*arguments, needs_gradient):
        found.extend(through(*arguments, needs_gradient=needs_gradient))
        return tuple(found)

    monkeypatch.setattr(fused, "through_layer", through_layer)
    compare(deferred, given, ["kd_loss", "student_loss"], 1.0, 1e-9)
    needed = [t.requires_grad for t in (deferred.hidden, deferred.weight, deferred.bias)]
    assert [gradient is not None for gradient in found] == needed


def test_a_weight_tied_to_the_embedding():
    """Both uses of it add up, as they do for the plain loss."""
    given = case()
    table = nn.Embedding(C, D).double()
    tokens = torch.arange(P) % C
    deferred = DeferredLogits(hidden=table(tokens).tanh(), weight=table.weight)
    targets, weights = encoded(given.teacher, 3), {"kd_loss": 1.0}
    total, _ = fused_losses(deferred, targets, None, weights=weights, temperature=1.0)
    wanted, _ = plain(deferred.logits(), targets, None, weights, 1.0)
    (found,) = torch.autograd.grad(total, table.weight, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(wanted, table.weight)[0])


def test_gradcheck():
    given = case(rows=True, num_positions=3)
    deferred = student(given, bias=True, scale=0.5, softcap=3.0)
    targets = encoded(given.teacher, 3)

    def total(hidden, weight, bias):
        layer = dataclasses.replace(deferred, hidden=hidden, weight=weight, bias=bias)
        return fused_losses(
            layer,
            targets,
            given.labels,
            weights={"kd_loss": 0.7, "reverse_kl": 0.2, "student_loss": 0.1},
            temperature=1.0,
            rows=given.rows,
        )[0]

    assert torch.autograd.gradcheck(total, (deferred.hidden, deferred.weight, deferred.bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_that_of_the_layer(dtype, autocast, block):
    """By autocast or in the tensors: products in 16 bits as F.linear's, losses in float32."""
    given = case(rows=True)
    deferred = student(given, bias=True, dtype=torch.float32 if autocast else dtype)
    tensors = tensors_of(deferred)
    targets, weights = encoded(given.teacher, 3), {"kd_loss": 0.9, "student_loss": 0.1}
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        total, _ = fused_losses(
            deferred, targets, given.labels, weights=weights, temperature=2.0, rows=given.rows
        )
        logits = deferred.logits()
    assert logits.dtype == dtype
    wanted, _ = plain(logits, targets, given.labels, weights, 2.0, given.rows)
    torch.testing.assert_close(total, wanted, rtol=1e-5, atol=1e-5)
    for tensor, gradient, wanted_gradient in zip(
        tensors,
        torch.autograd.grad(total, tensors),
        torch.autograd.grad(wanted, tensors),
        strict=True,
    ):
        assert gradient.dtype == tensor.dtype
        assert relative_error(gradient, wanted_gradient) < 4 * torch.finfo(dtype).eps


def test_autocast_caches_no_weight_without_a_graph():
    """A second use of the weight under the same autocast still gets its gradient."""
    given = case()
    deferred = student(given, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused_losses(
            deferred,
            encoded(given.teacher, 3),
            None,
            weights={"kd_loss": 1.0},
            temperature=1.0,
        )
        again = deferred.logits()
    again.float().sum().backward()
    assert deferred.weight.grad.any()


def test_float16_gradients_survive_small_weights_and_a_large_loss_scale():
    given = case()
    deferred = student(given, dtype=torch.float16)
    targets, weights = encoded(given.teacher, 3), {"kd_loss": 1e-7}
    total, _ = fused_losses(deferred, targets, None, weights=weights, temperature=1.0)
    wide = dataclasses.replace(
        deferred,
        hidden=deferred.hidden.detach().float().requires_grad_(),
        weight=deferred.weight.detach().float().requires_grad_(),
    )
    wanted, _ = plain(wide.logits(), targets, None, weights, 1.0)
    found = torch.autograd.grad(2.0**22 * total, tensors_of(deferred))
    for gradient, reference in zip(
        found, torch.autograd.grad(2.0**22 * wanted, tensors_of(wide)), strict=True
    ):
        assert relative_error(gradient, reference) < 0.01


def test_no_position_is_zero_with_a_graph():
    given = case(num_positions=0, rows=True)
    deferred = student(given, bias=True)
    total, _ = fused_losses(
        deferred,
        encoded(given.teacher, 3),
        given.labels,
        weights=weights_of(NAMES),
        temperature=2.0,
        rows=given.rows,
    )
    assert total == 0
    total.backward()
    for tensor in tensors_of(deferred):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


def test_the_whole_logits_never_exist(monkeypatch):
    """Nothing of (P, C) numbers is made, with a gradient or without."""
    monkeypatch.setitem(heads._CPU_NUMBERS, "layer", 2 * C)
    given = case(num_positions=200)
    deferred = student(given, bias=True, scale=2.0, softcap=3.0)
    targets = encoded(given.teacher, 3)
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest.append(result.numel())
            return result

    with Watch():
        total, _ = fused_losses(
            deferred, targets, given.labels, weights=weights_of(NAMES), temperature=2.0
        )
        total.backward()
    assert max(largest) == 200 * len(NAMES)  # the losses of all positions; hidden is 200 * 4


def test_refused_dtypes():
    given = case()
    deferred = student(given)
    mixed = dataclasses.replace(deferred, weight=deferred.weight.float())
    targets = encoded(given.teacher, 3)
    with pytest.raises(DataError, match=r"torch\.float64 with a weight in torch\.float32.*autocas"):
        fused_losses(mixed, targets, None, weights={"kd_loss": 1.0}, temperature=1.0)
    whole = dataclasses.replace(deferred, hidden=torch.zeros(P, D, dtype=torch.int64))
    with pytest.raises(DataError, match=r"torch\.int64, through which no gradient"):
        fused_losses(whole, targets, None, weights={"kd_loss": 1.0}, temperature=1.0)
    flat = dataclasses.replace(deferred, hidden=deferred.hidden[None])
    with pytest.raises(DataError, match=r"flat .*\(1, 13, 11\)"):
        fused_losses(flat, targets, None, weights={"kd_loss": 1.0}, temperature=1.0)
