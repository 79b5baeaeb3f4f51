"""SIGTERM as a request: the current step is finished and saved, then the training ends as ours.

Lightning's own handler broadcasts to other processes from within the handler: where another
collective is under way, all of them wait for ever. Ours only takes a note. Whoever else handled
SIGTERM before is called as well; nothing is installed outside the main thread, where Python runs
no handlers, nor in a process that ignores the signal.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import SIGTERMException

log = logging.getLogger(__name__)


class Termination(Callback):
    """Raises Lightning's SIGTERMException between two steps once SIGTERM has come.

    All ranks end after the same step, whichever of them was signalled.

    Args:
        checkpoint: where the state after the last step is saved; None: nowhere.

    Attributes:
        requested: whether SIGTERM has come.
    """

    def __init__(self, checkpoint: Path | None = None) -> None:
        self.requested = False
        self._checkpoint = checkpoint
        self._is_listening = False
        self._at_once = True
        self._previous: Any = None

    @contextmanager
    def listening(self, trainer: pl.Trainer) -> Iterator[None]:
        """Around all that a Trainer does.

        Before its first step the signal ends that at once; on leaving with it, processes that the
        Trainer started are ended too, since they would wait for this one.
        """
        previous = signal.getsignal(signal.SIGTERM)
        is_main = threading.current_thread() is threading.main_thread()
        # Neither ignored, nor a handler that Python does not know and could not put back.
        self._is_listening = is_main and (previous is signal.SIG_DFL or callable(previous))
        self._previous = previous
        self._take_over()
        try:
            yield
        except SIGTERMException:
            end_processes_of(trainer.strategy.launcher)
            raise
        else:
            if self.requested and not callable(previous):
                log.warning(
                    "SIGTERM came when training had ended: its student is saved, and this process "
                    "goes on"
                )
        finally:
            if self._is_listening:
                signal.signal(signal.SIGTERM, previous)

    def _take_over(self) -> None:
        if self._is_listening:
            signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if callable(self._previous):
            self._previous(number, frame)
        if self._at_once:
            raise SIGTERMException

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Lightning has installed its handler by now."""
        self._at_once = False
        self._take_over()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same, where nothing but a validation is run."""
        self.on_train_start(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        """Save the state where a step has ended: a checkpoint holds no gradients."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        # Kept apart from the note: a signal that comes while ranks are asked counts a step later.
        is_wanted = self.requested
        if trainer.world_size > 1:  # Lightning asks its ranks at every step as well
            is_wanted = trainer.strategy.reduce_boolean_decision(is_wanted, all=False)
        if not is_wanted:
            return
        self.requested = True
        if self._checkpoint is not None:
            trainer.save_checkpoint(self._checkpoint, weights_only=False)
        self._stop()

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        """A validation set is about to be scored; the last one's scores are not thrown away.

        A resumed training begins with this validation. Several ranks are at sets of their own, and
        cannot save together.
        """
        is_training = trainer.state.fn == TrainerFn.FITTING
        if self.requested and is_training and trainer.world_size == 1 and self._checkpoint:
            trainer.save_checkpoint(self._checkpoint, weights_only=False)
        self._stop()

    def _stop(self) -> None:
        if self.requested:
            raise SIGTERMException


def end_processes_of(launcher: Any) -> None:
    """Kill what a launcher of Lightning's has started, and not be killed for it.

    Its observer ends this process as well where one of them has ended with an error.

    Args:
        launcher: of a strategy; None where nothing was launched.
    """
    if launcher is None:
        return
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._child_processes = []  # type: ignore[attr-defined]
    launcher.kill(signal.SIGKILL)
    for process in getattr(launcher, "procs", ()):
        if isinstance(process, subprocess.Popen):
            process.wait()
