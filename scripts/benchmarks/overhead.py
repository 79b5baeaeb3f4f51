"""What checksums, fingerprints and checks cost, on the dump and on training: ratios, medians.

    python -m scripts.benchmarks.overhead [--repeats 40]

Batches take turns: one goes through with everything on, the next with one kind of check replaced
by a function that does nothing, and so on, all in one run. Two figures stand side by side: the
ratio of the medians, which is what a user would feel and what a busy machine blurs by a percent
or more, and the CPU time that was spent inside the functions themselves, as a share of the rest,
which is exact. Times are CPU time of the thread that runs the model. Checksums are made in the
writer's thread, shard by shard, so their turns are shards. What happens once a run (looking at
data and teacher, the local copy) is left out of the ratios; the last lines have the local copy.

Needs transformers: the teacher is its ResNet-18 (3.6 GFLOP an image), the student a ResNet of half
the width (0.9 GFLOP, three times that with its backward pass); for tokens, GPT-2s of 4 layers.
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
from kdcache.data.join.dataset import dataset as join
from kdcache.data.samples.fingerprint import FingerprintSource, fingerprint
from kdcache.dump import loop
from kdcache.dump.measurements.statistics import NAMES
from kdcache.dump.shards import encoding, shard_writer
from kdcache.losses import kd_loss
from kdcache.store import ViewWriter
from kdcache.store.format import arrays
from kdcache.store.local.copy import open_local_copy

NUM_CLASSES, BATCH, LENGTH, VOCABULARY = 1000, 4, 256, 8192

Patch = tuple[Any, str, Callable[..., Any]]


def nothing(*_: object, **__: object) -> None:
    """Stands for a check."""


DUMP: Mapping[str, Sequence[Patch]] = {
    "fingerprints": [(FingerprintSource, "__call__", lambda *_: 0)],
    "checks": [
        (loop, "check_rows", nothing),
        (encoding, "invalid_positions", lambda logits: torch.zeros(len(logits), dtype=torch.bool)),
    ],
    "statistics, fidelity": [
        (encoding, "batch_statistics", lambda *_: torch.zeros(len(NAMES), dtype=torch.float64)),
    ],
}
WRITING: Mapping[str, Sequence[Patch]] = {
    "checksums": [
        (arrays, "rows_digest", lambda *_: "0" * 32),
        (arrays, "object_checksum", lambda *_: "0" * 16),
        (google_crc32c, "value", lambda *_: 0),
    ],
}
TRAINING: Mapping[str, Sequence[Patch]] = {
    "fingerprints": [(FingerprintSource, "__call__", lambda *_: 0)],
    "checks": [(join, "check_labels", nothing), (join, "_check_mask", nothing)],
}
_ALL = "all of these"


class Turns:
    """Who is switched off at present, and what every turn took.

    Args:
        kinds: what can be switched off.
    """

    def __init__(self, kinds: Mapping[str, Sequence[Patch]]) -> None:
        self._kinds = kinds
        self._order = [None, *kinds, *([_ALL] if len(kinds) > 1 else [])]
        self._turn = 0
        self._started = 0.0
        self._inside = dict.fromkeys(kinds, 0.0)
        self.taken: dict[str | None, list[float]] = {name: [] for name in self._order}
        self.shares: dict[str, list[float]] = {name: [] for name in self._order if name}

    @property
    def off(self) -> str | None:
        """The kind that does nothing in this turn; None: everything is on."""
        return self._order[self._turn % len(self._order)]

    def begin(self) -> None:
        """A turn begins, in the thread that does its work."""
        self._inside = dict.fromkeys(self._kinds, 0.0)
        self._started = time.thread_time()

    def end(self) -> None:
        """It ends, and the next one's kind is switched off."""
        took = time.thread_time() - self._started
        if self._turn >= len(self._order):  # the first round does not count
            self.taken[self.off].append(took)
            if self.off is None:
                every = sum(self._inside.values())
                for name, seconds in [*self._inside.items(), (_ALL, every)]:
                    self.shares.setdefault(name, []).append(seconds / (took - every))
        self._turn += 1

    @contextmanager
    def taking(self) -> Iterator[Turns]:
        """While functions of the package know whose turn it is."""
        with ExitStack() as stack:
            for kind, patches in self._kinds.items():
                for owner, name, instead in patches:
                    function = self._switched(kind, getattr(owner, name), instead)
                    stack.enter_context(mock.patch.object(owner, name, function))
            yield self

    def _switched(
        self, kind: str, function: Callable[..., Any], instead: Callable[..., Any]
    ) -> Callable[..., Any]:
        def switched(*args: Any, **kwargs: Any) -> Any:
            if self.off in (kind, _ALL):
                return instead(*args, **kwargs)
            started = time.thread_time()
            found = function(*args, **kwargs)
            self._inside[kind] += time.thread_time() - started
            return found

        return switched

    def show(self, title: str) -> None:
        """A row for each kind: ratio of medians, its spread, share inside."""
        table = Table(
            "what",
            "with / without",
            "quartiles of turns",
            "added, inside",
            title=title,
            title_justify="left",
        )
        base = self.taken[None]
        for name in self._order:
            if name is None:
                continue
            ratios = [a / b for a, b in zip(base, self.taken[name], strict=False)]
            low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
            table.add_row(
                name,
                f"{statistics.median(base) / statistics.median(self.taken[name]):.3f}",
                f"{low:.3f} to {high:.3f}",
                f"{statistics.median(self.shares[name]):.3%}",
            )
        console = Console(width=100)
        console.print(table)
        console.print(
            f"{len(base)} turns each; with everything on, {statistics.median(base):.3f} s CPU\n"
        )


class Images(Dataset):
    """3x224x224 images, float32 or uint8: few random ones, over and over."""

    def __init__(self, number: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        raw = torch.randint(0, 256, (256, 3, 224, 224), generator=generator, dtype=torch.uint8)
        self.images = raw if dtype == torch.uint8 else raw.float() / 255
        self.labels = torch.randint(NUM_CLASSES, (number,), generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index % len(self.images)], self.labels[index]


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


def compare_kind(
    name: str, data: Dataset, models: tuple[nn.Module, nn.Module], folder: Path, batch_size: int
) -> None:
    """Both stages on one kind of data, with a teacher and a student."""
    teacher, student = models
    loader = DataLoader(data, batch_size=batch_size)
    is_text = isinstance(data, Tokens)
    codec = kdcache.TopKCodec(k=32) if is_text else kdcache.DenseCodec()
    options: dict[str, Any] = {"codec": codec, "progress": False, "pilot": False}

    turns, writing = Turns(DUMP), Turns(WRITING)
    put, write_shard = shard_writer.ShardWriter.put, ViewWriter.write_shard
    enter = shard_writer.ShardWriter.__enter__

    def entered(writer: Any) -> Any:
        found = enter(writer)
        turns.begin()
        return found

    def counted_put(writer: Any, batch: Any) -> None:
        put(writer, batch)
        turns.end()
        turns.begin()

    def counted_write(*args: Any) -> Any:
        writing.begin()
        found = write_shard(*args)
        writing.end()
        return found

    hooks = [
        mock.patch.object(shard_writer.ShardWriter, "__enter__", entered),
        mock.patch.object(shard_writer.ShardWriter, "put", counted_put),
        mock.patch.object(ViewWriter, "write_shard", counted_write),
    ]
    with ExitStack() as stack:
        for context in (turns.taking(), writing.taking(), *hooks):
            stack.enter_context(context)
        shard = 4 * batch_size
        kdcache.dump_teacher(
            teacher, loader, folder / "turns.zarr", samples_per_shard=shard, **options
        )
    turns.show(f"dump, batches of {batch_size} {name}")
    writing.show(f"writing a shard of {shard} {name}")

    cache = kdcache.dump_teacher(teacher, loader, folder / "train.zarr", **options)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    # With fingerprints that are all 0 in some turns, nothing can be compared.
    joined = kdcache.CachedDataset(data, cache["train"], check_fingerprints=False)
    turns = Turns(TRAINING)
    with turns.taking():
        batches = iter(joined.loader_like(loader))
        turns.begin()
        for batch, targets in batches:
            logits = student(batch["input_ids"] if is_text else batch[0]).flatten(0, -2)
            optimizer.zero_grad()
            kd_loss(logits, targets, 1.0).mean().backward()
            optimizer.step()
            turns.end()
            turns.begin()
    turns.show(f"student, batches of {batch_size} {name}")


def single_costs() -> None:
    """Microseconds of one fingerprint."""
    image = torch.rand(3, 224, 224)
    samples = {
        "image 3x224x224, float32": image,
        "image 3x224x224, float32, as a view of 224x224x3": image.permute(1, 2, 0)
        .contiguous()
        .permute(2, 0, 1),
        "image 3x224x224, uint8": (image * 255).to(torch.uint8),
        "256 token ids, tensor": torch.arange(LENGTH),
        "256 token ids, list": list(range(LENGTH)),
        "2,048 token ids, list": list(range(2048)),
    }
    table = Table("fingerprint of", "median us", title="one sample", title_justify="left")
    for name, sample in samples.items():
        found = []
        for _ in range(200):
            started = time.perf_counter()
            fingerprint(sample)
            found.append(time.perf_counter() - started)
        table.add_row(name, f"{statistics.median(found) * 1e6:,.1f}")
    Console(width=100).print(table)


def first_use(folder: Path) -> None:
    """Making the local copy of a cache, which verifies every checksum on the way."""
    num = 20_000

    class Waves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(x * torch.arange(1, NUM_CLASSES + 1))

    data = torch.utils.data.TensorDataset(torch.arange(num)[:, None].float())
    cache = kdcache.dump_teacher(
        Waves(), DataLoader(data, batch_size=1000), folder / "waves.zarr", progress=False
    )
    turns = Turns(WRITING)
    with turns.taking():
        for number in range(12):
            while turns.off is not None:  # without checksums the copy would be refused
                turns.begin()
                turns.end()
            turns.begin()
            open_local_copy(cache["train"], folder / f"copy-{number}")
            turns.end()
    taken, shares = turns.taken[None], turns.shares["checksums"]
    print(
        f"first use on a machine, {num:,} samples of C = {NUM_CLASSES}: "
        f"{statistics.median(taken):.2f} s CPU, {statistics.median(shares):.1%} more for checksums"
    )


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--repeats", type=int, default=40, help="turns of each alternative, 16 at least"
    )
    turns = 1 + max(16, parser.parse_args().repeats)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    single_costs()
    num_batches = turns * (2 + len(DUMP))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models: tuple[nn.Module, nn.Module] = ResNet(64).eval(), ResNet(32)
        for dtype in (torch.float32, torch.uint8):
            kind = f"images 3x224x224, {str(dtype).removeprefix('torch.')}, C = {NUM_CLASSES}"
            images = Images(BATCH * num_batches, dtype)
            compare_kind(kind, images, models, folder / str(dtype), BATCH)
        kind = f"texts of {LENGTH} tokens, C = {VOCABULARY:,}, top-32"
        texts, models = Tokens(BATCH * num_batches), (Gpt(768).eval(), Gpt(256))
        compare_kind(kind, texts, models, folder / "texts", BATCH)
        first_use(folder)


if __name__ == "__main__":
    main()
