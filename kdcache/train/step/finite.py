"""Whether the objective stays finite, without making the host wait for the device at every step.

Losses are noted as they are, on their device; they are read together, at steps whose values
Lightning reads for its loggers anyway, before a validation and at the end of an epoch. On the CPU,
where there is nothing to wait for, that is every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdcache.errors import DataError

_REVERSE_KL = "reverse_kl"
_REVERSE_KL_UNDEFINED = (
    "reverse_kl, KL(student || teacher), is infinite where the teacher gives a class no "
    "probability (a mask of -inf, or a probability of 0) and the student gives it some: it is "
    "undefined there, at any learning rate. kd_loss, jensen_shannon and total_variation are "
    "finite there; or let the student mask the same classes."
)

# Notes are read together after as many, however rarely anything is logged.
_MAX_NOTES = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Note:
    """The losses of one batch.

    Attributes:
        epoch: counted from 0, as in checkpoints' names.
        step: optimiser steps before it, as in ``metrics.csv``.
        total: scalar, what is minimised.
        losses: name -> scalar, unweighted.
    """

    epoch: int
    step: int
    total: Tensor
    losses: Mapping[str, Tensor]

    def __str__(self) -> str:
        """``nan in step 12 of epoch 1 (both from 0): kd_loss nan, student_loss 1.25``."""
        values = ", ".join(f"{name} {float(value):.4g}" for name, value in self.losses.items())
        where = f"step {self.step} of epoch {self.epoch} (both from 0)"
        return f"{float(self.total)} in {where}: {values}"


class FiniteObjective:
    """Notes of the latest batches, until they are read."""

    def __init__(self) -> None:
        self._notes: list[Note] = []

    def note(self, note: Note) -> None:
        """Remember a batch; nothing is read."""
        self._notes.append(note)

    def is_due(self, *, step: int, log_every: int, waits: bool) -> bool:
        """Whether to read after a step.

        Args:
            step: optimiser steps so far.
            log_every: steps after which Lightning reads values for loggers; 0: never.
            waits: whether reading would wait for a device, or for other processes.
        """
        is_logged = log_every > 0 and step % log_every == 0
        return not waits or is_logged or len(self._notes) >= _MAX_NOTES

    def read(self) -> Note | None:
        """The first note whose total is not finite; all are forgotten. One wait for the device."""
        notes, self._notes = self._notes, []
        if not notes:
            return None
        # Stacked first: one copy from the device, whatever the number of notes.
        is_finite = torch.stack([note.total for note in notes]).isfinite().tolist()
        return next((note for note, fine in zip(notes, is_finite, strict=True) if not fine), None)


def check_weights(student: nn.Module) -> None:
    """Raise DataError for trained weights that are not finite: no later loss has seen them."""
    bad = [
        name
        for name, weights in student.named_parameters()
        if weights.requires_grad and not bool(weights.detach().isfinite().all())
    ]
    if bad:
        raise DataError(
            f"after the last step {len(bad)} of the student's parameters are NaN or infinite "
            f"({', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}). No student was saved. A "
            "lower learning rate or trainer.gradient_clip_val helps."
        )


def _is_undefined(note: Note) -> bool:
    """Whether reverse KL alone is infinite: the teacher gives a class no probability at all."""
    bad = {name for name, value in note.losses.items() if not bool(value.isfinite())}
    return bad == {_REVERSE_KL} and bool(note.losses[_REVERSE_KL].isposinf())


def non_finite_error(note: Note | None, precision: object) -> DataError:
    """What happened, and what helps.

    Args:
        note: the first bad one; None where only another process has one.
        precision: the Trainer's.
    """
    what = "not finite on another process, whose message says more" if note is None else str(note)
    if note is not None and _is_undefined(note):
        return DataError(f"the objective is {what}. No student was saved. {_REVERSE_KL_UNDEFINED}")
    text = (
        f"the objective is {what}. No student was saved. Where losses grew before, a lower "
        "learning rate or trainer.gradient_clip_val helps; in the first steps, look for NaN in "
        "the inputs and for infinite logits."
    )
    if str(precision).startswith("16"):
        text += (
            f" Precision {precision} overflows at 65,504; its gradient scaler mends gradients, "
            "never a loss. trainer.precision bf16-mixed or 32-true has the range."
        )
    return DataError(text)
