"""A dump of a ResNet-50 (1,000 classes, 3x224x224) beside its bare forward loop."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import kdcache
from scripts.benchmarks import image_nets
from scripts.gpu_check.section import Clock, Figure, Setting
from scripts.gpu_check.sections.dumping import Job, Way, rates


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    side: int
    batch: int
    few: int
    many: int
    repeats: int
    warm_up: int


_FULL = _Sizes(side=224, batch=256, few=1024, many=5120, repeats=4, warm_up=1)
_TINY = _Sizes(side=16, batch=32, few=32, many=64, repeats=2, warm_up=0)
_DISTINCT = 256


class Photos(Dataset[tuple[Tensor, int]]):
    """Random images with labels; the same few over and over, since what they show costs nothing."""

    def __init__(self, number: int, side: int) -> None:
        self._number = number
        self._pixels = _pixels(side)

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < self._number:
            raise IndexError(index)
        return self._pixels[index % _DISTINCT], index % image_nets.NUM_CLASSES


@functools.cache
def _pixels(side: int) -> Tensor:
    return torch.rand(_DISTINCT, 3, side, side, generator=torch.Generator().manual_seed(0))


def measure(setting: Setting, clock: Clock) -> Iterator[Figure]:
    """Bare loop, top-32 and dense caches."""
    sizes = _TINY if setting.is_tiny else _FULL
    device = torch.device(setting.device)
    make = image_nets.tiny_resnet if setting.is_tiny else image_nets.resnet50
    teacher = make().to(device).eval()
    workers = setting.num_workers

    def loader(number: int) -> DataLoader[Any]:
        return DataLoader(
            Photos(number, sizes.side),
            batch_size=sizes.batch,
            num_workers=workers,
            pin_memory=setting.device == "cuda",
        )

    job = Job(
        teacher=teacher,
        loader=loader,
        bare=lambda batches: _bare(teacher, batches, device),
        options={"accelerator": setting.device},
        unit="images",
        per_sample=1,
        folder=setting.folder / "image_dump",
    )
    size = {"few": sizes.few, "many": sizes.many, "samples_per_shard": 1024}
    ways = [
        Way(name=f"bare forward loop, {workers} loader workers", codec=None, **size),
        Way(name="dump, top-32", codec=kdcache.TopKCodec(k=32), **size),
        Way(name="dump, dense float16", codec=kdcache.DenseCodec(), **size),
    ]
    yield from rates(job, ways, clock, repeats=sizes.repeats, warm_up=sizes.warm_up)


@torch.inference_mode()
def _bare(teacher: nn.Module, batches: DataLoader[Any], device: torch.device) -> None:
    for pixels, _ in batches:
        teacher(pixels.to(device, non_blocking=True))
