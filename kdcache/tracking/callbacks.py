"""What is logged beside the module's own metrics: the record, the learning rate, the weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, LearningRateMonitor
from pytorch_lightning.loggers import CometLogger as LightningComet
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from kdcache.tracking.comet.logger import CometLogger
from kdcache.tracking.hyperparameters import flattened
from kdcache.tracking.settings import Tracking

log = logging.getLogger(__name__)


def tracking_callbacks(tracking: Tracking, given: Sequence[Callback]) -> list[Callback]:
    """Callbacks of a run that has a logger.

    Args:
        tracking: the user's settings.
        given: the user's callbacks; with a LearningRateMonitor among them, ours stays away.
    """
    callbacks: list[Callback] = [RunRecord()]
    if not any(isinstance(callback, LearningRateMonitor) for callback in given):
        callbacks.append(LearningRateMonitor(logging_interval="step"))
    if tracking.histograms:
        callbacks.append(WeightHistograms())
    return callbacks


class RunRecord(Callback):
    """Gives every logger the module's ``record`` as hyper-parameters, when it is complete."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Optimiser and schedule are made by now."""
        record = getattr(pl_module, "record", {})
        for logger in trainer.loggers:
            logger.log_hyperparams(flattened(record))


class WeightHistograms(Callback):
    """After each epoch, the distribution of every trained weight, in loggers that take it."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Say so where there will be none."""
        if _takers(trainer) and not _holds_all(trainer):
            log.warning(
                "weight histograms are left out: with the strategy %s no process holds all weights",
                type(trainer.strategy).__name__,
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log them; numbers that are not finite are left out."""
        takers = _takers(trainer) if trainer.is_global_zero and _holds_all(trainer) else []
        if not takers:
            return
        for name, parameter in pl_module.named_parameters():
            numbers = parameter.detach().float()
            numbers = numbers[torch.isfinite(numbers)]
            if not parameter.requires_grad or not numbers.numel():
                continue
            for logger in takers:
                _log_histogram(logger, name, numbers, trainer)


def _takers(trainer: pl.Trainer) -> list[Logger]:
    kinds = (CometLogger, LightningComet, TensorBoardLogger)
    return [logger for logger in trainer.loggers if isinstance(logger, kinds)]


def _holds_all(trainer: pl.Trainer) -> bool:
    return isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)


def _log_histogram(logger: Any, name: str, numbers: Tensor, trainer: pl.Trainer) -> None:
    step, epoch = trainer.global_step, trainer.current_epoch
    if isinstance(logger, CometLogger):
        logger.log_histogram(name, numbers, step=step, epoch=epoch)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_histogram(name, numbers, global_step=step)
    else:
        logger.experiment.log_histogram_3d(numbers.cpu().numpy(), name=name, step=step, epoch=epoch)
