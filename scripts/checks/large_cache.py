"""Memory does not grow with the cache: a large one is written, verified and trained from.

    python -m scripts.checks.large_cache [--sequences 100000] [--max_length 4096] [--lengths ...]

A synthetic teacher of sequences of uneven length (top-4 of a vocabulary of 50,257), three times: of
a hundredth of the sequences, of a tenth, and of all. Lengths are log-uniform by default, as texts
are (from 1 to 4,096 the mean is 492), or uniform. What is stored is random, so it hardly
compresses. All three have shards of 384 sequences, as a dump of 100,000 chooses, so that only their
number grows.

Every phase is a process of its own, which this one watches once it has imported everything:
``anon`` is the peak of RssAnon in /proc/PID/status, the memory that nobody can take back from a
process, and ``before`` what it was at the start; ``file`` is the peak of RssFile, the pages of
mapped files, which the kernel drops when it needs room: libraries, and what was read of the local
copy with its surroundings, in time all of it; ``all`` is the kernel's own peak of both together
(VmHWM), which misses nothing between two looks. Ends with 1 where ``anon`` grows by more than 64
MiB from the smallest cache to the largest; a local copy of up to 64 MiB lives in it.

The student (an embedding and an output layer over the vocabulary) is as small as can be, and learns
from a stretch of 128 positions a step: its logits would drown what is measured. All targets of all
sequences of a batch are joined, checked and decoded nevertheless.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import kdcache
from kdcache.codecs import codec_settings
from kdcache.columns import FINGERPRINT, NUM_POSITIONS, Array, Column
from kdcache.data.join.probes import check_join
from kdcache.data.samples.fingerprint import FingerprintSource
from kdcache.losses import kd_loss
from kdcache.store import Manifest, View, ViewWriter, open_cache, open_local_copy
from kdcache.targets import rows_of
from kdcache.tools.verify import verify_cache
from scripts.measuring.peak_memory import MIB, Measured, measure

CODEC = kdcache.TopKCodec(k=4, temperatures=(1.0,))
SOURCE = FingerprintSource(name="inputs", paths=("input_ids",))
OWN_COLUMNS = (
    Column(name=FINGERPRINT, per="sample", dtype="uint64"),
    Column(name=NUM_POSITIONS, per="sample", dtype="int32"),
)
# What a phase begins with, imported once in the process that all are forked from.
IMPORTS = [
    "kdcache.data.join.probes",
    "kdcache.store.format.arrays",
    "kdcache.tools.verify",
    "rich.table",
    "zarr",
]
ALLOWED_MIB = 64


@dataclass(frozen=True, kw_only=True)
class Job:
    """One cache and what is done with it.

    Attributes:
        folder: for the cache and its local copy.
        num_sequences: N.
        max_length: positions of the longest sequence.
        lengths: ``log-uniform`` or ``uniform``.
        vocabulary: C.
        samples_per_shard: sequences of a shard.
        batch_size: sequences of a training step.
        steps: of the student.
        positions: whose losses a step sees, at most.
        seed: of everything.
    """

    folder: Path
    num_sequences: int
    max_length: int
    lengths: str
    vocabulary: int
    samples_per_shard: int
    batch_size: int
    steps: int
    positions: int
    seed: int

    @property
    def cache(self) -> Path:
        return self.folder / "teacher.zarr"

    @property
    def local_copy(self) -> Path:
        return self.folder / "local"

    @property
    def view(self) -> View:
        return open_cache(self.cache)["train"]

    @cached_property
    def texts(self) -> Texts:
        return Texts(self)


class Texts(Dataset[dict[str, Tensor]]):
    """Sequences of token ids, each made from its number when it is asked for."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __len__(self) -> int:
        return self.job.num_sequences

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        job = self.job
        rng = np.random.default_rng((job.seed, index))
        share = rng.random()
        if job.lengths == "uniform":
            length = 1 + int(share * job.max_length)
        else:
            length = int((job.max_length + 1) ** share)
        return {"input_ids": torch.from_numpy(zipf(rng, job.vocabulary, length))}


def mean_length(lengths: str, max_length: int) -> float:
    """Positions of a sequence, expected."""
    if lengths == "uniform":
        return (max_length + 1) / 2
    most = max_length + 1  # the mean of a log-uniform number, and half a position for rounding down
    return max(1.0, (most - 1) / math.log(most) - 0.5)


def zipf(rng: np.random.Generator, vocabulary: int, number: int) -> Array:
    """(number,) int64 token ids, frequent ones first, as in texts."""
    return (float(vocabulary) ** rng.random(number)).astype(np.int64) - 1


def pad(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Sequences side by side, zeros behind the shorter ones."""
    ids = [sample["input_ids"] for sample in samples]
    mask = [torch.ones_like(each) for each in ids]
    padded = nn.utils.rnn.pad_sequence
    return {"input_ids": padded(ids, True), "attention_mask": padded(mask, True)}


def columns_of(job: Job, start: int, stop: int) -> dict[str, Array]:
    """All columns of a shard: real fingerprints and lengths, a random teacher."""
    texts = [job.texts[number] for number in range(start, stop)]
    counts = np.asarray([len(text["input_ids"]) for text in texts], np.int32)
    rng = np.random.default_rng((job.seed, start, stop))
    made: dict[str, Array] = {
        FINGERPRINT: np.asarray([SOURCE(text) for text in texts], np.uint64),
        NUM_POSITIONS: counts,
        **teacher_says(rng, job.vocabulary, int(counts.sum())),
    }
    columns = (*OWN_COLUMNS, *CODEC.columns(job.vocabulary))
    return {column.name: made[column.name].astype(column.dtype) for column in columns}


def teacher_says(rng: np.random.Generator, vocabulary: int, number: int) -> dict[str, Array]:
    """Random top-k targets of (number,) positions: normalised, descending, no class twice."""
    kept = -np.sort(-rng.normal(4, 2, (number, CODEC.k)), axis=-1)
    # All others together are at most as probable as that many of the last one kept.
    tail = np.minimum(rng.normal(2, 2, number), kept[:, -1] + math.log(vocabulary - CODEC.k))
    total = np.log(np.exp(kept).sum(axis=-1) + np.exp(tail))
    steps = rng.integers(1, vocabulary // CODEC.k + 1, (number, CODEC.k))
    steps[:, 0] = zipf(rng, vocabulary, number)
    return {
        "ids": steps.cumsum(axis=-1) % vocabulary,
        "log_p": kept - total[:, None],
        "tail_log_sums": (tail - total)[:, None],
        "offset": total,
    }


def write(job: Job) -> str:
    """Write the cache, shard by shard."""
    manifest = Manifest(
        split="train",
        num_samples=job.num_sequences,
        samples_per_shard=job.samples_per_shard,
        batch_size=job.batch_size,
        num_classes=job.vocabulary,
        codec=codec_settings(CODEC),
        columns=(*OWN_COLUMNS, *CODEC.columns(job.vocabulary)),
        fingerprint=SOURCE.to_json(),
        identity={"teacher.class": "synthetic", "seed": str(job.seed)},
        created={"kdcache": kdcache.__version__},
    )
    writer, positions = ViewWriter.create(job.cache, manifest), 0
    for shard in writer.pending():
        columns = columns_of(job, *manifest.shard_range(shard))
        positions += len(columns["ids"])
        writer.write_shard(shard, columns, {"positions": len(columns["ids"])})
    assert writer.finish()
    on_disk = sum(path.stat().st_size for path in job.cache.rglob("*") if path.is_file())
    return (
        f"{positions:,} positions in {manifest.num_shards} shards; {on_disk / MIB:,.0f} MiB, "
        f"{on_disk / positions:.1f} bytes a position"
    )


def verify(job: Job) -> str:
    """Read and check all of it."""
    found = verify_cache(job.cache)
    assert found.is_sound, found.problems
    assert found.samples == job.num_sequences
    return f"{found.samples:,} samples sound"


def first_use(job: Job) -> str:
    """Make the local copy."""
    copy = open_local_copy(job.view, job.local_copy)
    if copy.location is None:
        return "in memory"
    size = sum(path.stat().st_size for path in copy.location.iterdir())
    return f"{size / MIB:,.0f} MiB, mapped"


def train(job: Job) -> str:
    """Look at data and cache as a student's run does, then some steps on shuffled batches."""
    torch.manual_seed(job.seed)
    joined = kdcache.CachedDataset(
        job.texts,
        job.view,
        batch={"inputs": ["input_ids"], "mask": "attention_mask"},
        collate_fn=pad,
        local_copy=job.local_copy,
    )
    check_join(joined)
    student = nn.Sequential(nn.Embedding(job.vocabulary, 16), nn.Linear(16, job.vocabulary))
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    loader = DataLoader(
        joined, batch_size=job.batch_size, shuffle=True, collate_fn=joined.collate_fn
    )
    losses: list[float] = []
    positions = 0
    while len(losses) < job.steps:
        for batch, targets in loader:
            ids = batch["input_ids"][batch["attention_mask"].bool()]
            assert len(ids) == targets.num_rows()
            positions += len(ids)
            start = int(torch.randint(max(1, len(ids) - job.positions + 1), ()))
            some = slice(start, start + job.positions)
            loss = kd_loss(student(ids[some]), rows_of(targets, some), 1.0).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if len(losses) == job.steps:
                break
    few = max(1, job.steps // 10)
    first, last = statistics.fmean(losses[:few]), statistics.fmean(losses[-few:])
    return f"{positions:,} positions joined; kd_loss {first:.2f}, at the end {last:.2f}"


PHASES: tuple[Callable[[Job], str], ...] = (write, verify, first_use, train)


def all_phases(job: Job) -> dict[str, Measured]:
    """Everything with one cache, which is removed afterwards."""
    job.folder.mkdir()
    found = {}
    for phase in PHASES:
        name = phase.__name__.replace("_", " ")
        found[name] = measure(phase, job, imports=IMPORTS, title=f"{job.num_sequences:,} sequences")
        print(f"{job.num_sequences:>9,} {name:<10} {found[name].remark}", flush=True)
    shutil.rmtree(job.folder)
    return found


def show(found: dict[int, dict[str, Measured]]) -> None:
    """A table: phases, and below each the sizes."""
    table = Table("peak MiB of", "sequences", "s", "before", "anon", "file", "all")
    for column in table.columns[1:]:
        column.justify = "right"
    for name in next(iter(found.values())):
        for number, phases in found.items():
            at = phases[name]
            sizes = (at.before_mib, at.anon_mib, at.file_mib, at.all_mib)
            cells = [f"{size:,.0f}" for size in sizes]
            table.add_row(name, f"{number:,}", f"{at.seconds:,.1f}", *cells)
        table.add_section()
    Console(width=100).print(table)


def growth(found: dict[int, dict[str, Measured]]) -> dict[str, float]:
    """MiB by which each phase's anonymous memory grows from the smallest cache to the largest."""
    smallest, largest = found[min(found)], found[max(found)]
    return {name: largest[name].anon_mib - smallest[name].anon_mib for name in largest}


def check_room(folder: Path, num_sequences: int, positions: float) -> None:
    """Raise SystemExit where the cache and its local copy do not fit."""
    row_bytes = sum(column.row_bytes for column in CODEC.columns(1 << 16))
    wanted = int(num_sequences * (positions * row_bytes * 2 + 100) * 1.2)
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise SystemExit(
            f"{num_sequences:,} sequences need about {wanted / MIB:,.0f} MiB for cache and local "
            f"copy, {folder} has {free / MIB:,.0f} MiB free. Nothing was written. Name another "
            "disk (--folder), or ask for fewer --sequences or a smaller --max_length."
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=100_000)
    parser.add_argument("--max_length", type=int, default=4096)
    parser.add_argument("--lengths", choices=["log-uniform", "uniform"], default="log-uniform")
    parser.add_argument("--vocabulary", type=int, default=50_257)
    parser.add_argument("--samples_per_shard", type=int, default=384)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--positions", type=int, default=128, help="whose losses a step sees")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    options = parser.parse_args()
    if not Path("/proc/self/status").is_file():
        raise SystemExit("memory is read from /proc/PID/status, which this system does not have.")
    began = time.monotonic()
    positions = mean_length(options.lengths, options.max_length)
    found = {}
    with tempfile.TemporaryDirectory(prefix="large-cache-", dir=options.folder) as name:
        check_room(Path(name), options.sequences, positions)
        for number in sorted({max(1, options.sequences // part) for part in (100, 10, 1)}):
            job = Job(
                folder=Path(name) / str(number),
                num_sequences=number,
                max_length=options.max_length,
                lengths=options.lengths,
                vocabulary=options.vocabulary,
                samples_per_shard=options.samples_per_shard,
                batch_size=options.batch_size,
                steps=options.steps,
                positions=options.positions,
                seed=options.seed,
            )
            found[number] = all_phases(job)
    show(found)
    grown = growth(found)
    print(", ".join(f"{name} {mib:+,.0f}" for name, mib in grown.items()), "MiB anonymous memory,")
    print(
        f"{max(found):,} against {min(found):,} sequences; lengths {options.lengths} up to "
        f"{options.max_length:,}, seed {options.seed}, {time.monotonic() - began:,.0f} s in all"
    )
    return int(max(grown.values()) > ALLOWED_MIB)


if __name__ == "__main__":
    sys.exit(main())
