"""What a model returned: its logits with the class axis last, its own losses, its mask.

Used for teachers in stage one and students in stage two alike, so that both are read one way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdcache.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelOutput:
    """One forward pass.

    Attributes:
        logits: (B, ..., C) with the class axis last.
        losses: name -> scalar loss, or plain number, that the model itself returned under "loss".
    """

    logits: Tensor
    losses: Mapping[str, Tensor | float] = field(default_factory=dict)


def read_output(output: Any, class_dim: int = -1) -> ModelOutput:
    """Find the logits and losses in what a model returned.

    Args:
        output: a tensor; a tuple or list whose first element is the logits; a mapping with
            "logits" and perhaps "loss" (a mapping of named losses, or one scalar, taken as
            ``student_loss``); or an object with ``.logits``.
        class_dim: the class axis of the logits (1 for (B, C, H, W)).

    Raises:
        DataError: no logits can be found, or they have no such axis.
    """
    logits, losses = output, None
    if isinstance(output, Mapping):
        logits, losses = output.get("logits"), output.get("loss")
    elif isinstance(output, tuple | list):
        logits = output[0] if output else None
    elif not isinstance(output, Tensor):
        logits, losses = getattr(output, "logits", None), getattr(output, "loss", None)
    if not isinstance(logits, Tensor):
        raise DataError(
            f"the model returned {type(output).__name__} without logits. Return a tensor, a tuple "
            "that begins with the logits, a dict with 'logits', or an object with .logits."
        )
    if not -logits.dim() < class_dim < logits.dim() or class_dim == 0 or logits.dim() < 2:
        raise DataError(
            f"logits of shape {tuple(logits.shape)} have no class axis {class_dim}. Return (B, C) "
            "or (B, ..., C), or say batch.class_dim. Sigmoid and multi-label heads, one logit a "
            "label, are not supported yet."
        )
    if losses is None:
        losses = {}
    elif not isinstance(losses, Mapping):
        losses = {"student_loss": losses}
    return ModelOutput(logits=logits.movedim(class_dim, -1), losses=dict(losses))


def count_positions(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Valid positions of each sample, (B,) int64, on the logits' device.

    Args:
        logits: (B, ..., C).
        mask: (B, ...) of the positions' shape, nonzero where a position counts; None: all.

    Raises:
        DataError: the mask has another shape than the positions.
    """
    shape = logits.shape[:-1]
    if mask is None:
        return torch.full((shape[0],), shape[1:].numel(), device=logits.device)
    if mask.shape != shape:
        raise DataError(
            f"the mask has shape {tuple(mask.shape)}, the model's positions {tuple(shape)}. Name "
            "another mask (batch.mask), one value for each position of the logits."
        )
    return mask.bool().reshape(shape[0], -1).sum(dim=1)


def flatten_positions(values: Tensor, mask: Tensor | None, *, trailing: int) -> Tensor:
    """Rows of the valid positions, sample after sample.

    Args:
        values: (B, ..., *) with ``trailing`` axes that belong to a position (1 for logits).
        mask: (B, ...), nonzero where a position counts; None: all.
        trailing: axes kept.

    Returns:
        (P, *) with P the number of valid positions.
    """
    positions = values.dim() - trailing
    flat = values.reshape(-1, *values.shape[positions:])
    return flat if mask is None else flat[mask.bool().reshape(-1)]
