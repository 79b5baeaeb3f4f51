"""``kdcache train-student``: stage two from an experiment file. The teacher's section is opaque."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from kdcache.commands.arguments import experiment_from
from kdcache.config import build, fingerprint_function
from kdcache.errors import UsageError, suggest
from kdcache.experiment import StudentExperiment
from kdcache.store import open_cache
from kdcache.train import StudentRun, train_student


def run(arguments: Sequence[str]) -> int:
    """Train one student and print what came out."""
    experiment = experiment_from(arguments, StudentExperiment, "train-student")
    if experiment is None:
        return 0
    open_cache(experiment.cache)  # a missing cache is said before anything is imported
    finished = train_student(
        build(experiment.student, "student"),
        build(experiment.data, "data"),
        experiment.cache,
        losses=experiment.distill.losses,
        temperature=experiment.distill.temperature,
        batch=experiment.batch,
        optimizer=_maker(experiment.optimizer, "optimizer"),
        scheduler=_maker(experiment.scheduler, "scheduler"),
        pipelines={
            name: build(component, f"pipelines.{name}")
            for name, component in experiment.pipelines.items()
        },
        output=experiment.output,
        codecs=[str(experiment.targets.get("codec", ""))],
        fingerprint=fingerprint_function(experiment.dump.fingerprint),
        local_copy=None if experiment.local_copy is None else Path(experiment.local_copy),
        allow_mismatch=experiment.allow_mismatch,
        seed=experiment.seed,
        progress=experiment.progress,
        trainer=trainer_arguments(experiment.trainer),
    )
    print_run(finished)
    return 0


def _maker(component: Mapping[str, Any] | None, where: str) -> Any:
    return None if component is None else functools.partial(build, component, where)


def trainer_arguments(section: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for Lightning's Trainer: names checked, components built."""
    known = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    built: dict[str, Any] = {}
    for name, value in section.items():
        if name not in known:
            raise UsageError(f"unknown key 'trainer.{name}'. {suggest(name, known)}")
        where = f"trainer.{name}"
        if isinstance(value, list):
            built[name] = [_built(item, where) for item in value]
        else:
            built[name] = _built(value, where)
    return built


def _built(value: Any, where: str) -> Any:
    is_component = isinstance(value, Mapping) and "class_path" in value
    return build(value, where) if is_component else value


def print_run(finished: StudentRun) -> None:
    """What a person wants to know of a run."""
    print(f"cache digest  {finished.digest}")
    for name, value in sorted(finished.metrics.items()):
        print(f"{name:<28} {value:.4f}")
    print(f"trained in {finished.seconds:.1f} s")
    print(f"student       {finished.student}")
