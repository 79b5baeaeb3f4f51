"""Where both stages run, as the predecessor's arguments and a launcher's environment say it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcache.dump.loop import is_complete
from kdcache.dump.processes.replica import launched_rank
from kdcache.errors import CacheIncompleteError, UsageError

_POLL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Devices:
    """Where the stages run.

    Attributes:
        accelerator: a name of Lightning's.
        count: of one machine.
        num_nodes: machines.
    """

    accelerator: str
    count: int
    num_nodes: int

    @classmethod
    def of(cls, num_gpu_used: int, accelerator: str | None, num_nodes: int) -> Devices:
        """From the predecessor's arguments, whose accelerator was Lightning's strategy."""
        if accelerator in ("ddp", "ddp_spawn"):
            accelerator = None
        elif accelerator in ("dp", "ddp2", "horovod", "ddp_cpu"):
            raise UsageError(
                f"accelerator {accelerator!r} is no longer in Lightning. Leave it out: more than "
                "one GPU means DDP; accelerator='cpu' with num_gpu_used=2 means two CPU processes."
            )
        found = accelerator or ("gpu" if num_gpu_used else "cpu")
        is_there = torch.cuda.is_available() or torch.backends.mps.is_available()
        if found == "gpu" and not is_there:
            raise UsageError(
                f"num_gpu_used is {num_gpu_used}, and no GPU can be seen here. 0 means the CPU."
            )
        return cls(accelerator=found, count=max(1, num_gpu_used), num_nodes=num_nodes)

    def trainer(self) -> dict[str, Any]:
        """Arguments of Lightning's Trainer; students may have parameters that a step leaves out."""
        is_one = self.count * self.num_nodes == 1
        return {
            "accelerator": self.accelerator,
            "devices": self.count,
            "num_nodes": self.num_nodes,
            "strategy": "auto" if is_one else "ddp_find_unused_parameters_true",
        }

    def is_second_stage(self) -> bool:
        """Whether Lightning has started this process, beside one that dumps."""
        return "RANK" not in os.environ and int(os.environ.get("LOCAL_RANK", "0")) > 0

    def part(self) -> str | None:
        """This machine's share of the dump, where its number is all that is known."""
        node = os.environ.get("NODE_RANK", "")
        if self.num_nodes == 1 or not node.isdecimal() or launched_rank(os.environ).world_size > 1:
            return None
        return f"{node}/{self.num_nodes}"


def wait_for(cache: Path, splits: tuple[str, ...]) -> None:
    """Until what other ranks dump is there; a launcher ends this one where they fail."""
    parent = os.getppid()
    while not is_complete(cache, splits):
        if os.getppid() != parent:
            raise CacheIncompleteError(f"{cache} is not complete, and who dumped it has ended.")
        time.sleep(_POLL_S)


def off_the_device(teacher: nn.Module) -> None:
    """Free the memory of its device, where the dump had put all of it on one."""
    devices = {p.device for p in teacher.parameters()}
    if len(devices) == 1 and devices.pop().type not in ("cpu", "meta"):
        teacher.cpu()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
