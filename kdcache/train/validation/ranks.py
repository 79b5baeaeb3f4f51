"""Ranks that work apart for a while, and then tell each other what they found.

Only for what a rank can do without the others; the waiting is done in a group of its own, so that
no rank's work is bounded by the timeout of the process group that trains.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from kdcache.errors import ProcessLostError

T = TypeVar("T")

_NO_LIMIT = timedelta(days=20)  # in milliseconds it is still an int32


def can_work_apart(trainer: pl.Trainer) -> bool:
    """Whether there are several ranks, each with the whole student.

    Other strategies, also those that Lightning derives from DDP (DeepSpeed, XLA), may have a
    forward pass that all ranks take part in.
    """
    return type(trainer.strategy) is DDPStrategy and trainer.world_size > 1


class Meeting:
    """Where ranks meet after work that may take any one of them however long."""

    def __init__(self) -> None:
        self._world: Any = None
        self._group: Any = None

    def prepare(self) -> None:
        """Make the group, once for a process group; all ranks call this at the same point."""
        if self._world is not dist.group.WORLD:
            # gloo: with nccl a rank that waits holds its GPU, and a watchdog ends it.
            self._group = dist.new_group(backend="gloo", timeout=_NO_LIMIT)
            self._world = dist.group.WORLD

    def gather(self, mine: T) -> list[T]:
        """What each rank brought, by rank: the same list on all of them.

        Raises:
            ProcessLostError: another rank ended before it came.
        """
        found: list[Any] = [None] * dist.get_world_size()
        try:
            dist.all_gather_object(found, mine, group=self._group)
        except RuntimeError as error:
            raise ProcessLostError(
                f"process {dist.get_rank()} waited for what the others found, and one of them "
                "ended before it came; its own output says why. Nothing that was being computed "
                f"is kept. torch says: {' '.join(str(error).split())}"
            ) from error
        return found


@torch.no_grad()
def take_buffers_of_first_rank(module: nn.Module) -> list[Tensor]:
    """Put rank 0's buffers (statistics of a batch norm) in place of this rank's own.

    DDP keeps parameters equal on all ranks, and buffers only while it is called.

    Returns:
        This rank's own, for :func:`restore_buffers`.
    """
    own = [buffer.clone() for buffer in module.buffers()]
    for buffer in module.buffers():
        value = buffer.contiguous()
        dist.broadcast(value, src=0)
        buffer.copy_(value)
    return own


@torch.no_grad()
def restore_buffers(module: nn.Module, own: list[Tensor]) -> None:
    """Put back what :func:`take_buffers_of_first_rank` gave."""
    for buffer, value in zip(module.buffers(), own, strict=True):
        buffer.copy_(value)
