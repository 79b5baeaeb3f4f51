"""Several caches as one: the shards of all of them, verified and copied, and joined by key.

The sources may have been dumped from different datasets, by one teacher in one way. Keys must be
content or a field: numbers of different datasets mean different samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from kdcache.columns import KEY
from kdcache.errors import AlignmentError, MismatchError, UsageError
from kdcache.paths import local_path
from kdcache.store import (
    Cache,
    Manifest,
    View,
    ViewWriter,
    check_cache_path,
    difference_table,
    differences,
    open_cache,
)
from kdcache.store.care.adopt import adopt_shard

Progress = Callable[[str, int, int], None]


def merge_caches(
    sources: Sequence[str | Path], target: str | Path, *, progress: Progress | None = None
) -> Cache:
    """Make one cache of several; what a run that was interrupted has copied is kept.

    Args:
        sources: two or more complete caches, of one teacher, codec, batch mapping and precision.
        target: folder of the new cache.
        progress: called with (split, shards done, shards in all).

    Returns:
        The new cache: every split that any source has.

    Raises:
        UsageError: fewer than two sources, the target is one of them, or keys are numbers.
        MismatchError: the sources disagree; field by field.
        AlignmentError: two sources have a sample of the same key field.
        CacheError: a source is incomplete or damaged.
    """
    if len(sources) < 2:
        raise UsageError("merging takes two caches or more.")
    caches = [open_cache(source) for source in sources]
    path = local_path(target, "the merged cache")
    if any(path.resolve() == cache.path.resolve() for cache in caches):
        raise UsageError(f"{path} is one of the caches to merge. Give the new cache its own path.")
    check_cache_path(path)
    views = {
        split: [cache[split] for cache in caches if split in cache]
        for split in sorted({split for cache in caches for split in cache})
    }
    for split, found in views.items():  # everything is looked at before anything is written
        _check(split, found)
    for split, found in views.items():
        _merge_split(split, found, path, progress)
    return open_cache(path)


def _check(split: str, views: Sequence[View]) -> None:
    first = views[0]
    if first.manifest.key == "index":
        raise UsageError(
            f"split {split!r} of {first.cache} is keyed by number, and the numbers of two datasets "
            "mean different samples. Dump with key: content, or key: field:<path>."
        )
    for view in views:
        view.check_complete()
        found = differences(_comparable(first.manifest), _comparable(view.manifest))
        if found:
            table = difference_table(found, (str(first.cache), str(view.cache)))
            raise MismatchError(
                f"split {split!r} of {first.cache} and of {view.cache} cannot be merged:\n"
                f"{table}\nNothing was written."
            )
    if any(column.name == KEY for column in first.manifest.columns):
        keys = [view.read_shard(commit)[KEY] for view in views for commit in view.commits]
        every = np.concatenate(keys)
        repeated = len(every) - len(np.unique(every))
        if repeated:
            raise AlignmentError(
                f"split {split!r}: {repeated} samples stand in more than one of the caches (key "
                f"{first.manifest.key}). Their targets could not be told apart; dump without them."
            )


def _comparable(manifest: Manifest) -> dict[str, Any]:
    """What the targets of two views have in common if they may stand side by side."""
    of_data = ("dataset.", "collate")
    identity = {k: v for k, v in manifest.identity.items() if not k.startswith(of_data)}
    return {
        "num_classes": manifest.num_classes,
        "codec": dict(manifest.codec),
        "columns": {column.name: str(column.to_json()) for column in manifest.columns},
        "tables": dict(manifest.tables),
        "key": manifest.key,
        "fingerprint": dict(manifest.fingerprint),
        "identity": identity,
    }


def _merge_split(
    split: str, views: Sequence[View], target: Path, progress: Progress | None
) -> None:
    parts = [(view, commit) for view in views for commit in view.commits]
    sizes = [commit.stop - commit.start for _, commit in parts]
    ends = zip(sizes, itertools.accumulate(sizes), strict=True)
    first = views[0].manifest
    digests = "".join(view.digest for view in views)
    of_data = {
        "dataset.class": f"merged from {len(views)} caches",
        "dataset.probe": f"xxh3:{xxhash.xxh3_64_hexdigest(digests.encode())}",
    }
    size = max(view.manifest.samples_per_shard for view in views)
    *inner, (_, length) = ends
    # A stretch ends where a shard is shorter than the others: so every shard keeps its samples.
    earlier = tuple(end for samples, end in inner if samples != size)
    manifest = replace(
        first,
        num_samples=length,
        extended_from=earlier,
        earlier_data={},
        samples_per_shard=size,
        identity={**first.identity, **of_data},
        references=(),
    )
    tables: Mapping[str, Any] = views[0].read_tables()
    writer = ViewWriter.create(target, manifest, tables)
    pending = set(writer.pending())
    for shard, (view, commit) in enumerate(parts):
        if shard in pending:
            adopt_shard(writer, shard, view, commit)
        if progress is not None:
            progress(split, shard + 1, len(parts))
    writer.finish()
