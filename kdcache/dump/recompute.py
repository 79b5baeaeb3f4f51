"""Running the teacher again on a few samples, and holding what it says against what is stored.

Nothing is written. Batches are those of the dump, so padding and batch composition are the same;
what differs then is the teacher, its settings, the data, or the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdcache.codecs import Codec, stored_codec
from kdcache.columns import FINGERPRINT, NUM_ENTRIES, NUM_POSITIONS, Array
from kdcache.data.join.dataset import stored_source
from kdcache.data.samples import sources
from kdcache.dump.loop import as_this_job
from kdcache.dump.measurements.fidelity import (
    distributions,
    kl_divergence,
    row_blocks,
    stored_distribution,
)
from kdcache.dump.preparation.job import DumpJob
from kdcache.dump.preparation.teacher import TeacherForward, class_path, weights_digest
from kdcache.dump.shards.encoding import EncodedBatch, check_rows, check_valid, encode
from kdcache.dump.shards.keyed import KeyedBatch, KeyedDataset, keyed_loader, shard_batches
from kdcache.errors import AlignmentError, FingerprintMismatchError, UsageError
from kdcache.store import Manifest, View, differences, open_cache
from kdcache.targets import SoftTargets, rows_of

TOLERANCE_NATS = 1e-3
"""Mean drift that is still the same teacher.

Bit-exact is not to be expected on another device, or with other versions of its libraries: in
float32 logits move by about 1e-5 (1e-3 with TF32), in 16 bits by their rounding, 0.01 to 0.05,
and half the variance of that is the KL: 1e-3 at most. A student ends 0.01 to 0.1 nats away from
its teacher, and does not feel a tenth of that.
"""


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far two distributions are from each other.

    Attributes:
        mean_kl: mean KL over positions, in nats.
        max_kl: of any position, in nats.
        max_difference: of any probability, absolute.
    """

    mean_kl: float
    max_kl: float
    max_difference: float


@dataclass(frozen=True, kw_only=True)
class Recomputed:
    """What the teacher says now of one split.

    Attributes:
        split: its name.
        drawn: samples that were drawn at random.
        batches: that they lie in; all of these were run, as they were formed at the dump.
        samples: in these batches, all of them compared.
        positions: of these samples.
        identical_batches: batches whose columns would be stored bit for bit the same.
        drift: between what is stored and what would be stored now; None for targets of a
            user's own kind.
        codec: between the teacher's logits now and what is stored, drift and codec together;
            where there is no drift it is the codec's own error.
        changed: dotted field -> (the cache's value, this run's), where settings differ.
    """

    split: str
    drawn: int
    batches: int
    samples: int
    positions: int
    identical_batches: int
    drift: Distance | None
    codec: Distance | None
    changed: Mapping[str, tuple[Any, Any]]

    @property
    def drifted(self) -> bool:
        """Whether what is stored is not what this teacher says."""
        if self.drift is None:
            return self.identical_batches < self.batches
        return not self.drift.mean_kl <= TOLERANCE_NATS

    @property
    def differs(self) -> bool:
        """Whether settings or what the teacher says are not those of the dump."""
        return bool(self.changed) or self.drifted


def recompute(job: DumpJob, num_samples: int, *, seed: int = 0) -> list[Recomputed]:
    """Run a job's teacher again on random samples of every split that is in its cache.

    Args:
        job: as for the dump; its codec and batch size are compared with the cache's, which are
            used.
        num_samples: to draw in each split; all samples of their batches are compared.
        seed: of the choice.

    Returns:
        One report a split. Streams, whose samples cannot be asked for by number, are left out.

    Raises:
        UsageError: fewer than one sample, or no split that can be run again.
        FingerprintMismatchError: a sample is not what the teacher saw; names it.
        AlignmentError: a sample has another number of positions than at the dump; names it.
        CacheError: the cache, or a shard that is looked at, is damaged.
    """
    if num_samples < 1:
        raise UsageError(f"at least one sample is recomputed, not {num_samples}.")
    if seed < 0:
        raise UsageError(f"the seed is a number from 0, not {seed}.")
    cache = open_cache(job.cache)
    splits = [
        split
        for split in job.loaders
        if split in cache and cache[split].commits and not _is_stream(job, split)
    ]
    if not splits:
        raise UsageError(
            f"{job.cache} has no split of this experiment's data that can be run again: it has "
            f"{', '.join(cache) or 'none'}, the data {', '.join(job.loaders)} (a stream cannot be "
            "asked for single samples)."
        )
    forward = TeacherForward(
        job.teacher if isinstance(job.teacher, nn.Module) else job.teacher(),
        job.mapping,
        accelerator=job.accelerator,
        precision=job.precision,
    )
    teacher = {
        "teacher.class": class_path(forward.module),
        "teacher.weights": weights_digest(forward.module),
    }
    found = []
    for split in splits:
        view = cache[split]
        batches, drawn = _choose(view, job.loaders[split], num_samples, seed)
        comparison = _compare(job, view, forward.for_split(), batches)
        now = as_this_job(replace(job, mapping=forward.mapping), view.manifest)
        found.append(
            Recomputed(
                split=split,
                drawn=drawn,
                batches=len(batches),
                samples=sum(len(numbers) for _, numbers in batches),
                positions=comparison.positions,
                identical_batches=comparison.identical,
                drift=comparison.drift.distance(),
                codec=comparison.error.distance(),
                changed=differences(
                    _settings(view.manifest, view.manifest.identity),
                    _settings(now, {**now.identity, **teacher}),
                ),
            )
        )
    return found


def _is_stream(job: DumpJob, split: str) -> bool:
    return sources.is_stream(job.loaders[split].dataset)


def _compare(
    job: DumpJob, view: View, forward: TeacherForward, batches: Sequence[tuple[int, list[int]]]
) -> _Comparison:
    manifest, loader = view.manifest, job.loaders[view.manifest.split]
    function = job.fingerprint if callable(job.fingerprint) else None
    source = stored_source(manifest.fingerprint, function)
    dataset = KeyedDataset(loader.dataset, loader.collate_fn, source, manifest.key, manifest.split)
    fetched = iter(keyed_loader(loader, dataset, [numbers for _, numbers in batches]))
    comparison = _Comparison(view, stored_codec(manifest.codec, [job.codec.name]))
    for (shard, numbers), keyed in zip(batches, fetched, strict=True):
        stored = comparison.stored(shard, numbers)
        _check_samples(manifest, keyed, stored)
        output = forward(keyed.batch)
        check_rows(output, forward.mapping.select(keyed.batch), numbers, manifest.num_classes)
        now = encode(comparison.codec, shard, keyed, output, key=manifest.key, ends_shard=False)
        check_valid(now.invalid, now.num_positions, numbers)
        _check_counts(manifest, numbers, stored, now)
        comparison.add(output.logits, stored, now)
    return comparison


def _settings(manifest: Manifest, identity: Mapping[str, str]) -> dict[str, Any]:
    """What decides the targets, besides the teacher's own code."""
    return {
        "num_samples": manifest.num_samples,
        "batch_size": manifest.batch_size,
        "codec": dict(manifest.codec),
        "key": manifest.key,
        "fingerprint": dict(manifest.fingerprint),
        "identity": dict(identity),
    }


def _choose(
    view: View, loader: sources.Loader, num_samples: int, seed: int
) -> tuple[list[tuple[int, list[int]]], int]:
    """The dump's batches that hold samples drawn at random, and how many were drawn."""
    dataset: Any = loader.dataset
    batches = [
        (shard, numbers)
        for shard, numbers in shard_batches(view.manifest, [c.shard for c in view.commits])
        if numbers[-1] < len(dataset)
    ]
    if not batches:
        raise AlignmentError(
            f"the dataset of split {view.manifest.split!r} has {len(dataset):,} samples, fewer "
            f"than the first batch of the dump. Restore the dataset."
        )
    samples = np.array([number for _, numbers in batches for number in numbers])
    count = min(num_samples, len(samples))
    drawn = np.random.default_rng(seed).choice(samples, count, replace=False)
    wanted = set(drawn.tolist())
    return [batch for batch in batches if wanted.intersection(batch[1])], count


def _check_samples(manifest: Manifest, keyed: KeyedBatch, stored: Mapping[str, Array]) -> None:
    found = keyed.identity[FINGERPRINT]
    wrong = np.flatnonzero(stored[FINGERPRINT] != found)
    if wrong.size:
        at = int(wrong[0])
        raise FingerprintMismatchError(
            f"sample {keyed.samples[at]} of split {manifest.split!r} is not what the teacher saw: "
            f"fingerprint in the cache {int(stored[FINGERPRINT][at]):016x}, of this sample "
            f"{int(found[at]):016x} ({wrong.size} of {len(found)} in its batch differ). A teacher "
            "can only be asked again about what it saw. Restore the dataset and its transforms; "
            "kdcache train-student says more about likely causes."
        )


def _check_counts(
    manifest: Manifest, numbers: Sequence[int], stored: Mapping[str, Array], now: EncodedBatch
) -> None:
    counts = now.num_positions.cpu().numpy()
    wrong = np.flatnonzero(stored[NUM_POSITIONS] != counts)
    if wrong.size:
        at = int(wrong[0])
        raise AlignmentError(
            f"sample {numbers[at]} of split {manifest.split!r} has {counts[at]} positions now, "
            f"{stored[NUM_POSITIONS][at]} in the cache. Use the mask of the dump (batch.mask)."
        )


class _Comparison:
    """Stored columns beside fresh ones, batch by batch of one view."""

    def __init__(self, view: View, codec: Codec) -> None:
        self.codec = codec.with_tables(view.read_tables())
        self.drift, self.error = _Sums(), _Sums()
        self.positions = self.identical = 0
        self._view = view
        self._commits = {commit.shard: commit for commit in view.commits}
        self._shard: tuple[int, dict[str, Array]] | None = None

    def stored(self, shard: int, numbers: Sequence[int]) -> dict[str, Array]:
        """Column name -> rows of consecutive samples."""
        if self._shard is None or self._shard[0] != shard:
            self._shard = shard, self._view.read_shard(self._commits[shard])
        columns = self._shard[1]
        first = numbers[0] - self._commits[shard].start
        rows = {"sample": slice(first, first + len(numbers))}
        for per, counts in (("position", NUM_POSITIONS), ("entry", NUM_ENTRIES)):
            if counts in columns:
                ends = np.concatenate([[0], columns[counts].cumsum(dtype=np.int64)])
                above = rows["sample" if per == "position" else "position"]
                rows[per] = slice(int(ends[above.start]), int(ends[above.stop]))
        manifest = self._view.manifest
        return {column.name: columns[column.name][rows[column.per]] for column in manifest.columns}

    def add(self, logits: Tensor, stored: Mapping[str, Array], now: EncodedBatch) -> None:
        """Compare one batch."""
        num_classes = logits.shape[-1]
        names = [column.name for column in self.codec.columns(num_classes)]
        fresh = {name: now.tensors[name] for name in names}
        old = {name: torch.from_numpy(stored[name].copy()).to(logits.device) for name in fresh}
        self.positions += len(logits)
        # As bytes: a NaN that means something to a codec of a user's own is equal to itself.
        self.identical += all(
            fresh[name].cpu().numpy().tobytes() == stored[name].tobytes() for name in fresh
        )
        before = self.codec.decode(old, now.num_positions, num_classes)
        after = self.codec.decode(fresh, now.num_positions, num_classes)
        for rows in row_blocks(logits, before):
            part = rows_of(before, rows)
            self.error.add(distributions(logits[rows], part))
            self.drift.add(_pair(part, rows_of(after, rows)))


def _pair(before: SoftTargets, after: SoftTargets) -> tuple[Tensor, Tensor] | None:
    pair = stored_distribution(before), stored_distribution(after)
    return None if pair[0] is None or pair[1] is None else (pair[0], pair[1])


class _Sums:
    """A distance, added up over blocks of positions."""

    def __init__(self) -> None:
        self._count = 0
        self._kl = self._max_kl = self._max_difference = 0.0
        self._is_known = True

    def add(self, pair: tuple[Tensor, Tensor] | None) -> None:
        """Count log-probabilities (P, C) of both sides; None where they cannot be told."""
        if pair is None:
            self._is_known = False
            return
        kl = kl_divergence(*pair)
        self._count += len(kl)
        self._kl += float(kl.sum(dtype=torch.float64))
        self._max_kl = max(self._max_kl, float(kl.max()))
        difference = (pair[0].exp() - pair[1].exp()).abs().max()
        self._max_difference = max(self._max_difference, float(difference))

    def distance(self) -> Distance | None:
        """What it comes to."""
        if not self._is_known:
            return None
        return Distance(
            mean_kl=self._kl / max(1, self._count),
            max_kl=self._max_kl,
            max_difference=self._max_difference,
        )
