"""LossSum: windows of micro-batches average exactly."""

import functools
import operator

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.codecs import TopKCodec
from kdcache.losses import LossSum, kd_loss, student_loss


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5), seed=st.integers(0, 999))
def test_micro_batches_add_up_to_the_whole(lengths, seed):
    """Trap 3: value and gradient of any split, empty parts too, are those of the one batch."""
    generator = torch.Generator().manual_seed(seed)
    rows = sum(lengths)
    student, teacher = torch.randn(2, rows, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, 5, (rows,), generator=generator)
    student.requires_grad_()
    codec = TopKCodec(k=2, dtype="float32")

    def terms(part):
        columns = codec.encode(teacher[part], torch.zeros(0))
        targets = codec.decode(columns, torch.tensor([len(teacher[part])]), 5)
        return (
            kd_loss(student[part], targets, 2.0),
            student_loss(student[part], labels[part], ignore_index=-1),
        )

    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    parts = [terms(slice(a, a + n)) for a, n in zip(starts, lengths, strict=True)]
    for pieces, whole in zip(zip(*parts, strict=True), terms(slice(None)), strict=True):
        added = functools.reduce(operator.add, pieces)
        assert added.count == whole.count
        # Targets are float32 numbers, encoded with the part here and with all rows there.
        near = dict.fromkeys(("rtol", "atol"), 8 * torch.finfo(torch.float32).eps)
        torch.testing.assert_close(added.mean(), whole.mean(), **near)
        torch.testing.assert_close(
            torch.autograd.grad(added.mean(), student, retain_graph=True),
            torch.autograd.grad(whole.mean(), student, retain_graph=True),
            **near,
        )


def test_over_counts_positions():
    values = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    result = LossSum.over(values)
    assert (result.sum.item(), int(result.count), result.mean().item()) == (9, 3, 3)
    assert result.count.dtype == torch.int64
    result.mean().backward()
    assert torch.equal(values.grad, torch.full((3,), 1 / 3))


def test_nothing_is_zero_with_a_graph():
    values = torch.zeros(0, requires_grad=True)
    mean = LossSum.over(values).mean()
    assert mean == 0
    mean.backward()
    assert values.grad.shape == (0,)
