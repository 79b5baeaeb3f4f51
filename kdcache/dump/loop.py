"""The loop of stage one: a teacher over the pending shards of its splits, on one replica."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdcache.codecs import Codec, DenseCodec
from kdcache.columns import KEY, Array
from kdcache.data import sources
from kdcache.data.batch import BatchMapping, Mapped
from kdcache.data.forward import FlatOutput
from kdcache.data.join import check_labels
from kdcache.data.keys import INDEX, check_key_source
from kdcache.dump.keyed import KeyedBatch, KeyedDataset, keyed_loader, shard_batches
from kdcache.dump.plan import SplitPlan, encoded_batch, plan_split
from kdcache.dump.progress import DumpProgress
from kdcache.dump.replica import Replica
from kdcache.dump.shard_writer import EncodedBatch, ShardWriter
from kdcache.dump.teacher import TeacherForward, weights_digest
from kdcache.errors import CacheMissingError, UsageError
from kdcache.store import Cache, View, ViewWriter, check_cache_path, open_cache

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class DumpJob:
    """All that stage one is told; see :func:`kdcache.dump_teacher` for the fields."""

    teacher: nn.Module | Callable[[], nn.Module]
    loaders: Mapping[str, sources.Loader]
    cache: Path
    codec: Codec = field(default_factory=DenseCodec)
    mapping: Mapped = field(default_factory=BatchMapping)
    class_names: Sequence[str] = ()
    key: str = INDEX
    fingerprint: str | Callable[[Any], Any] = "inputs"
    samples_per_shard: int | None = None
    accelerator: str = "auto"
    precision: str = "32-true"
    progress: bool = True

    def __post_init__(self) -> None:
        check_key_source(self.key)
        if not self.loaders:
            raise UsageError("there is no split to dump: give at least a training loader.")
        if self.samples_per_shard is not None and self.samples_per_shard < 1:
            raise UsageError(f"samples_per_shard is at least 1, not {self.samples_per_shard}.")


def is_complete(cache: Path, splits: Sequence[str]) -> bool:
    """Whether a cache has every shard of all these splits."""
    try:
        opened = open_cache(cache)
    except CacheMissingError:
        return False
    return all(split in opened and not opened[split].pending for split in splits)


def run(job: DumpJob, replica: Replica) -> Cache:
    """Dump this replica's share of every split.

    A teacher given as a factory is only built where something is missing.
    """
    check_cache_path(job.cache)
    if not isinstance(job.teacher, nn.Module) and is_complete(job.cache, tuple(job.loaders)):
        log.info("%s is complete: the teacher is not needed", job.cache)
        return open_cache(job.cache)
    teacher = job.teacher if isinstance(job.teacher, nn.Module) else job.teacher()
    weights = weights_digest(teacher)
    for split in job.loaders:
        _dump_split(job, split, teacher=teacher, weights=weights, replica=replica)
    return open_cache(job.cache)


def _dump_split(
    job: DumpJob, split: str, *, teacher: nn.Module, weights: str, replica: Replica
) -> None:
    loader = job.loaders[split]
    forward = TeacherForward(
        teacher,
        job.mapping,
        accelerator=job.accelerator,
        precision=job.precision,
        device=replica.device,
    )
    plan = plan_split(
        split=split,
        loader=loader,
        teacher=teacher,
        forward=forward,
        codec=job.codec,
        class_names=job.class_names or sources.class_names(None, loader.dataset),
        key=job.key,
        fingerprinted=job.fingerprint,
        samples_per_shard=job.samples_per_shard,
        precision=job.precision,
        weights=weights,
    )
    writer = ViewWriter.create(job.cache, plan.manifest, plan.codec.tables())
    tables = View(cache=job.cache, folder=writer.folder).read_tables()
    codec = plan.codec.with_tables(tables)
    owned = replica.owned(writer.pending())
    if owned:
        plan = dataclasses.replace(plan, codec=codec)
        _dump_shards(job, loader, forward=forward, plan=plan, writer=writer, shards=owned)
    else:
        log.info("%s: every shard of split %r is there; reused", job.cache, split)
    if writer.finish():
        log.info("%s: split %r is complete", job.cache, split)


def _dump_shards(
    job: DumpJob,
    loader: sources.Loader,
    *,
    forward: TeacherForward,
    plan: SplitPlan,
    writer: ViewWriter,
    shards: Sequence[int],
) -> None:
    manifest, codec = writer.manifest, plan.codec
    batches = list(shard_batches(manifest, shards))
    dataset = KeyedDataset(loader.dataset, loader.collate_fn, plan.source, manifest.key)
    source = keyed_loader(loader, dataset, [samples for _, samples in batches])
    position_bytes = sum(column.row_bytes for column in codec.columns(manifest.num_classes))
    total = sum(len(samples) for _, samples in batches)
    title = f"teacher -> {manifest.split}"
    with (
        DumpProgress(title, total, position_bytes, shown=job.progress) as progress,
        ShardWriter(writer, progress.committed) as shard_writer,
    ):
        for (shard, samples), keyed in zip(batches, source, strict=True):
            output = forward(keyed.batch)
            labels = forward.mapping.select(keyed.batch).labels
            if labels is not None:
                check_labels(labels, manifest.num_classes, samples)
            ends_shard = samples[-1] + 1 == manifest.shard_range(shard)[1]
            shard_writer.put(_encode(codec, shard, keyed, output, ends_shard=ends_shard))
            progress.advance(len(samples))


@torch.inference_mode()
def _encode(
    codec: Codec, shard: int, keyed: KeyedBatch, output: FlatOutput, *, ends_shard: bool
) -> EncodedBatch:
    """Encode one batch on the device that holds its logits."""
    keys = keyed.identity.get(KEY, np.asarray(keyed.samples, np.uint64))
    tensors = codec.encode(output.logits, _draws(keys, output))
    identity = keyed.identity
    return encoded_batch(shard, keyed.samples, output, tensors, identity, ends_shard=ends_shard)


def _draws(keys: Array, output: FlatOutput) -> Tensor:
    """(P, 2) int64: the key of each position's sample, and its place within the sample."""
    device, total = output.logits.device, len(output.logits)
    counts = output.num_positions
    owners = torch.from_numpy(keys.view(np.int64)).to(device)
    first = counts.cumsum(0) - counts
    both = torch.stack([owners, first], dim=-1)
    repeated = both.repeat_interleave(counts, dim=0, output_size=total)
    places = torch.arange(total, device=device) - repeated[:, 1]
    return torch.stack([repeated[:, 0], places], dim=-1)
