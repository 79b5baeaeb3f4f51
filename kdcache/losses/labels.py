"""Cross entropy on the labels: the one built-in loss that does not see the teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.errors import DataError, UsageError
from kdcache.losses.loss_sum import LossSum
from kdcache.losses.precision import autocast_off, widen

IGNORE_INDEX = -100
"""The label of a position without one: PyTorch's own default."""


STUDENT_LOSS = "student_loss"
"""The name of this loss among the coefficients."""


def student_loss(
    student_logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX
) -> LossSum:
    """Cross entropy of the student on the labels, at temperature 1.

    Args:
        student_logits: (P, C), any float dtype; computed in float32 (float64 stays).
        labels: (P,) integer class numbers, or ``ignore_index``.
        ignore_index: the label of positions that have none.

    Returns:
        Nats, summed over the labelled positions; ``count`` is how many they are.

    Raises:
        DataError: labels of another shape or type, or (read on the CPU only, since a look at a
            CUDA tensor would wait for the device: collation checks it before) out of range.
    """
    labels = usable_labels(labels, student_logits.shape, ignore_index)
    with autocast_off(student_logits):
        total = F.cross_entropy(
            widen(student_logits), labels, ignore_index=ignore_index, reduction="sum"
        )
    return LossSum(sum=total, count=(labels != ignore_index).sum())


def usable_labels(
    labels: Tensor,
    shape: torch.Size,
    ignore_index: int = IGNORE_INDEX,
    num_positions: int | None = None,
) -> Tensor:
    """The labels as int64; DataError where cross entropy cannot take them.

    Args:
        labels: (P,) integer class numbers, or ``ignore_index``.
        shape: of the student's logits, (rows, C).
        ignore_index: the label of positions that have none.
        num_positions: how many of the rows are valid positions; None: all.
    """
    positions = shape[:1] if num_positions is None else (num_positions,)
    if len(shape) != 2 or labels.shape != positions:
        raise DataError(
            f"cross entropy takes logits (P, C) and one label for each position, not logits "
            f"{(*positions, *shape[1:])} with labels {tuple(labels.shape)}. Name other labels "
            "(batch.labels), or apply the mask to both."
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(
            f"the labels are {labels.dtype}, not class numbers. Multi-label and soft labels are "
            "not supported: return a student_loss of your own from the student."
        )
    labels = labels.long()
    if labels.device.type == "cpu":
        check_labels(labels, shape[-1], ignore_index)
    return labels


def no_labels(problem: str = "") -> UsageError:
    """The error for cross entropy where there are no labels, or none that can be used."""
    unusable = f"those of the batch cannot be used: {problem}"
    return UsageError(
        f"the loss {STUDENT_LOSS!r} needs labels, and "
        f"{unusable if problem else 'the batch has none'}. Say where they are (batch.labels), "
        "return a student_loss from the student, or drop its coefficient."
    )


def check_labels(labels: Tensor, num_classes: int, ignore_index: int = IGNORE_INDEX) -> None:
    """Raise DataError for the first label that is neither a class nor ``ignore_index``.

    Args:
        labels: (P,) integer, on the CPU.
        num_classes: C.
        ignore_index: the label of positions that have none.
    """
    wrong = ((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)
    if bool(wrong.any()):
        position = int(wrong.nonzero()[0])
        raise DataError(
            f"the label at position {position} is {int(labels[position])}, but the student has "
            f"the classes 0 to {num_classes - 1}. {int(wrong.sum())} of {len(labels)} labels are "
            f"out of range. Positions without a label carry {ignore_index} "
            "(batch.ignore_index says another number that marks none)."
        )
