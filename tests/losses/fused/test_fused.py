"""fused_losses on logits: values and gradients are those of the plain functions."""

import pytest
import torch
from torch.nn import functional as F

from kdcache.errors import DataError, UnsupportedTargetsError, UsageError
from kdcache.losses import fused_losses, kd_loss, student_loss
from kdcache.losses.fused import heads
from kdcache.losses.fused import one_pass as fused
from kdcache.targets import SoftTargets
from tests.losses.fused.fused_cases import (
    NAMES,
    TEMPERATURES,
    C,
    P,
    case,
    encoded,
    plain,
    relative_error,
    weights_of,
)

INF = float("inf")
COMBINATIONS = [[name] for name in NAMES] + [["kd_loss", "student_loss"], list(NAMES)]


@pytest.fixture(params=[1, 4 * C, 1 << 20], ids=["one", "four", "all"])
def block(request, monkeypatch):
    """Positions that are looked at together: one, some (P is no multiple of them), all."""
    monkeypatch.setitem(heads._CPU_NUMBERS, "logits", request.param)


def compare(given, targets, names, temperature, tolerance):
    weights = weights_of(names)
    logits = given.logits.clone().requires_grad_()
    total, terms = fused_losses(
        logits, targets, given.labels, weights=weights, temperature=temperature, rows=given.rows
    )
    wanted_total, wanted = plain(logits, targets, given.labels, weights, temperature, given.rows)
    assert total.dtype == wanted_total.dtype
    assert relative_error(total.detach(), wanted_total.detach()) < tolerance
    assert list(terms) == list(names)
    for name, term in terms.items():
        assert not term.sum.requires_grad
        assert (term.count, term.count.dtype) == (wanted[name].count, torch.int64)
        torch.testing.assert_close(
            term.sum, wanted[name].sum.detach(), rtol=tolerance, atol=tolerance
        )
    (gradient,) = torch.autograd.grad(3 * total, logits)
    (wanted_gradient,) = torch.autograd.grad(3 * wanted_total, logits)
    assert gradient.dtype == given.logits.dtype
    assert relative_error(gradient, wanted_gradient) < tolerance
    return gradient


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [None, 1, 3, C])
@pytest.mark.parametrize("rows", [False, True])
def test_float64_equals_the_plain_functions(names, temperature, k, rows, block):
    given = case(rows=rows)
    gradient = compare(given, encoded(given.teacher, k), names, temperature, 1e-9)
    if rows:
        others = torch.ones(len(given.logits), dtype=torch.bool)
        others[given.rows] = False
        assert others.sum() == 5
        assert not gradient[others].any()


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [None, 3])
def test_float32_equals_the_plain_functions(names, temperature, k, block):
    given = case(rows=True, dtype=torch.float32, seed=1)
    compare(given, encoded(given.teacher, k, dtype="float16"), names, temperature, 1e-5)


@pytest.mark.parametrize("k", [None, 1, 3, 6, C])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_masked_classes(k, temperature):
    """Where both mask a class; and a whole tail that the student masks but the teacher not."""
    given = case(rows=True)
    masked = [2, 5, 6, 7, 8]
    given.teacher[:, masked] = -INF
    given.logits[:, masked] = -INF
    given.labels[given.labels.unsqueeze(-1).eq(torch.tensor(masked)).any(-1)] = -100
    compare(given, encoded(given.teacher, k), NAMES, temperature, 1e-9)
    bounded = ["jensen_shannon", "total_variation"]
    given = case(seed=2)
    targets = encoded(given.teacher, k)
    kept = given.teacher.topk(k or 3).indices
    others = torch.ones(P, C, dtype=torch.bool).scatter(-1, kept, False)
    given.logits[others] = -INF
    compare(given, targets, bounded, temperature, 1e-9)


@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("name", ["kd_loss", "reverse_kl"])
def test_infinite_where_the_plain_loss_is(k, name):
    given = case()
    (given.logits if name == "kd_loss" else given.teacher)[1, 2:] = -INF
    given.logits[1, 2:] = -INF if name == "kd_loss" else 0.0
    total, _ = fused_losses(
        given.logits, encoded(given.teacher, k), None, weights={name: 1.0}, temperature=1.0
    )
    assert total == INF


@pytest.mark.parametrize("bad", [INF, float("nan")])
@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_broken_student_is_not_hidden(bad, k, name):
    """Whether the broken logit is of a kept class or not."""
    for where in range(C):
        given = case()
        given.logits[1, where] = bad
        total, _ = fused_losses(
            given.logits,
            encoded(given.teacher, k),
            given.labels,
            weights={name: 1.0},
            temperature=1.0,
        )
        assert not total.isfinite()


@pytest.mark.parametrize("num_classes", [1, 2])
@pytest.mark.parametrize("k", [None, 1])
def test_the_smallest_shapes(num_classes, k):
    given = case(num_classes=num_classes)
    targets = encoded(given.teacher, k)
    weights = weights_of(NAMES)
    logits = given.logits.requires_grad_()
    for temperature in (1.0, 2.0):
        total, _ = fused_losses(
            logits, targets, given.labels, weights=weights, temperature=temperature
        )
        wanted, _ = plain(logits, targets, given.labels, weights, temperature)
        torch.testing.assert_close(total, wanted)
        torch.testing.assert_close(
            torch.autograd.grad(total, logits), torch.autograd.grad(wanted, logits)
        )


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("gap", [12.0, 40.0, 200.0])
def test_a_far_tail_and_a_common_offset_cost_no_digits(offset, gap):
    """exp of the tail is 0 in float32 at a gap of 200: its log must not be."""
    teacher = torch.tensor([[gap, gap - 1, 0.0, 0.125, -0.25]]).expand(3, 5)
    logits = torch.tensor([[gap - 1, gap, 0.5, -0.25, 0.0]]).expand(3, 5) + offset
    targets = encoded(teacher, 2)
    total, _ = fused_losses(logits, targets, None, weights={"reverse_kl": 1.0}, temperature=1.0)
    wanted, _ = plain((logits - offset).double(), targets, None, {"reverse_kl": 1.0}, 1.0)
    torch.testing.assert_close(total.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("rows", [False, True])
def test_half_precision(dtype, k, rows):
    """Values as of the same numbers in float32; the gradient is rounded once, at the end."""
    given = case(rows=rows, dtype=dtype)
    targets = encoded(given.teacher, k)
    weights = {"kd_loss": 0.9, "student_loss": 0.1}
    logits = given.logits.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = fused_losses(
            logits, targets, given.labels, weights=weights, temperature=2.0, rows=given.rows
        )
    widened = given.logits.detach().float().requires_grad_()
    wanted, _ = plain(widened, targets, given.labels, weights, 2.0, given.rows)
    torch.testing.assert_close(total, wanted)
    (gradient,) = torch.autograd.grad(total, logits)
    (wanted_gradient,) = torch.autograd.grad(wanted, widened)
    assert gradient.dtype == dtype
    assert relative_error(gradient, wanted_gradient) < torch.finfo(dtype).eps


@pytest.mark.parametrize("weight", [1e-7, torch.tensor(1e-7)])
def test_float16_gradients_survive_small_weights_and_a_large_loss_scale(weight):
    """1e-7 * (q - p) is a float16 of one digit at most, and 65,536 is no float16."""
    given = case(dtype=torch.float16)
    targets = encoded(given.teacher, 3)
    logits = given.logits.requires_grad_()
    total, _ = fused_losses(logits, targets, None, weights={"kd_loss": weight}, temperature=1.0)
    (gradient,) = torch.autograd.grad(total * 2.0**22, logits)
    widened = given.logits.detach().float().requires_grad_()
    wanted, _ = plain(widened, targets, None, {"kd_loss": 1e-7 * 2.0**22}, 1.0)
    assert relative_error(gradient, torch.autograd.grad(wanted, widened)[0]) < 2e-3


def test_a_bfloat16_gradient_is_multiplied_in_float32():
    given = case(dtype=torch.bfloat16)
    logits = given.logits.requires_grad_()
    targets = encoded(given.teacher, 3)
    total, _ = fused_losses(logits, targets, None, weights={"kd_loss": 1.0}, temperature=1.0)
    (once,) = torch.autograd.grad(total, logits, retain_graph=True)
    (third,) = torch.autograd.grad(total * (1 / 3), logits)
    assert torch.equal(third, (once.float() * (1 / 3)).bfloat16())


def test_a_retained_graph_gives_the_gradient_again():
    given = case()
    logits = given.logits.requires_grad_()
    total, _ = fused_losses(
        logits, encoded(given.teacher, 3), None, weights={"kd_loss": 1.0}, temperature=1.0
    )
    (first,) = torch.autograd.grad(total, logits, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(-2 * total, logits, retain_graph=True)
    assert torch.equal(first, kept)
    assert torch.equal(second, -2 * first)
    total.backward()
    assert torch.equal(logits.grad, first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        total.backward()


def test_a_second_derivative_is_refused_rather_than_left_out():
    given = case()
    logits = given.logits.requires_grad_()
    total, _ = fused_losses(
        logits.square(), encoded(given.teacher), None, weights={"kd_loss": 1.0}, temperature=1.0
    )
    with pytest.raises(UsageError, match=r"first derivative only.*kdcache\.losses\.kd_loss"):
        torch.autograd.grad(total, logits, create_graph=True)


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradcheck(k, temperature):
    given = case(rows=True, num_positions=3)
    targets = encoded(given.teacher, k)
    names = [name for name in NAMES if name != "total_variation"]  # it has kinks

    def total(logits):
        return fused_losses(
            logits,
            targets,
            given.labels,
            weights=weights_of(names),
            temperature=temperature,
            rows=given.rows,
        )[0]

    assert torch.autograd.gradcheck(total, (given.logits.requires_grad_(),))


@pytest.mark.parametrize("rows", [None, torch.zeros(0, dtype=torch.int64)])
@pytest.mark.parametrize("k", [None, 3])
def test_no_position_is_zero_with_a_graph(rows, k):
    """Trap 4; the rows that are no position are infinite."""
    logits = torch.full((0 if rows is None else 4, C), INF, requires_grad=True)
    total, terms = fused_losses(
        logits,
        encoded(torch.zeros(0, C), k),
        torch.zeros(0, dtype=torch.int64),
        weights=weights_of(NAMES),
        temperature=2.0,
        rows=rows,
    )
    assert total == 0
    assert [int(term.count) for term in terms.values()] == [0] * len(NAMES)
    total.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_without_a_gradient_none_is_made(monkeypatch):
    seen = []
    whole = fused.chunk_losses

    def chunk_losses(*arguments, gradient):
        seen.append(gradient)
        return whole(*arguments, gradient=gradient)

    monkeypatch.setattr(fused, "chunk_losses", chunk_losses)
    given = case()
    targets = encoded(given.teacher, 3)
    before = given.logits.clone()
    weights = weights_of(NAMES)

    def run(logits):
        return fused_losses(logits, targets, given.labels, weights=weights, temperature=2.0)[0]

    assert not run(given.logits).requires_grad
    with torch.no_grad():
        found = run(given.logits.clone().requires_grad_())
    with torch.inference_mode():
        assert torch.equal(run(given.logits + 0), found)
    assert set(seen) == {False}
    assert torch.equal(given.logits, before)
    torch.testing.assert_close(run(given.logits.requires_grad_()), found)


def test_targets_of_a_live_teacher():
    given = case()
    logits = given.logits.requires_grad_()
    with torch.inference_mode():
        live = encoded(given.teacher, 3)
    totals = [
        fused_losses(logits, targets, None, weights={"kd_loss": 1.0}, temperature=1.0)[0]
        for targets in (live, encoded(given.teacher, 3))
    ]
    gradients = [torch.autograd.grad(total, logits)[0] for total in totals]
    assert torch.equal(*gradients)


def test_logits_that_are_not_contiguous():
    """A padded vocabulary that is sliced: the gradient of the padding is 0."""
    given = case()
    padded = torch.cat([given.logits, torch.full((P, 3), INF)], dim=1).requires_grad_()
    targets = encoded(given.teacher, 3)
    total, _ = fused_losses(padded[:, :C], targets, None, weights={"kd_loss": 1.0}, temperature=1.0)
    total.backward()
    logits = given.logits.requires_grad_()
    kd_loss(logits, targets, 1.0).sum.backward()
    torch.testing.assert_close(padded.grad[:, :C], logits.grad)
    assert not padded.grad[:, C:].any()


def test_another_ignore_index_and_narrow_labels():
    given = case()
    labels = given.labels.where(given.labels >= 0, 200).to(torch.uint8)
    total, terms = fused_losses(
        given.logits, None, labels, weights={"student_loss": 2.0}, temperature=1.0, ignore_index=200
    )
    wanted = F.cross_entropy(given.logits, given.labels, reduction="sum")
    torch.testing.assert_close(total, 2 * wanted)
    assert terms["student_loss"].count == (given.labels >= 0).sum()
    torch.testing.assert_close(wanted, student_loss(given.logits, given.labels).sum)


class OwnTargets(SoftTargets):
    def num_rows(self):
        return P

    def top_class(self):
        raise NotImplementedError

    def label_log_p(self, labels):
        raise NotImplementedError


def test_refusals():
    given = case()
    logits, targets = given.logits, encoded(given.teacher, 3)

    def run(logits=logits, targets=targets, labels=given.labels, names=("kd_loss",), **settings):
        weights = dict.fromkeys(names, 1.0)
        fused_losses(
            logits, targets, labels, **{"weights": weights, "temperature": 1.0, **settings}
        )

    with pytest.raises(UsageError, match=r"'mse_logits' .*Known: jensen_shannon, kd_loss"):
        run(names=["kd_loss", "mse_logits"])
    with pytest.raises(UsageError, match=r"no loss is given.*Known: jensen_shannon"):
        run(names=[])
    with pytest.raises(UsageError, match="'kd_loss' needs soft targets"):
        run(targets=None)
    with pytest.raises(UsageError, match="'student_loss' needs labels"):
        run(labels=None, names=["student_loss"])
    with pytest.raises(UsageError, match="positive number"):
        run(temperature=0)
    with pytest.raises(UnsupportedTargetsError, match="cannot give targets at temperature 3"):
        run(temperature=3.0)
    with pytest.raises(UnsupportedTargetsError, match="kd_loss cannot be computed on OwnTargets"):
        run(targets=OwnTargets(num_positions=torch.ones(P), num_classes=C))
    with pytest.raises(DataError, match=r"11 classes, the teacher's targets 5:"):
        run(targets=encoded(given.teacher[:, :5]))
    with pytest.raises(DataError, match="3 positions, the teacher's targets 13"):
        run(rows=torch.tensor([0, 1, 2]))
    with pytest.raises(DataError, match=r"flat .*\(1, 13, 11\)"):
        run(logits=logits[None])
    with pytest.raises(DataError, match=r"torch\.int64, through which no gradient"):
        run(logits=logits.long())
    with pytest.raises(DataError, match=r"logits \(3, 11\) with labels \(13,\)"):
        run(names=["student_loss"], rows=torch.tensor([0, 1, 2]))
    with pytest.raises(DataError, match="label at position 1 is 11, "):
        run(names=["student_loss"], labels=given.labels.index_fill(0, torch.tensor(1), 11))
