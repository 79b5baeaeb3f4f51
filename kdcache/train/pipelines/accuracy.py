"""Pipelines on labels: accuracy, top-k accuracy, perplexity."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

from kdcache.errors import UsageError
from kdcache.train.pipelines.built_in import BatchSpec, BuiltInPipeline, nothing_to_score
from kdcache.train.pipelines.distance import AGREEMENT, TeacherDistance
from kdcache.train.pipelines.label_scores import (
    ACCURACY,
    CROSS_ENTROPY,
    PERPLEXITY,
    LabelScores,
    top_k_accuracy,
)
from kdcache.train.pipelines.passes import Metric

log = logging.getLogger(__name__)


class AccuracyPipeline(BuiltInPipeline):
    """Accuracy on labels; beside it the distance to the teacher where it is cached.

    Returns ``accuracy``, ``top_<k>_accuracy`` and ``cross_entropy`` (nats) over labelled
    positions; for joined batches ``teacher_kl``, ``kd_loss`` and ``teacher_agreement``, see
    :class:`~kdcache.train.pipelines.distance.TeacherDistance`, and the teacher's own numbers as
    ``teacher_accuracy``, ``teacher_top_<k>_accuracy`` and ``teacher_cross_entropy``, where its
    targets say them. ``inference_result`` is the top-k accuracy where k is given, else the
    accuracy; without labels the agreement.

    Args:
        batch: where inputs, labels and mask are; None: as in the run's ``batch``, or inferred.
        top_k: k, from 2 on; None: no top-k accuracy.
        temperature: T of ``kd_loss``; None: the run's, and without a run there is no ``kd_loss``.

    Raises:
        UsageError: ``top_k`` is no such number.
    """

    def __init__(
        self,
        batch: BatchSpec = None,
        *,
        top_k: int | None = None,
        temperature: float | None = None,
    ) -> None:
        super().__init__(batch, temperature)
        if top_k is not None and (type(top_k) is not int or top_k < 2):
            raise UsageError(
                f"top_k is how many classes a label may be among, from 2 on, not {top_k!r}. "
                "Leave it out for the accuracy alone."
            )
        self.top_k = top_k
        self._result = ACCURACY if top_k is None else top_k_accuracy(top_k)
        self._is_told = False

    def metrics(self) -> Sequence[Metric]:
        """See :class:`BuiltInPipeline`."""
        wanted = frozenset({ACCURACY, self._result, CROSS_ENTROPY})
        return [TeacherDistance(self.temperature), LabelScores(top_k=self.top_k, wanted=wanted)]

    def result(self, results: Mapping[str, float], label_problem: str) -> float:
        """See :class:`BuiltInPipeline`."""
        if self._result in results:
            return results[self._result]
        if AGREEMENT in results:
            if label_problem and not self._is_told:
                text = "there is no %s: labels are not used, %s. The result is %s with the teacher"
                log.warning(text, self._result, label_problem, AGREEMENT)
                self._is_told = True
            return results[AGREEMENT]
        missing = "no cached targets" if label_problem else "neither labels nor cached targets"
        raise nothing_to_score(label_problem, missing)


class PerplexityPipeline(BuiltInPipeline):
    """Perplexity on labels, the exp of the mean cross-entropy in nats over labelled positions.

    Returns ``perplexity`` (the ``inference_result``; smaller is better) and ``cross_entropy``; for
    joined batches the distance to the teacher as in :class:`AccuracyPipeline`, and
    ``teacher_perplexity`` and ``teacher_cross_entropy``.

    Args:
        batch: where inputs, labels and mask are; None: as in the run's ``batch``, or inferred.
        temperature: T of ``kd_loss``; None: the run's, and without a run there is no ``kd_loss``.
    """

    mode: Literal["max", "min"] = "min"

    def __init__(self, batch: BatchSpec = None, *, temperature: float | None = None) -> None:
        super().__init__(batch, temperature)

    def metrics(self) -> Sequence[Metric]:
        """See :class:`BuiltInPipeline`."""
        wanted = frozenset({PERPLEXITY, CROSS_ENTROPY})
        return [TeacherDistance(self.temperature), LabelScores(top_k=None, wanted=wanted)]

    def result(self, results: Mapping[str, float], label_problem: str) -> float:
        """See :class:`BuiltInPipeline`."""
        if PERPLEXITY in results:
            return results[PERPLEXITY]
        raise nothing_to_score(label_problem, "no label to be perplexed by")
