"""What kdcache costs, measured side by side in one run: medians, spreads and paired ratios.

    python -m scripts.benchmarks.stages [--repeats 25]

Alternatives take turns within every repeat, so that a machine whose speed drifts treats them
alike (scripts/measuring/timing.py). Everything is made on the spot: random images, random weights.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import zarr
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import kdcache
from kdcache.losses import kd_loss
from scripts.measuring.timing import Turn, show, take_turns

NUM_CLASSES, BATCH = 1000, 64
ROWS, BATCHES = 256, 10  # of the local copy, a turn
FEW, MANY = 512, 2560  # images of a dump
STEPS = 512  # images of a student's epoch


def conv_net(width: int) -> nn.Module:
    """A small convolutional net for 3x64x64 images."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, NUM_CLASSES),
    )


def reading(folder: Path, repeats: int) -> None:
    """256 random rows of 48 bytes: what a training step asks for."""
    rng = np.random.default_rng(0)
    num_rows = 200_000
    images = torch.linspace(0, 1, num_rows)[:, None]
    teacher = nn.Linear(1, 10)
    cache = kdcache.dump_teacher(
        teacher,
        DataLoader(TensorDataset(images), batch_size=20_000),
        folder / "rows.zarr",
        progress=False,
    )
    joined = kdcache.CachedDataset(TensorDataset(images), cache["train"])
    flat = rng.standard_normal((num_rows, 24)).astype(np.float16)
    np.save(folder / "rows.npy", flat)
    mapped = np.load(folder / "rows.npy", mmap_mode="r")
    array = zarr.create_array(
        folder / "plain.zarr", shape=flat.shape, dtype="f2", chunks=(2048, 24)
    )
    array[:] = flat
    wanted = [rng.integers(0, num_rows, ROWS) for _ in range(BATCHES)]
    show(
        f"{BATCHES} times {ROWS} random rows of {num_rows:,}",
        take_turns(
            {
                "memmap take": lambda: [mapped.take(rows, axis=0) for rows in wanted],
                "local copy take (all columns)": lambda: [
                    joined.copy.take(rows) for rows in wanted
                ],
                "zarr-python oindex": lambda: [array.oindex[rows] for rows in wanted],
            },
            repeats,
        ),
        "us",
    )


def dumping(folder: Path, repeats: int) -> None:
    """One epoch of a teacher, bare and through the dump, of two sizes within every turn.

    What the second adds to the first is the cost of a sample; the rest is looking at data and
    teacher once, and the first files. The difference is taken turn by turn.
    """
    teacher = conv_net(64).eval()
    number = itertools.count()

    @torch.inference_mode()
    def bare(loader: DataLoader) -> None:
        for (batch,) in loader:
            teacher(batch)

    def dump(loader: DataLoader) -> None:
        path = folder / f"dump-{next(number)}.zarr"
        kdcache.dump_teacher(teacher, loader, path, progress=False)
        shutil.rmtree(path)

    loaders = {
        size: DataLoader(TensorDataset(torch.randn(size, 3, 64, 64)), batch_size=BATCH)
        for size in (FEW, MANY)
    }
    ways = {
        f"{name}, {size:,} images": functools.partial(way, loader)
        for size, loader in loaders.items()
        for name, way in (("bare teacher loop", bare), ("dump_teacher", dump))
    }
    taken = take_turns(ways, max(3, repeats // 2))
    few_bare, few_dump, many_bare, many_dump = taken.values()
    further: dict[str, list[Turn]] = {
        f"bare, {MANY - FEW:,} further images": _differences(many_bare, few_bare),
        f"dump, {MANY - FEW:,} further images": _differences(many_dump, few_dump),
    }
    title = f"stage one, images 3x64x64, C = {NUM_CLASSES}"
    for size in (FEW, MANY):
        show(title, {way: taken[way] for way in taken if f", {size:,} " in way})
    show("stage one, what the longer runs add to the shorter", further)


def _differences(turns: list[Turn], less: list[Turn]) -> list[Turn]:
    return [turn - other for turn, other in zip(turns, less, strict=True)]


def stepping(folder: Path, repeats: int) -> None:
    """One student epoch: plain cross-entropy, cached targets, live teacher."""
    images = torch.randn(STEPS, 3, 64, 64)
    labels = torch.randint(0, NUM_CLASSES, (len(images),))
    plain = DataLoader(TensorDataset(images, labels), batch_size=BATCH, shuffle=True)
    teacher, student = conv_net(64).eval(), conv_net(24)
    cache = kdcache.dump_teacher(teacher, plain, folder / "steps.zarr", progress=False)
    joined = kdcache.CachedDataset(plain.dataset, cache["train"]).loader_like(plain)
    topk = kdcache.dump_teacher(
        teacher, plain, folder / "k.zarr", codec=kdcache.TopKCodec(k=32), progress=False
    )
    sparse = kdcache.CachedDataset(plain.dataset, topk["train"]).loader_like(plain)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)

    def step(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def labels_only() -> None:
        for inputs, wanted in plain:
            step(nn.functional.cross_entropy(student(inputs), wanted))

    def cached(loader: DataLoader) -> Callable[[], None]:
        def epoch() -> None:
            for (inputs, _), targets in loader:
                step(kd_loss(student(inputs), targets, 4.0).mean())

        return epoch

    def live() -> None:
        for inputs, _ in plain:
            with torch.inference_mode():
                logits = teacher(inputs)
            log_p = (logits / 4.0).log_softmax(-1).clone()
            log_q = (student(inputs) / 4.0).log_softmax(-1)
            step(16 * nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean"))

    ways = {
        "plain cross-entropy": labels_only,
        "cached, dense float16": cached(joined),
        "cached, top-32": cached(sparse),
        "live teacher": live,
    }
    show(f"stage two, one epoch of {len(images)} images", take_turns(ways, repeats))


def main() -> None:
    """Run all three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=25, help="turns of each way")
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    logging.getLogger("kdcache").setLevel(logging.ERROR)  # teachers of random weights guess
    with tempfile.TemporaryDirectory() as name:
        for part in (reading, dumping, stepping):
            part(Path(name), repeats)


if __name__ == "__main__":
    main()
