"""student_loss: cross entropy over the labelled positions."""

import numpy as np
import pytest
import torch

from kdcache.errors import DataError
from kdcache.losses import student_loss


def batch():
    logits = 3 * torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    return logits, torch.tensor([0, 4, -100, 2, -100, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_gradient_and_count(dtype):
    logits, labels = batch()
    given = logits.clone().to(dtype).requires_grad_()
    result = student_loss(given, labels)
    result.sum.backward()
    z = logits.double().numpy()
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    rows, classes = [0, 1, 3, 5], [0, 4, 2, 1]
    wanted = p.copy()
    wanted[[2, 4]] = 0
    wanted[rows, classes] -= 1
    assert int(result.count) == 4
    assert result.sum.item() == pytest.approx(-np.log(p[rows, classes]).sum(), rel=1e-6)
    np.testing.assert_allclose(given.grad.numpy(), wanted, rtol=1e-5, atol=1e-7)


def test_another_ignore_index():
    logits, labels = batch()
    assert int(student_loss(logits, labels.where(labels >= 0, 255), 255).count) == 4
    with pytest.raises(DataError, match="position 2 is -100"):
        student_loss(logits, labels, 255)


@pytest.mark.parametrize("rows", [slice(0, 6), slice(0, 0)])
def test_nothing_labelled_is_zero_with_a_graph(rows):
    logits, labels = batch()
    logits[:, 3] = -torch.inf
    logits = logits[rows].requires_grad_()
    result = student_loss(logits, torch.full_like(labels, -100)[rows])
    result.mean().backward()
    assert (result.mean().item(), int(result.count)) == (0, 0)
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("value", [5, 1000, -1, -99])
def test_a_label_out_of_range_is_named(value):
    logits, labels = batch()
    labels[3] = value
    message = rf"label at position 3 is {value}, .*classes 0 to 4\. 1 of 6 .*carry -100"
    with pytest.raises(DataError, match=message):
        student_loss(logits, labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_any_integer_type(dtype):
    logits, labels = batch()
    labels = labels.clamp(min=0)
    assert student_loss(logits, labels.to(dtype)).sum == student_loss(logits, labels).sum


def test_labels_that_are_no_class_numbers():
    logits, labels = batch()
    with pytest.raises(DataError, match=r"torch\.float32, not class numbers"):
        student_loss(logits, labels.float())
    with pytest.raises(DataError, match=r"logits \(6, 5\) with labels \(5,\)"):
        student_loss(logits, labels[:5])
    with pytest.raises(DataError, match=r"labels \(6, 5\)"):
        student_loss(logits, torch.zeros(6, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    logits, labels = batch()
    half = (1000 * logits).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        result = student_loss(half, labels).sum
    assert result.dtype == torch.float32
    assert torch.equal(result, student_loss(half.float(), labels).sum)
