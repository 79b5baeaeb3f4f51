"""How a training ends before its end: as an error of ours, or Python's own, with the way to go on.

Lightning ends the process instead, or lets exceptions of its own through.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.exceptions import SIGTERMException

from kdcache.data.samples.unreadable import LOST_WORKER, lost_worker
from kdcache.errors import (
    KdcacheError,
    ProcessLostError,
    TerminatedError,
    TrainingInterrupt,
    UsageError,
    WorkerLostError,
)
from kdcache.train.interruption.checkpoints import last_checkpoint
from kdcache.train.interruption.lost_ranks import RankWatch
from kdcache.train.interruption.resume import Resumption
from kdcache.train.interruption.termination import Termination, end_processes_of

E = TypeVar("E", TerminatedError, ProcessLostError, TrainingInterrupt, WorkerLostError)


@dataclass(frozen=True, kw_only=True)
class WayOn:
    """What there is to go on with, when a training ends before its end.

    Attributes:
        folder: of the run.
        is_kept: whether checkpoints are kept there.
        resumed: the checkpoint with which this training went on itself.
    """

    folder: Path
    is_kept: bool
    resumed: Path | None = None

    def find(self) -> tuple[Path | None, str]:
        """(what ``resume`` takes, what to say of it)."""
        last = last_checkpoint(self.folder)
        if last.exists():
            return self.folder, f"Its last checkpoint is of step {_step(last)}."
        if not self.is_kept:
            return self.resumed, "No checkpoints were kept (trainer.enable_checkpointing)."
        return self.resumed, "There was no checkpoint yet."


def _step(checkpoint: Path) -> int | str:
    try:
        return Resumption.of(checkpoint).step
    except KdcacheError:  # a disk that is full, most likely
        return "? (it cannot be read)"


@contextmanager
def ended_as_ours(trainer: pl.Trainer, termination: Termination, way_on: WayOn) -> Iterator[None]:
    """Around all that a Trainer does.

    Raises:
        EndedTraining: one of its kinds; see ``kdcache.errors``.
        UsageError: Lightning refuses to train like that.
    """

    def ended(kind: type[E], why: str, more: str = "") -> E:
        at = f"in epoch {trainer.current_epoch} (from 0), after {trainer.global_step} steps"
        story = f"{why} {at}. {more}No student was saved."
        if trainer.global_rank:  # the run's folder is the first one's
            return kind(f"{story} Checkpoints, if there were any, are in the run's folder.")
        resume, said = way_on.find()
        error = kind(f"{story} {said} {python_way_on(resume)}")
        error.story, error.resume = f"{story} {said}", resume
        return error

    try:
        with RankWatch() as watch, termination.listening(trainer):
            yield
    except SIGTERMException:
        raise ended(TerminatedError, "terminated by SIGTERM") from None
    # Lightning turns Ctrl-C into sys.exit(1); an exit that somebody else asked for goes its way.
    except SystemExit as exit_:
        if not isinstance(exit_.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning ignores it now
        end_processes_of(trainer.strategy.launcher)
        raise ended(TrainingInterrupt, "interrupted") from exit_
    except (MisconfigurationException, ValueError) as error:
        # Lightning raises a plain ValueError for this one setting; it is known by how it begins.
        if isinstance(error, ValueError) and not str(error).strip().startswith(
            "`val_check_interval`"
        ):
            raise  # somebody else's
        raise _refused("Lightning", error) from error
    except (*LOST_WORKER, ProcessLostError, WorkerLostError) as error:
        # A scheduler may signal loaders' workers and other ranks too: that they died is no news.
        if termination.requested:
            raise ended(TerminatedError, "terminated by SIGTERM") from None
        # PyTorch names a lost worker. A lost rank shows only in what a library says of its
        # connections, so every other cause is asked for first.
        worker = _lost_worker(trainer, error)
        if worker is not None:
            end_processes_of(trainer.strategy.launcher)
            told = f"{worker[0].upper()}{worker[1:]}\n"
            raise ended(WorkerLostError, "training stopped", told) from error
        _check_same_dtype(trainer, error)
        refuses = _who_refuses(trainer, error)
        if refuses is not None:
            raise _refused(refuses, error) from error
        lost = watch.who_was_lost(trainer, error)
        if lost is None:
            raise
        end_processes_of(trainer.strategy.launcher)
        why = f"process {trainer.global_rank} of {trainer.world_size} lost contact"
        raise ended(ProcessLostError, why, f"{lost.text} ") from lost.cause


def _refused(who: str, error: Exception) -> UsageError:
    return UsageError(f"{who} refuses to train like that. It says: {' '.join(str(error).split())}")


def _check_same_dtype(trainer: pl.Trainer, error: Exception) -> None:
    """Raise UsageError where a student of another precision was given inputs as they are."""
    text = " ".join(str(error).split())
    parameters = trainer.lightning_module.parameters()
    dtypes = {p.dtype for p in parameters if p.is_floating_point()} - {torch.float32}
    is_about_dtypes = "dtype" in text or "scalar type" in text
    if type(error) is RuntimeError and is_about_dtypes and dtypes:
        names = ", ".join(sorted(str(dtype) for dtype in dtypes))
        raise UsageError(
            f"the student has parameters of {names}, and is given its inputs as the data has them. "
            f"PyTorch says: {text}. Let its forward convert them, to the dtype of its parameters; "
            "or give the student in float32, and trainer.precision bf16-mixed."
        ) from error


def _who_refuses(trainer: pl.Trainer, error: Exception) -> str | None:
    """Who does, where a RuntimeError is about what the user chose; None where it is not known."""
    if type(error) is not RuntimeError:  # such as one of CUDA's, out of memory
        return None
    if str(error).startswith("Early stopping conditioned on metric"):
        return "Lightning's EarlyStopping"
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    is_in_step = "/torch/optim/" in frame.f_code.co_filename.replace(os.sep, "/")
    return f"the optimizer {type(trainer.optimizers[0]).__name__}" if is_in_step else None


def _lost_worker(trainer: pl.Trainer, error: Exception) -> str | None:
    """What is said of a worker that was lost; a validation has said it of its own loaders."""
    if isinstance(error, WorkerLostError):
        return str(error)
    if trainer.validating:  # PyTorch's signal came while that was being said
        return lost_worker(error, None, "of a validation set")
    workers = getattr(trainer.train_dataloader, "num_workers", None)
    return lost_worker(error, workers, "of the training set")


def python_way_on(resume: Path | None) -> str:
    """How to go on from Python."""
    if resume is None:
        return "The same call begins anew."
    return f'Go on with resume="{resume}".'


def command_way_on(resume: Path | None, command: str) -> str:
    """How to go on from the command line."""
    if resume is None:
        return "The same command begins anew."
    return f"Go on with: {command}"
