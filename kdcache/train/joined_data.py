"""The user's data joined with a cache: checked before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from kdcache.data.batch.mapping import Mapped
from kdcache.data.join.dataset import CachedDataset
from kdcache.data.join.probes import check_join
from kdcache.data.join.stream import CachedStream
from kdcache.data.samples import sources
from kdcache.data.samples.vocabulary import IDENTITY, check_vocabulary, find_vocabulary
from kdcache.store import Cache
from kdcache.store.format.origins import teacher_of
from kdcache.train.validation.sets import ValidationSet

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Joining:
    """How samples are joined; see :class:`kdcache.data.join.dataset.Join` for the fields."""

    batch: Mapped | Mapping[str, Any] | str | None = None
    local_copy: Path | None = None
    codecs: Collection[str] = ()
    fingerprint: Callable[[Any], Any] | None = None
    check_fingerprints: bool = True

    def join(
        self, cache: Cache, split: str, loader: sources.Loader
    ) -> CachedDataset | CachedStream:
        """A split of a cache with the samples of a loader."""
        sources.check_batched(loader)
        kind = CachedStream if sources.is_stream(loader.dataset) else CachedDataset
        return kind(loader.dataset, cache[split], collate_fn=loader.collate_fn, **vars(self))


@dataclass(frozen=True, kw_only=True, eq=False)
class JoinedData:
    """What a student trains on, and is scored on.

    Attributes:
        train: samples of the training loader with their targets.
        loader: the user's training loader.
        validation: set -> loader, and the joined one where the split was dumped.
    """

    train: CachedDataset | CachedStream
    loader: sources.Loader
    validation: dict[str, ValidationSet]


def join_data(
    data: Any, cache: Cache, joining: Joining, class_names: Sequence[str] = ()
) -> JoinedData:
    """Join a user's data with a cache, and probe that they belong together.

    Args:
        data: a DataLoader, or an object with loaders.
        cache: with the split ``train``, and any validation splits.
        joining: how; without checks of fingerprints nothing else is checked either, which is said.
        class_names: in class order; the data's own if empty.

    Raises:
        KdcacheError: they do not; see :func:`kdcache.data.join.probes.check_join`.
    """
    loader, validation = _loaders(data)
    joined = joining.join(cache, sources.TRAIN, loader)
    if joining.check_fingerprints:
        check_join(joined, tuple(class_names) or sources.class_names(data, loader.dataset))
        known = joined.view.manifest.identity.get(IDENTITY, "")
        check_vocabulary(known, find_vocabulary(data, loader))
    else:
        log.warning("allow_mismatch: samples are not checked against what the teacher saw")
    sets = {name: _validation_set(cache, name, one, joining) for name, one in validation.items()}
    return JoinedData(train=joined, loader=loader, validation=sets)


def _loaders(data: Any) -> tuple[sources.Loader, dict[str, sources.Loader]]:
    if isinstance(data, DataLoader):
        return data, {}
    sources.prepare(data)
    return sources.loaders(data)


def _validation_set(
    cache: Cache, name: str, loader: sources.Loader, joining: Joining
) -> ValidationSet:
    """A set, with its targets where the split was dumped."""
    if name not in cache:
        return ValidationSet(loader=loader, joined=None)
    dataset = joining.join(cache, name, loader)
    if joining.check_fingerprints:
        check_join(dataset)
    teachers = [teacher_of(cache[split].manifest.origin) for split in (name, sources.TRAIN)]
    if teachers[0] != teachers[1]:
        log.warning(
            "split %r of %s was dumped by another teacher than %r: %s, and %s. What its scores "
            "hold the student against is not what it learns from.",
            *(name, cache.path, sources.TRAIN, *teachers),
        )
    return ValidationSet(loader=loader, joined=dataset.loader_like(loader))
