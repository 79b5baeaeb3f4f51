"""Which states of a training are kept: the best three, and the last."""

from __future__ import annotations

import logging
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from kdcache.train.results.output import CHECKPOINTS_FOLDER, LAST_CHECKPOINT
from kdcache.weights import refused_in

log = logging.getLogger(__name__)

_BEST = 3


def last_checkpoint(folder: Path) -> Path:
    """Where the last state of a run in a folder is kept."""
    return folder / CHECKPOINTS_FOLDER / LAST_CHECKPOINT


def checkpoints(folder: Path, *, monitor: tuple[str, str], has_validation: bool) -> list[Callback]:
    """The best three by what is monitored, and the state after the last epoch.

    Args:
        folder: of the run.
        monitor: (logged name, "min" or "max") of what tells a better one.
        has_validation: whether it is known after a validation only, or after every epoch.
    """
    name, mode = monitor
    best = ModelCheckpoint(
        dirpath=folder / CHECKPOINTS_FOLDER,
        filename="best-epoch-{epoch:03d}-step-{step}",
        # The name says what its numbers are; Lightning would write epoch=003 once more.
        auto_insert_metric_name=False,
        monitor=name,
        mode=mode,
        save_top_k=_BEST,
        save_on_train_epoch_end=not has_validation,
    )
    return [best, _Last(folder / CHECKPOINTS_FOLDER)]


class _Last(ModelCheckpoint):
    """The state after every epoch, over the one before; a class of its own, beside the user's.

    Lightning's ``save_last`` only follows a checkpoint that was among the best.
    """

    def __init__(self, folder: Path) -> None:
        self._is_checked = False
        super().__init__(
            dirpath=folder,
            filename=Path(LAST_CHECKPOINT).stem,
            # Written over: with the counter the next epoch's would be last-v1.ckpt.
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        """Say after the first one, not when it is needed, that it could not be gone on with."""
        super()._save_checkpoint(trainer, filepath)
        if self._is_checked or not trainer.is_global_zero:
            return
        self._is_checked = True
        refused = refused_in(Path(filepath))
        if refused:
            log.warning(
                "this training could not be resumed: its checkpoints hold %s (%d in all), from the "
                "state of a callback or of a module. Reading that could run any code, so a resumed "
                "training refuses it. Let it keep plain values.",
                refused[0],
                len(refused),
            )
