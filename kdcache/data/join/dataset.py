"""The join: the user's samples with the teacher's targets, by key, checked sample by sample.

What comes out of a DataLoader over it is ``JoinedBatch(batch, targets)``: the user's own batch,
made by the user's own collate function, and the soft targets of the same samples.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from kdcache.codecs import Codec, stored_codec
from kdcache.columns import FINGERPRINT, KEY, NUM_POSITIONS, Array
from kdcache.data.batch.labels import check_labels, per_row
from kdcache.data.batch.mapping import Mapped
from kdcache.data.batch.section import parse_mapping
from kdcache.data.join.collated import check_references
from kdcache.data.join.collation import check_collate
from kdcache.data.samples import sources
from kdcache.data.samples.fingerprint import ALGORITHM, TOKENS, FingerprintSource
from kdcache.data.samples.keys import CONTENT, FIELD, INDEX, KeyIndex, field_key
from kdcache.data.samples.mismatch import mismatch_error, missing_error
from kdcache.errors import AlignmentError, CacheCorruptedError, UsageError
from kdcache.paths import local_path
from kdcache.store import Cache, LocalCopy, View, open_cache, open_local_copy
from kdcache.targets import SoftTargets

Collate = Callable[[list[Any]], Any]
_COLLATED = 32


class JoinedBatch(NamedTuple):
    """A batch of the user's, and the teacher's targets for the same samples.

    Attributes:
        batch: whatever the user's collate function returned.
        targets: flat over the valid positions of its samples.
    """

    batch: Any
    targets: SoftTargets


@dataclass(frozen=True, kw_only=True, eq=False)
class JoinedSamples:
    """Samples on their way to collation.

    Attributes:
        indices: (B,) numbers in the user's dataset.
        samples: what the dataset returned.
        rows: (B,) their numbers in the cache.
        columns: the cache's rows for them.
    """

    indices: Sequence[int]
    samples: list[Any]
    rows: Array
    columns: Mapping[str, Array]

    def __getitem__(self, _: object) -> Any:
        raise UsageError(
            "joined samples need their own collation: DataLoader(joined, ..., "
            "collate_fn=joined.collate_fn), or joined.loader_like(loader)."
        )


class Join(ABC):
    """What joins samples with targets: a view, its codec, fingerprints and keys.

    :class:`CachedDataset` and :class:`kdcache.CachedStream` say where samples come from.

    Args:
        dataset: the user's.
        cache: path of the teacher cache; or the cache, or a view of it, opened.
        split: which split of the cache (ignored for a view).
        batch: which entries of a batch are inputs, labels and mask; as in the experiment file.
        collate_fn: the user's collate function; PyTorch's default if None.
        local_copy: folder of the local copy; the machine's default if None.
        codecs: class paths of codecs of your own that the cache may name.
        fingerprint: your own function from a sample to what was fingerprinted, where the dump
            used one.
        check_fingerprints: False joins samples that the teacher did not see. The one override;
            loud, and recorded by whoever trains.

    Raises:
        CacheMissingError, CacheIncompleteError, CacheCorruptedError: no trustworthy targets.
    """

    def __init__(
        self,
        dataset: Any,
        cache: str | Path | Cache | View,
        *,
        split: str = sources.TRAIN,
        batch: Mapped | Mapping[str, Any] | str | None = None,
        collate_fn: Collate | None = None,
        local_copy: str | Path | None = None,
        codecs: Collection[str] = (),
        fingerprint: Callable[[Any], Any] | None = None,
        check_fingerprints: bool = True,
    ) -> None:
        self.dataset = dataset
        opened = cache if isinstance(cache, View | Cache) else open_cache(cache)
        self.view = opened if isinstance(opened, View) else opened[split]
        self.mapping = parse_mapping(batch, "student").for_joining()
        self.check_fingerprints = check_fingerprints
        self.user_collate = collate_fn or default_collate
        self._folder = None if local_copy is None else local_path(local_copy, "local_copy")
        self._copy: LocalCopy | None = None
        self._index: KeyIndex | None = None
        # The override holds for collation as well: nothing is compared with the dump then.
        self._collated = 0 if check_fingerprints else _COLLATED
        self.codec = _with_tables(self.view, codecs)
        self.source = stored_source(self.view.manifest.fingerprint, fingerprint)
        self.view.check_complete()
        self._check_dataset()

    @abstractmethod
    def _check_dataset(self) -> None:
        """Raise a KdcacheError for a dataset that cannot be joined with this view."""

    @property
    def copy(self) -> LocalCopy:
        """The local copy; opened on first use in each process."""
        if self._copy is None:
            self._copy = open_local_copy(self.view, self._folder)
        return self._copy

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is spawned opens its own: nothing decoded travels through a pickle.
        return {**self.__dict__, "_copy": None, "_index": None}

    @property
    def num_classes(self) -> int:
        """C of the teacher."""
        return self.view.manifest.num_classes

    def join(self, numbers: Sequence[int], samples: list[Any]) -> JoinedSamples:
        """Samples with their rows of the cache.

        Args:
            numbers: (B,) theirs in the dataset or stream.
            samples: what it gave.

        Raises:
            FingerprintMismatchError: a sample is not what the teacher saw.
            AlignmentError: a sample has no targets.
        """
        fingerprints = self.source.of_each(samples, numbers, self.view.manifest.split)
        rows = self._rows(numbers, samples, fingerprints)
        columns = self.copy.take(rows)
        wrong = np.flatnonzero(columns[FINGERPRINT] != fingerprints)
        if self.check_fingerprints and wrong.size:
            at = int(wrong[0])
            raise mismatch_error(self, numbers[at], samples[at], int(rows[at]))
        return JoinedSamples(indices=numbers, samples=samples, rows=rows, columns=columns)

    def _rows(self, numbers: Sequence[int], samples: list[Any], fingerprints: Array) -> Array:
        key = self.view.manifest.key
        if key == INDEX:
            return _numbers(numbers)
        if self._index is None:
            stored = self.copy.column(FINGERPRINT if key == CONTENT else KEY)
            self._index = KeyIndex(np.ascontiguousarray(stored), key)
        keys = (
            fingerprints
            if key == CONTENT
            else np.asarray([field_key(key, sample) for sample in samples], np.uint64)
        )
        rows = self._index.rows(keys)
        missing = np.flatnonzero(rows < 0)
        if missing.size:
            at = int(missing[0])
            raise missing_error(self, numbers[at], samples[at])
        return rows

    def targets(self, columns: Mapping[str, Array]) -> SoftTargets:
        """Soft targets from the cache's rows."""
        wanted = {column.name for column in self.codec.columns(self.num_classes)}
        tensors = {name: torch.from_numpy(columns[name]) for name in wanted}
        num_positions = torch.from_numpy(columns[NUM_POSITIONS])
        return self.codec.decode(tensors, num_positions, self.num_classes)

    def collate(self, joined: JoinedSamples) -> JoinedBatch:
        """The user's collate function on the samples, with the targets beside its batch.

        Once in every process the function itself is looked at, with the first batch that comes.

        Raises:
            AlignmentError: the batch has another number of rows than samples, or its mask
                another number of positions than the teacher's; the function is random, or its
                rows do not follow their samples.
            DataError: a label is no class; names the sample.
        """
        split = self.view.manifest.split
        batch = sources.collated(self.user_collate, joined.samples, joined.indices, split)
        targets = self.targets(joined.columns)
        mapping = self.mapping.resolve(batch)
        selected = mapping.select(batch)
        rows = selected.num_rows()
        if rows is not None and rows != len(joined.samples):
            raise AlignmentError(
                f"collate_fn made {rows} rows of {len(joined.samples)} samples; targets cannot be "
                "paired with them. Return one row for each sample, in their order."
            )
        check_labels(selected.labels, self.num_classes, joined.indices)
        is_first = self._collated < min(2, len(joined.samples))  # one tells nothing of an order
        if is_first:
            mapping.check_shift(batch)
            few = slice(_COLLATED)
            check_collate(joined.indices[few], joined.samples[few], self.user_collate, mapping)
            self._collated = len(joined.samples[few])
        # An inferred mask may be no mask of positions, and a model may add one of its own: only
        # its output tells.
        is_final = not (mapping.mask_inferred or mapping.output_masks)
        if selected.mask is not None and is_final:
            _check_mask(selected.mask, targets.num_positions, joined.indices)
        if is_first:
            check_references(self)
        return JoinedBatch(batch, targets)

    @abstractmethod
    def probe(self, count: int, batch_size: int) -> Iterator[JoinedSamples]:
        """About ``count`` samples, joined in batches: spread over a dataset, a stream's first."""


class CachedDataset(Join, Dataset[Any]):
    """A user's map-style dataset joined with the cached targets of its samples.

    Every sample that is fetched is fingerprinted and held against what the teacher saw. Use it
    with a DataLoader and ``collate_fn=dataset.collate_fn``, or :meth:`loader_like` for a copy of
    an existing loader. A stream is joined by :class:`kdcache.CachedStream`.

    Where the cache is keyed by content or by a field, ``dataset`` may be any part or order of what
    was dumped. For the arguments see :class:`Join`.

    Raises:
        AlignmentError: the dataset has another length than the dumped one (keys by index).
        UsageError: it is a stream.
    """

    def _check_dataset(self) -> None:
        dataset = self.dataset
        if sources.is_stream(dataset):
            raise UsageError(
                f"{type(dataset).__name__} is a stream: its samples cannot be asked for by number. "
                "Join it with kdcache.CachedStream."
            )
        manifest = self.view.manifest
        if manifest.key == INDEX and len(dataset) != manifest.num_samples:
            longer = "longer" if len(dataset) > manifest.num_samples else "shorter"
            raise AlignmentError(
                f"the dataset of split {manifest.split!r} has {len(dataset):,} samples, "
                f"{self.view.cache} was dumped with {manifest.num_samples:,}: it is {longer} than "
                f"at the dump, and sample {min(len(dataset), manifest.num_samples)} is the first "
                "without a partner. Restore the dataset, or dump again: with --extend where it has "
                "grown at its end, with key: content for subsets and other orders."
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> JoinedSamples:
        """Fetch, check and join samples in one step (PyTorch's batched fetch)."""
        split = self.view.manifest.split
        return self.join(indices, sources.fetch(self.dataset, indices, split))

    def __getitem__(self, index: int) -> JoinedBatch:
        """One sample and its targets, without collation."""
        if not -len(self) <= index < len(self):  # where iteration ends
            raise IndexError(f"there are {len(self)} samples, no {index}")
        joined = self.__getitems__([index])
        return JoinedBatch(joined.samples[0], self.targets(joined.columns))

    def collate_fn(self, joined: JoinedSamples) -> JoinedBatch:
        """Joined batches for a DataLoader; see :meth:`collate`."""
        return self.collate(joined)

    def probe(self, count: int, batch_size: int) -> Iterator[JoinedSamples]:
        """About ``count`` samples spread over the dataset, joined in batches."""
        numbers = sources.spread(len(self), count)
        for start in range(0, len(numbers), batch_size):
            yield self.__getitems__(numbers[start : start + batch_size])

    def loader_like(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """A DataLoader with all of a loader's settings, giving joined batches."""
        sources.check_batched(loader)
        _ = self.copy  # opened before workers are forked, which then share it
        return sources.with_dataset(loader, self, self.collate_fn)


def _numbers(indices: Sequence[int]) -> Array:
    try:
        return np.asarray([operator.index(index) for index in indices], np.int64)
    except TypeError as error:
        raise AlignmentError(
            f"the sampler gave {indices[0]!r}, which is no sample number; this cache joins targets "
            "by number. Dump with key: content or key: field:<path> to use such a sampler."
        ) from error


def _check_mask(mask: Tensor, num_positions: Tensor, indices: Sequence[int]) -> None:
    """Raise AlignmentError where a mask counts other positions than the teacher's."""
    if len(mask) != len(num_positions):
        raise AlignmentError(
            f"the mask has {len(mask)} rows for {len(num_positions)} samples. Return one for each."
        )
    counts = per_row(mask)
    wrong = (counts != num_positions).nonzero().reshape(-1).tolist()
    if wrong:
        at = wrong[0]
        raise AlignmentError(
            f"the mask of sample {indices[at]} counts {int(counts[at])} positions, the teacher had "
            f"{int(num_positions[at])}. Use the mask of the dump (batch.mask)."
        )


def _with_tables(view: View, trusted: Collection[str]) -> Codec:
    manifest = view.manifest
    codec = stored_codec(manifest.codec, trusted).with_tables(view.read_tables())
    stored = {column.name: column for column in manifest.columns}
    for column in codec.columns(manifest.num_classes):
        if stored.get(column.name) != column:
            raise CacheCorruptedError(
                f"{view.folder}: the codec {codec.name!r} for {manifest.num_classes} classes reads "
                f"{column}, the manifest says {stored.get(column.name)}."
            )
    return codec


def stored_source(
    stored: Mapping[str, Any], function: Callable[[Any], Any] | None = None
) -> FingerprintSource:
    """The fingerprint source that a manifest names."""
    name, paths = stored.get("source"), stored.get("paths", [])
    if stored.get("algorithm") != ALGORITHM or not isinstance(paths, list):
        raise CacheCorruptedError(f"the manifest's fingerprint {dict(stored)!r} is not known here.")
    if name in ("inputs", "sample") or str(name).startswith((FIELD, TOKENS)):
        return FingerprintSource(name=str(name), paths=tuple(paths))
    if function is None:
        raise UsageError(
            f"the cache fingerprints {name!r}, a function of its maker's. Name the same function "
            "(dump.fingerprint in the experiment file, fingerprint= in Python)."
        )
    return FingerprintSource(name=str(name), function=function)
