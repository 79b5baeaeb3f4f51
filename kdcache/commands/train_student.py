"""``kdcache train-student``: stage two from an experiment file. The teacher's section is opaque."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdcache.commands.terminal.arguments import experiment_from
from kdcache.commands.terminal.console import quiet_lightning
from kdcache.config import (
    build,
    build_model,
    build_nested,
    checked,
    fingerprint_function,
    resolved_annotations,
    to_yaml,
)
from kdcache.errors import (
    ProcessLostError,
    TerminatedError,
    TrainingInterrupt,
    UsageError,
    WorkerLostError,
    suggest,
)
from kdcache.experiment import StudentExperiment
from kdcache.store import open_cache
from kdcache.tracking import Tracking

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from kdcache.train import StudentRun
    from kdcache.train.optimization.optimizers import MakeOptimizer
    from kdcache.train.optimization.schedules import Schedule

Ended = TerminatedError | TrainingInterrupt | ProcessLostError | WorkerLostError


def run(arguments: Sequence[str]) -> int:
    """Train one student and print what came out."""
    experiment = experiment_from(arguments, StudentExperiment, "train-student")
    if experiment is None:
        return 0
    open_cache(experiment.cache)  # a missing cache is said before anything heavy is imported
    finished = _train(experiment, arguments)
    if finished is not None:
        print(finished.summary())
    return 0


def _train(experiment: StudentExperiment, arguments: Sequence[str]) -> StudentRun | None:
    """The run; None in the processes that only help the first one, which also tells of signals."""
    import pytorch_lightning as pl
    from pytorch_lightning.utilities import rank_zero_only

    from kdcache.train import train_student
    from kdcache.train.pipelines import PIPELINES
    from kdcache.train.run import MAX_SEED

    quiet_lightning()
    trainer = trainer_arguments(experiment.trainer, pl.Trainer)
    if not 0 <= experiment.seed <= MAX_SEED:
        raise UsageError(f"the seed is a number from 0 to {MAX_SEED}, not {experiment.seed}.")
    pl.seed_everything(experiment.seed, workers=True, verbose=False)  # also of what is built here
    train = functools.partial(
        train_student,
        build_model(experiment.student, "student"),
        build(experiment.data, "data"),
        experiment.cache,
        losses=experiment.distill.losses,
        temperature=experiment.distill.temperature,
        head=experiment.distill.head,
        batch=experiment.batch,
        reduction=experiment.distill.reduction,
        optimizer=_optimizer(experiment.optimizer),
        scheduler=_schedule(experiment.scheduler),
        pipelines={
            name: build(component, f"pipelines.{name}", names=PIPELINES)
            for name, component in experiment.pipelines.items()
        },
        output=experiment.output,
        codecs=[str(experiment.targets.get("codec", ""))],
        fingerprint=fingerprint_function(experiment.dump.fingerprint),
        local_copy=experiment.local_copy,
        allow_mismatch=experiment.allow_mismatch,
        seed=experiment.seed,
        progress=experiment.progress,
        trainer=trainer,
        tracking=_tracking(experiment.tracking),
        monitor=experiment.monitor,
        resume=experiment.resume,
        experiment=to_yaml(experiment),
        verbose=False,
    )
    try:
        finished = train()
    except (TerminatedError, TrainingInterrupt, ProcessLostError, WorkerLostError) as error:
        if rank_zero_only.rank and isinstance(error, TerminatedError | TrainingInterrupt):
            raise SystemExit(error.exit_code) from None
        raise _told_with_command(error, arguments) from error
    return finished if rank_zero_only.rank == 0 else None


def _told_with_command(error: Ended, arguments: Sequence[str]) -> Ended:
    """The same error, with the command that goes on."""
    from kdcache.train.interruption.endings import command_way_on

    if not error.story:  # of a process that only helps
        return error
    words = list(arguments)
    while "--resume" in words:
        at = words.index("--resume")
        del words[at : at + 2]
    words = [word for word in words if not word.startswith("--resume=")]
    words += [] if error.resume is None else ["--resume", str(error.resume)]
    command = shlex.join(["kdcache", "train-student", *words])
    return type(error)(f"{error.story} {command_way_on(error.resume, command)}")


def _optimizer(section: Mapping[str, Any] | None) -> MakeOptimizer | None:
    from kdcache.train.optimization.optimizers import OPTIMIZERS

    if section is None:
        return None
    make = functools.partial(build, section, "optimizer", names=OPTIMIZERS)
    vars(make)["__qualname__"] = section["class_path"]
    return make


def _schedule(section: Mapping[str, Any] | None) -> Schedule | None:
    from kdcache.train.optimization.schedules import SCHEDULES, Schedule

    if section is None:
        return None
    is_named = section["class_path"] in SCHEDULES

    def make(optimizer: Optimizer, num_total: int) -> Any:
        given = (optimizer, num_total) if is_named else (optimizer,)
        return build(section, "scheduler", *given, names=SCHEDULES)

    interval = section.get("interval", "epoch")
    return Schedule(make=make, interval=interval, name=section["class_path"])


def _tracking(given: Tracking) -> Tracking:
    """With the loggers built that have a class path."""
    if given.loggers is None:
        return given
    loggers = []
    for logger in given.loggers:
        try:
            is_built_in = isinstance(logger, str)
            loggers.append(logger if is_built_in else build(logger, "tracking.loggers"))
        except ModuleNotFoundError as error:  # of what a logger writes with
            raise UsageError(
                f"tracking.loggers: {logger['class_path']} needs a package that is not installed: "
                f"{error}."
            ) from error
    return dataclasses.replace(given, loggers=loggers)


def trainer_arguments(section: Mapping[str, Any], target: Callable[..., Any]) -> dict[str, Any]:
    """Arguments for Lightning's Trainer: names and types checked, components built."""
    known = inspect.signature(target).parameters
    for name in section:
        if name not in known:
            raise UsageError(f"unknown key 'trainer.{name}'. {suggest(str(name), known)}")
    wanted = resolved_annotations(target, known)
    return {
        name: checked(build_nested(value, f"trainer.{name}"), wanted[name], f"trainer.{name}")
        for name, value in section.items()
    }
