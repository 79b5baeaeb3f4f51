"""A user's own module for the command line; copied into the test's folder."""

import atexit
import json
import os
import signal
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Data:
    def __init__(self, num_workers: int = 0, scale: float = 1.0, bad_label: bool = False):
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(64, 6, generator=generator)
        self.labels = torch.randint(3, (64,), generator=generator)
        self.inputs[17] *= scale
        self.options = {"batch_size": 16, "num_workers": num_workers}
        if bad_label:
            self.labels[17] = 9

    def train_dataloader(self):
        train = TensorDataset(self.inputs, self.labels)
        return DataLoader(train, shuffle=True, **self.options)

    def val_dataloader(self):
        return {
            "test": DataLoader(TensorDataset(self.inputs[:32], self.labels[:32]), **self.options)
        }


class Net(nn.Sequential):
    def __init__(self, width: int = 5):
        super().__init__(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def student(width: int = 5):
    """Writes down, at the end of its process, which modules that had imported."""
    name = f"modules-{os.environ.get('LOCAL_RANK', '0')}.json"
    atexit.register(lambda: Path(name).write_text(json.dumps(sorted(sys.modules))))
    return Net(width)


class FailsAt(TensorDataset):
    """Raises for one sample, in whichever process draws it."""

    def __getitem__(self, index):
        if index == 40:
            raise ValueError("the disk is on fire")
        return super().__getitem__(index)


class FailingData(Data):
    def train_dataloader(self):
        return DataLoader(FailsAt(self.inputs, self.labels), batch_size=16, num_workers=1)


class Interrupted(Net):
    def forward(self, inputs):
        raise KeyboardInterrupt


class InterruptedLater(Net):
    """Like Ctrl-C in a training step, where the environment does not say otherwise."""

    def __init__(self, width: int = 5):
        super().__init__(width)
        self.steps = 0

    def forward(self, inputs):
        self.steps += self.training
        at = int(os.environ.get("INTERRUPTED_AT", "7"))
        if self.steps == at and "UNINTERRUPTED" not in os.environ:
            raise KeyboardInterrupt
        return super().forward(inputs)


class Terminated(Net):
    """Sends SIGTERM to its process in training step 6, as a scheduler might."""

    def __init__(self, width: int = 5, at: int = 6):
        super().__init__(width)
        self.steps, self.at = 0, at

    def forward(self, inputs):
        self.steps += self.training
        if self.steps == self.at and os.environ.get("LOCAL_RANK", "0") == "0":
            signal.raise_signal(signal.SIGTERM)
        return super().forward(inputs)


class Patient(Net):
    """As large as that one."""


class WrongShape(Net):
    def forward(self, inputs):
        return super().forward(inputs[:, 1:])


class Counting(pl.Callback):
    def __init__(self, path: Path):
        self.path = path

    def on_fit_end(self, trainer, module):
        assert isinstance(self.path, Path)
        made = (trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler)
        names = " ".join(type(one).__name__ for one in made)
        self.path.write_text(f"{trainer.global_step} {names}")


class Pipeline:
    def run_inference_pipeline(self, model, data_loader):
        return {"inference_result": 0.75}
