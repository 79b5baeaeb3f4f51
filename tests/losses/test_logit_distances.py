"""mse_logits and cos_embed_loss: against the definition, and where they are refused."""

import numpy as np
import pytest
import torch
from torch import nn

from kdcache.codecs import DenseCodec, TopKCodec
from kdcache.errors import UnsupportedTargetsError
from kdcache.losses import cos_embed_loss, kd_loss, mse_logits
from kdcache.losses.target_losses import TARGET_LOSSES

INF = float("inf")
LOSSES = [mse_logits, cos_embed_loss]


def encoded(logits, codec=None):
    codec = codec or DenseCodec(dtype="float32")
    num_positions = torch.ones(len(logits), dtype=torch.int64)
    draws = torch.zeros(len(logits), 2, dtype=torch.int64)
    return codec.decode(codec.encode(logits, draws), num_positions, logits.shape[-1])


def pair(rows=5, num_classes=7):
    return 3 * torch.randn(2, rows, num_classes, generator=torch.Generator().manual_seed(0))


def mse_reference(s, t):
    """Mean over classes, sum over rows, and its gradient."""
    return ((s - t) ** 2).mean(axis=-1).sum(), 2 * (s - t) / s.shape[-1]


def cosine_reference(s, t):
    """1 - cos, sum over rows; d cos / ds = (t/|t| - cos * s/|s|) / |s|."""
    s_norm, t_norm = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (s, t))
    cos = (s * t).sum(-1, keepdims=True) / (s_norm * t_norm)
    return (1 - cos).sum(), -(t / t_norm - cos * s / s_norm) / s_norm


def evaluate(loss, student, targets, temperature=4.0):
    student = student.clone().requires_grad_()
    result = loss(student, targets, temperature)
    (gradient,) = torch.autograd.grad(result.sum, student)
    return result, gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("loss", "reference"), [(mse_logits, mse_reference), (cos_embed_loss, cosine_reference)]
)
def test_value_and_gradient_equal_the_reference(loss, reference, dtype):
    student, teacher = pair()
    result, gradient = evaluate(loss, student.to(dtype), encoded(teacher))
    value, wanted = reference(student.double().numpy(), teacher.double().numpy())
    tolerance = 1e-9 if dtype == torch.float64 else 2e-6
    assert int(result.count) == 5
    assert result.sum.item() == pytest.approx(value, rel=tolerance)
    np.testing.assert_allclose(gradient.numpy(), wanted, rtol=10 * tolerance, atol=tolerance)


def test_means_are_those_of_torch():
    """The predecessor's losses: MSELoss and CosineEmbeddingLoss, averaged over a batch."""
    student, teacher = pair()
    same = torch.ones(len(student))
    torch.testing.assert_close(
        mse_logits(student, encoded(teacher), 1.0).mean(), nn.MSELoss()(student, teacher)
    )
    torch.testing.assert_close(
        cos_embed_loss(student, encoded(teacher), 1.0).mean(),
        nn.CosineEmbeddingLoss()(student, teacher, same),
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("loss", LOSSES)
def test_raw_logits_come_back_with_their_offset(loss, dtype):
    """Trap 16: centred logits differ by a constant per row, which neither loss forgives."""
    teacher = pair()[1] + torch.tensor([[60.0], [-60.0], [5.0], [0.0], [200.0]])
    targets = encoded(teacher, DenseCodec(dtype=dtype))
    assert loss(teacher, targets, 1.0).mean() < 1e-2
    centred = teacher - teacher.amax(-1, keepdim=True)
    assert loss(centred, targets, 1.0).mean() > 0.1


@pytest.mark.parametrize("loss", LOSSES)
def test_temperature_plays_no_part(loss):
    student, teacher = pair()
    values = [loss(student, encoded(teacher), t).sum for t in (0.5, 1.0, 8.0)]
    assert values[0] == values[1] == values[2]
    assert TARGET_LOSSES[loss.__name__].temperature_exponent == 0
    assert TARGET_LOSSES["kd_loss"].temperature_exponent == 2


def test_the_cosine_has_no_scale():
    student, teacher = pair()
    torch.testing.assert_close(
        cos_embed_loss(5 * student, encoded(teacher), 1.0).sum,
        cos_embed_loss(student, encoded(teacher / 3), 1.0).sum,
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_topk_targets_are_refused_by_name(loss):
    student, teacher = pair()
    targets = encoded(teacher, TopKCodec(k=3))
    message = rf"{loss.__name__} cannot .* TopKTargets, only on DenseTargets: .*\(kd_loss, .*dense"
    with pytest.raises(UnsupportedTargetsError, match=message):
        loss(student, targets, 1.0)
    assert kd_loss(student, targets, 1.0).sum > 0


@pytest.mark.parametrize("student_masks", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_masked_classes_are_left_out(loss, student_masks):
    student, teacher = pair()
    kept = [0, 1, 3, 4]
    wanted, wanted_gradient = evaluate(loss, student[:, kept], encoded(teacher[:, kept]))
    masked = [2, 5, 6]
    teacher[:, masked] = -INF
    if student_masks:
        student[:, masked] = -INF
    result, gradient = evaluate(loss, student, encoded(teacher))
    torch.testing.assert_close(result.sum, wanted.sum)
    torch.testing.assert_close(gradient[:, kept], wanted_gradient)
    assert not gradient[:, masked].any()


def test_an_all_zero_student_has_a_finite_cosine_gradient():
    student, teacher = pair()
    result, gradient = evaluate(cos_embed_loss, 0 * student, encoded(teacher))
    assert result.mean() == 1
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_empty_batch_and_half_precision(loss):
    student, teacher = pair()
    empty = student[:0].requires_grad_()
    nothing = loss(empty, encoded(teacher[:0]), 1.0).mean()
    nothing.backward()
    assert nothing == 0
    half = (1000 * student).detach().half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = loss(half, encoded(teacher), 1.0).sum
    assert result.dtype == torch.float32
    assert torch.equal(result, loss(half.float(), encoded(teacher), 1.0).sum)
    assert result.isfinite()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_live_teacher_under_inference_mode(loss):
    student, teacher = pair()
    with torch.inference_mode():
        targets = encoded(teacher + 0)
    _, gradient = evaluate(loss, student, targets)
    torch.testing.assert_close(gradient, evaluate(loss, student, encoded(teacher))[1])
