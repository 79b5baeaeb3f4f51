"""What one evaluation of an objective needs beside the batch, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from kdcache.errors import UsageError
from kdcache.losses.labels import STUDENT_LOSS
from kdcache.losses.loss_sum import LossSum

Count = Tensor | float
"""A number, or a scalar tensor that is not waited for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StepCounts:
    """What the losses of one optimiser step are divided by: sums over its batches and ranks.

    Attributes:
        positions: valid positions, for losses on soft targets.
        labelled: those of them that have a label, for ``student_loss``; None: nobody counted them.
        batches: for losses that the student returns, each a mean already.
    """

    positions: Count
    labelled: Count | None
    batches: Count

    def of(self, name: str) -> Count:
        """What a built-in loss is divided by.

        Raises:
            UsageError: it counts labelled positions, and nobody did.
        """
        if name != STUDENT_LOSS:
            return self.positions
        if self.labelled is None:
            raise UsageError(
                f"the loss {name!r} is divided by the labelled positions of the whole step, which "
                "the given StepCounts leave out. Give StepCounts(labelled=...), or no counts where "
                "the step is one batch."
            )
        return self.labelled


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """An objective on one batch.

    Attributes:
        total: scalar to minimise, with its graph.
        terms: name -> loss of this batch, unweighted and without a graph, to be logged.
    """

    total: Tensor
    terms: Mapping[str, LossSum]


def share(coefficient: float, count: Count) -> Count:
    """What one position, label or batch weighs: coefficient / count, and count at least 1."""
    if isinstance(count, Tensor):
        return coefficient / count.clamp(min=1)
    return coefficient / max(count, 1)
