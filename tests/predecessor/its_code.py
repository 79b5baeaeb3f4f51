"""Models, loaders and a pipeline as users of Knowledge-Distillation-Toolkit wrote them."""

from __future__ import annotations

import csv
import json

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from tests.train import small

STEPS = 6  # of an epoch


class ItsModel(nn.Module):
    """As its users wrote them: called with all of a batch, softmax on the class axis."""

    def __init__(self, seed):
        super().__init__()
        self.net = small.net(seed)
        self.temperatures = []

    def forward(self, batch, temperature=1):
        self.temperatures.append(temperature)
        logits = self.net(batch) / temperature
        return {
            "logits": logits,
            "prob": F.softmax(logits, dim=-1),
            "log_prob": F.log_softmax(logits, dim=-1),
        }


class WithOwnLoss(ItsModel):
    def forward(self, batch, temperature=1):
        out = super().forward(batch, temperature)
        return {**out, "loss": {"penalty": sum(p.square().sum() for p in self.parameters())}}


class ItsPipeline:
    """Accuracy from probabilities."""

    def __init__(self):
        self.calls = 0
        self.alive = []

    def run_inference_pipeline(self, model, data_loader):
        self.calls += 1
        model.eval()
        right, total = 0, 0
        with torch.no_grad():
            for inputs, labels in data_loader:
                right += int((model(inputs)["prob"].argmax(-1) == labels).sum())
                total += len(labels)
        return {"inference_result": right / total}


def inputs_only(samples):
    """Its demo's collate function: a batch has no labels."""
    return (torch.stack([inputs for inputs, _ in samples]),)


def train_loader(**options):
    settings = {"batch_size": 16, "collate_fn": inputs_only, **options}
    return DataLoader(small.dataset(small.NUM_TRAIN), **settings)


def val_loaders():
    return {"mnist_test": small.loader(small.NUM_TEST, seed=1, batch_size=20)}


def arguments(cache, **given):
    return {
        "train_data_loader": train_loader(),
        "val_data_loaders": val_loaders(),
        "inference_pipeline": ItsPipeline(),
        "student_model": ItsModel(1),
        "max_epoch": 1,
        "precision": 32,
        "learning_rate": 0.01,
        "cache": cache,
        **given,
    }


def record(run):
    return json.loads((run.output / "run.json").read_text())


def logged(run, name):
    """Every logged value of a column of metrics.csv."""
    with (run.output / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def weights(student):
    return small.weights(student)
