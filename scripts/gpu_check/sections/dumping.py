"""What the dumps of images and of texts share: rates of what longer runs add to shorter ones.

Before its first sample a dump looks at data and teacher once (the weights' digest, a pilot, a few
samples alone), which takes seconds whatever the data's size. Each way is therefore run at two
sizes in every turn: the difference is the cost of a sample, and the rest the look.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

import kdcache
from scripts.gpu_check.section import Clock, Figure
from scripts.measuring.timing import Turn

Codec = kdcache.TopKCodec | kdcache.DenseCodec


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to run the teacher over the data.

    Attributes:
        name: in the table.
        codec: of the dump; None: the bare forward loop.
        few: samples of the shorter run, at least the 32 that a dump looks at.
        many: samples of the longer one.
        samples_per_shard: as a large dataset would have them, where its default for this few
            samples would be so small that files cost more than targets.
    """

    name: str
    codec: Codec | None
    few: int
    many: int
    samples_per_shard: int | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A teacher and its data.

    Attributes:
        teacher: on its device.
        loader: from a number of samples to their loader.
        bare: runs the teacher over a loader and nothing else.
        options: of ``dump_teacher``.
        unit: what is counted, such as ``tokens``.
        per_sample: how many of them a sample has.
        folder: for the caches, which stay there.
    """

    teacher: nn.Module
    loader: Callable[[int], DataLoader[Any]]
    bare: Callable[[DataLoader[Any]], None]
    options: Mapping[str, Any]
    unit: str
    per_sample: int
    folder: Path

    def run(self, way: Way, size: int, numbers: Iterator[int]) -> None:
        """One way over so many samples."""
        loader = self.loader(size)
        if way.codec is None:
            self.bare(loader)
            return
        cache = self.folder / f"{next(numbers)}.zarr"
        kdcache.dump_teacher(
            self.teacher,
            loader,
            cache,
            codec=way.codec,
            samples_per_shard=way.samples_per_shard and min(size, way.samples_per_shard),
            progress=False,
            **self.options,
        )


def rates(
    job: Job, ways: Sequence[Way], clock: Clock, *, repeats: int, warm_up: int
) -> Iterator[Figure]:
    """Rate of each way, and its ratio to the first, the bare loop; and the look of each dump."""
    numbers = itertools.count()
    runs = {
        (way.name, size): functools.partial(job.run, way, size, numbers)
        for way in ways
        for size in (way.few, way.many)
    }
    taken = clock.take_turns(runs, repeats, warm_up=warm_up)
    base: list[float] = []
    for way in ways:
        few, many = taken[way.name, way.few], taken[way.name, way.many]
        cost = _seconds_each(few, many, way)
        base = base or cost
        figures = {(way.name, f"{job.unit}/s"): [job.per_sample / one for one in cost]}
        if way.codec is not None:
            ratio = [one / other for one, other in zip(cost, base, strict=True)]
            look = [turn.wall_s - way.few * one for turn, one in zip(few, cost, strict=True)]
            figures[f"{way.name}, against the bare loop", "ratio of time"] = ratio
            figures[f"{way.name}, before its first sample", "s"] = look
        for (what, unit), values in figures.items():
            if min(*cost, *base, *values) > 0:
                yield Figure.of(what, unit, values)
            else:  # the longer run was not the slower one in every turn: nothing is known
                yield Figure(what=what, unit=unit, median=None, remark="less than the noise")


def _seconds_each(few: Sequence[Turn], many: Sequence[Turn], way: Way) -> list[float]:
    """What a sample costs, turn by turn."""
    further = way.many - way.few
    return [(long - short).wall_s / further for short, long in zip(few, many, strict=True)]
