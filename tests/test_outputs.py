"""What models return: logits found in every form, masks, the class axis."""

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.errors import DataError
from kdcache.outputs import DeferredLogits, count_positions, flatten_positions, read_output

LOGITS = torch.arange(12.0).reshape(4, 3)
Named = namedtuple("Named", ["logits", "hidden"])


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, "hidden states"),
        [LOGITS],
        Named(LOGITS, None),
        {"logits": LOGITS, "hidden": 1},
        {"logits": LOGITS, "loss": None},
        SimpleNamespace(logits=LOGITS),
        SimpleNamespace(logits=LOGITS, loss=None),
    ],
)
def test_logits_are_found(output):
    found = read_output(output)
    assert found.logits.data_ptr() == LOGITS.data_ptr()
    assert torch.equal(found.logits, LOGITS)
    assert found.losses == {}


@pytest.mark.parametrize("make", [dict, SimpleNamespace])
def test_losses_are_found(make):
    loss = torch.tensor(0.5)
    assert read_output(make(logits=LOGITS, loss=loss)).losses == {"student_loss": loss}
    assert read_output(make(logits=LOGITS, loss=0.0)).losses == {"student_loss": 0.0}
    named = {"ctc": loss, "penalty": 2}
    found = read_output(make(logits=LOGITS, loss=named)).losses
    assert found == named
    assert found is not named


def test_the_class_axis_goes_last():
    """(B, C, H, W): position (h, w) of sample b keeps its C logits together."""
    images = torch.randn(2, 5, 3, 4)
    logits = read_output(images, class_dim=1).logits
    assert logits.shape == (2, 3, 4, 5)
    assert torch.equal(logits[1, 2, 0], images[1, :, 2, 0])
    rows = flatten_positions(logits, None, trailing=1)
    assert torch.equal(rows[12 + 2 * 4 + 0], images[1, :, 2, 0])
    assert torch.equal(read_output(images, class_dim=-3).logits, logits)


@pytest.mark.parametrize("output", [None, 3, "logits", (), [], {}, {"scores": LOGITS}, (None,)])
def test_no_logits(output):
    with pytest.raises(DataError, match=rf"returned {type(output).__name__} without logits"):
        read_output(output)


@pytest.mark.parametrize(
    ("shape", "class_dim"),
    [((4,), -1), ((), -1), ((4,), 0), ((4, 3), 2), ((4, 3), 0), ((4, 3), -3)],
)
def test_no_class_axis(shape, class_dim):
    """One logit a row is a sigmoid head, and axis 0 is the batch."""
    with pytest.raises(DataError, match=rf"no class axis {class_dim}\..*multi-label"):
        read_output({"logits": torch.zeros(shape)}, class_dim)


def deferred(**settings):
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.randn(shape, generator=generator) for shape in ((2, 4, 6), (5, 6), (5,))]
    return DeferredLogits(
        **dict(zip(("hidden", "weight", "bias"), numbers, strict=True)) | settings
    )


def test_classes_that_only_pad_a_vocabulary_are_cut_off():
    images = torch.randn(2, 5, 3, 4)
    found = read_output(images, class_dim=1, num_classes=3).logits
    assert torch.equal(found, images[:, :3].movedim(1, -1))
    assert torch.equal(read_output(LOGITS, num_classes=3).logits, LOGITS)
    for student in (deferred(), deferred(bias=None), deferred(scale=2.0, softcap=0.5)):
        cut = read_output({"logits": student}, num_classes=3).logits
        assert cut.shape == (2, 4, 3)
        torch.testing.assert_close(cut.logits(), student.logits()[..., :3])


@pytest.mark.parametrize(
    ("output", "class_dim", "num_classes", "says"),
    [
        (LOGITS, -1, 4, r"has 3 classes, batch\.num_classes says that 4 count"),
        (deferred(), -1, 6, r"has 5 classes, batch\.num_classes says that 6 count"),
        (deferred(), 1, None, r"classes last, not on axis 1"),
    ],
)
def test_classes_that_are_not_there_are_not_cut_off(output, class_dim, num_classes, says):
    with pytest.raises(DataError, match=says):
        read_output(output, class_dim, num_classes)


def test_deferred_logits_are_what_they_say():
    student = deferred(scale=0.5, softcap=2.0)
    plain = 0.5 * (student.hidden @ student.weight.T + student.bias)
    torch.testing.assert_close(student.logits(), 2 * (plain / 2).tanh())
    assert student.shape == plain.shape


@pytest.mark.parametrize(
    "settings",
    [
        {"weight": torch.ones(5, 4)},
        {"weight": torch.ones(6)},
        {"hidden": torch.ones(6)},
        {"bias": torch.ones(6)},
        {"bias": torch.ones(5, 1)},
    ],
)
def test_shapes_that_make_no_logits_are_refused(settings):
    with pytest.raises(DataError, match=r"make no logits: \(\.\.\., D\), \(C, D\) and \(C,\) do"):
        deferred(**settings)


def test_positions_without_a_mask():
    assert count_positions(torch.zeros(4, 3), None).tolist() == [1, 1, 1, 1]
    assert count_positions(torch.zeros(2, 5, 6, 3), None).tolist() == [30, 30]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_mask_of_any_type(dtype):
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 1]]).to(dtype)
    logits = torch.arange(18.0).reshape(3, 3, 2)
    assert count_positions(logits, mask).tolist() == [2, 0, 2]
    rows = flatten_positions(logits, mask, trailing=1)
    assert torch.equal(rows, torch.stack([logits[0, 0], logits[0, 1], logits[2, 1], logits[2, 2]]))
    labels = torch.arange(9).reshape(3, 3)
    assert flatten_positions(labels, mask, trailing=0).tolist() == [0, 1, 7, 8]


def test_a_mask_with_one_value_a_sample():
    mask = torch.tensor([1, 0, 1, 1])
    assert count_positions(LOGITS, mask).tolist() == [1, 0, 1, 1]
    assert torch.equal(flatten_positions(LOGITS, mask, trailing=1), LOGITS[[0, 2, 3]])


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 5, 1), (5, 4)])
def test_a_mask_of_another_shape_is_refused(shape):
    with pytest.raises(DataError, match=r"mask has shape .*positions \(4, 5\)\..*batch\.mask"):
        count_positions(torch.zeros(4, 5, 3), torch.ones(shape))


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), left=st.booleans())
def test_padding_and_its_side_disappear(lengths, left):
    """Trap 20: padded left or right, the flat rows and counts are those of the bare sequences."""
    sequences = [torch.randn(length, 3) for length in lengths]
    logits, mask = torch.full((len(lengths), 5, 3), torch.nan), torch.zeros(len(lengths), 5)
    for i, sequence in enumerate(sequences):
        place = slice(5 - len(sequence), 5) if left else slice(0, len(sequence))
        logits[i, place], mask[i, place] = sequence, 1
    assert count_positions(logits, mask).tolist() == lengths
    assert torch.equal(flatten_positions(logits, mask, trailing=1), torch.cat(sequences))
