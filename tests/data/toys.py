"""Small deterministic data and teachers, and the one comparison that most tests end in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

import kdcache
from kdcache import CachedDataset

NUM_CLASSES = 5
WIDTH = 4
LOSSLESS = kdcache.DenseCodec(dtype="float32")


class Samples(Dataset):
    """A list as a dataset."""

    def __init__(self, samples: Iterable[Any]) -> None:
        self.samples = list(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


def vectors(count: int, seed: int = 0) -> Tensor:
    """(count, WIDTH), the same ones every time."""
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def make_teacher(seed: int = 0) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(WIDTH, NUM_CLASSES)


def labelled(count: int, seed: int = 0) -> list[tuple[Tensor, int]]:
    """(x, y) with the classes that the default teacher would name: it is always right."""
    classes = make_teacher()(vectors(count, seed)).argmax(dim=-1).tolist()
    return list(zip(vectors(count, seed), classes, strict=True))


def loader(samples: Any, batch_size: int = 4, **options: Any) -> DataLoader:
    dataset = samples if isinstance(samples, Dataset) else Samples(samples)
    return DataLoader(dataset, batch_size=batch_size, **options)


def dump(cache: Any, samples: Any, teacher: Any = None, **options: Any) -> kdcache.store.Cache:
    """A lossless dump in shards of 8 samples; without a pilot, for teachers that count calls."""
    defaults = {"codec": LOSSLESS, "samples_per_shard": 8, "progress": False, "pilot": False}
    given = samples if isinstance(samples, DataLoader | dict) else loader(samples)
    return kdcache.dump_teacher(teacher or make_teacher(), given, cache, **{**defaults, **options})


def assert_joined_equals_live(
    joined_loader: Iterable[Any], live: Callable[[Any], tuple[Tensor, Tensor]]
) -> list[Any]:
    """Every joined batch has the logits that the teacher gives for it now.

    Args:
        joined_loader: gives joined batches.
        live: from the user's batch to flat logits (P, C) and num_positions (B,).
    """
    batches = []
    for batch, targets in joined_loader:
        with torch.no_grad():
            logits, counts = live(batch)
        assert targets.num_positions.tolist() == counts.tolist()
        torch.testing.assert_close(targets.logits(), logits, rtol=1e-5, atol=1e-5)
        batches.append(batch)
    assert batches
    return batches


def live_linear(batch: Any) -> tuple[Tensor, Tensor]:
    """:func:`make_teacher` on (x, y) batches."""
    images = batch[0]
    return make_teacher()(images), torch.ones(len(images), dtype=torch.int64)


class Tokens(Dataset):
    """Sentences of uneven lengths (sample 3 has none) as dicts with Hugging Face names."""

    LENGTHS = (5, 2, 7, 0, 3, 1, 4, 6, 2, 5, 3)

    def __len__(self) -> int:
        return len(self.LENGTHS)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        ids = torch.arange(self.LENGTHS[index]) * 7 % 13 + index
        return {"input_ids": ids, "labels": ids % NUM_CLASSES}


def pad(samples: list[dict[str, Tensor]], *, side: str) -> dict[str, Tensor]:
    """Padded input_ids, attention_mask and labels, (B, L) each, L at least 1."""
    length = max(1, *(len(sample["input_ids"]) for sample in samples), 1)
    made = {
        "input_ids": torch.zeros(len(samples), length, dtype=torch.int64),
        "attention_mask": torch.zeros(len(samples), length, dtype=torch.int64),
        "labels": torch.full((len(samples), length), -100),
    }
    for row, sample in enumerate(samples):
        count = len(sample["input_ids"])
        at = slice(0, count) if side == "right" else slice(length - count, length)
        made["input_ids"][row, at] = sample["input_ids"]
        made["attention_mask"][row, at] = 1
        made["labels"][row, at] = sample["labels"]
    return made


pad_right = functools.partial(pad, side="right")
pad_left = functools.partial(pad, side="left")


class TokenTeacher(nn.Module):
    """(B, L, C) logits that depend on the token alone, as an object with ``.logits``."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.table = nn.Embedding(32, NUM_CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(logits=self.table(input_ids) + 0 * attention_mask.unsqueeze(-1))


class BatchedFetch(Samples):
    """Has ``__getitems__`` of its own, and refuses single ones."""

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("fetched one by one")

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self.samples[index] for index in indices]


def stack_pairs(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """A user's own collate function."""
    return default_collate(samples)


def joined_loader(joined: CachedDataset, batch_size: int = 3, **options: Any) -> DataLoader:
    return DataLoader(joined, batch_size=batch_size, collate_fn=joined.collate_fn, **options)
