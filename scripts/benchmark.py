"""What kdcache costs, measured side by side in one run: medians, and ratios of medians.

    python scripts/benchmark.py [--repeats 15]

Alternatives take turns within every repeat, so that a machine whose speed drifts treats them
alike. Everything is made on the spot: random images, random weights.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import zarr
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import kdcache
from kdcache.losses import kd_loss

NUM_SAMPLES, NUM_CLASSES, BATCH, ROWS = 4096, 1000, 64, 256


def medians(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each way; the ways take turns, the first turn does not count."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if repeat:
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in taken.items()}


def show(title: str, found: dict[str, float], unit: str = "ms") -> None:
    """A table of medians, and ratios to the first row."""
    scale = {"ms": 1e3, "us": 1e6}[unit]
    table = Table("", f"median {unit}", "ratio", title=title, title_justify="left")
    base = next(iter(found.values()))
    for name, seconds in found.items():
        table.add_row(name, f"{seconds * scale:,.1f}", f"{seconds / base:.3f}")
    Console(width=100).print(table)


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
    wanted = [rng.integers(0, num_rows, ROWS) for _ in range(repeats + 1)]
    turn = iter(wanted * 3)
    show(
        f"{ROWS} random rows of {num_rows:,}",
        medians(
            {
                "memmap take": lambda: mapped.take(next(turn), axis=0),
                "local copy take (all columns)": lambda: joined.copy.take(next(turn)),
                "zarr-python oindex": lambda: array.oindex[next(turn)],
            },
            repeats,
        ),
        "us",
    )


def dumping(folder: Path, repeats: int) -> None:
    """One epoch of a teacher, bare and through the dump, of two sizes.

    What the second adds to the first is the cost of a sample; the rest is looking at data and
    teacher once, and the first files.
    """
    few, many = (
        _dumping(folder / str(number), torch.randn(number, 3, 64, 64), max(3, repeats // 4))
        for number in (512, 2560)
    )
    bare, dump = (many[name] - few[name] for name in few)
    print(f"each further image: dump / bare = {dump / bare:.3f}\n")


def _dumping(folder: Path, images: Tensor, repeats: int) -> dict[str, float]:
    loader = DataLoader(TensorDataset(images), batch_size=BATCH)
    teacher = conv_net(64).eval()
    number = iter(range(10_000))

    @torch.inference_mode()
    def bare() -> None:
        for (batch,) in loader:
            teacher(batch)

    def dump() -> None:
        path = folder / f"dump-{next(number)}.zarr"
        kdcache.dump_teacher(teacher, loader, path, progress=False)

    found = medians({"bare teacher loop": bare, "dump_teacher": dump}, repeats)
    show(f"stage one, {len(images):,} images 3x64x64, C = {NUM_CLASSES}", found)
    return found


def stepping(folder: Path, repeats: int) -> None:
    """One student epoch: plain cross-entropy, cached targets, live teacher."""
    images = torch.randn(NUM_SAMPLES // 8, 3, 64, 64)
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
    show(f"stage two, one epoch of {len(images)} images", medians(ways, max(3, repeats // 3)))


def main() -> None:
    """Run all three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        for part in (reading, dumping, stepping):
            part(Path(name), repeats)


if __name__ == "__main__":
    main()
