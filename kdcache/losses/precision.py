"""The precision that losses are computed in: float32 with autocast off.

float16 ends at 65,504, which logits and T**2 * loss exceed, and has no 1e-8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.errors import DataError


def widen(logits: Tensor) -> Tensor:
    """Logits in float32; float64 stays, so that a reference can be computed the same way.

    Raises:
        DataError: the numbers are not floating-point, so no gradient can reach the student.
    """
    check_floating(logits)
    return logits if logits.dtype == torch.float64 else logits.float()


def check_floating(logits: Tensor) -> None:
    """Raise DataError for numbers that are not floating-point."""
    if not logits.is_floating_point():
        raise DataError(
            f"the student's logits are {logits.dtype}, through which no gradient flows. Return "
            "the scores of the classes, not the predicted class."
        )


def autocast_off(logits: Tensor) -> torch.autocast:
    """A context in which operations on the device of ``logits`` keep their dtype."""
    return torch.autocast(logits.device.type, enabled=False)
