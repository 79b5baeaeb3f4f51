"""Loggers of a run: made from settings, and ended with the training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from kdcache.errors import UsageError
from kdcache.tracking.comet.logger import CometLogger
from kdcache.tracking.metrics_file import MetricsFile
from kdcache.tracking.settings import COMET, CSV, TENSORBOARD, Tracking, refuse_other_lightning
from kdcache.tracking.tensorboard import EventFiles


def make_loggers(tracking: Tracking, folder: Path, *, before_step: int = 0) -> list[Logger]:
    """The loggers that settings name; nothing is written yet.

    Args:
        tracking: the user's settings.
        folder: of the run.
        before_step: where a run goes on in its folder: what was logged below this step stays.

    Raises:
        UsageError: TensorBoard is not installed, Comet's info file is wrong, or an object is no
            logger of pytorch_lightning.
    """
    names = [CSV] if tracking.loggers is None else tracking.loggers
    return [_logger(name, tracking, folder, before_step) for name in names]


def _logger(given: Any, tracking: Tracking, folder: Path, before_step: int) -> Logger:
    if given == CSV:
        return MetricsFile(folder, before_step=before_step)
    if given == TENSORBOARD:
        return EventFiles(folder, before_step=before_step)
    if given == COMET:
        return CometLogger(folder, tracking.comet, name=tracking.name)
    if isinstance(given, Logger):
        return given
    refuse_other_lightning(f"{kind.__module__}.{kind.__qualname__}" for kind in type(given).mro())
    raise UsageError(
        f"tracking.loggers: {given!r} is no logger of pytorch_lightning. A class_path is for "
        "experiment files; from Python give the logger itself."
    )


@contextmanager
def experiments(loggers: Iterable[Logger]) -> Iterator[None]:
    """Start the experiments of our own loggers, and end them, whatever happens in between.

    Raises:
        UsageError: one cannot be started.
    """
    ours = [logger for logger in loggers if isinstance(logger, CometLogger)]
    for logger in ours:
        _ = logger.experiment
    try:
        yield
    except BaseException as error:
        for logger in ours:
            logger.end(error)
        raise
    for logger in ours:
        logger.end()
