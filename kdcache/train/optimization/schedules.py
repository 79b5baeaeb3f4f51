"""Schedules of the learning rate by name, and how any other is stepped: once an epoch, or a step.

The names are those of Knowledge-Distillation-Toolkit, with its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pytorch_lightning as pl
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LambdaLR, ReduceLROnPlateau

from kdcache.errors import UsageError, suggest
from kdcache.train.optimization.optimizers import made_by, name_of

MakeScheduler = Callable[[Optimizer], Any]
Interval = Literal["epoch", "step"]


def linear_decay_with_warm_up(
    optimizer: Optimizer, num_total: int, num_warm_up: int = 0
) -> LambdaLR:
    """Up in equal steps to the optimiser's rate, then down to 0 where training ends.

    The first epoch has 1 / num_warm_up of the rate, never 0; the last one 1 / (num_total -
    num_warm_up).

    Args:
        optimizer: whose rate is the highest.
        num_total: epochs (or steps) of the training.
        num_warm_up: epochs (or steps) until the highest rate is reached.

    Raises:
        UsageError: the training has no end, or the warm-up does not end before it does.
    """
    if num_total < 0:
        raise UsageError(
            "linear_decay_with_warm_up ends where the training does, and this one has no end. Set "
            "trainer.max_epochs."
        )
    if not 0 <= num_warm_up < num_total:
        raise UsageError(
            f"a warm-up of {num_warm_up} does not fit into a training of {num_total}: it is from "
            f"0 to {num_total - 1}. Give a longer training (trainer.max_epochs), or another "
            "num_warm_up."
        )

    return LambdaLR(optimizer, _LinearDecay(num_total=num_total, num_warm_up=num_warm_up))


@dataclass(frozen=True, kw_only=True)
class _LinearDecay:
    """The factor of an epoch; an object, so that the schedule's state tells how long it is."""

    num_total: int
    num_warm_up: int

    def __call__(self, done: int) -> float:
        if done < self.num_warm_up:
            return (done + 1) / self.num_warm_up
        return max(0, self.num_total - done) / (self.num_total - self.num_warm_up)


def cosine_anneal(
    optimizer: Optimizer,
    num_total: int,  # noqa: ARG001
    T_0: int = 9,  # noqa: N803
    T_mult: int = 1,  # noqa: N803
    eta_min: float = 1e-6,
) -> CosineAnnealingWarmRestarts:
    """Cosine annealing with warm restarts, every ``T_0`` epochs (or steps).

    (Loshchilov and Hutter 2016, arXiv:1608.03983.)
    """
    return CosineAnnealingWarmRestarts(optimizer, T_0=T_0, T_mult=T_mult, eta_min=eta_min)


SCHEDULES: Mapping[str, Callable[..., Any]] = {
    "linear_decay_with_warm_up": linear_decay_with_warm_up,
    "cosine_anneal": cosine_anneal,
}
"""Name -> function of the optimiser, the training's length, and settings of its own."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate changes.

    Attributes:
        make: from the optimiser, and the number of epochs (or steps) of the training, to a
            scheduler.
        interval: whether it is stepped after each epoch, or each step of the optimiser.
        name: of what is made, for errors; that of ``make`` where it is empty.
    """

    make: Callable[[Optimizer, int], Any]
    interval: Interval = "epoch"
    name: str = ""

    def __post_init__(self) -> None:
        if self.interval not in get_args(Interval):
            raise UsageError(
                f"scheduler.interval is {' or '.join(get_args(Interval))}, not {self.interval!r}."
            )

    @classmethod
    def of(cls, spec: str | MakeScheduler | Schedule | None) -> Schedule | None:
        """A schedule from its name, or from a function of the optimiser alone.

        Raises:
            UsageError: the name is not known, or it is neither.
        """
        if spec is None or isinstance(spec, Schedule):
            return spec
        if not isinstance(spec, str):
            if not callable(spec):
                raise UsageError(
                    "scheduler is a name, or a function from the optimizer to a schedule, not "
                    f"{type(spec).__name__} itself: lambda optimizer: StepLR(optimizer, 10)."
                )
            return cls(make=lambda optimizer, _: spec(optimizer), name=name_of(spec))
        if spec not in SCHEDULES:
            raise UsageError(f"there is no schedule {spec!r}. {suggest(spec, SCHEDULES)}")
        return cls(make=SCHEDULES[spec])

    def made(self, optimizer: Optimizer, trainer: pl.Trainer) -> Any:
        """The schedule of an optimiser.

        Raises:
            UsageError: the user's function raised, or gave anything else.
        """
        length = self.length(trainer)
        found = made_by(self.make, optimizer, "scheduler", length, name=self.name)
        if not callable(getattr(found, "step", None)):
            what = type(found).__name__
            if isinstance(found, list | tuple):
                what += f" of {len(found)}; SequentialLR or ChainedScheduler make one of several"
            raise UsageError(f"the scheduler function returned no schedule, but a {what}.")
        return found

    def length(self, trainer: pl.Trainer) -> int:
        """Epochs, or optimiser steps, of a training; -1 where it has no end."""
        if self.interval == "step":
            steps = trainer.estimated_stepping_batches
            return -1 if steps == float("inf") else int(steps)
        return -1 if trainer.max_epochs is None else int(trainer.max_epochs)


def for_lightning(
    scheduler: Any, interval: Interval, *, monitor: tuple[str, str], every: int
) -> dict[str, Any]:
    """What ``configure_optimizers`` says of a scheduler.

    Args:
        scheduler: a plateau looks at what ``monitor`` names.
        interval: of all others.
        monitor: (logged name, "min" or "max").
        every: epochs between two values of it.

    Raises:
        UsageError: a plateau that would lower the rate while the student improves.
    """
    if not isinstance(scheduler, ReduceLROnPlateau):
        return {"scheduler": scheduler, "interval": interval}
    name, mode = monitor
    if scheduler.mode != mode:
        raise UsageError(
            f"ReduceLROnPlateau looks at {name}, where {mode} is better, and was made with "
            f"mode {scheduler.mode!r}: it would lower the learning rate while the student "
            f"improves. Set scheduler.mode to {mode}."
        )
    if interval != "epoch":
        raise UsageError(
            f"ReduceLROnPlateau looks at {name}, which there is once an epoch: leave out "
            "scheduler.interval."
        )
    return {"scheduler": scheduler, "monitor": name, "frequency": every}
