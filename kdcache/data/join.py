"""The join: the user's samples with the teacher's targets, by key, checked sample by sample.

What comes out of a DataLoader over it is ``JoinedBatch(batch, targets)``: the user's own batch,
made by the user's own collate function, and the soft targets of the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from kdcache.codecs import Codec, stored_codec
from kdcache.columns import FINGERPRINT, KEY, NUM_POSITIONS, Array
from kdcache.data import sources
from kdcache.data.batch import BatchMapping, Mapped, parse_mapping
from kdcache.data.fingerprint import ALGORITHM, FingerprintSource
from kdcache.data.keys import CONTENT, INDEX, KeyIndex, field_key
from kdcache.data.mismatch import mismatch_error
from kdcache.errors import AlignmentError, CacheCorruptedError, DataError, UsageError
from kdcache.store import LocalCopy, View, open_cache, open_local_copy
from kdcache.targets import SoftTargets

IGNORE_INDEX = -100
Collate = Callable[[list[Any]], Any]


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
        columns: the cache's rows for them.
    """

    indices: Sequence[int]
    samples: list[Any]
    columns: Mapping[str, Array]


class CachedDataset(Dataset[Any]):
    """A user's map-style dataset joined with the cached targets of its samples.

    Every sample that is fetched is fingerprinted and held against what the teacher saw. Use it
    with a DataLoader and ``collate_fn=dataset.collate_fn``, or :meth:`loader_like` for a copy of
    an existing loader.

    Args:
        dataset: the user's dataset, as it was dumped.
        cache: path of the teacher cache, or an opened view of it.
        split: which split of the cache (ignored for an opened view).
        batch: which leaves are inputs, labels and mask; as in the experiment file.
        collate_fn: the user's collate function; PyTorch's default if None.
        local_copy: folder of the local copy; the machine's default if None.
        codecs: class paths of codecs of your own that the cache may name.
        fingerprint: your own function from a sample to what was fingerprinted, where the dump
            used one.
        check_fingerprints: False joins samples that the teacher did not see. The one override;
            loud, and recorded by whoever trains.

    Raises:
        CacheMissingError, CacheIncompleteError, CacheCorruptedError: no trustworthy targets.
        AlignmentError: the dataset has another length than the dumped one (keys by index).
    """

    def __init__(
        self,
        dataset: Any,
        cache: str | Path | View,
        *,
        split: str = sources.TRAIN,
        batch: Mapped | Mapping[str, Any] | str | None = None,
        collate_fn: Collate | None = None,
        local_copy: Path | None = None,
        codecs: Collection[str] = (),
        fingerprint: Callable[[Any], Any] | None = None,
        check_fingerprints: bool = True,
    ) -> None:
        self.dataset = dataset
        self.view = cache if isinstance(cache, View) else open_cache(cache)[split]
        self.mapping = parse_mapping(batch, "student")
        self.check_fingerprints = check_fingerprints
        self._user_collate = collate_fn or default_collate
        self._folder = local_copy
        self._copy: LocalCopy | None = None
        self._index: KeyIndex | None = None
        manifest = self.view.manifest
        self.codec = _with_tables(self.view, codecs)
        self.source = stored_source(manifest.fingerprint, fingerprint)
        self.view.check_complete()
        if manifest.key == INDEX and len(dataset) != manifest.num_samples:
            longer = "longer" if len(dataset) > manifest.num_samples else "shorter"
            raise AlignmentError(
                f"the dataset of split {manifest.split!r} has {len(dataset):,} samples, "
                f"{self.view.cache} was dumped with {manifest.num_samples:,}: it is {longer} than "
                f"at the dump, and sample {min(len(dataset), manifest.num_samples)} is the first "
                "without a partner. Restore the dataset, or dump again into a new cache. (For a "
                "subset or another order, dump with key: content.)"
            )

    @property
    def copy(self) -> LocalCopy:
        """The local copy; opened on first use in each process."""
        if self._copy is None:
            self._copy = open_local_copy(self.view, self._folder)
        return self._copy

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is spawned opens its own: nothing decoded travels through a pickle.
        return {**self.__dict__, "_copy": None, "_index": None}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> JoinedSamples:
        """Fetch, check and join samples in one step (PyTorch's batched fetch)."""
        samples = sources.fetch(self.dataset, indices)
        if len(samples) != len(indices):
            raise AlignmentError(
                f"the dataset returned {len(samples)} samples when asked for {len(indices)}."
            )
        fingerprints = [self.source(sample) for sample in samples]
        rows = self._rows(indices, samples, fingerprints)
        columns = self.copy.take(rows)
        if self.check_fingerprints:
            stored = columns[FINGERPRINT]
            wrong = np.flatnonzero(stored != np.asarray(fingerprints, np.uint64))
            if wrong.size:
                at = int(wrong[0])
                raise mismatch_error(self, int(indices[at]), samples[at], int(rows[at]))
        return JoinedSamples(indices=indices, samples=samples, columns=columns)

    def __getitem__(self, index: int) -> JoinedBatch:
        """One sample and its targets, without collation."""
        joined = self.__getitems__([index])
        return JoinedBatch(joined.samples[0], self.targets(joined.columns))

    def _rows(self, indices: Sequence[int], samples: list[Any], fingerprints: list[int]) -> Array:
        key = self.view.manifest.key
        if key == INDEX:
            return np.asarray(indices, np.int64)
        if self._index is None:
            stored = self.copy.column(FINGERPRINT if key == CONTENT else KEY)
            self._index = KeyIndex(np.ascontiguousarray(stored), unique=key != CONTENT)
        keys = fingerprints if key == CONTENT else [field_key(key, sample) for sample in samples]
        rows = self._index.rows(np.asarray(keys, np.uint64))
        missing = np.flatnonzero(rows < 0)
        if missing.size:
            raise AlignmentError(
                f"sample {indices[int(missing[0])]} is not in {self.view.cache} (its key, by "
                f"{key}, was never dumped). Restore the sample, or dump again into a new cache."
            )
        return rows

    def targets(self, columns: Mapping[str, Array]) -> SoftTargets:
        """Soft targets from the cache's rows."""
        wanted = {column.name for column in self.codec.columns(self.num_classes)}
        tensors = {name: torch.from_numpy(columns[name]) for name in wanted}
        num_positions = torch.from_numpy(columns[NUM_POSITIONS])
        return self.codec.decode(tensors, num_positions, self.num_classes)

    @property
    def num_classes(self) -> int:
        """C of the teacher."""
        return self.view.manifest.num_classes

    def collate_fn(self, joined: JoinedSamples) -> JoinedBatch:
        """The user's collate function on the samples, with the targets beside its batch.

        Raises:
            AlignmentError: the batch has another number of rows than samples, or its mask
                another number of positions than the teacher's.
            DataError: a label is no class; names the sample.
        """
        batch = self._user_collate(joined.samples)
        targets = self.targets(joined.columns)
        selected = self.mapping.resolve(batch).select(batch)
        rows = num_rows(selected.args, selected.kwargs)
        if rows is not None and rows != len(joined.samples):
            raise AlignmentError(
                f"collate_fn made {rows} rows of {len(joined.samples)} samples; targets cannot be "
                "paired with them. Return one row for each sample, in their order."
            )
        if selected.labels is not None:
            check_labels(selected.labels, self.num_classes, joined.indices)
        return JoinedBatch(batch, targets)

    def loader_like(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """A DataLoader with all of a loader's settings, giving joined batches."""
        return sources.with_dataset(loader, self, self.collate_fn)


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
    if name in ("inputs", "sample"):
        return FingerprintSource(name=name, paths=tuple(paths))
    if function is None:
        raise UsageError(
            f"the cache fingerprints {name!r}, a function of its maker's. Name the same function "
            "(dump.fingerprint in the experiment file, fingerprint= in Python)."
        )
    return FingerprintSource(name=str(name), function=function)


def num_rows(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """Rows of the first tensor among model inputs; None where there is none."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.dim():
            return len(value)
        inner = value if isinstance(value, Mapping) else {}
        nested = value if isinstance(value, list | tuple) else tuple(inner.values())
        found = num_rows(nested, {}) if nested else None
        if found is not None:
            return found
    return None


def check_labels(labels: Any, num_classes: int, samples: Sequence[int]) -> None:
    """Raise DataError unless labels are class numbers or the ignore index -100."""
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return
    wrong = ((labels < 0) | (labels >= num_classes)) & (labels != IGNORE_INDEX)
    if bool(wrong.any()):
        at = tuple(wrong.nonzero()[0].tolist())
        raise DataError(
            f"sample {samples[at[0]]} has the label {int(labels[at])}; the teacher has "
            f"{num_classes} classes, 0 to {num_classes - 1} ({IGNORE_INDEX} marks no label). "
            "Correct the labels, or name them (batch.labels)."
        )


__all__ = ["BatchMapping", "CachedDataset", "JoinedBatch"]
