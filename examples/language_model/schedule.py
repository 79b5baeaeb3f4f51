"""A learning rate that changes with every step, as a Lightning callback.

``scheduler:`` of an experiment file is stepped once an epoch. A language model that sees its text
twice wants to be warmed up within the first of the two.
"""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl

WARM_UP = 0.1  # of all steps


class WarmUpThenCosine(pl.Callback):
    """From nearly 0 up to the optimiser's own learning rate, then down along a cosine.

    Args:
        warm_up: share of all steps on the way up.
    """

    def __init__(self, warm_up: float = WARM_UP) -> None:
        self.warm_up = warm_up

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        steps = trainer.estimated_stepping_batches
        factor = share_of_peak(trainer.global_step, int(steps), self.warm_up)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("peak_lr", group["lr"]) * factor


def share_of_peak(step: int, steps: int, warm_up: float = WARM_UP) -> float:
    """What the learning rate of a step (from 0) is multiplied with, in (0, 1]."""
    rising = max(1, round(warm_up * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step + 1 - rising) / (steps + 1 - rising)))
