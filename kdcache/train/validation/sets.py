"""Validation of a student: whole sets, each scored by its inference pipeline.

Where several ranks have the whole student each (DDP), sets are dealt to them: a set is scored by
one rank, from the user's own unsharded loader, and all ranks are told its scores. The module's
hooks call what stands here; Lightning sees a loader of names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn

from kdcache.data.batch.mapping import Mapped
from kdcache.data.samples.named_samples import with_named_samples
from kdcache.data.samples.unreadable import LOST_WORKER, lost_worker
from kdcache.errors import KdcacheError, UsageError, WorkerLostError, suggest
from kdcache.train.interruption.randomness import random_state, restore_random_state
from kdcache.train.pipelines import RESULT, pipeline_of, run_pipeline
from kdcache.train.pipelines.built_in import BuiltInPipeline
from kdcache.train.pipelines.distance import DistancePipeline
from kdcache.train.validation.first_batches import FirstBatches, first_batches
from kdcache.train.validation.ranks import (
    Meeting,
    can_work_apart,
    restore_buffers,
    take_buffers_of_first_rank,
)

Scores = dict[str, dict[str, float]]
"""Set -> what its pipeline returned."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ValidationSet:
    """A validation set whose targets are cached.

    A pipeline of the user's own gets ``loader``, and a second pass over ``joined`` adds the
    distance to the teacher; a built-in one gets ``joined``, which is all it takes.

    Attributes:
        loader: the user's own batches.
        joined: the same samples with their targets; None: they are not cached.
    """

    loader: Any
    joined: Any | None = None


@dataclass(kw_only=True)
class _Share:
    """What one rank found in one validation.

    Attributes:
        scores: of its sets.
        lower_bounds: set -> which of these are lower bounds.
        failure: what ended its work; the others raise it too.
    """

    scores: Scores = field(default_factory=dict)
    lower_bounds: dict[str, tuple[str, ...]] = field(default_factory=dict)
    failure: KdcacheError | None = None


class Validation:
    """Validation sets, their pipelines, and the latest scores.

    One validation is ``begin``, ``score`` for each name of ``names``, ``finish``.

    Args:
        sets: name -> loader of the user's own batches, or of joined ones; or a
            :class:`ValidationSet` of both.
        pipelines: name -> inference pipeline, or the name of a built-in one; accuracy where there
            is none.
        batch: the run's mapping.
        temperature: the run's.

    Attributes:
        scores: set -> numbers of its last validation, equal on all ranks.
        lower_bounds: names of the logged scores (``<set>_<number>``) that are lower bounds.
        parts: set -> how much of it is scored, in words, where that is not all.

    Raises:
        UsageError: there is a pipeline for no set, or an object that is none.
    """

    def __init__(
        self,
        sets: Mapping[str, Any],
        pipelines: Any,
        *,
        batch: Mapped,
        temperature: float,
    ) -> None:
        self._sets = {
            name: one if isinstance(one, ValidationSet) else ValidationSet(loader=one)
            for name, one in sets.items()
        }
        if not isinstance(pipelines, Mapping):
            raise UsageError(
                "pipelines are a mapping from validation sets to their pipelines, such as "
                f"{{{next(iter(self._sets), 'val')!r}: 'accuracy'}}, not {pipelines!r:.100}."
            )
        unknown = next((name for name in pipelines if name not in self._sets), None)
        if unknown is not None:
            raise UsageError(
                f"there is a pipeline for {unknown!r}, and no such validation set; the sets are "
                f"{', '.join(self._sets) or 'none'}."
            )
        self._pipelines = {
            name: pipeline_of(pipelines.get(name), name, batch, temperature) for name in sets
        }
        # Made once: workers that persist belong to a loader.
        self._named = {
            name: with_named_samples(one.loader, name)
            for name, one in self._sets.items()
            if one.joined is None and isinstance(self._pipelines[name], BuiltInPipeline)
        }
        self._distance = DistancePipeline(batch, temperature=temperature)
        self.scores: Scores = {}
        self.lower_bounds: tuple[str, ...] = ()
        self.parts: dict[str, str] = {}
        self._trainer: pl.Trainer | None = None
        self._limit: int | float = 1.0
        self._meeting = Meeting()
        self._is_dealt = False
        self._share = _Share()
        self._error: Exception | None = None
        self._own_buffers: list[Tensor] = []

    def __bool__(self) -> bool:
        """Whether there is any set."""
        return bool(self._sets)

    @property
    def results(self) -> dict[str, str]:
        """Logged name of each set's result -> "min" or "max", whichever is better."""
        return {
            f"{name}_{RESULT}": getattr(pipeline, "mode", "max")
            for name, pipeline in self._pipelines.items()
        }

    def check_result(self, logged: str) -> None:
        """Raise UsageError for a name under which no set's result is logged."""
        if logged not in self.results:
            raise UsageError(
                f"monitor {logged!r} is no training loss (train_<loss>), and no result of a "
                f"validation set. {suggest(logged, [*self.results, 'train_final_loss'])}"
            )

    def names(self, trainer: pl.Trainer) -> Names:
        """The sets that this rank scores; on each rank as many items, so some may be None."""
        self._take_limit(trainer)
        names: list[str | None] = list(self._sets)
        if not can_work_apart(trainer):
            return Names(names)
        rank, size = trainer.global_rank, trainer.world_size
        return Names([*names, *[None] * (-len(names) % size)][rank::size])

    def _take_limit(self, trainer: pl.Trainer) -> None:
        """``limit_val_batches`` is of each set's batches; Lightning would count sets by it."""
        limit = trainer.limit_val_batches
        if trainer is not self._trainer:
            self._trainer, self._limit, self.parts = trainer, 1.0, {}
        if type(limit) is int or limit != 1.0:
            self._limit = limit
            trainer.limit_val_batches = 1.0
        for name, one in self._sets.items():
            part = first_batches(one.loader, self._limit, name)
            if isinstance(part, FirstBatches):
                self.parts[name] = str(part)

    def begin(self, trainer: pl.Trainer, student: nn.Module) -> None:
        """All ranks are here together, before any scores."""
        self._share, self._error = _Share(), None
        self._is_dealt = bool(self) and can_work_apart(trainer)
        if self._is_dealt:
            self._meeting.prepare()
            self._own_buffers = take_buffers_of_first_rank(student)

    def score(self, name: str | None, student: nn.Module) -> None:
        """Score a student on one whole set, without effect on the training's random numbers.

        Raises:
            Exception: what the pipeline raises; where sets are dealt, ``finish`` raises it, so
                that no rank waits for one that has failed.
        """
        if name is None or self._share.failure is not None:
            return
        if not isinstance(name, str):
            raise UsageError(
                "validation sets go to StudentModule(validation={name: loader}), not to the "
                "Trainer: each is scored as a whole by its inference pipeline."
            )
        before = random_state()
        try:
            self._score_told(name, student)
        except Exception as error:
            if not self._is_dealt:
                raise
            self._error = error
            self._share.failure = (
                error
                if isinstance(error, KdcacheError)
                else KdcacheError(
                    f"the validation set {name!r} was not scored: its pipeline, "
                    f"{type(self._pipelines[name]).__name__}, raised {type(error).__name__}: "
                    f"{error}. It ran in another process, whose output has the traceback."
                )
            )
        finally:
            restore_random_state(before)

    def _score_told(self, name: str, student: nn.Module) -> None:
        """Score, and name the set whose loader loses a worker."""
        try:
            self._score(name, student)
        except LOST_WORKER as error:
            workers = getattr(self._sets[name].loader, "num_workers", 0)
            lost = lost_worker(error, workers, f"of validation set {name!r}")
            if lost is None:
                raise
            raise WorkerLostError(lost) from error

    def _score(self, name: str, student: nn.Module) -> None:
        pipeline, found = self._pipelines[name], self._sets[name]
        is_ours = isinstance(pipeline, BuiltInPipeline)
        loader = found.joined if is_ours else found.loader
        loader = self._named[name] if loader is None else loader
        loader = first_batches(loader, self._limit, name)
        results = run_pipeline(pipeline, name, student, loader)
        bounds = set(getattr(pipeline, "lower_bounds", ()))
        if found.joined is not None and not is_ours:
            joined = first_batches(found.joined, self._limit, name)
            distance = self._distance.run_inference_pipeline(student, joined)
            del distance[RESULT]
            _check_distinct(results, distance, name, pipeline)
            results |= distance
            bounds |= self._distance.lower_bounds
        self._share.scores[name] = results
        self._share.lower_bounds[name] = tuple(f"{name}_{number}" for number in sorted(bounds))

    def finish(self, student: nn.Module) -> dict[str, float]:
        """Tell all ranks the scores; they raise together where one has failed.

        Returns:
            ``<set>_<number>`` -> value of every set that was scored, equal on all ranks.
        """
        shares = [self._share]
        if self._is_dealt:
            restore_buffers(student, self._own_buffers)
            shares = self._meeting.gather(self._share)
        if self._error is not None:
            raise self._error
        for share in shares:
            if share.failure is not None:
                raise share.failure
        found = {name: one for share in shares for name, one in share.scores.items()}
        bounds = {name: one for share in shares for name, one in share.lower_bounds.items()}
        self.lower_bounds = tuple(b for name in self._sets for b in bounds.get(name, ()))
        scored = {name: found[name] for name in self._sets if name in found}
        self.scores = {
            name: {**self.scores, **scored}[name]
            for name in self._sets
            if name in scored or name in self.scores
        }
        return {
            f"{name}_{number}": value
            for name, numbers in scored.items()
            for number, value in numbers.items()
        }


def _check_distinct(
    results: Mapping[str, float], distance: Mapping[str, float], name: str, pipeline: Any
) -> None:
    both = sorted(results.keys() & distance.keys())
    if both:
        raise UsageError(
            f"the pipeline of {name!r}, {type(pipeline).__name__}, returned {', '.join(both)}, and "
            "so is called what is computed beside it from the cached targets of that set. Neither "
            "was logged; return it under another name."
        )


class Names:
    """Names of validation sets, one a step; None where there is nothing to do.

    No DataLoader, whose items ranks would share out; and without a length, since Lightning warns
    of one that is 0.
    """

    def __init__(self, names: Sequence[str | None]) -> None:
        self._names = names

    def __iter__(self) -> Iterator[str | None]:
        return iter(self._names)
