"""Class labels beside logits and targets: which are classes at all, and which position has which.

The losses on labels stand in ``kdcache.losses.labels``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from kdcache.data.batch.selection import Selected
from kdcache.errors import DataError
from kdcache.losses.labels import IGNORE_INDEX
from kdcache.outputs import flatten_positions
from kdcache.targets import SoftTargets

MAX_NATS = 100.0
_ROUNDING = 1e-2


def is_class_numbers(labels: Any) -> bool:
    """Whether labels are a tensor (B, ...) of whole numbers; anything else is left to the user."""
    return isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dim() > 0


def check_labels(labels: Any, num_classes: int, samples: Sequence[int]) -> None:
    """Raise DataError unless labels are class numbers or the ignore index -100.

    Args:
        labels: (B, ...) of whole numbers; anything else is not looked at.
        num_classes: C.
        samples: (B,) numbers of the samples, for the error.
    """
    if not is_class_numbers(labels):
        return
    wrong = ((labels < 0) | (labels >= num_classes)) & (labels != IGNORE_INDEX)
    if bool(wrong.any()):
        at = tuple(wrong.nonzero()[0].tolist())
        is_row = len(labels) == len(samples)
        whose = f"sample {samples[at[0]]}" if is_row else f"one of the samples {list(samples)}"
        raise DataError(
            f"{whose} has the label {int(labels[at])}; the teacher has "
            f"{num_classes} classes, 0 to {num_classes - 1} ({IGNORE_INDEX} marks no label). "
            f"Where {int(labels[at])} marks none, such as void pixels, say so: batch: "
            f"{{ignore_index: {int(labels[at])}}}. Else correct the labels, or name them "
            "(batch.labels)."
        )


def flat_labels(labels: Any, shape: Sequence[int], mask: Tensor | None) -> Tensor | None:
    """Labels of the valid positions, (P,) int64; None where there is not one for each position.

    Args:
        labels: of the batch, of any kind.
        shape: of the positions, (B, ...).
        mask: (B, ...), nonzero where a position counts; None: all.
    """
    if not is_class_numbers(labels) or labels.shape != tuple(shape):
        return None
    return flatten_positions(labels, mask, trailing=0).long()


def label_problem(labels: Any, shape: Sequence[int]) -> str:
    """What labels are that ``flat_labels`` has no use for, and what is wanted; "" for none at all.

    Args:
        labels: of the batch, of any kind.
        shape: of the positions, (B, ...).
    """
    if labels is None:
        return ""
    wanted = f"wanted is one class number a position: whole numbers of shape {tuple(shape)}"
    if not isinstance(labels, Tensor):
        return f"they are {type(labels).__name__}, not a tensor; {wanted}"
    text = f"they are {labels.dtype} of shape {tuple(labels.shape)}; {wanted}"
    if labels.numel() == math.prod(shape):
        is_shape = labels.shape == tuple(shape)
        return f"{text} (labels.{'long()' if is_shape else f'reshape({tuple(shape)})'})"
    if labels.shape[:-1] == tuple(shape):
        return f"{text} (labels.argmax(-1), where they are one-hot)"
    return text


def check_class_axis(labels: Any, logits_shape: Sequence[int]) -> None:
    """Raise DataError for logits whose class axis cannot be the last one, or that have one class.

    Args:
        labels: of the batch, of any kind.
        logits_shape: (B, ..., C), the class axis moved to the end.
    """
    shape = tuple(logits_shape)
    if shape[-1] == 1:
        raise DataError(
            f"the model gave logits {shape}, of one class. A head with one logit, or one sigmoid "
            "for each label, is not supported: targets are distributions over classes."
        )
    if not is_class_numbers(labels) or labels.shape == shape[:-1]:
        return
    others = [n for n in range(1, len(shape) - 1) if shape[:n] + shape[n + 1 :] == labels.shape]
    if others:
        raise DataError(
            f"the labels are {tuple(labels.shape)} and the logits {shape}: not the last but axis "
            f"{others[0]} seems to hold the classes. Set batch.class_dim to it; or, where these "
            "labels are none of positions, name the inputs alone (batch: {inputs: [0]})."
        )


def check_single_label(labels: Any, num_rows: int, num_classes: int) -> None:
    """Raise DataError for labels (B, C) that name several classes of a sample.

    Args:
        labels: of the batch, of any kind; one-hot or soft labels, whose rows sum to 1, are fine.
        num_rows: B.
        num_classes: C.
    """
    if not isinstance(labels, Tensor) or labels.shape != (num_rows, num_classes):
        return
    is_share = bool(((labels >= 0) & (labels <= 1)).all())  # others are no marks of classes
    if is_share and bool((labels.sum(dim=-1) > 1 + _ROUNDING).any()):
        raise DataError(
            f"the labels are {tuple(labels.shape)}, and some row names several classes: "
            "multi-label heads are not supported. Targets are distributions over classes; name "
            "labels of one class a position (batch.labels), or none."
        )


def target_labels(selected: Selected, targets: SoftTargets) -> Tensor | None:
    """Labels beside soft targets, (P,) int64, without a model that would tell the positions.

    A mask is taken where it counts exactly the targets' positions; else all labels are, where
    they are as many.
    """
    labels, mask, counts = selected.labels, selected.mask, targets.num_positions
    if labels is None or not is_class_numbers(labels) or len(labels) != len(counts):
        return None
    if mask is not None and mask.shape == labels.shape and bool((per_row(mask) == counts).all()):
        return flat_labels(labels, labels.shape, mask)
    is_full = bool((counts == labels[0].numel()).all())
    return flat_labels(labels, labels.shape, None) if is_full else None


def per_row(mask: Tensor) -> Tensor:
    """How many positions of each row count, (B,) int64."""
    return mask.bool().reshape(len(mask), -1).sum(dim=1)


def label_nats(targets: SoftTargets, labels: Tensor) -> Tensor:
    """The cross-entropy of soft targets on every labelled position.

    The same function makes the sums that stand in the cache, so that what a codec does not keep
    (a label beyond the top k) counts alike at the dump and now.

    Args:
        targets: of P positions.
        labels: (P,) int64, -100 for no label.

    Returns:
        (labelled,) float64 nats, at most ``MAX_NATS`` each: a label in a class that the teacher
        masks would have infinitely many.
    """
    log_p = targets.label_log_p(labels)[labels != IGNORE_INDEX]
    return -log_p.double().clamp(min=-MAX_NATS)
