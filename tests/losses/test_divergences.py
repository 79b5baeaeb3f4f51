"""The divergences beside kd_loss: values and gradients against their definitions in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.codecs import DenseCodec, TopKCodec
from kdcache.errors import UnsupportedTargetsError
from kdcache.losses import jensen_shannon, kd_loss, reverse_kl, total_variation
from kdcache.losses.target_losses import TARGET_LOSSES

C = 7
INF = float("inf")
TEMPERATURES = (0.5, 1.0, 2.0, 4.0)
LOSSES = [reverse_kl, jensen_shannon, total_variation]
EXPONENTS = {"reverse_kl": 2, "jensen_shannon": 2, "total_variation": 1}


def encoded(logits, k=None, temperatures=TEMPERATURES):
    codec = (
        DenseCodec(dtype="float32")
        if k is None
        else TopKCodec(k=k, dtype="float32", temperatures=temperatures)
    )
    columns = codec.encode(logits, torch.zeros(len(logits), 2))
    return codec.decode(columns, torch.ones(len(logits)).long(), logits.shape[-1])


def pair(seed=0, rows=5, num_classes=C, scale=3.0):
    student, teacher = scale * torch.randn(
        2, rows, num_classes, generator=torch.Generator().manual_seed(seed)
    )
    return student, teacher


def kl(p, q):
    """From the definition; what has no mass in p plays no part."""
    used = p > 0
    return (p[used] * (p[used] / q[used]).log()).sum()


DEFINITIONS = {
    "reverse_kl": lambda p, q: kl(q, p),
    "jensen_shannon": lambda p, q: (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2,
    "total_variation": lambda p, q: (p - q).abs().sum() / 2,
}


def reference(loss, student, teacher, temperature, k=None):
    """Sum over rows of D on the K kept classes and the rest as one, times T**exponent."""
    student = student.double().clone().requires_grad_()
    total = 0
    for s, t in zip(student, teacher.double(), strict=True):
        p, q = (t / temperature).softmax(-1), (s / temperature).softmax(-1)
        kept = np.argsort(-t.numpy(), kind="stable")[: k or len(t)]
        rest = np.setdiff1d(np.arange(len(t)), kept)
        p, q = (torch.cat([x[kept], x[rest].sum()[None]]) if len(rest) else x for x in (p, q))
        total = total + DEFINITIONS[loss.__name__](p, q)
    total = total * temperature ** EXPONENTS[loss.__name__]
    return total.item(), torch.autograd.grad(total, student)[0]


def evaluate(loss, student, targets, temperature):
    student = student.clone().requires_grad_()
    result = loss(student, targets, temperature)
    return result, torch.autograd.grad(result.sum, student)[0]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [None, 1, 3, 6, C, 9])
def test_value_and_gradient_equal_the_definition(loss, temperature, k):
    student, teacher = pair()
    targets = encoded(teacher, k)
    value, wanted = reference(loss, student, teacher, temperature, k)
    for dtype in (torch.float32, torch.float64):
        result, gradient = evaluate(loss, student.to(dtype), targets, temperature)
        assert result.sum.dtype == gradient.dtype == dtype
        assert int(result.count) == len(student)
        assert result.sum.item() == pytest.approx(value, rel=5e-6, abs=5e-6)
        torch.testing.assert_close(gradient.double(), wanted, rtol=5e-5, atol=5e-6)


@settings(deadline=None, max_examples=60)
@given(
    loss=st.sampled_from(LOSSES),
    seed=st.integers(0, 10_000),
    k=st.integers(1, C),
    temperature=st.sampled_from(TEMPERATURES),
    scale=st.sampled_from([0.01, 1.0, 10.0, 40.0]),
)
def test_buckets_are_a_lower_bound(loss, seed, k, temperature, scale):
    student, teacher = pair(seed, scale=scale)
    full = loss(student.double(), encoded(teacher), temperature).sum.item()
    bucket = loss(student.double(), encoded(teacher, k), temperature).sum.item()
    slack = 1e-5 * (1 + full)
    assert -slack <= bucket <= full + slack
    if k == C:
        assert bucket == pytest.approx(full, rel=1e-5, abs=slack)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_power_of_the_temperature(loss):
    """Trap 5: at large T the gradient neither vanishes nor grows."""
    student, teacher = pair(seed=1)
    targets = encoded(teacher)
    sizes = [
        evaluate(loss, student.double(), targets, temperature)[1].norm().item()
        for temperature in (100.0, 1000.0)
    ]
    assert sizes[0] > 0.01
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)
    exponent = TARGET_LOSSES[loss.__name__].temperature_exponent
    assert exponent == EXPONENTS[loss.__name__]


def test_bounds():
    """Distributions that have nothing in common: log 2 and 1, times T**exponent."""
    student = torch.tensor([[0.0, -200.0]])
    targets = encoded(student.flip(-1))
    assert jensen_shannon(student, targets, 2.0).sum.item() == pytest.approx(4 * math.log(2))
    assert total_variation(student, targets, 2.0).sum.item() == pytest.approx(2)
    assert reverse_kl(student, targets, 1.0).sum.item() == pytest.approx(200)


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_distributions_and_one_class(loss):
    student, teacher = pair()
    for targets in (encoded(teacher), encoded(teacher, 3), encoded(teacher, C)):
        result, gradient = evaluate(loss, teacher + 5, targets, 2.0)
        assert abs(result.sum.item()) < 1e-5
        # Total variation has a kink here, and its gradient is up to T / 2 * q on either side.
        assert gradient.abs().max() < (1.0 if loss is total_variation else 1e-5)
    one = student[:, :1]
    for targets in (encoded(teacher[:, :1]), encoded(teacher[:, :1], 1)):
        result, gradient = evaluate(loss, one, targets, 2.0)
        assert result.sum.item() == 0
        assert not gradient.any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("k", [None, 1, 3, 4, 6, C])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_masks_on_both_sides(loss, k, temperature):
    """Classes that both mask, kept or not, are as good as absent."""
    student, teacher = pair(seed=5)
    shown = [0, 1, 3]
    fewer = min(k or C, len(shown))
    value, wanted = reference(loss, student[:, shown], teacher[:, shown], temperature, fewer)
    masked = [j for j in range(C) if j not in shown]
    student[:, masked], teacher[:, masked] = -INF, -INF
    result, gradient = evaluate(loss, student, encoded(teacher, k), temperature)
    assert result.sum.item() == pytest.approx(value, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(gradient[:, shown].double(), wanted, rtol=1e-4, atol=1e-6)
    assert not gradient[:, masked].any()


@pytest.mark.parametrize("loss", [jensen_shannon, total_variation])
@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_mask_on_one_side_is_finite_where_the_loss_is_bounded(loss, k, who):
    student, teacher = pair(seed=6)
    best = teacher.argmax(-1, keepdim=True)
    (student if who == "student" else teacher).scatter_(-1, best, -INF)
    value, wanted = reference(loss, student, teacher, 2.0, k)
    result, gradient = evaluate(loss, student, encoded(teacher, k), 2.0)
    assert result.sum.item() == pytest.approx(value, rel=1e-5)
    # The reference has NaN only where 0 * inf comes up: at the masked logits themselves.
    usable = student.isfinite()
    torch.testing.assert_close(gradient[usable].double(), wanted[usable], rtol=1e-4, atol=1e-6)
    assert not gradient[~usable].any()


@pytest.mark.parametrize("k", [None, 2])
def test_reverse_kl_is_infinite_on_what_the_teacher_masks(k):
    student, teacher = pair(rows=1)
    teacher[:, teacher[0].argsort()[:-2]] = -INF
    assert reverse_kl(student, encoded(teacher, k), 1.0).sum == INF
    masked = student.where(teacher.isfinite(), -INF)
    result, gradient = evaluate(reverse_kl, masked, encoded(teacher, k), 1.0)
    assert 0 < result.sum < INF
    assert gradient.isfinite().all()


@pytest.mark.parametrize("gap", [12.0, 25.0, 60.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_tail_below_the_rounding_of_one(loss, gap):
    """Trap 12: 1 - sum(kept) would be 0 or negative."""
    teacher = torch.tensor([[gap, gap - 1, 0.0, 0.1, -0.3]])
    student = torch.tensor([[gap - 1, gap, 0.5, -0.2, 0.0]])
    result, gradient = evaluate(loss, student, encoded(teacher, 2), 1.0)
    value, wanted = reference(loss, student, teacher, 1.0, 2)
    assert result.sum.item() == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_ties_empty_batches_and_half_precision(loss):
    student, teacher = pair(seed=2)
    tied = encoded(torch.zeros(2, C), 3)
    result, gradient = evaluate(loss, torch.zeros(2, C), tied, 2.0)
    assert result.sum.abs() < 1e-6
    assert gradient.isfinite().all()
    empty = student[:0].requires_grad_()
    nothing = loss(empty, encoded(teacher[:0], 3), 2.0).mean()
    nothing.backward()
    assert nothing == 0
    half = (10 * student).to(torch.bfloat16)
    wanted = loss(half.float(), encoded(teacher, 3), 4.0).sum
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(half, encoded(teacher, 3), 4.0).sum, wanted)


@pytest.mark.parametrize("loss", LOSSES)
def test_an_undeclared_temperature_is_refused(loss):
    student, teacher = pair()
    with pytest.raises(UnsupportedTargetsError, match="cannot give targets at temperature 4"):
        loss(student, encoded(teacher, 3, temperatures=(1.0, 2.0)), 4.0)


@pytest.mark.parametrize("k", [None, 3])
def test_second_order_near_the_teacher(k):
    """All KL-like divergences of near distributions are one: JSD is a quarter of either KL."""
    teacher = pair(seed=7)[1]
    student = teacher.double() + 0.02 * pair(seed=8)[0]
    forward, reverse, jsd = (
        loss(student, encoded(teacher, k), 1.0).sum.item()
        for loss in (kd_loss, reverse_kl, jensen_shannon)
    )
    assert reverse == pytest.approx(forward, rel=0.05)
    assert jsd == pytest.approx(forward / 4, rel=0.05)
