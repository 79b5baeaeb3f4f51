"""What the built-in pipelines have in common: they are bound to a run, and make one pass.

A pipeline that was made without a batch mapping or temperature gets the run's own from
``StudentModule``, as a copy: what the user made stays as it is.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from torch import nn

from kdcache.data.batch.mapping import Mapped
from kdcache.data.batch.section import parse_mapping
from kdcache.errors import DataError
from kdcache.train.pipelines.passes import Metric, score
from kdcache.train.pipelines.protocol import RESULT

BatchSpec = Mapped | Mapping[str, Any] | str | None


class BuiltInPipeline(ABC):
    """A pipeline of metrics.

    Args:
        batch: where inputs, labels and mask are; None: as in the run's ``batch``, or inferred.
        temperature: T of ``kd_loss``; None: the run's, and without a run there is no ``kd_loss``.

    Attributes:
        mode: whether a larger or a smaller result is better.
        lower_bounds: the results of the last run that are lower bounds of what they are called.
    """

    mode: Literal["max", "min"] = "max"

    def __init__(self, batch: BatchSpec, temperature: float | None) -> None:
        self._batch = batch
        self.mapping: Mapped = parse_mapping(batch, "student")
        self.temperature = temperature
        self.lower_bounds: frozenset[str] = frozenset()

    def bound(self, batch: Mapped, temperature: float) -> Self:
        """A copy that takes from a run what it was not given itself."""
        found = copy.copy(self)
        if self._batch is None:
            found.mapping = batch
        if self.temperature is None:
            found.temperature = temperature
        found.lower_bounds = frozenset()
        return found

    @abstractmethod
    def metrics(self) -> Sequence[Metric]:
        """New ones, for one pass."""

    @abstractmethod
    def result(self, results: Mapping[str, float], label_problem: str) -> float:
        """The one number that says how good the student is.

        Args:
            results: of all metrics.
            label_problem: what is wrong with the labels; empty where nothing is.

        Raises:
            DataError: the set does not have what it takes.
        """

    def run_inference_pipeline(self, model: nn.Module, data_loader: Any) -> dict[str, float]:
        """Score a model on a whole set, on the device it is on, in eval mode.

        Args:
            model: the student.
            data_loader: the user's batches, or joined ones.

        Returns:
            ``inference_result`` and what the class's docstring lists.

        Raises:
            AlignmentError: the student has other positions than the teacher had.
            DataError: the set does not have what the result is made of; or the student's logits
                are NaN or +inf.
        """
        metrics = self.metrics()
        label_problem = score(model, data_loader, self.mapping, metrics)
        results = {name: value for one in metrics for name, value in one.results().items()}
        bounds = frozenset[str]().union(*(one.lower_bounds for one in metrics))
        self.lower_bounds = bounds & results.keys()
        return {RESULT: self.result(results, label_problem), **results}


def nothing_to_score(label_problem: str, wanted: str) -> DataError:
    """The error for a set that lacks what a pipeline scores with."""
    why = f", and labels that cannot be used: {label_problem}" if label_problem else ""
    return DataError(
        f"a validation set has {wanted}{why}. There is nothing to score: name the labels "
        "(batch.labels), or give the set a pipeline of its own."
    )
