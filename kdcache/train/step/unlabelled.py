"""A training on labels that has none: the loss on them is the mean of nothing, and trains nothing.

A batch without a label is no fault where others have some; an epoch without one is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from kdcache.errors import DataError
from kdcache.losses.labels import STUDENT_LOSS

log = logging.getLogger(__name__)

_METRIC = f"train_{STUDENT_LOSS}_epoch"


class LabelWatch(Callback):
    """Looks after each epoch whether any label was met in it, on any rank.

    Args:
        losses: loss name -> coefficient.
    """

    def __init__(self, losses: Mapping[str, float]) -> None:
        self._is_alone = not any(c for name, c in losses.items() if name != STUDENT_LOSS)
        self._is_wanted = bool(losses.get(STUDENT_LOSS))
        self._is_said = False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Raise DataError where nothing at all was trained; warn where other losses were."""
        value = trainer.callback_metrics.get(_METRIC)
        # Its mean weighs batches by their labels: 0 / 0 without one. Any other NaN ended it before.
        if not self._is_wanted or value is None or not math.isnan(float(value)):
            return
        text = (
            f"{STUDENT_LOSS} met no label in epoch {trainer.current_epoch} (from 0): all labels "
            "are -100 or batch.ignore_index, or at positions that the mask leaves out"
        )
        if self._is_alone:
            raise DataError(
                f"{text}. Nothing was trained, and no student was saved. Give labels, or a loss on "
                "the teacher's targets (distill.losses: {kd_loss: 1})."
            )
        if not self._is_said:
            log.warning("%s; only the other losses train the student", text)
            self._is_said = True
