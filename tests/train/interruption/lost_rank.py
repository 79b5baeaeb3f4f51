"""A training on two ranks, one of which is killed in its fourth step; run as a script.

python tests/train/interruption/lost_rank.py CACHE OUTPUT VICTIM
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from pytorch_lightning.callbacks import Callback

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import kdcache
from tests.train import small


class Killed(Callback):
    def __init__(self, victim: int) -> None:
        self.victim = victim

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == 3 and trainer.global_rank == self.victim:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    cache, output, victim = sys.argv[1:]
    kdcache.train_student(
        small.net(1),
        small.data(),
        cache,
        output=output,
        seed=3,
        progress=False,
        trainer={
            "max_epochs": 3,
            "accelerator": "cpu",
            "devices": 2,
            "callbacks": [Killed(int(victim))],
        },
    )
