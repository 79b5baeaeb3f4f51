"""What checksums, fingerprints and checks cost, on the dump and on training: ratios, medians.

    python -m scripts.overhead [--repeats 5] [--images 64]

Everything is measured with all of it, and with one kind replaced by a function that does nothing;
the alternatives take turns within every repeat. Two figures stand side by side: the ratio of the
two, which is what a user would feel and what a busy machine blurs by a few percent, and the share
of the time that was spent inside the functions themselves, which is exact. Times are CPU time of
the process, all threads. What happens once a run (looking at data and teacher, the local copy) is
left out of the ratios; the last table has it.

Needs transformers: the teacher is its ResNet-18 (3.6 GFLOP an image), the student a ResNet of half
the width (0.9 GFLOP); for tokens, GPT-2s of 4 layers.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import google_crc32c
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2Config, GPT2LMHeadModel, ResNetConfig, ResNetForImageClassification

import kdcache
from kdcache.data import join
from kdcache.data.fingerprint import FingerprintSource, fingerprint
from kdcache.dump import encoding, loop, shard_writer
from kdcache.dump.statistics import NAMES
from kdcache.losses import kd_loss
from kdcache.store import arrays
from kdcache.store.local_copy import open_local_copy

NUM_CLASSES, BATCH, LENGTH, VOCABULARY = 1000, 16, 256, 8192

Patch = tuple[Any, str, Callable[..., Any]]


def nothing(*_: object, **__: object) -> None:
    """Stands for a check."""


DUMP: Mapping[str, Sequence[Patch]] = {
    "fingerprints": [(FingerprintSource, "__call__", lambda *_: 0)],
    "checksums": [
        (arrays, "rows_digest", lambda *_: "0" * 32),
        (arrays, "object_checksum", lambda *_: "0" * 16),
        (google_crc32c, "value", lambda *_: 0),
    ],
    "checks": [
        (loop, "check_rows", nothing),
        (encoding, "invalid_positions", lambda logits: torch.zeros(len(logits), dtype=torch.bool)),
        (shard_writer, "check_valid", nothing),
    ],
    "statistics, fidelity": [
        (encoding, "batch_statistics", lambda *_: torch.zeros(len(NAMES), dtype=torch.float64)),
    ],
}
TRAINING: Mapping[str, Sequence[Patch]] = {
    "fingerprints": [(FingerprintSource, "__call__", lambda *_: 0)],
    "checks": [
        (join, "check_labels", nothing),
        (join, "check_collate", nothing),
        (join, "_check_mask", nothing),
    ],
}


@contextmanager
def replaced(patches: Sequence[Patch]) -> Iterator[None]:
    """Functions of the package replaced by ones that do nothing."""
    with ExitStack() as stack:
        for owner, name, instead in patches:
            stack.enter_context(mock.patch.object(owner, name, instead))
        yield


@contextmanager
def timed(patches: Sequence[Patch], spent: list[float]) -> Iterator[None]:
    """The same functions, wrapped: the CPU seconds inside each call go into ``spent``."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent.append(time.thread_time() - started)

        return wrapped

    with ExitStack() as stack:
        for owner, name, _ in patches:
            stack.enter_context(mock.patch.object(owner, name, wrap(getattr(owner, name))))
        yield


def compare(
    title: str, run: Callable[[], float], kinds: Mapping[str, Sequence[Patch]], repeats: int
) -> None:
    """Measure, and print one row for each kind and one for all together.

    Args:
        title: of the table.
        run: does the work and returns its CPU seconds.
        kinds: what can be switched off.
        repeats: turns that count; one more comes first.
    """
    everything = [patch for patches in kinds.values() for patch in patches]
    ways = {**kinds, "all of these": everything}
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    shares: dict[str, list[float]] = {name: [] for name in ways}
    totals = []
    for repeat in range(repeats + 1):
        spent: dict[str, list[float]] = {name: [] for name in kinds}
        with ExitStack() as stack:
            for name, patches in kinds.items():
                stack.enter_context(timed(patches, spent[name]))
            with_all = run()
        without = {}
        for name, patches in ways.items():
            with replaced(patches):
                without[name] = run()
        if not repeat:
            continue
        totals.append(with_all)
        seconds = {name: sum(found) for name, found in spent.items()}
        seconds["all of these"] = sum(seconds.values())
        for name in ways:
            ratios[name].append(with_all / without[name])
            shares[name].append(seconds[name] / (with_all - seconds[name]))
    table = Table(
        "what", "with / without", "spread", "added, inside", title=title, title_justify="left"
    )
    for name in ways:
        low, high = min(ratios[name]), max(ratios[name])
        table.add_row(
            name,
            f"{statistics.median(ratios[name]):.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{statistics.median(shares[name]):.3%}",
        )
    Console(width=100).print(table)
    print(f"with all of it: {statistics.median(totals):.2f} s CPU\n")


class Images(Dataset):
    """3x224x224 random images, float32 or uint8."""

    def __init__(self, number: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        raw = torch.randint(0, 256, (number, 3, 224, 224), generator=generator, dtype=torch.uint8)
        self.images = raw if dtype == torch.uint8 else raw.float() / 255
        self.labels = torch.randint(NUM_CLASSES, (number,), generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


class Tokens(Dataset):
    """Sentences of 256 token ids, each its own label."""

    def __init__(self, number: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(VOCABULARY, (number, LENGTH), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


class ResNet(nn.Module):
    """Transformers' ResNet-18, or one of another width, on images of either type."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        config = ResNetConfig(
            embedding_size=width,
            hidden_sizes=[width, 2 * width, 4 * width, 8 * width],
            depths=[2, 2, 2, 2],
            layer_type="basic",
            num_labels=NUM_CLASSES,
        )
        self.net = ResNetForImageClassification(config)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images if images.is_floating_point() else images.float() / 255).logits


class Gpt(nn.Module):
    """A small GPT-2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        config = GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=LENGTH,
            n_embd=width,
            n_layer=4,
            n_head=4,
            bos_token_id=0,
            eos_token_id=0,
        )
        self.net = GPT2LMHeadModel(config)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.net(input_ids=input_ids, use_cache=False).logits


class LoopClock:
    """Seconds of CPU time between the start and the end of the dump's writer thread."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[LoopClock]:
        """While the writer's entry and exit are watched."""
        enter, leave = shard_writer.ShardWriter.__enter__, shard_writer.ShardWriter.__exit__

        def entered(writer: Any) -> Any:
            self.seconds -= time.process_time()
            return enter(writer)

        def left(writer: Any, *error: Any) -> None:
            leave(writer, *error)
            self.seconds += time.process_time()

        patches = [(shard_writer.ShardWriter, "__enter__", entered)]
        patches.append((shard_writer.ShardWriter, "__exit__", left))
        with replaced(patches):
            yield self


def compare_kind(
    name: str, data: Dataset, models: tuple[nn.Module, nn.Module], folder: Path, repeats: int
) -> None:
    """Both stages on one kind of data, with a teacher and a student."""
    teacher, student = models
    loader = DataLoader(data, batch_size=BATCH)
    is_text = isinstance(data, Tokens)
    codec = kdcache.TopKCodec(k=32) if is_text else kdcache.DenseCodec()
    options: dict[str, Any] = {"codec": codec, "progress": False}
    number = iter(range(10**6))

    def dump() -> float:
        with LoopClock().running() as clock:
            kdcache.dump_teacher(teacher, loader, folder / f"{next(number)}.zarr", **options)
        return clock.seconds

    compare(f"dump of {len(data)} {name}", dump, DUMP, repeats)

    cache = kdcache.dump_teacher(teacher, loader, folder / "train.zarr", **options)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)

    def train() -> float:
        joined = kdcache.CachedDataset(data, cache["train"])
        # With fingerprints that are all 0, nothing can be compared.
        joined.check_fingerprints = FingerprintSource()(0) != 0
        joined.collate_fn(joined.__getitems__([0, 1]))  # what is looked at once in a process
        batches = iter(joined.loader_like(loader))
        started = time.process_time()
        for batch, targets in batches:
            logits = student(batch["input_ids"] if is_text else batch[0]).flatten(0, -2)
            optimizer.zero_grad()
            kd_loss(logits, targets, 4.0 if not is_text else 1.0).mean().backward()
            optimizer.step()
        return time.process_time() - started

    compare(f"one epoch of a student on {len(data)} {name}", train, TRAINING, repeats)


def single_costs(repeats: int) -> None:
    """Microseconds of one fingerprint."""
    image = torch.rand(3, 224, 224)
    samples = {
        "image 3x224x224, float32": image,
        "image 3x224x224, float32, channels last": image.permute(1, 2, 0).contiguous(),
        "image 3x224x224, float32, a permuted view": image.permute(1, 2, 0),
        "image 3x224x224, uint8": (image * 255).to(torch.uint8),
        "256 token ids, tensor": torch.arange(LENGTH),
        "256 token ids, list": list(range(LENGTH)),
        "2,048 token ids, list": list(range(2048)),
    }
    table = Table("fingerprint of", "median us", title="one sample", title_justify="left")
    for name, sample in samples.items():
        found = []
        for _ in range(20 * repeats):
            started = time.perf_counter()
            fingerprint(sample)
            found.append(time.perf_counter() - started)
        table.add_row(name, f"{statistics.median(found) * 1e6:,.1f}")
    Console(width=100).print(table)


def first_use(folder: Path, repeats: int) -> None:
    """Making the local copy of a cache, which verifies every checksum on the way."""
    num = 20_000

    class Waves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(x * torch.arange(1, NUM_CLASSES + 1))

    data = torch.utils.data.TensorDataset(torch.arange(num)[:, None].float())
    cache = kdcache.dump_teacher(
        Waves(), DataLoader(data, batch_size=1000), folder / "waves.zarr", progress=False
    )
    checksums = DUMP["checksums"]
    taken, shares = [], []
    for repeat in range(repeats + 1):
        spent: list[float] = []
        started = time.process_time()
        with timed(checksums, spent):
            open_local_copy(cache["train"], folder / f"copy-{repeat}")
        if repeat:
            taken.append(time.process_time() - started)
            shares.append(sum(spent) / taken[-1])
    print(
        f"first use on a machine, {num:,} samples of C = {NUM_CLASSES}: "
        f"{statistics.median(taken):.2f} s CPU, {statistics.median(shares):.1%} of it checksums"
    )


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=64)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    single_costs(options.repeats)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models: tuple[nn.Module, nn.Module] = ResNet(64).eval(), ResNet(32)
        for dtype in (torch.float32, torch.uint8):
            kind = f"images 3x224x224, {str(dtype).removeprefix('torch.')}, C = {NUM_CLASSES}"
            where = folder / str(dtype)
            images = Images(options.images, dtype)
            compare_kind(kind, images, models, where, options.repeats)
        kind = f"texts of {LENGTH} tokens, C = {VOCABULARY:,}, top-32"
        texts, models = Tokens(options.images), (Gpt(384).eval(), Gpt(128))
        compare_kind(kind, texts, models, folder / "texts", options.repeats)
        first_use(folder, options.repeats)


if __name__ == "__main__":
    main()
