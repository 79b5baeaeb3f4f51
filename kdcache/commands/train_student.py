"""``kdcache train-student``: stage two from an experiment file. The teacher's section is opaque."""

from __future__ import annotations

import functools
import inspect
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcache.commands.arguments import experiment_from
from kdcache.commands.console import aligned, quiet_lightning
from kdcache.config import (
    build,
    build_model,
    build_nested,
    checked,
    fingerprint_function,
    resolved_annotations,
    to_yaml,
)
from kdcache.errors import TerminatedError, UsageError, suggest
from kdcache.experiment import StudentExperiment
from kdcache.store import open_cache

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from kdcache.train import StudentRun
    from kdcache.train.optimizers import MakeOptimizer
    from kdcache.train.schedules import Schedule

_MAX_SEED = 2**32 - 1
_RESULTS = (
    ("accuracy", "accuracy", "{:.2%}"),
    ("cross-entropy", "cross_entropy", "{:.4f}"),
    ("KL to teacher (nats)", "teacher_kl", "{:.4f}"),
    ("agreement", "teacher_agreement", "{:.2%}"),
)
_BOUND = ">=  a lower bound: the cache holds the top k classes and the sum of the others"


def run(arguments: Sequence[str]) -> int:
    """Train one student and print what came out."""
    experiment = experiment_from(arguments, StudentExperiment, "train-student")
    if experiment is None:
        return 0
    open_cache(experiment.cache)  # a missing cache is said before anything heavy is imported
    finished = _train(experiment)
    if finished is not None:
        print(run_text(finished, shutil.get_terminal_size().columns))
    return 0


def _train(experiment: StudentExperiment) -> StudentRun | None:
    """The run; None in the processes that only help the first one, which also tells of SIGTERM."""
    import pytorch_lightning as pl
    from pytorch_lightning.utilities import rank_zero_only

    from kdcache.train import train_student

    quiet_lightning()
    trainer = trainer_arguments(experiment.trainer, pl.Trainer)
    if not 0 <= experiment.seed <= _MAX_SEED:
        raise UsageError(f"the seed is a number from 0 to {_MAX_SEED}, not {experiment.seed}.")
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
        trainer=trainer,
        experiment=to_yaml(experiment),
    )
    try:
        finished = train()
    except TerminatedError as error:
        if rank_zero_only.rank:
            raise SystemExit(error.exit_code) from None
        raise
    return finished if rank_zero_only.rank == 0 else None


def _optimizer(section: Mapping[str, Any] | None) -> MakeOptimizer | None:
    from kdcache.train.optimizers import OPTIMIZERS

    if section is None:
        return None
    return functools.partial(build, section, "optimizer", names=OPTIMIZERS)


def _schedule(section: Mapping[str, Any] | None) -> Schedule | None:
    from kdcache.train.schedules import SCHEDULES, Schedule

    if section is None:
        return None
    is_named = section["class_path"] in SCHEDULES

    def make(optimizer: Optimizer, num_total: int) -> Any:
        given = (optimizer, num_total) if is_named else (optimizer,)
        return build(section, "scheduler", *given, names=SCHEDULES)

    return Schedule(make=make, interval=section.get("interval", "epoch"))


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


def run_text(finished: StudentRun, width: int) -> str:
    """What a person wants to know of a run: scores by validation set, losses, and where it is."""
    scores = finished.scores
    parts = []
    if scores:
        others = sorted({name for numbers in scores.values() for name in numbers})
        named = {name: label for label, name, _ in _RESULTS}
        kinds = [name for name in named if name in others]
        # The pipeline's own result is shown unless it only repeats a number beside it.
        kinds += [name for name in others if name not in named and _is_new(name, scores)]
        rows = [["set", *(named.get(name, name) for name in kinds)]]
        rows += [[split, *(_cell(finished, split, name) for name in kinds)] for split in scores]
        parts += [aligned(rows, width), *([_BOUND] if finished.lower_bounds else []), ""]
    rows = [[name.removeprefix("train_"), f"{v:.4f}"] for name, v in finished.losses.items()]
    parts += [aligned([["training loss", "last epoch"], *rows], width), ""] if rows else []
    parts += [
        f"student       {finished.student}",
        f"trained       {_counted(finished.epochs, 'epoch')}, {_counted(finished.steps, 'step')}",
        f"cache digest  {finished.digest}",
        f"time          {finished.seconds:.1f} s",
    ]
    return "\n".join(parts)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _cell(finished: StudentRun, split: str, name: str) -> str:
    value = finished.scores[split].get(name)
    if value is None:
        return "-"
    patterns = {name: pattern for _, name, pattern in _RESULTS}
    text = patterns.get(name, "{:.4g}").format(value)
    return f">= {text}" if f"{split}_{name}" in finished.lower_bounds else text


def _is_new(name: str, scores: Mapping[str, Mapping[str, float]]) -> bool:
    repeated = [
        any(other != name and value == numbers.get(name) for other, value in numbers.items())
        for numbers in scores.values()
    ]
    return name != "inference_result" or not all(repeated)
