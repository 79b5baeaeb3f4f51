"""A student's training beside a live teacher, or its cache.

scripts/benchmarks/live_teacher.py on a GPU. An epoch is the last of two, through Lightning; memory
is the peak of a whole training.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Iterator

import torch

import kdcache
from scripts.benchmarks.live_teacher import PAIRS, WAYS, Job, loader, models, turn_of
from scripts.gpu_check.section import Clock, Figure, Setting, per_turn
from scripts.measuring.peak_memory import peak_here
from scripts.measuring.timing import Turn

_PLAIN, *_ = WAYS


def measure(setting: Setting, clock: Clock) -> Iterator[Figure]:
    """Seconds of an epoch and peak memory of each way, and ratios to plain cross entropy."""
    device = torch.device(setting.device)
    job = Job(
        pair="tiny photos" if setting.is_tiny else "photos",
        images=32 if setting.is_tiny else 2048,
        cache=setting.folder / "live_images.zarr",
        threads=None,
        accelerator=setting.device,
        workers=min(4, setting.num_workers),
    )
    make_teacher, _ = models(job)
    started = time.perf_counter()
    kdcache.dump_teacher(
        make_teacher(), loader(job), job.cache, accelerator=setting.device, progress=False
    )
    yield Figure(what="the dump, once", unit="s", median=time.perf_counter() - started)
    epochs: dict[str, list[Turn]] = {name: [] for name in WAYS}
    peaks: dict[str, list[float]] = {name: [] for name in WAYS}

    def once(name: str) -> None:
        gc.collect()
        train = lambda: epochs[name].append(turn_of(WAYS[name](job)))  # noqa: E731
        peaks[name].append(peak_here(train, device) / 2**20)

    ways = {name: functools.partial(once, name) for name in WAYS}
    clock.take_turns(ways, 2 if setting.is_tiny else 3, warm_up=0 if setting.is_tiny else 1)
    for found in (epochs, peaks):
        for values in found.values():
            del values[: 0 if setting.is_tiny else 1]  # of the turn to warm up
    size = f"{job.images:,} images in batches of {PAIRS[job.pair].batch}, {job.workers} workers"
    for name in WAYS:
        what = f"{name}, epoch of {size}" if name == _PLAIN else f"{name}, epoch"
        yield Figure.of(what, "s", [turn.wall_s for turn in epochs[name]])
        yield Figure.of(name, "peak MiB", peaks[name])
        if name != _PLAIN:
            ratio = per_turn(epochs[name], epochs[_PLAIN])
            yield Figure.of(f"{name}, against {_PLAIN}", "ratio of time", ratio)
