"""One training by Lightning's Trainer: it fits, scores what comes out, and ends as ours."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.callbacks import BatchSizeFinder, Callback, LearningRateFinder
from torch import Tensor

from kdcache.errors import UsageError
from kdcache.tracking import Tracking
from kdcache.tracking.callbacks import tracking_callbacks
from kdcache.tracking.loggers import experiments, make_loggers
from kdcache.train.interruption.checkpoints import checkpoints, last_checkpoint
from kdcache.train.interruption.endings import WayOn, ended_as_ours
from kdcache.train.interruption.resume import Resumption
from kdcache.train.interruption.termination import Termination
from kdcache.train.module import StudentModule
from kdcache.train.silence import quiet_lightning
from kdcache.train.step.unlabelled import LabelWatch
from kdcache.train.trainer_options import make_trainer

_EPOCHS = 10
_LOG_EVERY = 50


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A training that came to its end.

    Attributes:
        trainer: as it was left.
        metrics: the last value of everything that was logged; scores are of the last weights.
        epochs: that were trained.
        steps: optimiser steps in all of them.
    """

    trainer: pl.Trainer
    metrics: Mapping[str, float]
    epochs: int
    steps: int


def fit(
    module: StudentModule,
    loader: Any,
    folder: Path,
    options: Mapping[str, Any],
    *,
    progress: bool,
    tracking: Tracking | None = None,
    resume: Resumption | None = None,
) -> Fitted:
    """Train a module, and score the weights that it ends with.

    A validation of its own follows where the last one is older than the last step, as with
    ``check_val_every_n_epoch``; its row in ``metrics.csv`` has the number of epochs trained.

    Args:
        module: student, objective, validation.
        loader: joined batches.
        folder: where checkpoints and what loggers write go.
        options: the user's arguments for the Trainer.
        progress: show Lightning's bar where standard error is a terminal.
        tracking: what is logged and where to, unless ``options`` have a logger.
        resume: the checkpoint to go on from.

    Raises:
        UsageError: Lightning refuses an argument of the Trainer.
        TerminatedError: SIGTERM came.
        TrainingInterrupt: Ctrl-C came, a KeyboardInterrupt; Lightning would end the process.
        ProcessLostError: another rank ended.
    """
    tracking = tracking or Tracking()
    step = 0 if resume is None else resume.step
    made = [] if "logger" in options else make_loggers(tracking, folder, before_step=step)
    settings: dict[str, Any] = {
        "max_epochs": _EPOCHS,
        "logger": made,
        "default_root_dir": folder,
        "enable_model_summary": False,
        "enable_progress_bar": progress and sys.stderr.isatty(),
        "num_sanity_val_steps": 0,
        "log_every_n_steps": _log_interval(loader, options),
        **options,
    }
    kept: list[Callback] = []
    if settings.get("enable_checkpointing") is not False:
        kept = checkpoints(folder, monitor=module.monitor, has_validation=module.has_validation)
    termination = Termination(last_checkpoint(folder) if kept else None)
    given = _callbacks(settings.get("callbacks"))
    _check_finders(given, is_resumed=resume is not None)
    tracked = [] if settings["logger"] in (False, []) else tracking_callbacks(tracking, given)
    watch = LabelWatch(module.objective.losses)
    settings["callbacks"] = [*given, *tracked, watch, termination, *kept]
    with quiet_lightning():
        trainer = make_trainer(settings, options)
        at = None if resume is None else resume.checkpoint
        way_on = WayOn(folder=folder, is_kept=bool(kept), resumed=at)
        ended = ended_as_ours(trainer, termination, way_on)
        with experiments(trainer.loggers), ended:
            trainer.fit(module, train_dataloaders=loader, ckpt_path=at, weights_only=True)
            if trainer.world_size > 1:
                atexit.register(_leave_group)
            epochs, steps = trainer.current_epoch, trainer.global_step
            metrics = last_metrics(trainer)
            if module.needs_scores:
                # What a student keeps from there may meet gradients in a later training.
                trainer.validate_loop.inference_mode = False
                trainer.validate(module, verbose=False)
                metrics |= last_metrics(trainer)
    return Fitted(trainer=trainer, metrics=metrics, epochs=epochs, steps=steps)


def _log_interval(loader: Any, options: Mapping[str, Any]) -> int:
    """Lightning's 50 steps, and fewer where the training would log no ten of them.

    A guess from what is known before: where the training's length is not, it is 50.
    """
    try:
        batches = len(loader)
    except TypeError:  # a stream
        batches = None
    epochs, steps = options.get("max_epochs") or _EPOCHS, options.get("max_steps") or -1
    counts = [steps] if steps > 0 else []
    if batches and epochs > 0:
        accumulate = options.get("accumulate_grad_batches") or 1
        counts.append(epochs * -(-batches // accumulate))
    return max(1, min(_LOG_EVERY, min(counts, default=_LOG_EVERY * 10) // 10))


def _leave_group() -> None:
    """At the process's end: threads of a group that is still there then abort it now and then."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _callbacks(given: Any) -> list[Callback]:
    if given is None:
        return []
    return [given] if isinstance(given, Callback) else list(given)


def _check_finders(callbacks: Iterable[Callback], *, is_resumed: bool) -> None:
    for callback in callbacks:
        name = type(callback).__name__
        if isinstance(callback, BatchSizeFinder):
            raise UsageError(
                f"trainer.callbacks: {name} cannot be used: batches are made by the loader that "
                "the data gives, and kdcache does not change its size. Set batch_size there."
            )
        if isinstance(callback, LearningRateFinder) and is_resumed:
            raise UsageError(
                f"trainer.callbacks: {name} cannot be used in a training that is resumed: it goes "
                "on with the checkpoint's learning rate. Leave it out."
            )


def last_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """The last value of everything that was logged, by its own name."""
    found = {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if isinstance(value, Tensor) and value.numel() == 1
    }
    # Lightning adds two variants of what is logged by step and by epoch.
    variants = {f"{name}_{when}" for name in found for when in ("step", "epoch")}
    return {name: value for name, value in found.items() if name not in variants}
