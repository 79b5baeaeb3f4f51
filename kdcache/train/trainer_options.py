"""The user's arguments for Lightning's Trainer: what is refused, and what precision is possible."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from kdcache.errors import UsageError
from kdcache.tracking import Tracking

log = logging.getLogger(__name__)

# Short names, which Lightning takes as well, with a warning.
_PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}


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


def make_trainer(settings: Mapping[str, Any], options: Mapping[str, Any]) -> pl.Trainer:
    """A Trainer.

    Args:
        settings: all of its arguments.
        options: those of them that the user gave, for errors.

    Raises:
        UsageError: it refuses one.
    """
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


def check_precision(precision: str) -> None:
    """Raise UsageError for a precision in which Lightning would convert the batch, targets too."""
    if precision.endswith("-true") and precision != "32-true":
        raise UsageError(
            f"trainer.precision {precision} would round the teacher's targets with the batch. "
            "Leave it out and give the student in that precision (student.bfloat16(), "
            "student.double()), or use bf16-mixed."
        )
