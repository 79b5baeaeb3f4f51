"""Students that differ in their seed alone: one row of a table, one column of a picture."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Score = TypeVar("Score")  # numbers of one student: a dataclass of the example's own


@dataclass(frozen=True, kw_only=True)
class Row(Generic[Score]):
    """Students that differ in their seed alone.

    Attributes:
        name: what they learned from.
        losses: loss name -> coefficient.
        scores: one a seed, in the seeds' order.
    """

    name: str
    losses: Mapping[str, float]
    scores: tuple[Score, ...]

    def mean(self, of: Callable[[Score], float]) -> float:
        """Over seeds."""
        return statistics.mean(map(of, self.scores))

    def deviation(self, of: Callable[[Score], float]) -> float | None:
        """Over seeds; None for a single one."""
        return deviation([of(score) for score in self.scores])


def deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None where there is a single value."""
    return statistics.stdev(values) if len(values) > 1 else None
