"""Small teacher caches to break: all kinds of columns, a table, a stream, a split that grew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdcache
from kdcache.columns import FINGERPRINT, NUM_ENTRIES, NUM_POSITIONS, Array, Column
from kdcache.store import UNKNOWN_LENGTH, Manifest, ViewWriter, table_digest

NUM_CLASSES = 3
TABLE = np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3)
SHARED = (
    Column(name=FINGERPRINT, per="sample", dtype="uint64"),
    Column(name=NUM_POSITIONS, per="sample", dtype="int32"),
)
DENSE = (
    Column(name="values", per="position", dtype="float16", shape=(NUM_CLASSES,)),
    Column(name="offset", per="position", dtype="float32"),
)
ENTRIES = (
    *DENSE,
    Column(name=NUM_ENTRIES, per="position", dtype="int32"),
    Column(name="ids", per="entry", dtype="uint8", shape=(2,)),
)


def synthetic(path: Path) -> None:
    """Three splits of random rows: ``train`` with a table, ``stream``, and ``grown``."""
    train = _manifest("train", 10, (*SHARED, *ENTRIES), tables={"basis": table_digest(TABLE)})
    writer = ViewWriter.create(path, train, {"basis": TABLE})
    _write(writer)
    stream = ViewWriter.create(path, _manifest("stream", UNKNOWN_LENGTH, (*SHARED, *DENSE)))
    stream.write_shard(0, _columns(stream.manifest, 4, 0), {"positions": 6.0})
    stream.end(7)
    _write(stream)
    short, long = (_manifest("grown", number, (*SHARED, *DENSE)) for number in (3, 8))
    _write(ViewWriter.create(path, short))
    _write(ViewWriter.extend(path, long, short))


def dumped(path: Path, codec: kdcache.Codec) -> None:
    """What a real dump of a linear teacher writes, of 24 samples in shards of 8."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(24, 4), torch.arange(24) % NUM_CLASSES)
    loader = DataLoader(data, batch_size=4)
    teacher = nn.Linear(4, NUM_CLASSES)
    kdcache.dump_teacher(
        teacher, loader, path, codec=codec, samples_per_shard=8, accelerator="cpu", progress=False
    )


def _manifest(split: str, num_samples: int, columns: tuple[Column, ...], **more: Any) -> Manifest:
    return Manifest(
        split=split,
        num_samples=num_samples,
        samples_per_shard=4,
        batch_size=2,
        num_classes=NUM_CLASSES,
        codec={"name": "dense", "dtype": "float16"},
        columns=columns,
        key="index",
        fingerprint={"algorithm": "xxh3-64", "source": "inputs"},
        identity={"teacher.weights": "xxh3:91c4", "data": "xxh3:07ee"},
        class_names=("ant", "bee", "cat"),
        references=({"sample": 0, "mean": 0.5},),
        pilot={"divergence": 0.25},
        created={"kdcache": "0"},
        **more,
    )


def _write(writer: ViewWriter) -> None:
    for shard in writer.pending():
        start, stop = writer.manifest.shard_range(shard)
        columns = _columns(writer.manifest, stop - start, shard)
        writer.write_shard(shard, columns, {"positions": 6.0, "entropy": 1.5})
    assert writer.finish()


def _columns(manifest: Manifest, num_samples: int, seed: int) -> dict[str, Array]:
    """Random rows; samples have 2, 0, 3 and 1 positions in turn, positions as many entries."""
    rng = np.random.default_rng(seed)
    counts = np.resize(np.asarray([2, 0, 3, 1], np.int32), num_samples)
    entries = np.resize(counts[::-1], counts.sum())
    rows = {"sample": num_samples, "position": len(entries), "entry": int(entries.sum())}
    made = {}
    for column in manifest.columns:
        shape = (rows[column.per], *column.shape)
        made[column.name] = rng.integers(0, 100, shape).astype(column.dtype)
    made[NUM_POSITIONS] = counts
    if NUM_ENTRIES in made:
        made[NUM_ENTRIES] = entries
    return made
