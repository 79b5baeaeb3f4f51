"""Distances between raw logits, one value for each position; no temperature.

A class that the teacher masks (-inf) has no logit to match and is left out on both sides.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.targets import DenseTargets


def squared_error(student_logits: Tensor, targets: DenseTargets, _temperature: float) -> Tensor:
    """Squared difference of raw logits, mean over the unmasked classes, (P,).

    Args:
        student_logits: (P, C) float32 or float64.
        targets: P positions of C classes; no gradient flows.
    """
    teacher_logits, masked = _teacher(targets, student_logits.dtype)
    # A student that masks the same class has -inf there: it must not reach the square.
    difference = (student_logits - teacher_logits).masked_fill(masked, 0)
    num_classes = (~masked).sum(dim=-1).clamp(min=1)
    return difference.square().sum(dim=-1) / num_classes


def cosine_distance(student_logits: Tensor, targets: DenseTargets, _temperature: float) -> Tensor:
    """1 - cosine similarity of raw logits over the unmasked classes, (P,), in [0, 2].

    Torch's CosineEmbeddingLoss with target 1. Where a row is all zeros it is 1, with a gradient
    of up to 1e6: start the student's last layer away from zero.

    Args:
        student_logits: (P, C) float32 or float64.
        targets: P positions of C classes; no gradient flows.
    """
    teacher_logits, masked = _teacher(targets, student_logits.dtype)
    same = student_logits.new_ones(len(student_logits))
    student = student_logits.masked_fill(masked, 0)
    return F.cosine_embedding_loss(student, teacher_logits, same, reduction="none")


def _teacher(targets: DenseTargets, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    logits = targets.logits().detach().to(dtype)
    masked = logits == -torch.inf
    return logits.masked_fill(masked, 0), masked
