"""The data: replace `Points` by a dataset of your own, and `Data` gives its loaders to kdcache.

What matters: sample number i is the same each time it is asked for. Nothing random in
`__getitem__`; augmentation at random would show the student what the teacher never saw.
"""

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

NUM_FEATURES, NUM_CLASSES = 16, 5


class Points(Dataset[tuple[Tensor, Tensor]]):
    """A made-up problem: points in 16 dimensions, in 5 classes with curved borders."""

    # REPLACE: read your own samples here, for example paths and labels from a table.
    def __init__(self, num_samples: int, seed: int) -> None:
        rule = torch.Generator().manual_seed(0)  # the same borders for every split
        first = torch.randn(NUM_FEATURES, 32, generator=rule)
        second = torch.randn(32, NUM_CLASSES, generator=rule)
        self.inputs = torch.randn(
            num_samples, NUM_FEATURES, generator=torch.Generator().manual_seed(seed)
        )
        self.labels = ((self.inputs @ first).relu() @ second).argmax(dim=1)

    def __len__(self) -> int:
        return len(self.inputs)

    # REPLACE: (input, label); or a dict by the names of your model's arguments, with "labels".
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.labels[index]


class Data:
    """What both stages, and train_teacher.py, read."""

    # REPLACE, if you like: the names of the classes in order. A student with others is refused.
    class_names = tuple(f"class {number}" for number in range(NUM_CLASSES))

    def __init__(self, batch_size: int = 64) -> None:
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        order = torch.Generator().manual_seed(0)
        dataset = Points(4000, seed=1)
        return DataLoader(dataset, batch_size=self.batch_size, shuffle=True, generator=order)

    def val_dataloader(self) -> dict[str, DataLoader]:
        """As many validation sets as you like, by name."""
        return {"val": DataLoader(Points(1000, seed=2), batch_size=self.batch_size)}
