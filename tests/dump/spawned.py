"""Teachers that processes which are spawned can import, and that do something to their process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.data import toys


class KilledOnce(nn.Module):
    """The default teacher; kills its process when it first sees a sample that is marked.

    Args:
        diary: written just before; where it is there, nothing happens.
    """

    def __init__(self, diary: Path) -> None:
        super().__init__()
        self.inner, self.diary = toys.make_teacher(), diary

    def forward(self, x: Tensor) -> Tensor:
        if (x == MARK).any() and not self.diary.exists():
            self.diary.write_text("killed")
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(x)


class Scratch(nn.Module):
    """The default teacher, by way of a buffer that it writes in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = toys.make_teacher()
        self.register_buffer("scratch", torch.zeros(64, toys.WIDTH), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.scratch[: len(x)] = x
        return self.inner(self.scratch[: len(x)])


MARK = 77.0
