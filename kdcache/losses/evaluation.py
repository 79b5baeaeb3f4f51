"""What one evaluation of an objective needs beside the batch, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from kdcache.errors import UsageError
from kdcache.losses.divergences import DIVERGENCES
from kdcache.losses.labels import STUDENT_LOSS
from kdcache.losses.loss_sum import LossSum

Count = Tensor | float
"""A number, or a scalar tensor that is not waited for."""


Reduction = Literal["position_mean", "per_sample_sum"]
"""How divergences are averaged: over valid positions; or over samples, each the sum of its valid
positions, as torch's ``batchmean`` does with (B, P, C). The same where a sample is one position."""


def is_per_sample(name: str, reduction: Reduction) -> bool:
    """Whether a loss is divided by samples."""
    return reduction == "per_sample_sum" and name in DIVERGENCES


@dataclass(frozen=True, kw_only=True, eq=False)
class StepCounts:
    """What the losses of one optimiser step are divided by: sums over its batches and ranks.

    Attributes:
        positions: valid positions, for losses on soft targets.
        labelled: those of them that have a label, for ``student_loss``; None: nobody counted them.
        batches: for losses that the student returns, each a mean already.
        samples: for divergences with reduction ``per_sample_sum``; None: nobody counted them.
    """

    positions: Count
    labelled: Count | None
    batches: Count
    samples: Count | None = None

    def of(self, name: str, reduction: Reduction = "position_mean") -> Count:
        """What a built-in loss is divided by.

        Raises:
            UsageError: it counts labelled positions, or samples, and nobody did.
        """
        if is_per_sample(name, reduction):
            if self.samples is None:
                raise UsageError(
                    f"the loss {name!r} is divided by the samples of the whole step (reduction "
                    f"{reduction}), which the given StepCounts leave out. Give "
                    "StepCounts(samples=...), or no counts where the step is one batch."
                )
            return self.samples
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
