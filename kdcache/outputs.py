"""What a model returned: its logits with the class axis last, its own losses, its mask.

Used for teachers in stage one and students in stage two alike, so that both are read one way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class DeferredLogits:
    """Logits that are not computed yet: last hidden states, and the output layer that makes them.

    logits = cap(scale * (hidden @ weight.T + bias)), where cap(z) = softcap * tanh(z / softcap). A
    student may return them where logits are wanted; losses that can then go through them chunk by
    chunk, so that the whole (positions, C) never exists.

    Attributes:
        hidden: (..., D) last hidden states.
        weight: (C, D) of the output layer.
        bias: (C,), or None.
        scale: factor on the layer's output.
        softcap: bound of the logits' size, or None.

    Raises:
        DataError: the shapes do not fit together.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        fits = self.weight.dim() == 2 and self.hidden.dim() >= 2
        fits = fits and self.hidden.shape[-1] == self.weight.shape[-1]
        if not fits or (self.bias is not None and self.bias.shape != self.weight.shape[:1]):
            bias = "" if self.bias is None else f" and bias {tuple(self.bias.shape)}"
            raise DataError(
                f"hidden states {tuple(self.hidden.shape)} with weight {tuple(self.weight.shape)}"
                f"{bias} make no logits: (..., D), (C, D) and (C,) do."
            )

    @property
    def shape(self) -> torch.Size:
        """Of the logits, (..., C)."""
        return torch.Size((*self.hidden.shape[:-1], len(self.weight)))

    @property
    def device(self) -> torch.device:
        """Where the hidden states are."""
        return self.hidden.device

    def logits(self) -> Tensor:
        """All of them at once, (..., C), in the layer's dtype (autocast counts)."""
        logits = F.linear(self.hidden, self.weight, self.bias) * self.scale
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()


Logits = Tensor | DeferredLogits

OutputKind = Literal["logits", "log_probabilities", "probabilities"]
"""What a model's rows over classes are: raw, or with one constant a row, or exponentiated."""

# Sums of a row in half precision are off by half a percent, of rounded or truncated probabilities
# by several; logarithms of small ones by more. No raw logits come near either in row after row.
_SUM_TOLERANCE, _LOG_TOLERANCE = 5e-2, 5e-2
_PERCENT = 100.0
_MOST = 0.9
"""The share of rows that decides: a few may be padding, or were changed after the softmax."""


def kind_of(rows: Tensor, *, is_cut: bool = False) -> OutputKind:
    """What rows over classes are, by their values; waits for their device.

    Args:
        rows: (P, C), any float dtype. One class, or no row that says anything: ``logits``.
        is_cut: whether classes were left out, so that sums may be less than 1.

    Returns:
        ``probabilities`` for percentages as well.
    """
    rows = rows.detach().float()
    is_empty = (rows == 0).all(dim=-1) | rows.isneginf().all(dim=-1)  # of padding, often
    rows = rows[~is_empty]
    if rows.shape[-1] < 2 or not len(rows):
        return "logits"
    sums = rows.sum(dim=-1)
    is_one = (sums - 1).abs() <= _SUM_TOLERANCE
    is_one |= (sums / _PERCENT - 1).abs() <= _SUM_TOLERANCE
    if is_cut:
        is_one |= sums <= 1 + _SUM_TOLERANCE
    if bool(((rows >= 0).all(dim=-1) & is_one).float().mean() >= _MOST):
        return "probabilities"
    is_none = rows.logsumexp(dim=-1).abs() <= _LOG_TOLERANCE
    return "log_probabilities" if bool(is_none.all()) else "logits"


def are_between_0_and_1(rows: Tensor) -> bool:
    """Whether all values are, as of a sigmoid, and differ; waits for their device.

    Args:
        rows: (P, C), any float dtype.
    """
    if rows.shape[-1] < 2 or len(rows) < 2:
        return False
    least, most = rows.detach().float().aminmax()
    return bool((least >= 0) & (most <= 1) & (most - least > _SUM_TOLERANCE))


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelOutput:
    """One forward pass.

    Attributes:
        logits: (B, ..., C) with the class axis last.
        losses: name -> scalar loss, or plain number, that the model itself returned under "loss".
        chosen: where there were several values without names, which one the logits are, in words.
    """

    logits: Logits
    losses: Mapping[str, Tensor | float] = field(default_factory=dict)
    chosen: str = ""


def read_output(
    output: Any,
    class_dim: int = -1,
    num_classes: int | None = None,
    kind: OutputKind = "logits",
) -> ModelOutput:
    """Find the logits and losses in what a model returned.

    Args:
        output: logits (a tensor, or :class:`DeferredLogits`); a tuple or list whose first element
            is the logits; a mapping with "logits" and perhaps "loss" (a mapping of named losses,
            or one scalar, taken as ``student_loss``); or an object with ``.logits``.
        class_dim: the class axis of the logits (1 for (B, C, H, W)).
        num_classes: how many of the classes count, where a vocabulary was padded; None: all.
        kind: ``probabilities`` are taken the logarithm of; 0 becomes -inf, a class that is masked.

    Raises:
        DataError: no logits can be found, they have no such axis, or fewer classes.
    """
    logits, losses, chosen = output, None, ""
    if isinstance(output, Mapping):
        logits, losses = output.get("logits"), output.get("loss")
    elif isinstance(output, tuple | list):
        logits = output[0] if output else None
        chosen = _chosen(output) if len(output) > 1 else ""
    elif not isinstance(output, Logits):
        logits, losses = getattr(output, "logits", None), getattr(output, "loss", None)
    if not isinstance(logits, Logits):
        raise DataError(
            f"the model returned {type(output).__name__} without logits. Return a tensor, a tuple "
            "that begins with the logits, a dict with 'logits', or an object with .logits."
        )
    num_axes = len(logits.shape)
    if not -num_axes < class_dim < num_axes or class_dim == 0 or num_axes < 2:
        raise DataError(
            f"logits of shape {tuple(logits.shape)} have no class axis {class_dim}. Return (B, C) "
            "or (B, ..., C), or say batch.class_dim. Sigmoid and multi-label heads, one logit a "
            "label, are not supported yet."
        )
    if losses is None:
        losses = {}
    elif not isinstance(losses, Mapping):
        losses = {"student_loss": losses}
    if kind == "probabilities":
        logits = _logarithm(logits)
    return ModelOutput(
        logits=_last(logits, class_dim, num_classes), losses=dict(losses), chosen=chosen
    )


def _chosen(output: tuple[Any, ...] | list[Any]) -> str:
    first, *others = (
        str(tuple(value.shape)) if isinstance(value, Logits) else type(value).__name__
        for value in output
    )
    return f"the first of {len(output)} values, {first}; the others are {', '.join(others)}"


def _logarithm(logits: Logits) -> Tensor:
    if isinstance(logits, DeferredLogits):
        raise DataError(
            "hidden states with an output layer make logits; batch.output: probabilities is for "
            "models that return probabilities themselves."
        )
    return logits.float().log()


def _last(logits: Logits, class_dim: int, num_classes: int | None) -> Logits:
    """With the class axis last, and without the classes that only pad it."""
    if isinstance(logits, Tensor):
        logits = logits.movedim(class_dim, -1)
    elif class_dim not in (-1, len(logits.shape) - 1):
        raise DataError(
            f"hidden states with an output layer make logits with the classes last, not on axis "
            f"{class_dim} (batch.class_dim)."
        )
    if num_classes is None or logits.shape[-1] == num_classes:
        return logits
    if logits.shape[-1] < num_classes:
        raise DataError(
            f"the model has {logits.shape[-1]} classes, batch.num_classes says that "
            f"{num_classes} count. Correct the one that is wrong."
        )
    if isinstance(logits, Tensor):
        return logits[..., :num_classes]
    bias = None if logits.bias is None else logits.bias[:num_classes]
    return dataclasses.replace(logits, weight=logits.weight[:num_classes], bias=bias)


def count_positions(logits: Logits, mask: Tensor | None) -> Tensor:
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
