"""``kdcache dump-teacher``: stage one from an experiment file."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdcache.commands.terminal.arguments import experiment_from
from kdcache.commands.terminal.console import quiet_lightning
from kdcache.config import build, build_model, fingerprint_function
from kdcache.experiment import DumpExperiment
from kdcache.paths import local_path
from kdcache.store import check_cache_path
from kdcache.values import precision

if TYPE_CHECKING:
    from kdcache.dump import DumpJob


def run(arguments: Sequence[str]) -> int:
    """Dump what is missing and print what the cache holds then."""
    experiment = experiment_from(arguments, DumpExperiment, "dump-teacher")
    if experiment is None:
        return 0
    check_cache_path(local_path(experiment.cache, "cache"))
    from kdcache.dump import run_job
    from kdcache.dump.processes.ranks import this_replica

    quiet_lightning()
    dump = experiment.dump
    make = functools.partial(make_job, experiment)
    cache = run_job(
        make,
        cache=local_path(experiment.cache, "cache"),
        devices=dump.devices,
        part=dump.part,
        ranks_per_replica=dump.ranks_per_replica,
    )
    here = this_replica(dump.part, ranks_per_replica=dump.ranks_per_replica)
    if here.rank == 0:
        print(cache.summary())
    return 0


def make_job(experiment: DumpExperiment) -> DumpJob:
    """The job that an experiment describes; called once in every process that dumps."""
    from kdcache.codecs import make_codec
    from kdcache.data.batch.section import parse_mapping
    from kdcache.data.samples import sources
    from kdcache.data.samples.vocabulary import own_vocabulary
    from kdcache.dump import DumpJob

    targets = dict(experiment.targets)
    codec = make_codec(str(targets.pop("codec", "dense")), targets)
    data = build(experiment.data, "data")
    sources.prepare(data)
    train, validation = sources.loaders(data)
    dump = experiment.dump
    return DumpJob(
        teacher=build_model(experiment.teacher, "teacher"),
        loaders={sources.TRAIN: train, **validation},
        cache=local_path(experiment.cache, "cache"),
        codec=codec,
        mapping=parse_mapping(experiment.batch, "teacher"),
        class_names=sources.class_names(data, train.dataset),
        vocabulary=own_vocabulary(data),
        key=dump.key,
        fingerprint=fingerprint_function(dump.fingerprint) or dump.fingerprint,
        samples_per_shard=dump.samples_per_shard,
        pilot=dump.pilot,
        extend=dump.extend,
        accelerator=dump.accelerator,
        precision=precision(dump.precision, "dump.precision"),
        grace_s=dump.grace_s,
        progress=experiment.progress,
    )
