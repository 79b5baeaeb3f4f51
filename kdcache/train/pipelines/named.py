"""The built-in pipelines by their names, in experiment files and in Python."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from kdcache.data.batch.mapping import Mapped
from kdcache.errors import UsageError, suggest
from kdcache.train.pipelines.accuracy import AccuracyPipeline, PerplexityPipeline
from kdcache.train.pipelines.built_in import BuiltInPipeline
from kdcache.train.pipelines.error_rates import ErrorRatePipeline
from kdcache.train.pipelines.protocol import check_pipeline

PIPELINES: Mapping[str, Callable[..., BuiltInPipeline]] = {
    "accuracy": AccuracyPipeline,
    "top_5": functools.partial(AccuracyPipeline, top_k=5),
    "perplexity": PerplexityPipeline,
    "word_error_rate": functools.partial(ErrorRatePipeline, unit="word"),
    "character_error_rate": functools.partial(ErrorRatePipeline, unit="character"),
}
"""Name -> what makes it. The error rates need ``decode``."""

_NEED_MORE = ("word_error_rate", "character_error_rate")


def pipeline_of(given: Any, name: str, batch: Mapped, temperature: float) -> Any:
    """The pipeline of a set, from its name or itself; a built-in one bound to the run.

    Args:
        given: a name of ``PIPELINES``, or a pipeline; None: accuracy.
        name: of the validation set, for errors.
        batch: the run's mapping.
        temperature: the run's T.

    Raises:
        UsageError: there is no such pipeline, or the object is none.
    """
    found = "accuracy" if given is None else given
    if isinstance(found, str):
        if found in _NEED_MORE:
            raise UsageError(
                f"the pipeline {found!r} of {name!r} needs a decode, from logits to text: give "
                "kdcache.train.pipelines.ErrorRatePipeline(decode), or in an experiment file "
                "class_path and init_args."
            )
        if found not in PIPELINES:
            raise UsageError(
                f"there is no pipeline {found!r} for {name!r}. {suggest(found, PIPELINES)} One of "
                "your own is an object, or in an experiment file a class_path."
            )
        found = PIPELINES[found]()
    check_pipeline(found, name)
    return found.bound(batch, temperature) if isinstance(found, BuiltInPipeline) else found
