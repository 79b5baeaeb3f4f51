"""kd_loss: value and gradient against float64 references written from the definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kdcache.codecs import DenseCodec, TopKCodec
from kdcache.errors import DataError, UnsupportedTargetsError, UsageError
from kdcache.losses import kd_loss
from kdcache.losses.target_losses import TargetLoss
from kdcache.targets import DenseTargets

C = 7
TEMPERATURES = (0.5, 1.0, 2.0, 4.0)
INF = float("inf")


def encoded(codec, logits):
    """Targets that went through the codec's own encode and decode, one position a sample."""
    num_positions = torch.ones(len(logits), dtype=torch.int64)
    draws = torch.zeros(len(logits), 2, dtype=torch.int64)
    return codec.decode(codec.encode(logits, draws), num_positions, logits.shape[-1])


def dense(logits):
    return encoded(DenseCodec(dtype="float32"), logits)


def topk(logits, k, temperatures=TEMPERATURES):
    return encoded(TopKCodec(k=k, dtype="float32", temperatures=temperatures), logits)


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def reference(student, teacher, temperature, k):
    """(K+1)-bucket KL * T**2, summed, and its gradient by hand; K = C is the dense KL.

    With P_b, Q_b the buckets' masses, d/ds_j of T**2 * KL is T * q_j * (1 - P_b / Q_b) for the
    bucket b that class j is in: T * (q_j - p_j) for a kept class.
    """
    student, teacher = student.double().numpy(), teacher.double().numpy()
    total, gradient = 0.0, np.zeros_like(student)
    for row, (s, t) in enumerate(zip(student, teacher, strict=True)):
        q, p = softmax(s / temperature), softmax(t / temperature)
        kept = np.argsort(-t, kind="stable")[:k]
        buckets = [[j] for j in kept] + [[j for j in range(len(t)) if j not in kept]]
        for bucket in filter(None, buckets):
            p_mass, q_mass = p[bucket].sum(), q[bucket].sum()
            if p_mass > 0:
                total += p_mass * np.log(p_mass / q_mass)
            for j in bucket:
                gradient[row, j] = temperature * q[j] * (1 - p_mass / q_mass)
    return total * temperature**2, gradient


def evaluate(student, targets, temperature):
    student = student.clone().requires_grad_()
    result = kd_loss(student, targets, temperature)
    (gradient,) = torch.autograd.grad(result.sum, student)
    return result, gradient


def pair(seed=0, rows=5, num_classes=C, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, rows, num_classes, generator=generator)
    return student, teacher


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [None, *range(1, C + 1)])
def test_value_and_gradient_equal_the_reference(k, temperature, dtype):
    student, teacher = pair()
    targets = dense(teacher) if k is None else topk(teacher, k)
    result, gradient = evaluate(student.to(dtype), targets, temperature)
    value, wanted = reference(student, teacher, temperature, k or C)
    assert result.sum.dtype == gradient.dtype == dtype
    assert int(result.count) == len(student)
    assert result.sum.item() == pytest.approx(value, rel=2e-6, abs=2e-6)
    np.testing.assert_allclose(gradient.numpy(), wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_dense_float64_gradient_is_exact(temperature):
    """Float64 stays float64 up to the targets' own precision: float32 logits are exact here."""
    student, teacher = pair(seed=3)
    result, gradient = evaluate(student.double(), dense(teacher), temperature)
    value, wanted = reference(student, teacher, temperature, C)
    assert result.sum.item() == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(gradient.numpy(), wanted, rtol=1e-10, atol=1e-13)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, C),
    temperature=st.sampled_from(TEMPERATURES),
    scale=st.sampled_from([0.01, 1.0, 10.0, 40.0]),
)
def test_buckets_are_a_lower_bound_and_no_less_than_zero(seed, k, temperature, scale):
    student, teacher = pair(seed, scale=scale)
    full = kd_loss(student.double(), dense(teacher), temperature).sum.item()
    bucket = kd_loss(student.double(), topk(teacher, k), temperature).sum.item()
    slack = 1e-5 * (1 + full)
    assert -slack <= bucket <= full + slack
    if k == C:
        assert bucket == pytest.approx(full, rel=1e-5, abs=slack)


def test_shapes_of_the_smallest_kind():
    """One class: both sides are certain, at every K."""
    student, teacher = pair(num_classes=1)
    for targets in (dense(teacher), topk(teacher, 1), topk(teacher, 9)):
        result, gradient = evaluate(student, targets, 2.0)
        assert result.sum.item() == 0
        assert not gradient.any()


def test_softmax_runs_over_classes():
    """Trap 1: a constant per class, the same in every row, is invisible to a softmax over rows."""
    teacher = torch.zeros(4, 3)
    student = teacher + torch.tensor([0.0, 2.0, 5.0])
    assert kd_loss(student, dense(teacher), 1.0).mean() > 1
    over_rows = F.kl_div(student.log_softmax(0), teacher.softmax(0), reduction="sum")
    assert abs(over_rows) < 1e-5
    shifted = teacher + torch.arange(4.0)[:, None]
    assert kd_loss(shifted, dense(teacher), 1.0).sum.abs() < 1e-5


def test_summed_over_classes_and_averaged_over_positions():
    """Trap 2: uniform against (1/2, 1/4, 1/4) is ln(32/27) / 3 nats a row, however many rows."""
    student = torch.tensor([0.5, 0.25, 0.25]).log().expand(6, 3)
    result = kd_loss(student, dense(torch.zeros(6, 3)), 1.0)
    assert result.mean().item() == pytest.approx(np.log(32 / 27) / 3, rel=1e-6)
    assert int(result.count) == 6


def test_temperature_squared_reaches_the_gradient():
    """Trap 5: at large T the gradient tends to (s - t) centred / C, whatever T is."""
    student, teacher = pair(seed=1)
    _, plain = evaluate(student / 4, dense(teacher / 4), 1.0)
    result, gradient = evaluate(student, dense(teacher), 4.0)
    # The chain rule alone gives 1/T; T**2 on the value must make it T, not leave it at 1/T.
    torch.testing.assert_close(gradient, 4 * plain)
    torch.testing.assert_close(
        result.sum, 16 * kd_loss(student / 4, dense(teacher / 4), 1.0).sum, rtol=1e-5, atol=1e-6
    )
    difference = (student - teacher).double()
    limit = (difference - difference.mean(-1, keepdim=True)) / C
    for temperature in (300.0, 1000.0):
        _, gradient = evaluate(student.double(), dense(teacher), temperature)
        torch.testing.assert_close(gradient, limit, rtol=0.1, atol=0.02)


def spread(tail):
    """Two kept classes with 90 % of the mass, and the other 10 % spread as ``tail`` says."""
    return torch.cat([torch.tensor([0.6, 0.3]), 0.1 * tail / tail.sum()]).log()[None]


def test_the_tail_at_another_temperature_is_not_in_the_top_k():
    """Trap 7: same top-k and tail mass at T = 1, other distributions at T = 4."""
    flat, peaked = spread(torch.ones(500)), spread(torch.tensor([1.0] + [1e-4] * 499))
    student = torch.zeros(1, 502)
    first, second = topk(flat, 2), topk(peaked, 2)
    torch.testing.assert_close(first.log_p, second.log_p)
    torch.testing.assert_close(first.bucket_log_p(1.0), second.bucket_log_p(1.0))
    at_four = [targets.bucket_log_p(4.0).exp()[0, -1] for targets in (first, second)]
    assert at_four[0] - at_four[1] > 0.02
    true = (flat / 4).softmax(-1)[0, 2:].sum()
    assert at_four[0].item() == pytest.approx(true.item(), rel=1e-5)
    # A tail lumped into one class before the softening: far from the truth.
    lumped = (torch.tensor([0.6, 0.3, 0.1]).log() / 4).softmax(-1)[-1]
    assert true > 0.95
    assert lumped < 0.3
    values = [kd_loss(student, targets, 4.0).sum.item() for targets in (first, second)]
    wanted = [reference(student, teacher, 4.0, 2)[0] for teacher in (flat, peaked)]
    np.testing.assert_allclose(values, wanted, rtol=1e-4)


def test_an_undeclared_temperature_is_refused_by_name():
    student, teacher = pair()
    targets = topk(teacher, 3, temperatures=(1.0, 2.0))
    with pytest.raises(
        UnsupportedTargetsError, match=r"temperature 4: .* temperature 1, 2 only\. .*including 4"
    ):
        kd_loss(student, targets, 4.0)
    kd_loss(student, topk(teacher, C, temperatures=(1.0,)), 4.0)  # No tail: any T.


def test_no_divergence_without_the_tail():
    """Trap 10: a truncated sum goes below zero; the bucket divergence does not."""
    teacher = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    student = torch.tensor([[0.55, 0.44, 0.005, 0.005]]).log()
    truncated = (teacher[0, :2].exp() * (teacher - student)[0, :2]).sum()
    assert truncated < 0
    assert kd_loss(student, topk(teacher, 2), 1.0).sum > 0


def test_student_mass_off_the_kept_classes_is_felt():
    """Trap 11: renormalised on the kept ones, a student with 0.03 % on them would lose nothing."""
    teacher = torch.tensor([[6.0, 5.0, 0.0, 0.0, 0.0]])
    student = teacher.clone()
    student[0, 2:] = 13.0
    kept = F.kl_div(
        student[:, :2].log_softmax(-1), teacher[:, :2].softmax(-1), reduction="batchmean"
    )
    assert kept.abs() < 1e-6
    result, gradient = evaluate(student, topk(teacher, 2), 1.0)
    assert result.sum > 3
    assert (gradient[0, :2] < 0).all()
    assert (gradient[0, 2:] > 0.1).all()


@pytest.mark.parametrize("gap", [12.0, 17.0, 25.0, 40.0])
def test_a_tail_below_the_rounding_of_one_keeps_its_value_and_gradient(gap):
    """Traps 12, 13: 1 - sum(kept) is 0 or negative from a gap of 17 on, and its log NaN."""
    teacher = torch.tensor([[gap, gap - 1, 0.0, 0.1, -0.3]])
    student = torch.tensor([[gap - 1, gap, 0.5, -0.2, 0.0]])
    targets = topk(teacher, 2)
    tail = torch.tensor([0.0, 0.1, -0.3]).double().logsumexp(0) - teacher.double().logsumexp(-1)
    assert targets.tail_log_sums[0, 1].item() == pytest.approx(tail.item(), rel=1e-6)
    result, gradient = evaluate(student, targets, 1.0)
    value, wanted = reference(student, teacher, 1.0, 2)
    assert result.sum.item() == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(gradient.numpy(), wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("k", [None, 1, 3, 4, 6, C])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_masks_on_both_sides(k, temperature):
    """-inf at the teacher is p = 0; at the student too where the teacher agrees. No NaN."""
    student, teacher = pair(seed=5)
    teacher[:, 2], teacher[1, 4:], student[:, 2] = -INF, -INF, -INF
    student[1, 4:] = -INF
    targets = dense(teacher) if k is None else topk(teacher, k)
    result, gradient = evaluate(student, targets, temperature)
    with np.errstate(invalid="ignore"):
        value, wanted = reference(student, teacher, temperature, k or C)
    wanted = np.where(np.isfinite(student.numpy()), wanted, 0)
    assert result.sum.item() == pytest.approx(value, rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(gradient.numpy(), wanted, rtol=1e-4, atol=1e-6)


def test_teacher_masks_all_but_one_class():
    """One class left, fewer than K: the kept ids include masked classes, the tail is empty."""
    teacher = torch.full((2, C), -INF)
    teacher[:, 3] = 1.5
    student = pair(rows=2)[0]
    for targets in (dense(teacher), topk(teacher, 1), topk(teacher, 4), topk(teacher, C)):
        result, gradient = evaluate(student, targets, 1.0)
        wanted = F.cross_entropy(student, torch.tensor([3, 3]), reduction="sum")
        torch.testing.assert_close(result.sum, wanted)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("k", [None, 2])
def test_a_student_that_masks_what_the_teacher_does_not_has_an_infinite_loss(k):
    student, teacher = pair(rows=1)
    student[:, teacher[0].argsort()[:-2]] = -INF
    targets = dense(teacher) if k is None else topk(teacher, k)
    assert kd_loss(student, targets, 1.0).sum == INF


def test_ties():
    """Trap 15: any of equal classes may be kept, and a symmetric student loses nothing."""
    teacher = torch.zeros(2, C)
    targets = topk(teacher, 3)
    assert all(len(set(row)) == 3 for row in targets.ids.tolist())
    result, gradient = evaluate(torch.zeros(2, C), targets, 2.0)
    assert result.sum.abs() < 1e-6
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("k", [None, 3])
def test_autocast_and_half_precision_change_nothing(dtype, k):
    """Trap 23: the loss of half-precision logits is that of the same numbers in float32."""
    student, teacher = pair(seed=2)
    student = (10 * student).to(dtype)
    targets = dense(teacher) if k is None else topk(teacher, k)
    wanted = kd_loss(student.float(), targets, 4.0).sum
    with torch.autocast("cpu", dtype=dtype):
        result = kd_loss(student, targets, 4.0)
    assert result.sum.dtype == torch.float32
    assert torch.equal(result.sum, wanted)


def test_every_measure_runs_in_float32_with_autocast_off():
    """Most operations that autocast narrows are a CUDA matter: the guard itself is looked at."""
    seen = []

    def measure(student_logits, targets, temperature):
        seen.append((torch.is_autocast_enabled("cpu"), student_logits.dtype))
        return student_logits.sum(-1)

    loss = TargetLoss(name="mine", measures={DenseTargets: measure}, temperature_exponent=1)
    student, teacher = pair()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = loss(student.half(), dense(teacher), 3.0)
    assert seen == [(False, torch.float32)]
    torch.testing.assert_close(result.sum, 3 * student.half().float().sum())


@pytest.mark.parametrize("k", [None, 3])
def test_logits_beyond_half_precision(k):
    """Logits, and T**2 times the loss, above 65,504."""
    student, teacher = pair(seed=4, scale=3e4)
    teacher = teacher.to(torch.bfloat16).float()
    targets = dense(teacher) if k is None else topk(teacher, k)
    with torch.autocast("cpu", dtype=torch.float16):
        result, gradient = evaluate(student.to(torch.bfloat16), targets, 4.0)
    assert 65_504 < result.sum < INF
    assert gradient.isfinite().all()


@pytest.mark.parametrize("classes", [2_049, 32_769, 65_536, 65_537, 70_000])
def test_class_numbers_of_any_width(classes):
    """Trap 24: the last class is the most probable; float16 or int16 ids would miss it."""
    teacher = torch.zeros(2, classes)
    teacher[0, classes - 1], teacher[1, classes - 2] = 14.0, 14.0
    student = torch.zeros(2, classes)
    targets = topk(teacher, 3)
    assert targets.ids[:, 0].tolist() == [classes - 1, classes - 2]
    _, gradient = evaluate(student, targets, 1.0)
    assert gradient.argmin(dim=-1).tolist() == [classes - 1, classes - 2]
    top = teacher.double().softmax(-1).amax(-1)
    assert gradient.amin(dim=-1).tolist() == pytest.approx((1 / classes - top).tolist(), rel=1e-4)


@pytest.mark.parametrize("k", [None, 3])
def test_an_empty_batch_is_zero_with_a_graph(k):
    """Trap 4: a batch without a valid position, cut out of a batch that is all infinite."""
    student = torch.full((4, C), INF, requires_grad=True)
    none = torch.zeros(0, C)
    targets = dense(none) if k is None else topk(none, k)
    result = kd_loss(student[torch.zeros(4, dtype=torch.bool)], targets, 2.0)
    assert (result.mean().item(), int(result.count)) == (0, 0)
    result.mean().backward()
    assert torch.equal(student.grad, torch.zeros(4, C))


def test_teacher_that_runs_live():
    """Logits made under inference_mode, or with a graph of their own, get no gradient."""
    student, teacher = pair()
    with torch.inference_mode():
        live = teacher + 0
    result, gradient = evaluate(student, targets_of(live), 1.0)
    with_graph = teacher.clone().requires_grad_()
    kd_loss(student.requires_grad_(), targets_of(with_graph), 1.0).sum.backward()
    assert with_graph.grad is None
    torch.testing.assert_close(student.grad, gradient)
    assert result.sum > 0


def targets_of(logits):
    counts = torch.ones(len(logits), dtype=torch.int64)
    return DenseTargets(values=logits, num_positions=counts, num_classes=logits.shape[-1])


def test_refused_shapes_say_both_sides_and_the_way_out():
    student, teacher = pair()
    with pytest.raises(DataError, match=r"7 classes.*targets 5: .*batch\.num_classes: 5;"):
        kd_loss(student, dense(teacher[:, :5]), 1.0)
    # One row would broadcast over all of the student's.
    with pytest.raises(DataError, match=r"5 positions, the teacher's targets 1\..*batch\.mask"):
        kd_loss(student, dense(teacher[:1]), 1.0)
    with pytest.raises(DataError, match="4 positions, the teacher's targets 5"):
        kd_loss(student[:4], topk(teacher, 2), 1.0)
    with pytest.raises(DataError, match=r"flat .*\(1, 5, 7\).*flatten_positions"):
        kd_loss(student[None], dense(teacher), 1.0)
    with pytest.raises(DataError, match=r"torch\.int64, through which no gradient"):
        kd_loss(student.long(), dense(teacher), 1.0)


@pytest.mark.parametrize("temperature", [0, -1.0, INF, float("nan"), "4", True, None])
def test_refused_temperatures(temperature):
    student, teacher = pair()
    with pytest.raises(UsageError, match="positive number"):
        kd_loss(student, dense(teacher), temperature)
