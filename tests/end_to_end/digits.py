"""Small real data and models that the end-to-end tests share: scikit-learn's digits."""

from __future__ import annotations

import functools

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

NUM_TRAIN = 1400
NUM_CLASSES = 10


@functools.cache
def images_and_labels() -> tuple[Tensor, Tensor]:
    """(1797, 64) float32 in [0, 1], and (1797,) int64."""
    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images).float() / 16, torch.from_numpy(labels).long()


def train_set() -> TensorDataset:
    images, labels = images_and_labels()
    return TensorDataset(images[:NUM_TRAIN], labels[:NUM_TRAIN])


def test_set() -> TensorDataset:
    images, labels = images_and_labels()
    return TensorDataset(images[NUM_TRAIN:], labels[NUM_TRAIN:])


def net(width: int, seed: int = 0) -> nn.Sequential:
    """A two-layer perceptron with its own random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, NUM_CLASSES))


@functools.cache
def trained_teacher() -> nn.Sequential:
    """About 95 % right on the test set; trained once a process, in a second."""
    teacher = net(128)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=3e-3)
    images, labels = images_and_labels()
    order = torch.Generator().manual_seed(0)
    for _ in range(30):
        for part in torch.randperm(NUM_TRAIN, generator=order).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(teacher(images[part]), labels[part]).backward()
            optimizer.step()
    return teacher.eval()


def loader(dataset: TensorDataset, batch_size: int = 64, *, seed: int | None = None) -> DataLoader:
    """In order, or shuffled with a seed."""
    if seed is None:
        return DataLoader(dataset, batch_size=batch_size)
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, generator=generator)
