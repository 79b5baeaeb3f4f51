"""Lightning's Trainer as a student run uses it: settings, checkpoints, metrics, silence."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_fabric.utilities.rank_zero import rank_zero_module
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from kdcache.errors import TerminatedError, UsageError
from kdcache.train.module import StudentModule
from kdcache.train.termination import Termination

CHECKPOINTS_FOLDER = "checkpoints"
_BEST = 3

# Lightning's advice on settings that the user chose, or that our loaders make on purpose.
_ADVICE = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*Experiment logs directory .* exists and is not empty.*",
    ".*GPU available but not used.*",
    ".*isinstance.*LeafSpec.*",
    ".*You requested to overfit but enabled train dataloader shuffling.*",
)

# What Lightning tells everybody, whatever is trained: products, hardware, that it has ended.
_BANNERS = (
    "\N{ELECTRIC LIGHT BULB} Tip:",
    "GPU available:",
    "TPU available:",
    "HPU available:",
    "LOCAL_RANK:",
    "`Trainer.fit` stopped:",
)


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
    module: StudentModule, loader: Any, folder: Path, options: Mapping[str, Any], *, progress: bool
) -> Fitted:
    """Train a module, and score the weights that it ends with.

    A validation of its own follows where the last one is older than the last step, as with
    ``check_val_every_n_epoch``; its row in ``metrics.csv`` has the number of epochs trained.

    Args:
        module: student, objective, validation.
        loader: joined batches.
        folder: where checkpoints and ``metrics.csv`` go.
        options: the user's arguments for the Trainer.
        progress: show Lightning's bar where standard error is a terminal.

    Raises:
        UsageError: Lightning refuses an argument of the Trainer.
        TerminatedError: SIGTERM came.
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
    termination = Termination()
    settings["callbacks"] = [*_callbacks(settings.get("callbacks")), termination]
    if settings.get("enable_checkpointing") is not False:
        settings["callbacks"] += checkpoints(module, folder / CHECKPOINTS_FOLDER)
    with _quiet():
        trainer = _trainer(settings, options)
        with _ended_as_ours(trainer, termination, folder / CHECKPOINTS_FOLDER):
            trainer.fit(module, train_dataloaders=loader)
            epochs, steps = trainer.current_epoch, trainer.global_step
            metrics = last_metrics(trainer)
            if module.needs_scores:
                # What a student keeps from there may meet gradients in a later training.
                trainer.validate_loop.inference_mode = False
                trainer.validate(module, verbose=False)
                metrics |= last_metrics(trainer)
    return Fitted(trainer=trainer, metrics=metrics, epochs=epochs, steps=steps)


def _trainer(settings: Mapping[str, Any], options: Mapping[str, Any]) -> pl.Trainer:
    try:
        trainer = pl.Trainer(**settings)
    except Exception as error:  # Lightning checks its arguments in many ways, and with asserts
        text = " ".join(str(error).split()) or type(error).__name__
        named = [name for name in options if name in text]
        named = named or [k for k, value in options.items() if type(value) is str and value in text]
        given = ", ".join(f"trainer.{name}: {options[name]}" for name in named or options)
        raise UsageError(f"Lightning's Trainer refuses {given}. It says: {text}") from error
    # fast_dev_run and overfit_batches limit it as well; ours are names of whole sets.
    trainer.limit_val_batches = 1.0
    return trainer


@contextmanager
def _ended_as_ours(
    trainer: pl.Trainer, termination: Termination, checkpoints: Path
) -> Iterator[None]:
    """Errors of ours, or Python's own, where Lightning ends the process."""
    try:
        with termination.listening(trainer):
            yield
    except SIGTERMException:
        raise _terminated(trainer, checkpoints) from None
    except SystemExit as exit_:
        if not isinstance(exit_.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning ignores it now
        raise KeyboardInterrupt from exit_
    except (MisconfigurationException, ValueError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, ValueError) and not text.startswith("`val_check_interval`"):
            raise  # somebody else's
        raise UsageError(f"Lightning refuses to train like that. It says: {text}") from error
    except RuntimeError:
        # A scheduler may signal loaders' workers and other ranks too: that they died is no news.
        if termination.requested:
            raise _terminated(trainer, checkpoints) from None
        raise


def _terminated(trainer: pl.Trainer, checkpoints: Path) -> TerminatedError:
    is_any = any(checkpoints.glob("*.ckpt"))
    rest = f"checkpoints stay in {checkpoints}" if is_any else "there was no checkpoint yet"
    return TerminatedError(
        f"terminated by SIGTERM in epoch {trainer.current_epoch} (from 0), after "
        f"{trainer.global_step} steps. No student was saved; {rest}."
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advice and banners; what callbacks and loggers say is heard."""

    def is_news(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_BANNERS)

    loggers = [rank_zero_module.log, logging.getLogger("pytorch_lightning.accelerators.cuda")]
    with warnings.catch_warnings():
        for text in _ADVICE:
            warnings.filterwarnings("ignore", message=text)
        for logger in loggers:
            logger.addFilter(is_news)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(is_news)


def check_options(options: Mapping[str, Any]) -> None:
    """Raise UsageError for an argument of the Trainer that would not do what it says."""
    limit = options.get("limit_val_batches")
    if limit not in (None, 1.0) or type(limit) is int:  # 1 would be one batch
        raise UsageError(
            "trainer.limit_val_batches cannot be used: each validation set is scored as a whole by "
            "its inference pipeline. Give a smaller set, or validate less often with "
            "trainer.check_val_every_n_epoch."
        )
    accumulate = options.get("accumulate_grad_batches", 1)
    if type(accumulate) is not int or accumulate < 1:
        raise UsageError(
            f"trainer.accumulate_grad_batches is how many batches make a step, 1 or more, not "
            f"{accumulate!r}."
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
