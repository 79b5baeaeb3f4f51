"""The loop of stage one: a teacher over the pending shards of its splits, on one replica."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from kdcache.codecs import codec_settings
from kdcache.data.batch.mapping import BatchMapping
from kdcache.data.samples import sources
from kdcache.data.samples.unreadable import LOST_WORKER, lost_worker
from kdcache.dump.preparation.answers import check_answers
from kdcache.dump.preparation.job import DumpJob
from kdcache.dump.preparation.plan import SplitPlan, plan_split
from kdcache.dump.preparation.split_data import SplitData, choose_source
from kdcache.dump.preparation.teacher import TeacherForward, weights_digest
from kdcache.dump.processes.preemption import Preemption, Stopped
from kdcache.dump.processes.ranks import Ranks
from kdcache.dump.progress import DumpProgress
from kdcache.dump.shards.encoding import check_rows, encode
from kdcache.dump.shards.shard_writer import ShardWriter
from kdcache.dump.work import Work, numbered_work, stream_work
from kdcache.errors import CacheMissingError, SampleError, WorkerLostError, paragraph
from kdcache.store import Cache, Manifest, View, ViewWriter, check_cache_path, open_cache

log = logging.getLogger(__name__)


def is_complete(cache: Path, splits: Sequence[str]) -> bool:
    """Whether a cache has every shard of all these splits."""
    try:
        opened = open_cache(cache)
    except CacheMissingError:
        return False
    return all(split in opened and opened[split].is_complete for split in splits)


def run(job: DumpJob, ranks: Ranks, preemption: Preemption) -> Cache:
    """Dump this replica's share of every split.

    A teacher given as a factory is only built where something is missing.
    """
    check_cache_path(job.cache)
    is_there = ranks.if_first(is_complete(job.cache, tuple(job.loaders)))
    grows = ranks.if_first(any(grown_from(job, split) is not None for split in job.loaders))
    if not isinstance(job.teacher, nn.Module) and is_there and not grows:
        for split in job.loaders:
            check_unchanged(job, split)
        log.info("%s was complete, and is reused without its teacher", job.cache)
        return open_cache(job.cache)
    forward = TeacherForward(
        job.teacher if isinstance(job.teacher, nn.Module) else job.teacher(),
        job.mapping,
        accelerator=job.accelerator,
        precision=job.precision,
        device=ranks.replica.device,
    )
    weights = weights_digest(forward.module)
    for split in job.loaders:
        preemption.check(ranks)
        with _told_what_stays(job, split):
            _dump_split(
                job,
                split,
                forward=forward.for_split(),
                weights=weights,
                ranks=ranks,
                preemption=preemption,
            )
    return open_cache(job.cache)


def is_begun(cache: Path, split: str) -> bool:
    """Whether a cache has a split, complete or not."""
    try:
        return split in open_cache(cache)
    except CacheMissingError:
        return False


def grown_from(job: DumpJob, split: str) -> int | None:
    """Samples of a split that is there and is to be extended by this job; None for any other."""
    dataset: Any = job.loaders[split].dataset
    if not job.extend or sources.is_stream(dataset) or not is_begun(job.cache, split):
        return None
    there = open_cache(job.cache)[split].manifest.num_samples
    return there if there < len(dataset) else None


def check_unchanged(job: DumpJob, split: str) -> None:
    """Hold a split that is there against all that can be known of a job without its teacher.

    Raises:
        MismatchError: field by field.
    """
    found = open_cache(job.cache)[split].manifest
    ViewWriter.create(job.cache, as_this_job(job, found))  # compares, as for a dump that goes on


def as_this_job(job: DumpJob, found: Manifest) -> Manifest:
    """A manifest that is there, with all that this job would say, as far as no teacher is needed.

    Where the two are equal, the job is the one that the manifest was written by.
    """
    split = found.split
    data = SplitData.of(split, job.loaders[split])
    described = found.identity.get("batch", "")
    mapping = job.mapping.as_described(described).resolve(data.batch)
    source = choose_source(job.fingerprint, mapping, data.first[0], data.batch)
    # Whether an inferred mask counts, only the teacher's output told.
    batch, stored = mapping.describe(), found.identity.get("batch", "")
    if isinstance(mapping, BatchMapping) and mapping.mask_inferred:
        without_mask = dataclasses.replace(mapping, mask=None).describe()
        batch = stored if stored == without_mask else batch
    return dataclasses.replace(
        found,
        num_samples=found.num_samples if data.is_stream else data.num_samples,
        batch_size=data.batch_size,
        codec=codec_settings(job.codec),
        key=job.key,
        fingerprint=source.to_json(),
        identity={
            **found.identity,
            **data.identity(source, _class_names(job, split), job.vocabulary),
            "batch": batch,
            "precision": job.precision,
        },
    )


def _class_names(job: DumpJob, split: str) -> Sequence[str]:
    return job.class_names or sources.class_names(None, job.loaders[split].dataset)


@contextmanager
def _told_what_stays(job: DumpJob, split: str) -> Iterator[None]:
    """Say of a sample that cannot be read what was committed before it, and how to go on.

    So too where a worker that should read it is lost.
    """
    try:
        yield
    except (SampleError, *LOST_WORKER) as error:
        workers = job.loaders[split].num_workers
        lost = lost_worker(error, workers, f"of split {split!r}")
        if lost is None and not isinstance(error, SampleError):
            raise
        stays = f"Nothing of split {split!r} was written yet; the same command begins it."
        if is_begun(job.cache, split):
            view = open_cache(job.cache)[split]
            shards = "shards" if view.manifest.is_open else f"of {view.manifest.num_shards} shards"
            stays = (
                f"{len(view.commits)} {shards} of split {split!r} are committed and stay; the same "
                "command goes on with the others."
            )
        if lost is not None:
            raise WorkerLostError(f"{lost}\n{stays}") from error
        raise SampleError(f"{paragraph(error)}\n{stays}") from error


def _dump_split(
    job: DumpJob,
    split: str,
    *,
    forward: TeacherForward,
    weights: str,
    ranks: Ranks,
    preemption: Preemption,
) -> None:
    loader = job.loaders[split]

    def planned(data: SplitData, *, pilot: bool = False) -> SplitPlan:
        return plan_split(
            split=split,
            data=data,
            forward=forward,
            codec=job.codec,
            class_names=_class_names(job, split),
            vocabulary=job.vocabulary,
            key=job.key,
            fingerprinted=job.fingerprint,
            samples_per_shard=job.samples_per_shard,
            precision=job.precision,
            weights=weights,
            pilot=pilot,
        )

    # What a disk says is asked once: ranks that saw it at different moments would part ways.
    is_new = ranks.if_first(not is_begun(job.cache, split))
    plan = planned(SplitData.of(split, loader), pilot=job.pilot and is_new)
    (shorter,) = ranks.from_first([grown_from(job, split) or 0])
    if not shorter:
        writer = ViewWriter.create(job.cache, plan.manifest, plan.codec.tables())
        check_answers(writer.manifest, plan.log_p, job.cache)  # of another part, if it was quicker
    else:
        check_answers(open_cache(job.cache)[split].manifest, plan.log_p, job.cache)
        before = planned(SplitData.of(split, loader, num_samples=shorter))
        writer = ViewWriter.extend(job.cache, plan.manifest, before.manifest)
        log.info("%s: split %r grows from %d samples", job.cache, split, shorter)
    tables = View(cache=job.cache, folder=writer.folder).read_tables()
    plan = dataclasses.replace(plan, codec=plan.codec.with_tables(tables))
    pending = ranks.from_first(writer.pending())
    work, total = None, None
    if ranks.if_first(
        writer.manifest.is_open or (bool(pending) and sources.is_stream(loader.dataset))
    ):
        work = stream_work(loader, plan, writer, ranks.replica)
    elif owned := ranks.replica.owned(pending):
        work = numbered_work(loader, plan, writer, owned)
        ranges = map(writer.manifest.shard_range, owned)
        total = sum(stop - start for start, stop in ranges)
    if work is not None:
        _dump_work(
            job,
            work,
            total,
            forward=forward,
            plan=plan,
            writer=writer,
            ranks=ranks,
            preemption=preemption,
        )
    # Only the first rank has written, so only it can tell; the others hear of it.
    is_done = ranks.if_first(ranks.is_first and writer.finish())
    if not ranks.is_first:
        return
    if not is_done:
        log.info("%s: split %r waits for other parts; this one is done", job.cache, split)
    elif pending:
        log.info("%s: split %r is complete", job.cache, split)
    else:
        log.info("%s: split %r was complete, and is reused", job.cache, split)


def _dump_work(
    job: DumpJob,
    work: Iterator[Work],
    total: int | None,
    *,
    forward: TeacherForward,
    plan: SplitPlan,
    writer: ViewWriter,
    ranks: Ranks,
    preemption: Preemption,
) -> None:
    """Run the teacher over batches, and hand what it says to the writer's thread."""
    manifest, codec = writer.manifest, plan.codec
    position_bytes = sum(column.row_bytes for column in codec.columns(manifest.num_classes))
    shown = job.progress and ranks.is_first
    is_stopped, begins_shard = False, True
    with (
        preemption.in_hand(),
        DumpProgress(manifest.split, total, position_bytes, shown=shown) as progress,
        ShardWriter(writer, progress.committed) as shard_writer,
    ):
        for part in work:
            keyed = part.keyed
            samples_left = manifest.shard_range(part.shard)[1] - keyed.samples[0]
            # Asked before the forward pass: ranks that stop at different batches hang in its
            # collectives.
            is_stopped = ranks.any(
                preemption.stops(
                    begins_shard=begins_shard,
                    batches_left=-(-samples_left // manifest.batch_size),
                    grace_s=job.grace_s,
                )
            )
            if is_stopped:
                break
            begins_shard = part.ends_shard
            output = forward(keyed.batch)
            selected = forward.mapping.select(keyed.batch)
            check_rows(output, selected, keyed.samples, manifest.num_classes)
            if ranks.is_first:
                shard_writer.put(
                    encode(
                        codec,
                        part.shard,
                        keyed,
                        output,
                        key=manifest.key,
                        ends_shard=part.ends_shard,
                    )
                )
            progress.advance(len(keyed.samples))
    if ranks.any(is_stopped):  # here the others wait until the first has written
        raise Stopped
