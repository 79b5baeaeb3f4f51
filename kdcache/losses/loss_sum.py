"""A loss as its two parts, so that any window of micro-batches and ranks averages exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class LossSum:
    """A sum over positions and how many there were.

    Sums and counts add; means do not: the mean of two micro-batches' means weighs a position of
    the shorter one more.

    Attributes:
        sum: scalar, float32 (float64 where the student's logits are), with the graph.
        count: scalar int64, positions summed over; not all losses of a batch count the same ones.
    """

    sum: Tensor
    count: Tensor

    @classmethod
    def over(cls, values: Tensor) -> LossSum:
        """The sum of (P,) values of P positions; 0 with a graph where P is 0."""
        # full() fills on the device: a copied Python number would wait for it.
        count = torch.full((), len(values), dtype=torch.int64, device=values.device)
        return cls(sum=values.sum(), count=count)

    def mean(self) -> Tensor:
        """Scalar: mean over the positions; 0, still with its graph, where there is none."""
        return self.sum / self.count.clamp(min=1)

    def detach(self) -> LossSum:
        """The same without a graph."""
        return LossSum(sum=self.sum.detach(), count=self.count)

    def __add__(self, other: LossSum) -> LossSum:
        return LossSum(sum=self.sum + other.sum, count=self.count + other.count)
