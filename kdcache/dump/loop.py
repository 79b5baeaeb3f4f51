"""The loop of stage one: a teacher over the pending shards of its splits, on one replica."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from kdcache.codecs import Codec, DenseCodec, codec_settings
from kdcache.data import sources
from kdcache.data.batch import BatchMapping, Mapped
from kdcache.data.keys import INDEX, check_key_source
from kdcache.dump.encoding import check_rows, encode
from kdcache.dump.keyed import KeyedDataset, keyed_loader, shard_batches
from kdcache.dump.plan import SplitPlan, plan_split
from kdcache.dump.progress import DumpProgress
from kdcache.dump.replica import Replica
from kdcache.dump.shard_writer import ShardWriter
from kdcache.dump.split_data import SplitData, choose_source
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
        other = next((k for k, v in self.loaders.items() if not isinstance(v, DataLoader)), None)
        if other is not None:
            raise UsageError(
                f"split {other!r} is a {type(self.loaders[other]).__name__}, not a DataLoader."
            )
        if self.samples_per_shard is not None and self.samples_per_shard < 1:
            raise UsageError(f"samples_per_shard is at least 1, not {self.samples_per_shard}.")


def is_complete(cache: Path, splits: Sequence[str]) -> bool:
    """Whether a cache has every shard of all these splits."""
    try:
        opened = open_cache(cache)
    except CacheMissingError:
        return False
    return all(split in opened and opened[split].is_complete for split in splits)


def run(job: DumpJob, replica: Replica) -> Cache:
    """Dump this replica's share of every split.

    A teacher given as a factory is only built where something is missing.
    """
    check_cache_path(job.cache)
    if not isinstance(job.teacher, nn.Module) and is_complete(job.cache, tuple(job.loaders)):
        for split in job.loaders:
            check_unchanged(job, split)
        log.info("%s was complete, and is reused without its teacher", job.cache)
        return open_cache(job.cache)
    forward = TeacherForward(
        job.teacher if isinstance(job.teacher, nn.Module) else job.teacher(),
        job.mapping,
        accelerator=job.accelerator,
        precision=job.precision,
        device=replica.device,
    )
    weights = weights_digest(forward.module)
    for split in job.loaders:
        _dump_split(job, split, forward=forward.for_split(), weights=weights, replica=replica)
    return open_cache(job.cache)


def check_unchanged(job: DumpJob, split: str) -> None:
    """Hold a split that is there against all that can be known of a job without its teacher.

    Raises:
        MismatchError: field by field.
    """
    found = open_cache(job.cache)[split].manifest
    data = SplitData.of(split, job.loaders[split])
    mapping = job.mapping.resolve(data.batch)
    source = choose_source(job.fingerprint, mapping, data.first[0], data.batch)
    # Whether an inferred mask counts, only the teacher's output told.
    batch, stored = mapping.describe(), found.identity.get("batch", "")
    if isinstance(mapping, BatchMapping) and mapping.mask_inferred:
        without_mask = dataclasses.replace(mapping, mask=None).describe()
        batch = stored if stored == without_mask else batch
    wanted = dataclasses.replace(
        found,
        num_samples=data.num_samples,
        batch_size=data.batch_size,
        codec=codec_settings(job.codec),
        key=job.key,
        fingerprint=source.to_json(),
        identity={
            **found.identity,
            **data.identity(source, _class_names(job, split)),
            "batch": batch,
            "precision": job.precision,
        },
    )
    ViewWriter.create(job.cache, wanted)  # compares, as for a dump that goes on


def _class_names(job: DumpJob, split: str) -> Sequence[str]:
    return job.class_names or sources.class_names(None, job.loaders[split].dataset)


def _dump_split(
    job: DumpJob, split: str, *, forward: TeacherForward, weights: str, replica: Replica
) -> None:
    loader = job.loaders[split]
    plan = plan_split(
        split=split,
        data=SplitData.of(split, loader),
        forward=forward,
        codec=job.codec,
        class_names=_class_names(job, split),
        key=job.key,
        fingerprinted=job.fingerprint,
        samples_per_shard=job.samples_per_shard,
        precision=job.precision,
        weights=weights,
    )
    writer = ViewWriter.create(job.cache, plan.manifest, plan.codec.tables())
    tables = View(cache=job.cache, folder=writer.folder).read_tables()
    pending = writer.pending()
    owned = replica.owned(pending)
    if owned:
        plan = dataclasses.replace(plan, codec=plan.codec.with_tables(tables))
        _dump_shards(job, loader, forward=forward, plan=plan, writer=writer, shards=owned)
    if not writer.finish():
        log.info("%s: split %r waits for other parts; this one is done", job.cache, split)
    elif pending:
        log.info("%s: split %r is complete", job.cache, split)
    else:
        log.info("%s: split %r was complete, and is reused", job.cache, split)


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
    fetched = iter(source)  # before any thread: its workers may be forked
    with (
        DumpProgress(title, total, position_bytes, shown=job.progress) as progress,
        ShardWriter(writer, progress.committed) as shard_writer,
    ):
        for (shard, samples), keyed in zip(batches, fetched, strict=True):
            output = forward(keyed.batch)
            check_rows(output, forward.mapping.select(keyed.batch), samples, manifest.num_classes)
            ends_shard = samples[-1] + 1 == manifest.shard_range(shard)[1]
            shard_writer.put(
                encode(codec, shard, keyed, output, key=manifest.key, ends_shard=ends_shard)
            )
            progress.advance(len(samples))
