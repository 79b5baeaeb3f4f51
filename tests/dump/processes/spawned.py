"""Teachers that processes which are spawned can import, and that do something to their process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from kdcache.store import writer
from tests.data import toys
from tests.hang import HANG_S


class KilledOnce(nn.Module):
    """The default teacher; kills its process once it has seen a sample that is marked.

    Args:
        diary: written just before; where it is there, nothing happens.
        before_commit: not at once, but where the next shard is whole and gets its commit.
    """

    def __init__(self, diary: Path, *, before_commit: bool = False) -> None:
        super().__init__()
        self.inner, self.diary = toys.make_teacher(), diary
        self.before_commit = before_commit

    def forward(self, x: Tensor) -> Tensor:
        if (x == MARK).any() and not self.diary.exists():
            if self.before_commit:
                writer.write_commit = lambda *_: self.die()
            else:
                self.die()
        return self.inner(x)

    def die(self) -> None:
        self.diary.write_text("killed")
        os.kill(os.getpid(), signal.SIGKILL)


class EndsParent(nn.Module):
    """The default teacher; sends its parent SIGTERM when it sees a sample that is marked."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = toys.make_teacher()

    def forward(self, x: Tensor) -> Tensor:
        if (x == MARK).any():
            ours, arrived = signal.getsignal(signal.SIGTERM), []

            def note(number, frame):
                arrived.append(number)
                ours(number, frame)

            signal.signal(signal.SIGTERM, note)
            os.kill(os.getppid(), signal.SIGTERM)
            until = time.monotonic() + HANG_S
            while not arrived and time.monotonic() < until:
                time.sleep(0.01)
        return self.inner(x)


class Interrupts(nn.Module):
    """The default teacher; presses Ctrl-C: every process of the terminal's group is told."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = toys.make_teacher()

    def forward(self, x: Tensor) -> Tensor:
        os.killpg(os.getpgrp(), signal.SIGINT)
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
