"""Validation on two ranks; run as a script it is one of them.

LOCAL_RANK=0 python tests/train/validation/two_ranks.py CACHE FOLDER

Each rank writes what it saw of every phase to FOLDER/<rank>.json; the last phase kills rank 1.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning import Callback
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import kdcache
from tests.train import small

TIMEOUT_S, SLOW_S = 20, 22  # no collective waits so long for a busy machine
SIZES = {"first": 8, "slow": 24, "test": small.NUM_TEST, "drawing": 12, "third": 20}


def student() -> nn.Sequential:
    """Its training draws random numbers, and its ranks have statistics of their own."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Linear(small.NUM_FEATURES, 16),
            nn.BatchNorm1d(16),
            nn.Dropout(0.5),
            nn.Linear(16, small.NUM_CLASSES),
        )


class Counting:
    """How many samples it was given, and the sum of the student's running means."""

    def __init__(self, slow_s: float = 0.0, act=None) -> None:
        self.slow_s, self.act = slow_s, act

    def run_inference_pipeline(self, model, data_loader):
        time.sleep(self.slow_s)
        self.slow_s = 0.0  # once
        if self.act is not None:
            self.act()
        samples = sum(len(inputs) for inputs, _ in data_loader)
        means = float(model[1].running_mean.sum())
        return {"inference_result": 0.5, "samples": samples, "running_means": means}


def draw() -> None:
    torch.rand(7), np.random.rand(7), random.random()


def fail() -> None:
    raise ValueError("out of paint")


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def die() -> None:
    os._exit(9)


class Rates(Callback):
    """The learning rate after every epoch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_epoch_start(self, trainer, module) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def data(*sets: str) -> small.Data:
    loaders = {name: small.loader(SIZES[name], seed=1 if name == "test" else 3) for name in sets}
    train = DataLoader(small.dataset(small.NUM_TRAIN), batch_size=16, shuffle=True)
    return small.Data(train, **loaders)


PLATEAU = functools.partial(
    torch.optim.lr_scheduler.ReduceLROnPlateau, mode="max", factor=0.5, patience=0
)


def trained(cache, folder, sets, pipelines, scheduler=None, **options) -> dict:
    rates = Rates()
    net = student()
    run = kdcache.train_student(
        net,
        data(*sets),
        cache,
        pipelines=pipelines,
        scheduler=scheduler,
        seed=5,
        output=folder,
        progress=False,
        trainer={
            "max_epochs": 3,
            "accelerator": "cpu",
            "devices": 2,
            "strategy": DDPStrategy(
                timeout=timedelta(seconds=TIMEOUT_S), process_group_backend="gloo"
            ),
            "callbacks": [rates],
            **options,
        },
    )
    return {
        "scores": run.scores,
        "metrics": dict(run.metrics),
        "lower_bounds": list(run.lower_bounds),
        "rates": rates.seen,
        "weights": float(small.weights(net).double().square().sum()),
        "student": str(run.student),
    }


def phase(function) -> dict:
    try:
        return function()
    except BaseException as error:  # what a rank ends with is what is looked at
        traceback.print_exc()
        return {"error": type(error).__name__, "message": str(error)}


def main(cache: str, folder: Path) -> None:
    rank = int(os.environ["LOCAL_RANK"])
    train = functools.partial(trained, cache)
    sound = ("first", "slow", "test", "drawing", "third")
    phases = {
        "sound": lambda: train(
            folder / "sound",
            sound,
            {
                "first": Counting(),
                "slow": Counting(SLOW_S),
                "drawing": Counting(act=draw),
                "third": Counting(),
            },
            scheduler=PLATEAU,
        ),
        "late": lambda: train(
            folder / "late",
            ("first", "drawing"),
            {"drawing": Counting(act=draw)},
            check_val_every_n_epoch=2,
        ),
        "bare": lambda: train(folder / "bare", (), {}),
        "failing": lambda: train(
            folder / "failing", ("first", "slow"), {"first": Counting(), "slow": Counting(act=fail)}
        ),
        "terminated": lambda: train(
            folder / "terminated",
            ("first", "slow", "third"),
            {name: Counting(act=terminate) for name in ("first", "slow", "third")},
        ),
        "dying": lambda: train(
            folder / "dying", ("first", "slow"), {"first": Counting(), "slow": Counting(act=die)}
        ),
    }
    # Imports take their time on a busy machine, and are not what the timeout is to be of.
    (folder / f"{rank}.ready").touch()
    while not (folder / f"{1 - rank}.ready").exists():
        time.sleep(0.05)
    found = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name, function in phases.items():
            found[name] = phase(function)
            found["warnings"] = [str(one.message) for one in caught]
            (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
