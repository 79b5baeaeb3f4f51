"""The dump of a teacher, from what the user gives to a complete cache: ``dump_teacher``."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from kdcache import values
from kdcache.codecs import Codec, DenseCodec
from kdcache.data.batch.mapping import Mapped
from kdcache.data.batch.section import parse_mapping
from kdcache.data.samples import sources
from kdcache.data.samples.vocabulary import own_vocabulary
from kdcache.dump.launch import run_on_devices
from kdcache.dump.loop import run
from kdcache.dump.preparation.job import DumpJob
from kdcache.dump.processes.preemption import Preemption
from kdcache.dump.processes.ranks import joined, this_replica
from kdcache.errors import UsageError
from kdcache.paths import local_path
from kdcache.store import Cache
from kdcache.store.chance import chance_remark
from kdcache.tables import is_watched

log = logging.getLogger(__name__)


def dump_teacher(
    teacher: nn.Module | Callable[[], nn.Module],
    data: Any,
    cache: str | Path,
    *,
    codec: Codec | None = None,
    batch: Mapped | Mapping[str, Any] | str | None = None,
    class_names: Sequence[str] = (),
    key: str = "index",
    fingerprint: str | Callable[[Any], Any] = "inputs",
    samples_per_shard: int | None = None,
    pilot: bool = True,
    extend: bool = False,
    devices: int = 1,
    part: str | None = None,
    ranks_per_replica: int = 1,
    accelerator: str = "auto",
    precision: str | int = "32-true",
    grace_s: float = 30.0,
    progress: bool = True,
    verbose: bool = True,
) -> Cache:
    """Run a teacher over every sample once and keep its soft targets.

    Running it again with the same arguments dumps only what is missing; a complete cache is
    returned as it is.

    Args:
        teacher: a module that returns raw logits (temperature 1) as a tensor, a tuple, a dict
            with "logits" or an object with ``.logits``; or a function that makes it, called only
            where something is missing. It is put into eval mode and frozen.
        data: a DataLoader (split ``train``), split name -> DataLoader, or an object with training
            and validation loaders (see :func:`kdcache.data.samples.sources.loaders`). Their
            datasets, collate functions, batch sizes and workers are used; their order is not. A
            stream (IterableDataset) needs a key other than its number.
        cache: folder of the teacher cache; made if it is missing.
        codec: how logits are stored; ``DenseCodec()`` (float16 and offset) if None.
        batch: which entries of a batch are inputs, labels and mask, and ``class_dim``; a mapping
            as in the experiment file's ``batch:``, or None where it can be inferred.
        class_names: in class order; compared with the student's before training. So is the
            vocabulary of a ``tokenizer`` that the data, its dataset or collate function has.
        key: ``index``, ``content`` or ``field:<path>``: what joins samples and targets.
        fingerprint: ``inputs``, ``sample``, ``field:<path>`` (such as raw bytes),
            ``tokens:<path>`` (token ids, alike as list, array or tensor of any integer type), or
            a function from a sample to what counts as seen.
        samples_per_shard: samples written, or lost in a crash, together; chosen if None.
        pilot: measure a few samples before the first shard: what the codec costs, and how far
            targets depend on the batch. The numbers stand in the cache.
        extend: dump what the datasets have gained at their ends since the cache was made.
        devices: processes to start on this machine, one teacher each.
        part: ``3/16``: this job's share (from 0) where independent jobs fill one cache. Under
            torchrun or SLURM the rank is read from the environment.
        ranks_per_replica: consecutive ranks of torchrun or SLURM that hold one teacher together
            (FSDP, tensor parallel). They run the same batches; the first of them writes.
            ``torch.distributed`` is initialised if it is not yet, with the replica's ranks as its
            world, before a teacher that is given as a function is made: ``fully_shard(model)``
            in there needs no mesh.
        accelerator: ``auto``, ``cpu``, ``cuda``, ...
        precision: Fabric's names: ``32-true``, ``bf16-mixed``, ``16-mixed``, ... or the short ones,
            such as 32 and 16.
        grace_s: seconds after SIGTERM in which the current shard is finished, where it can be.
        progress: show a bar where standard error is a terminal.
        verbose: print what the cache holds at the end, where standard output is a terminal or a
            notebook.

    Returns:
        The cache, opened; complete unless other parts are still to run.

    Raises:
        CacheError: the path holds something that is no cache.
        MismatchError: the cache was begun with other settings; field by field.
        DataError: logits with NaN or +inf, labels out of range; names the sample.
        AlignmentError: a random dataset, a collate function that reorders or drops.
        SampleError: the dataset, or its collate function, does not give a sample; names it.
        WorkerLostError: a worker of a DataLoader ended, most often for want of memory.
        PreemptedError: SIGTERM came (in the main thread); what was finished is committed.
    """
    verbose = values.flag(verbose, "verbose")
    job = DumpJob(
        teacher=teacher,
        loaders=_loaders(data),
        cache=local_path(cache, "cache"),
        codec=codec or DenseCodec(),
        mapping=parse_mapping(batch, "teacher"),
        class_names=class_names,
        vocabulary=own_vocabulary(data),
        key=key,
        fingerprint=fingerprint,
        samples_per_shard=samples_per_shard,
        pilot=pilot,
        extend=extend,
        accelerator=accelerator,
        precision=values.precision(precision, "precision"),
        grace_s=grace_s,
        progress=progress,
    )
    finished = run_job(
        functools.partial(dataclasses.replace, job),
        cache=job.cache,
        devices=devices,
        part=part,
        ranks_per_replica=ranks_per_replica,
    )
    _warn_of_chance(finished, list(job.loaders))
    replica = this_replica(part, ranks_per_replica=ranks_per_replica)
    is_first = replica.number == 0 and replica.rank == 0
    if verbose and (is_first or part is not None) and is_watched():
        print(finished.summary())
    return finished


def _warn_of_chance(cache: Cache, splits: Sequence[str]) -> None:
    """Say where a teacher cannot be told from one that guesses; ``inspect`` shows it as well."""
    for view in (cache[split] for split in splits if split in cache):
        statistics = (commit.statistics for commit in view.commits)
        remark = chance_remark(statistics, view.manifest.num_classes, view.manifest.split)
        if remark is not None:
            log.warning("%s: %s", cache.path, remark)


def _loaders(data: Any) -> dict[str, sources.Loader]:
    if isinstance(data, Mapping):
        return dict(data)
    if isinstance(data, DataLoader):
        return {sources.TRAIN: data}
    sources.prepare(data)
    train, validation = sources.loaders(data)
    return {sources.TRAIN: train, **validation}


def run_job(
    make_job: Callable[[], DumpJob],
    *,
    cache: Path,
    devices: int = 1,
    part: str | None = None,
    ranks_per_replica: int = 1,
) -> Cache:
    """Run a job here, as this process's replica, or on several devices of this machine.

    Args:
        make_job: called in every process that dumps, where its ranks have met.
        cache: that the job fills.
        devices: processes to start here, one replica each.
        part: this job's share.
        ranks_per_replica: launched processes that hold one teacher together.
    """
    devices = values.whole_number(devices, "devices")
    replica = this_replica(part, ranks_per_replica=ranks_per_replica)
    if devices > 1 and max(replica.count, replica.num_ranks) > 1:
        raise UsageError(
            f"devices={devices} starts processes, but this is already replica {replica.number} of "
            f"{replica.count} (part, torchrun or SLURM). Use one of the two."
        )
    with Preemption(cache) as preemption:
        if devices > 1:
            return run_on_devices(make_job, devices, cache=cache, preemption=preemption)
        with joined(replica) as ranks:
            # Ranks that belong together stop together: a signal is only noted.
            alone = replica.num_ranks == 1
            with contextlib.nullcontext() if alone else preemption.in_hand():
                return run(make_job(), ranks, preemption)
