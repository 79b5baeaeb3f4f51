"""Lightning's Trainer as a student run uses it: settings, checkpoints, metrics, silence."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

from kdcache.errors import UsageError
from kdcache.train.module import StudentModule

CHECKPOINTS_FOLDER = "checkpoints"
_BEST = 3

# Lightning's advice on settings that the user chose, or that our loaders make on purpose.
_ADVICE = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*GPU available but not used.*",
    ".*isinstance.*LeafSpec.*",
)


def fit(
    module: StudentModule, loader: Any, folder: Path, options: Mapping[str, Any], *, progress: bool
) -> pl.Trainer:
    """Train a module; the Trainer afterwards.

    Args:
        module: student, objective, validation.
        loader: joined batches.
        folder: where checkpoints and ``metrics.csv`` go.
        options: the user's arguments for the Trainer.
        progress: show Lightning's bar where standard error is a terminal.

    Raises:
        KeyboardInterrupt: as it was; Lightning would end the process.
    """
    settings: dict[str, Any] = {
        "max_epochs": 10,
        "logger": CSVLogger(folder, name="", version=""),
        "default_root_dir": folder,
        "enable_model_summary": False,
        "enable_progress_bar": progress and sys.stderr.isatty(),
        "num_sanity_val_steps": 0,
        **options,
    }
    settings["callbacks"] = _callbacks(settings.get("callbacks"))
    if settings.get("enable_checkpointing") is not False:
        settings["callbacks"] += checkpoints(module, folder / CHECKPOINTS_FOLDER)
    with warnings.catch_warnings():
        for text in _ADVICE:
            warnings.filterwarnings("ignore", message=text)
        trainer = pl.Trainer(**settings)
        try:
            trainer.fit(module, train_dataloaders=loader)
        except SystemExit as exit_:
            if not isinstance(exit_.__context__, KeyboardInterrupt):
                raise
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning ignores it now
            raise KeyboardInterrupt from exit_
    return trainer


def check_options(options: Mapping[str, Any]) -> None:
    """Raise UsageError for an argument of the Trainer that would not do what it says."""
    if options.get("limit_val_batches") not in (None, 1.0):
        raise UsageError(
            "trainer.limit_val_batches cannot be used: each validation set is scored as a whole by "
            "its inference pipeline. Give a smaller set, or validate less often with "
            "trainer.check_val_every_n_epoch."
        )


def _callbacks(given: Any) -> list[Callback]:
    if given is None:
        return []
    return [given] if isinstance(given, Callback) else list(given)


def checkpoints(module: StudentModule, folder: Path) -> list[Callback]:
    """The best three by what the module monitors, and the state after the last epoch."""
    name, mode = module.monitor
    best = ModelCheckpoint(
        dirpath=folder,
        filename="best-epoch-{epoch:03d}-step-{step}",
        auto_insert_metric_name=False,
        monitor=name,
        mode=mode,
        save_top_k=_BEST,
        save_on_train_epoch_end=not module.has_validation,
    )
    return [best, _Last(folder)]


class _Last(ModelCheckpoint):
    """The state after every epoch, over the one before; a class of its own, beside the user's.

    Lightning's ``save_last`` only follows a checkpoint that was among the best.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            dirpath=folder,
            filename="last",
            enable_version_counter=False,
            save_on_train_epoch_end=True,
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
