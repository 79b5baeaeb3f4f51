"""Data that is not what was dumped, in every way known to have happened to somebody.

A user's module: the command line imports it by class path, and the tests below use it directly.
``Data(wrong=...)`` is the data of the dump but for the one thing that it is called after.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

NUM = 400
BATCH = 32
NAMES = ("nought", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUM_WORDS = 32


class Listed(Dataset):
    """Samples in a list, as a dataset."""

    def __init__(self, samples):
        self.samples = list(samples)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


class Noisy(Listed):
    """Another draw every time."""

    def __getitem__(self, index):
        image, *others = super().__getitem__(index)
        return (image + 0.01 * torch.rand(()), *others)


def digits():
    """(image (64,), label) of all 1797."""
    images, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(images).float() / 16
    return list(zip(images, labels.tolist(), strict=True))


class Data:
    """Training and validation set of equal length."""

    class_names = NAMES

    def __init__(self, wrong: str = ""):
        samples = digits()
        self.train, self.val = Listed(samples[:NUM]), Listed(samples[NUM : 2 * NUM])
        self.before = samples[2 * NUM :]  # of the same kind, and in neither set
        self.collate = default_collate
        if wrong:
            WRONG[wrong](self)

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=BATCH, collate_fn=self.collate)

    def val_dataloader(self):
        return {"val": DataLoader(self.val, batch_size=BATCH)}


class ByName(Data):
    """Samples as (image, label, name), joined by their name."""

    def __init__(self, wrong: str = ""):
        super().__init__()
        for split in (self.train, self.val):
            named = [(*pair, f"digit-{n:04}") for n, pair in enumerate(split.samples)]
            split.samples = named
        if wrong:
            WRONG[wrong](self)


class Texts(Data):
    """Sentences as token ids, padded to the longest of a batch; a label for each token."""

    def __init__(self, wrong: str = ""):
        generator = torch.Generator().manual_seed(0)
        self.vocabulary = torch.randperm(NUM_WORDS, generator=generator)
        self.longest, self.pad_counts = 12, False
        self.texts = [
            torch.randint(NUM_WORDS, (2 + n % 9,), generator=generator) for n in range(NUM)
        ]
        self.collate = self.pad
        if wrong:
            WRONG[wrong](self)
        self.train = Listed(map(self.tokenised, self.texts))
        self.val = Listed(self.train.samples[:BATCH])

    def tokenised(self, words):
        ids = self.vocabulary[words][: self.longest]
        return {"input_ids": ids, "labels": words[: self.longest] % len(NAMES)}

    def pad(self, samples):
        length = max(len(sample["input_ids"]) for sample in samples)
        ids = torch.zeros(len(samples), length, dtype=torch.int64)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, sample in enumerate(samples):
            count = len(sample["input_ids"])
            ids[row, :count], labels[row, :count] = sample["input_ids"], sample["labels"]
            mask[row, : length if self.pad_counts else count] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def val_dataloader(self):
        return {"val": DataLoader(self.val, batch_size=BATCH, collate_fn=self.collate)}


class Tagger(nn.Module):
    """(B, L, C) logits of each token."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(NUM_WORDS, len(NAMES))

    def forward(self, input_ids, attention_mask):
        return self.table(input_ids) * attention_mask.unsqueeze(-1)


class Net(nn.Sequential):
    def __init__(self, width: int = 8):
        super().__init__(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, len(NAMES)))


def teacher():
    """Right about nearly every training sample."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, data = Net(64), Data()
    images, labels = default_collate(data.train.samples + data.val.samples)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net


def tagger():
    """A random one: its labels tell nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tagger()


WRONG = {}


def wrong(name):
    """Adds a function that makes one thing of a Data wrong."""

    def add(function):
        WRONG[name] = function
        return function

    return add


def of_images(change, *numbers):
    """Changes the images of some training samples, or of all."""

    def changed(data):
        for n in numbers or range(len(data.train)):
            image, *others = data.train.samples[n]
            data.train.samples[n] = (change(image), *others)

    return changed


def of_labels(change):
    def changed(data):
        labels = [sample[1] for sample in data.train.samples]
        for n, (image, label, *others) in enumerate(data.train.samples):
            data.train.samples[n] = (image, change(n, label, labels), *others)

    return changed


@wrong("shuffled")
def _(data):
    order = torch.randperm(NUM, generator=torch.Generator().manual_seed(3)).tolist()
    data.train.samples = [data.train.samples[n] for n in order]


@wrong("sorted by label")
def _(data):
    data.train.samples.sort(key=lambda sample: sample[1])


@wrong("shifted by one")
def _(data):
    data.train.samples = [*data.train.samples[1:], data.train.samples[0]]


@wrong("grown at the front, cut at the end")
def _(data):
    data.train.samples = [data.before[0], *data.train.samples[:-1]]


@wrong("grown at the front")
def _(data):
    data.train.samples.insert(0, data.before[0])


@wrong("a subset")
def _(data):
    data.train = Subset(data.train, range(0, NUM, 2))


@wrong("a subset as long as the dataset")
def _(data):
    data.train = Subset(data.train, [*range(0, NUM, 2)] * 2)


@wrong("training and validation set exchanged")
def _(data):
    data.train, data.val = data.val, data.train


@wrong("validation set exchanged for the training set")
def _(data):
    data.val = data.train


@wrong("validation set edited")
def _(data):
    image, label = data.val.samples[9]
    data.val.samples[9] = (image * 0.5, label)


WRONG["flipped"] = of_images(lambda image: image.reshape(8, 8).flip(-1).reshape(-1))
WRONG["normalised otherwise"] = of_images(lambda image: image * 2 - 1)
WRONG["decoded otherwise, by low bits"] = of_images(lambda image: image * (1 + 1e-6))
WRONG["another dtype"] = of_images(torch.Tensor.double)
WRONG["another shape"] = of_images(lambda image: image.reshape(1, 64))
WRONG["one sample edited"] = of_images(lambda image: image * 0.5, 64)


@wrong("augmented anew at every draw")
def _(data):
    data.train = Noisy(data.train.samples)


@wrong("a collate function that sorts")
def _(data):
    data.collate = lambda samples: default_collate(sorted(samples, key=lambda s: float(s[0].sum())))


@wrong("a collate function that drops one")
def _(data):
    data.collate = lambda samples: default_collate(samples[1:])


@wrong("a collate function that replaces one")
def _(data):
    data.collate = lambda samples: default_collate([samples[-1], *samples[1:]])


@wrong("a collate function that shuffles")
def _(data):
    data.collate = lambda samples: default_collate(
        [samples[n] for n in torch.randperm(len(samples)).tolist()]
    )


@wrong("a collate function that augments")
def _(data):
    def collate(samples):
        images, labels = default_collate(samples)
        return images + 0.01 * torch.rand(()), labels

    data.collate = collate


@wrong("class names exchanged")
def _(data):
    data.class_names = (NAMES[0], NAMES[2], NAMES[1], *NAMES[3:])


@wrong("one class more")
def _(data):
    data.class_names = (*NAMES, "ten")


@wrong("class names of the dataset exchanged")
def _(data):
    data.class_names = ()
    data.train.classes = [*NAMES[:8], NAMES[9], NAMES[8]]


WRONG["labels permuted"] = of_labels(lambda n, label, labels: (label + 3) % 10)
WRONG["labels of other samples"] = of_labels(lambda n, label, labels: labels[n - 1])
WRONG["two classes exchanged"] = of_labels(lambda n, label, labels: {3: 8, 8: 3}.get(label, label))


@wrong("names given anew")
def _(data):
    samples = data.train.samples[1:]
    data.train.samples = [(*s[:2], f"digit-{n:04}") for n, s in enumerate(samples)]


@wrong("a name that was not dumped")
def _(data):
    data.train.samples[40] = (*data.train.samples[40][:2], "digit-9999")


@wrong("names exchanged")
def _(data):
    (*one, name), (*two, other) = data.train.samples[5:7]
    data.train.samples[5:7] = [(*one, other), (*two, name)]


@wrong("tokenised otherwise")
def _(data):
    data.vocabulary = data.vocabulary.roll(1)


@wrong("one word got another id")
def _(data):
    data.vocabulary[data.texts[7][0]] = NUM_WORDS - 1


@wrong("cut off earlier")
def _(data):
    data.longest = 8


@wrong("padding counted")
def _(data):
    data.pad_counts = True


@wrong("sorted by length in the collate function")
def _(data):
    data.collate = lambda samples: data.pad(sorted(samples, key=lambda s: len(s["input_ids"])))
