"""What a user's own module looks like to the command line; copied into the test's folder."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

NAMES = tuple("0123456789")


class Data:
    """Digits; every argument breaks one thing that a user may break."""

    def __init__(
        self,
        batch_size: int = 64,
        shift: int = 0,
        extra: int = 0,
        scale: float = 1.0,
        collate: str = "default",
        swap_names: bool = False,
        label_offset: int = 0,
        bad_label: bool = False,
        noise: bool = False,
    ):
        images, labels = load_digits(return_X_y=True)
        images = torch.from_numpy(images).float() / 16
        labels = torch.from_numpy(labels).long()
        self.images, self.labels = images.roll(shift, 0), (labels + label_offset) % 10
        self.images[17] *= scale
        self.num_train = 640 + extra
        self.batch_size = batch_size
        self.collate = by_brightness if collate == "sorted" else default_collate
        self.class_names = ("1", "0", *NAMES[2:]) if swap_names else NAMES
        if bad_label:
            self.labels[5] = 10
        self.noise = noise

    def train_dataloader(self):
        stop = self.num_train
        train = Noisy(self.images[:stop], self.labels[:stop], self.noise)
        return DataLoader(train, batch_size=self.batch_size, shuffle=True, collate_fn=self.collate)

    def val_dataloader(self):
        test = TensorDataset(self.images[-256:], self.labels[-256:])
        return {"test": DataLoader(test, batch_size=128)}


class Noisy(TensorDataset):
    def __init__(self, images, labels, is_noisy):
        super().__init__(images, labels)
        self.is_noisy = is_noisy

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return (image + torch.rand(()) if self.is_noisy else image), label


def by_brightness(samples):
    return default_collate(sorted(samples, key=lambda sample: float(sample[0].sum())))


class Net(nn.Sequential):
    def __init__(self, width: int = 16, num_classes: int = 10):
        super().__init__(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))


class Broken(Net):
    """A teacher that says NaN for the 70th sample of the training set."""

    def forward(self, images):
        logits = super().forward(images)
        target = Data().images[70]
        return torch.where((images == target).all(-1, keepdim=True), torch.nan, logits)


def teacher(seed: int = 0):
    """Trained for a moment, so that its cross-entropy means something."""
    torch.manual_seed(seed)
    net, data = Net(64), Data()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(data.images[:640]), data.labels[:640]).backward()
        optimizer.step()
    return net
