"""Word and character error rate of what is read out of a student's logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchmetrics.text import CharErrorRate, WordErrorRate

from kdcache.data.batch.leaves import Path, describe, leaf
from kdcache.errors import DataError, UsageError, suggest
from kdcache.targets import DenseTargets, TopKTargets, rows_of
from kdcache.train.pipelines.built_in import BatchSpec, BuiltInPipeline
from kdcache.train.pipelines.distance import TeacherDistance
from kdcache.train.pipelines.passes import Metric, Scored

Decode = Callable[[Tensor], str]
"""From the logits of one sample's valid positions, (P, C), to its text."""

Read = Callable[[Tensor], str]
"""From one sample's label ids, (L,), negative where there is none, to its text."""

Unit = Literal["word", "character"]


class ErrorRatePipeline(BuiltInPipeline):
    """Errors (substitutions, insertions, deletions) per word or character of the true texts.

    Returns ``word_error_rate`` or ``character_error_rate`` (the ``inference_result``; smaller is
    better); for joined batches the distance to the teacher as in
    :class:`~kdcache.train.pipelines.AccuracyPipeline`, and ``teacher_word_error_rate`` or
    ``teacher_character_error_rate``, of its cached logits decoded alike. From top-k targets only
    what looks at the top class alone can be decoded (``decode.needs_only_top``).

    Args:
        decode: from logits to text, such as :class:`~kdcache.train.pipelines.GreedyCtc`.
        texts: where the true texts are in the user's batch: a path to one text for each sample,
            or to label ids that ``read`` makes texts of; or a function from a batch to texts.
        unit: what is counted.
        batch: where inputs and mask are; None: as in the run's ``batch``, or inferred.
        read: from label ids to text, such as :class:`~kdcache.train.pipelines.Characters`.
        temperature: T of ``kd_loss``; None: the run's, and without a run there is no ``kd_loss``.

    Raises:
        UsageError: there is no such unit, or something cannot be called.
    """

    mode: Literal["max", "min"] = "min"

    def __init__(
        self,
        decode: Decode,
        *,
        texts: Path | Callable[[Any], Sequence[str]] = "text",
        unit: Unit = "word",
        batch: BatchSpec = None,
        read: Read | None = None,
        temperature: float | None = None,
    ) -> None:
        super().__init__(batch, temperature)
        if unit not in get_args(Unit):
            raise UsageError(f"there is no unit {unit!r}. {suggest(str(unit), get_args(Unit))}")
        for name, value in (("decode", decode), ("read", read)):
            if value is not None and not callable(value):
                raise UsageError(f"{name} is a function to a text, not {value!r}.")
        self.decode, self.unit = decode, unit
        self._texts, self._read = texts, read

    def metrics(self) -> Sequence[Metric]:
        """See :class:`BuiltInPipeline`."""
        return [TeacherDistance(self.temperature), _ErrorRate(self)]

    def result(self, results: Mapping[str, float], label_problem: str) -> float:  # noqa: ARG002
        """See :class:`BuiltInPipeline`."""
        name = f"{self.unit}_error_rate"
        if name in results:
            return results[name]
        raise DataError(
            f"the true texts of a validation set have no {self.unit}, so that there is no rate of "
            "errors in them. Is this the leaf that holds them (texts)?"
        )

    def references(self, batch: Any, number: int) -> list[str]:
        """The true texts of a user's batch.

        Raises:
            DataError: they are not there, or no texts, or not one for each sample.
        """
        found: Any
        if callable(self._texts):
            found, where = self._texts(batch), "the function texts"
        else:
            found, where = leaf(batch, self._texts, "texts"), f"texts {str(self._texts)!r}"
        if isinstance(found, Tensor) and self._read is not None:
            found = [self._read(ids) for ids in found.cpu()]
        is_texts = isinstance(found, list | tuple) and all(isinstance(one, str) for one in found)
        if not is_texts or len(found) != number:
            how = "" if self._read else "; label ids need read, a function from ids to text"
            raise DataError(
                f"{where} gave {describe(found)} for {number} samples; wanted as many texts{how}."
            )
        return list(found)


class _ErrorRate:
    """The student's rate, and the teacher's beside it."""

    def __init__(self, pipeline: ErrorRatePipeline) -> None:
        self._pipeline = pipeline
        kind = WordErrorRate if pipeline.unit == "word" else CharErrorRate
        self._student, self._teacher = kind(), kind()
        self._has_teacher = False

    def add(self, scored: Scored) -> None:
        """See :class:`kdcache.train.pipelines.passes.Metric`; decoding waits for the device."""
        decode, output = self._pipeline.decode, scored.output
        true = self._pipeline.references(scored.batch, len(output.num_positions))
        self._student.update([decode(logits) for logits in output.by_sample()], true)
        only_top = bool(getattr(decode, "needs_only_top", False))
        teacher = scored.targets
        if isinstance(teacher, DenseTargets) or (isinstance(teacher, TopKTargets) and only_top):
            self._has_teacher = True
            self._teacher.update([decode(logits) for logits in _by_sample(teacher)], true)

    def results(self) -> dict[str, float]:
        """See :class:`kdcache.train.pipelines.passes.Metric`."""
        name = f"{self._pipeline.unit}_error_rate"
        if not self._student.update_called or not float(self._student.total):
            return {}
        found = {name: float(self._student.compute())}
        if self._has_teacher:
            found[f"teacher_{name}"] = float(self._teacher.compute())
        return found

    @property
    def lower_bounds(self) -> frozenset[str]:
        """See :class:`kdcache.train.pipelines.passes.Metric`."""
        return frozenset()


def _by_sample(targets: DenseTargets | TopKTargets) -> Iterator[Tensor]:
    """The teacher's logits of each sample, (P, C); log-probabilities of what top-k targets keep."""
    start = 0
    for number in targets.num_positions.tolist():
        part = rows_of(targets, slice(start, start + number))
        start += number
        if isinstance(part, DenseTargets):
            yield part.logits()
        else:
            shape = (number, part.num_classes)
            logits = torch.full(shape, -torch.inf, device=part.log_p.device)
            yield logits.scatter_(-1, part.ids.long(), part.log_p.float())
