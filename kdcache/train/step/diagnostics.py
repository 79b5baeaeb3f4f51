"""What is logged of a step beside its losses: how far student and teacher are, and the gradient.

Computed only at steps whose values reach a logger.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kdcache.data.batch.forward import FlatOutput
from kdcache.errors import UsageError
from kdcache.targets import DenseTargets, SoftTargets, rows_of

DIFFERENCES = ("logit_diff", "prob_diff")
"""Names of what :func:`differences` gives."""

_CHUNK_NUMBERS = 1 << 22


@torch.no_grad()
def differences(
    output: FlatOutput, targets: SoftTargets | None, temperature: float
) -> dict[str, Tensor]:
    """Two means over all positions and classes, as Knowledge-Distillation-Toolkit logged them.

    Args:
        output: of the student.
        targets: of the same positions.
        temperature: T.

    Returns:
        ``logit_diff``, the mean squared difference of logits / T; ``prob_diff``, the mean
        absolute difference of probabilities at T; float32 scalars. Classes that the teacher masks
        are left out of the first. Nothing unless the targets are all C logits.
    """
    if not isinstance(targets, DenseTargets) or not output.num_rows:
        return {}
    squares, logits_seen, absolute = [], [], []
    # Chunk by chunk, so that no float32 copy of all (P, C) logits is made only to be logged.
    for rows, logits in output.chunks(max(1, _CHUNK_NUMBERS // output.num_classes)):
        teacher = rows_of(targets, rows).logits() / temperature
        student = logits.float() / temperature
        known = teacher > -torch.inf
        squares.append((student - teacher).where(known, 0).square().sum())
        logits_seen.append(known.sum())
        absolute.append((student.softmax(-1) - teacher.softmax(-1)).abs().sum())
    return {
        "logit_diff": torch.stack(squares).sum() / torch.stack(logits_seen).sum(),
        "prob_diff": torch.stack(absolute).sum() / (output.num_rows * output.num_classes),
    }


def gradient_norm(parameters: Iterable[nn.Parameter], order: float) -> Tensor:
    """The norm of all gradients as one vector; 0 where there is none.

    Args:
        parameters: after the backward pass.
        order: p of the p-norm; infinity is the largest entry.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, norm_type=order)
    # Of gradients that are sharded over ranks it is a DTensor.
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def check_norm(order: float | None) -> float | None:
    """The p of a norm as a float; UsageError where there is none of it."""
    if order is None:
        return None
    try:
        found = float(order)
    except (TypeError, ValueError):
        found = 0.0
    if not found > 0:
        raise UsageError(f"the norm of a gradient is a number above 0, or inf, not {order!r}.")
    return found
