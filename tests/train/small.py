"""Small data, teacher and students that the tests of stage two share."""

from __future__ import annotations

import itertools

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdcache import CachedDataset

NUM_TRAIN, NUM_TEST, NUM_FEATURES, NUM_CLASSES = 96, 40, 8, 4


def dataset(num: int, seed: int = 0) -> TensorDataset:
    """(inputs, labels) of random features."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num, NUM_FEATURES, generator=generator)
    return TensorDataset(inputs, torch.randint(NUM_CLASSES, (num,), generator=generator))


def loader(num: int = NUM_TRAIN, seed: int = 0, batch_size: int = 16) -> DataLoader:
    return DataLoader(dataset(num, seed), batch_size=batch_size)


def net(seed: int = 0, num_classes: int = NUM_CLASSES) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(NUM_FEATURES, 16), nn.ReLU(), nn.Linear(16, num_classes))


class Teacher(nn.Sequential):
    """A class of its own, so that the garbage collector can be asked for it."""

    def __init__(self):
        super().__init__(*net(seed=7))


class Data:
    """Any object with loaders; validation sets by name."""

    def __init__(self, train=None, **validation):
        self.train, self.validation = train or loader(), validation

    def train_dataloader(self):
        return self.train

    def val_dataloader(self):
        return self.validation


def data(**validation) -> Data:
    return Data(test=loader(NUM_TEST, seed=1), **validation)


def joined_loader(cache, split="train", user=None, **options) -> DataLoader:
    user = user or loader()
    joined = CachedDataset(user.dataset, cache[split], **options)
    return joined.loader_like(user)


def trainer(**options) -> pl.Trainer:
    """A plain Trainer of the user's own."""
    settings = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **options,
    }
    return pl.Trainer(**settings)


class Trace(pl.Callback):
    """What was logged at every step, and the student's weights before the first."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps.append({k: float(v) for k, v in trainer.callback_metrics.items()})


class Pipeline:
    """A user's own: returns prepared results one after another, and keeps what it was given."""

    def __init__(self, *results, mode=None):
        self.results = itertools.cycle(results)
        self.seen = []
        if mode:
            self.mode = mode

    def run_inference_pipeline(self, model, data_loader):
        self.seen.append(
            (list(data_loader), model.training, torch.is_grad_enabled(), type(data_loader))
        )
        result = next(self.results)
        return (
            result if isinstance(result, dict | str | type(None)) else {"inference_result": result}
        )


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for p in module.parameters()])
