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
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from kdcache.errors import ProcessLostError, TerminatedError, UsageError
from kdcache.tracking import Tracking
from kdcache.tracking.callbacks import tracking_callbacks
from kdcache.tracking.loggers import experiments, make_loggers
from kdcache.train.module import StudentModule
from kdcache.train.output import CHECKPOINTS_FOLDER, LAST_CHECKPOINT
from kdcache.train.resume import Resumption
from kdcache.train.termination import Termination

log = logging.getLogger(__name__)

_BEST = 3

# Short names, which Lightning takes as well, with a warning.
_PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}

# Lightning's advice on settings that the user chose, or that our loaders make on purpose.
_ADVICE = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*Experiment logs directory .* exists and is not empty.*",
    ".*GPU available but not used.*",
    ".*isinstance.*LeafSpec.*",
    ".*The dirpath has changed from.*",
    ".*AMP with fp16 is not supported on CPU.*",  # said by us
    ".*You requested to overfit but enabled train dataloader shuffling.*",
)

# What Lightning tells everybody, whatever is trained: products, hardware, that it has ended.
_BANNERS = (
    "\N{ELECTRIC LIGHT BULB} Tip:",
    "GPU available:",
    "TPU available:",
    "HPU available:",
    "LOCAL_RANK:",
    "Using bfloat16 Automatic",
    "Using 16bit Automatic",
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
        KeyboardInterrupt: as it was; Lightning would end the process.
    """
    tracking = tracking or Tracking()
    step = 0 if resume is None else resume.step
    made = [] if "logger" in options else make_loggers(tracking, folder, before_step=step)
    settings: dict[str, Any] = {
        "max_epochs": 10,
        "logger": made,
        "default_root_dir": folder,
        "enable_model_summary": False,
        "enable_progress_bar": progress and sys.stderr.isatty(),
        "num_sanity_val_steps": 0,
        **options,
    }
    kept = [] if settings.get("enable_checkpointing") is False else checkpoints(module, folder)
    termination = Termination(_last_checkpoint(folder) if kept else None)
    given = _callbacks(settings.get("callbacks"))
    tracked = [] if settings["logger"] in (False, []) else tracking_callbacks(tracking, given)
    settings["callbacks"] = [*given, *tracked, termination, *kept]
    with _quiet():
        trainer = _trainer(settings, options)
        ended = _ended_as_ours(trainer, termination, _last_checkpoint(folder))
        with experiments(trainer.loggers), ended:
            at = None if resume is None else resume.checkpoint
            trainer.fit(module, train_dataloaders=loader, ckpt_path=at, weights_only=True)
            epochs, steps = trainer.current_epoch, trainer.global_step
            metrics = last_metrics(trainer)
            if module.needs_scores:
                # What a student keeps from there may meet gradients in a later training.
                trainer.validate_loop.inference_mode = False
                trainer.validate(module, verbose=False)
                metrics |= last_metrics(trainer)
    return Fitted(trainer=trainer, metrics=metrics, epochs=epochs, steps=steps)


def _trainer(settings: Mapping[str, Any], options: Mapping[str, Any]) -> pl.Trainer:
    asked = settings.get("precision")
    precision = _PRECISIONS.get(str(asked), asked)
    try:
        trainer = pl.Trainer(**{**settings, "precision": precision})
    except Exception as error:  # Lightning checks its arguments in many ways, and with asserts
        text = " ".join(str(error).split()) or type(error).__name__
        named = [name for name in options if name in text]
        named = named or [k for k, value in options.items() if type(value) is str and value in text]
        given = ", ".join(f"trainer.{name}: {options[name]}" for name in named or options)
        raise UsageError(f"Lightning's Trainer refuses {given}. It says: {text}") from error
    if precision is not None and trainer.precision != precision:
        log.warning(
            "precision %s is not possible on the %s: %s is used instead",
            asked,
            type(trainer.accelerator).__name__.removesuffix("Accelerator"),
            trainer.precision,
        )
    # fast_dev_run and overfit_batches limit it as well; ours are names of whole sets.
    trainer.limit_val_batches = 1.0
    return trainer


@contextmanager
def _ended_as_ours(trainer: pl.Trainer, termination: Termination, last: Path) -> Iterator[None]:
    """Errors of ours, or Python's own, where Lightning ends the process."""
    try:
        with termination.listening(trainer):
            yield
    except SIGTERMException:
        raise _terminated(trainer, last) from None
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
    except (RuntimeError, ProcessLostError):
        # A scheduler may signal loaders' workers and other ranks too: that they died is no news.
        if termination.requested:
            raise _terminated(trainer, last) from None
        raise


def _terminated(trainer: pl.Trainer, last: Path) -> TerminatedError:
    rest = f"Go on with resume: {last}" if last.exists() else "There was no checkpoint yet"
    return TerminatedError(
        f"terminated by SIGTERM in epoch {trainer.current_epoch} (from 0), after "
        f"{trainer.global_step} steps. No student was saved. {rest}."
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


def check_options(options: Mapping[str, Any], tracking: Tracking) -> None:
    """Raise UsageError for an argument of the Trainer that would not do what it says."""
    if "logger" in options and tracking.loggers is not None:
        raise UsageError(
            "tracking.loggers and trainer.logger are both given, and only one can say where a run "
            "is logged. Leave one of them out."
        )
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


def _last_checkpoint(folder: Path) -> Path:
    return folder / CHECKPOINTS_FOLDER / LAST_CHECKPOINT


def checkpoints(module: StudentModule, folder: Path) -> list[Callback]:
    """The best three by what the module monitors, and the state after the last epoch.

    Args:
        module: says what it monitors.
        folder: of the run.
    """
    name, mode = module.monitor
    best = ModelCheckpoint(
        dirpath=folder / CHECKPOINTS_FOLDER,
        filename="best-epoch-{epoch:03d}-step-{step}",
        auto_insert_metric_name=False,
        monitor=name,
        mode=mode,
        save_top_k=_BEST,
        save_on_train_epoch_end=not module.has_validation,
    )
    return [best, _Last(folder / CHECKPOINTS_FOLDER)]


class _Last(ModelCheckpoint):
    """The state after every epoch, over the one before; a class of its own, beside the user's.

    Lightning's ``save_last`` only follows a checkpoint that was among the best.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            dirpath=folder,
            filename=Path(LAST_CHECKPOINT).stem,
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
