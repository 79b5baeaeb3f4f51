"""The user's arguments for Lightning's Trainer: what is refused, and what precision is possible."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from kdcache.errors import UsageError, suggest
from kdcache.tracking import Tracking

log = logging.getLogger(__name__)

PRECISIONS = (
    *("16", "16-mixed", "16-true", "bf16", "bf16-mixed", "bf16-true", "32", "32-true", "64"),
    *("64-true", "transformer-engine", "transformer-engine-float16"),
)
"""Lightning's names."""

_UNUSED = ("limit_test_batches", "limit_predict_batches")

# Short names, which Lightning takes as well, with a warning.
_PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}


def check_options(options: object, tracking: Tracking) -> None:
    """Raise UsageError for an argument of the Trainer that would not do what it says."""
    if not isinstance(options, Mapping):
        raise UsageError(f"trainer is a mapping of the Trainer's arguments, not {options!r}.")
    root = options.get("default_root_dir")
    if root is not None and not options.get("logger") and not options.get("callbacks"):
        raise UsageError(
            f"trainer.default_root_dir {str(root)!r} would change nothing: a run is written into "
            "its own folder, and there is no logger or callback of yours. Name that folder: output."
        )
    unused = next((name for name in _UNUSED if name in options), None)
    if unused is not None:
        raise UsageError(
            f"trainer.{unused} would change nothing: a run trains and validates, and neither tests "
            "nor predicts. Leave it out."
        )
    if "logger" in options and tracking.loggers is not None:
        raise UsageError(
            "tracking.loggers and trainer.logger are both given, and only one can say where a run "
            "is logged. Leave one of them out."
        )
    for name in ("limit_train_batches", "limit_val_batches"):
        _check_limit(name, options.get(name))
    _check_length(options)
    _check_callbacks(options.get("callbacks"))
    every = options.get("check_val_every_n_epoch")
    if every is not None and (type(every) is not int or every < 1):
        raise UsageError(
            f"trainer.check_val_every_n_epoch is how many epochs lie between two validations, 1 or "
            f"more, not {every!r}. trainer.limit_val_batches: 0 is a training without any."
        )
    precision = options.get("precision")
    if precision is not None and str(precision) not in PRECISIONS:
        raise UsageError(
            f"there is no trainer.precision {precision!r}. {suggest(str(precision), PRECISIONS)}"
        )
    accumulate = options.get("accumulate_grad_batches", 1)
    if type(accumulate) is not int or accumulate < 1:
        raise UsageError(
            f"trainer.accumulate_grad_batches is how many batches make a step, 1 or more, not "
            f"{accumulate!r}."
        )


def _check_callbacks(given: object) -> None:
    several = given if isinstance(given, list | tuple) else [] if given is None else [given]
    wrong = next((one for one in several if not isinstance(one, Callback)), None)
    if wrong is not None or None in several:
        raise UsageError(
            f"trainer.callbacks are callbacks of pytorch_lightning that are made (or sections with "
            f"their class_path, in an experiment file), and {wrong!r:.100} is none."
        )


def _check_limit(name: str, limit: object) -> None:
    if limit is None:
        return
    if (
        not isinstance(limit, int | float)
        or type(limit) is bool
        or not 0 <= limit <= (1 if isinstance(limit, float) else math.inf)
    ):
        raise UsageError(
            f"trainer.{name} is a number of batches, or a share from 0.0 to 1.0, not {limit!r}."
        )
    if name == "limit_train_batches" and limit == 0:
        raise UsageError(f"trainer.{name} is {limit}: nothing would be trained. Leave it out.")


def _check_length(options: Mapping[str, Any]) -> None:
    """Refuse a training that never ends, or ends before it begins."""
    epochs, steps = options.get("max_epochs"), options.get("max_steps", -1)
    for name, number in (("max_epochs", epochs), ("max_steps", steps)):
        if number is not None and not _is_whole(number):
            raise UsageError(f"trainer.{name} is a number, or -1 for no limit, not {number!r}.")
    if epochs == -1 and steps == -1 and options.get("max_time") is None:
        raise UsageError(
            "trainer.max_epochs is -1: this training would never end. Give a number of epochs, or "
            "trainer.max_steps or trainer.max_time beside it."
        )


def _is_whole(number: Any) -> bool:
    """Whether it counts epochs or steps, in whatever type whole numbers come."""
    try:
        return type(number) is not bool and operator.index(number) >= -1
    except TypeError:
        return False


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
    return trainer


def check_precision(precision: str) -> None:
    """Raise UsageError for a precision in which Lightning would convert the batch, targets too."""
    if precision.endswith("-true") and precision != "32-true":
        raise UsageError(
            f"trainer.precision {precision} would round the teacher's targets with the batch. "
            "Use 32-true, or bf16-mixed. Or leave it out, and let the student convert itself: its "
            "parameters (student.bfloat16(), student.double()), and in its forward all inputs that "
            "are floating-point numbers (x.bfloat16(), x.double()). Token ids stay as they are."
        )
