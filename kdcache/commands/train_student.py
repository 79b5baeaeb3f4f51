"""``kdcache train-student``: stage two from an experiment file. The teacher's section is opaque."""

from __future__ import annotations

import functools
import inspect
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcache.commands.arguments import experiment_from
from kdcache.commands.console import aligned, quiet_lightning
from kdcache.config import build, build_nested, fingerprint_function
from kdcache.errors import UsageError, suggest
from kdcache.experiment import StudentExperiment
from kdcache.store import open_cache

if TYPE_CHECKING:
    from kdcache.train import StudentRun

_MAX_SEED = 2**32 - 1
_RESULTS = (
    ("accuracy", "accuracy", "{:.2%}"),
    ("KL to teacher (nats)", "teacher_kl", "{:.4f}"),
    ("agreement", "teacher_agreement", "{:.2%}"),
)


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
    """The run; None in the processes that only help the first one."""
    import pytorch_lightning as pl
    from pytorch_lightning.utilities import rank_zero_only

    from kdcache.train import train_student

    quiet_lightning()
    trainer = trainer_arguments(experiment.trainer, inspect.signature(pl.Trainer).parameters)
    if not 0 <= experiment.seed <= _MAX_SEED:
        raise UsageError(f"the seed is a number from 0 to {_MAX_SEED}, not {experiment.seed}.")
    pl.seed_everything(experiment.seed, workers=True, verbose=False)  # also of what is built here
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
        trainer=trainer,
    )
    return finished if rank_zero_only.rank == 0 else None


def _maker(component: Mapping[str, Any] | None, where: str) -> Any:
    return None if component is None else functools.partial(build, component, where)


def trainer_arguments(section: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for Lightning's Trainer: names checked, components built."""
    for name in section:
        if name not in known:
            raise UsageError(f"unknown key 'trainer.{name}'. {suggest(str(name), known)}")
    return {name: build_nested(value, f"trainer.{name}") for name, value in section.items()}


def run_text(finished: StudentRun, width: int) -> str:
    """What a person wants to know of a run: scores by validation set, losses, and where it is."""
    scores = finished.scores
    parts = []
    if scores:
        others = sorted({name for numbers in scores.values() for name in numbers})
        named = {name: (label, pattern) for label, name, pattern in _RESULTS}
        kinds = [name for name in named if name in others]
        # The pipeline's own result is shown unless it only repeats a number beside it.
        kinds += [name for name in others if name not in named and _is_new(name, scores)]
        rows = [["set", *(named.get(name, (name,))[0] for name in kinds)]]
        for split, numbers in scores.items():
            cells = [(numbers.get(name), named.get(name, ("", "{:.4g}"))[1]) for name in kinds]
            rows.append([split, *("-" if v is None else pattern.format(v) for v, pattern in cells)])
        parts += [aligned(rows, width), ""]
    rows = [[name.removeprefix("train_"), f"{v:.4f}"] for name, v in finished.losses.items()]
    parts += [aligned([["training loss", "last epoch"], *rows], width), ""] if rows else []
    parts += [
        f"student  {finished.student}",
        f"cache    {finished.digest}",
        f"time     {finished.seconds:.1f} s",
    ]
    return "\n".join(parts)


def _is_new(name: str, scores: Mapping[str, Mapping[str, float]]) -> bool:
    repeated = [
        any(other != name and value == numbers.get(name) for other, value in numbers.items())
        for numbers in scores.values()
    ]
    return name != "inference_result" or not all(repeated)
