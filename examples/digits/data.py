"""scikit-learn's digits: 1,797 grey images of 8x8 pixels, split, with few labels known.

Nothing here knows kdcache; all that it asks of ``DigitsData`` is ``train_dataloader()`` and
``val_dataloader()``. The invariant: image i of a split is the same whatever labels are known.
Cached targets are joined on that.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

NUM_CLASSES = 10
NUM_TEST = 500
IGNORE_INDEX = -100  # the label of an image whose digit the student is not told


class DigitsDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images (N, 1, 8, 8) float32 and labels (N,) int64, in memory."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


class DigitsData:
    """Loaders of a training split of 1,297 images and a test split of 500.

    Args:
        labels_per_class: labels known in training; all others are ``IGNORE_INDEX``, so that
            cached targets serve on every image and cross entropy on few. None: all are known.
        batch_size: rows of a batch.
        seed: of the known labels and of the order of training batches. The split is always the
            same.
    """

    class_names = tuple(str(digit) for digit in range(NUM_CLASSES))

    def __init__(
        self, *, labels_per_class: int | None = None, batch_size: int = 128, seed: int = 0
    ) -> None:
        self.labels_per_class = labels_per_class
        self.batch_size = batch_size
        self.seed = seed

    @cached_property
    def splits(self) -> tuple[DigitsDataset, DigitsDataset]:
        """Training and test split."""
        digits = load_digits()
        # Pixels are 0 to 16: sixteenths are exact in float32 on every machine.
        images = torch.from_numpy(digits.images).to(torch.float32).unsqueeze(1) / 16
        labels = torch.from_numpy(digits.target).to(torch.int64)
        # RandomState's stream is frozen; default_rng's may change between versions of NumPy.
        order = torch.from_numpy(np.random.RandomState(0).permutation(len(labels)))
        train, test = order[NUM_TEST:], order[:NUM_TEST]
        known = labels[train]
        if self.labels_per_class is not None:
            known = keep_labels(known, per_class=self.labels_per_class, seed=self.seed)
        return DigitsDataset(images[train], known), DigitsDataset(images[test], labels[test])

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Shuffled batches of images and labels."""
        order = torch.Generator().manual_seed(self.seed)
        return DataLoader(self.splits[0], batch_size=self.batch_size, shuffle=True, generator=order)

    def val_dataloader(self) -> dict[str, DataLoader[tuple[Tensor, Tensor]]]:
        """The test split, by the name under which it is cached and scored."""
        return {"test": DataLoader(self.splits[1], batch_size=self.batch_size)}


def keep_labels(labels: Tensor, *, per_class: int, seed: int) -> Tensor:
    """Labels with all but ``per_class`` of every class hidden; seeded."""
    random = np.random.RandomState(seed)
    kept = torch.full_like(labels, IGNORE_INDEX)
    for digit in range(NUM_CLASSES):
        members = np.flatnonzero(labels.numpy() == digit)
        if not 1 <= per_class <= len(members):
            raise ValueError(
                f"labels_per_class is {per_class}; digit {digit} has {len(members)} training "
                f"images. Give a number from 1 to {len(members)}, or null for all labels."
            )
        kept[random.permutation(members)[:per_class]] = digit
    return kept
