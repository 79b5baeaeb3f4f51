"""Everything that is decided about a split before its first shard: one look at data and teacher.

The result is the manifest. Two processes that look at the same data with the same teacher come
to the same one, so none has to tell the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

import kdcache
from kdcache.codecs import Codec, codec_settings
from kdcache.columns import FINGERPRINT, KEY, NUM_POSITIONS, RESERVED, Column
from kdcache.data import sources
from kdcache.data.batch import Mapped
from kdcache.data.fingerprint import FingerprintSource, fingerprint
from kdcache.data.forward import FlatOutput
from kdcache.data.join import check_labels, num_rows
from kdcache.data.keys import is_stored
from kdcache.data.probes import check_collate, check_repeatable, spread
from kdcache.data.references import NUM_REFERENCES, describe
from kdcache.dump.shard_writer import EncodedBatch, check_valid
from kdcache.dump.statistics import batch_statistics
from kdcache.dump.teacher import TeacherForward, class_path
from kdcache.errors import AlignmentError, DataError, UsageError
from kdcache.store import Manifest, table_digest

MAX_SHARD_BYTES = 64 << 20
MIN_SHARD_BYTES = 1 << 20
_MAX_SHARDS = 256
_SHARDS_TO_SHARE = 16
_COLLATE_PROBES = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitPlan:
    """What the loop needs to know of a split.

    Attributes:
        manifest: as it will stand in the cache.
        codec: fitted, where it is of that kind.
        source: what is fingerprinted.
    """

    manifest: Manifest
    codec: Codec
    source: FingerprintSource


def choose_samples_per_shard(num_samples: int, batch_size: int, sample_bytes: float) -> int:
    """Samples of a shard: whole batches, about N / 256 samples.

    Small targets get larger shards (a megabyte, as long as sixteen processes could still share
    the work), because every shard costs a few small files; 64 MB is the most.

    Args:
        num_samples: N.
        batch_size: samples that go through the teacher together.
        sample_bytes: decoded bytes of one sample.
    """
    per_megabyte = min(MIN_SHARD_BYTES / sample_bytes, num_samples / _SHARDS_TO_SHARE)
    wanted = max(num_samples / _MAX_SHARDS, per_megabyte)
    wanted = min(wanted, MAX_SHARD_BYTES / sample_bytes)
    batches = max(1, round(wanted / batch_size))
    return min(batches * batch_size, num_samples)


def choose_source(
    wanted: str | Callable[[Any], Any], mapping: Mapped, sample: Any
) -> FingerprintSource:
    """What is fingerprinted: the model's input leaves where the sample has them, or all of it.

    Args:
        wanted: ``inputs``, ``sample``, or a function from a sample to what counts.
        mapping: the teacher's resolved mapping.
        sample: one sample, before collation.
    """
    if callable(wanted):
        return FingerprintSource(name=class_path(wanted), function=wanted)
    if wanted not in ("inputs", "sample"):
        raise UsageError(f"fingerprint: {wanted!r} is none of 'inputs', 'sample', or a function.")
    paths = mapping.input_paths() if wanted == "inputs" else None
    source = FingerprintSource(name="inputs", paths=paths) if paths else FingerprintSource()
    try:
        source.content(sample)
    except DataError:  # the collate function gives batches another structure than samples
        return FingerprintSource()
    return source


def plan_split(
    *,
    split: str,
    loader: sources.Loader,
    teacher: nn.Module,
    forward: TeacherForward,
    codec: Codec,
    class_names: Sequence[str],
    key: str,
    fingerprinted: str | Callable[[Any], Any],
    samples_per_shard: int | None,
    precision: str,
    weights: str,
) -> SplitPlan:
    """Look at a split and its teacher once, and write down what the cache will say of it.

    Raises:
        DataError: an empty dataset, logits or labels that no target should hold.
        AlignmentError: a random dataset or collate function, or one that reorders or drops.
    """
    sources.check_map_style(loader)
    dataset, collate = loader.dataset, loader.collate_fn
    num_samples = len(dataset)  # type: ignore[arg-type]  # checked above
    if num_samples == 0:
        raise DataError(f"split {split!r} is empty: there is nothing to dump.")
    batch_size = _batch_size(loader)
    samples = sources.fetch(dataset, range(min(batch_size, num_samples)))
    batch = collate(samples)
    output = _probe(forward, batch, len(samples), split)
    mapping = forward.mapping.resolve(batch)
    source = choose_source(fingerprinted, mapping, samples[0])

    numbers = spread(num_samples, NUM_REFERENCES)
    check_repeatable(lambda number: sources.fetch(dataset, [number])[0], numbers, source)
    probed = sources.fetch(dataset, spread(num_samples, _COLLATE_PROBES))
    check_collate(probed, collate, mapping)
    references = [source.content(sources.fetch(dataset, [number])[0]) for number in numbers]

    num_classes = output.logits.shape[-1]
    if class_names and len(class_names) != num_classes:
        raise DataError(
            f"the teacher has {num_classes} classes, the data names {len(class_names)}: "
            f"{', '.join(class_names[:4])} ... Correct the one that is wrong."
        )
    codec = _fitted(codec, forward, loader)
    encoded = codec.encode(output.logits, torch.zeros(len(output.logits), 2, dtype=torch.int64))
    per_sample = sum(rows.numel() * rows.element_size() for rows in encoded.values())
    sample_bytes = per_sample / len(samples) + 12
    manifest = Manifest(
        split=split,
        num_samples=num_samples,
        samples_per_shard=samples_per_shard
        or choose_samples_per_shard(num_samples, batch_size, sample_bytes),
        batch_size=batch_size,
        num_classes=num_classes,
        codec=codec_settings(codec),
        columns=_columns(codec, num_classes, key),
        tables={name: table_digest(table) for name, table in codec.tables().items()},
        key=key,
        fingerprint=source.to_json(),
        identity={
            "teacher.class": class_path(teacher),
            "teacher.weights": weights,
            "dataset.class": class_path(dataset),
            "dataset.probe": f"xxh3:{fingerprint(references):016x}",
            "batch": mapping.describe(),
            "collate": class_path(collate),
            "class_names": f"xxh3:{xxhash.xxh3_64_hexdigest(chr(0).join(class_names).encode())}",
            "precision": precision,
            "torch": torch.__version__.split("+")[0],
        },
        class_names=tuple(class_names),
        references=tuple(describe(n, c) for n, c in zip(numbers, references, strict=True)),
        created={
            "kdcache": kdcache.__version__,
            "numpy": np.__version__,
            "torch": torch.__version__,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )
    return SplitPlan(manifest=manifest, codec=codec, source=source)


def _batch_size(loader: sources.Loader) -> int:
    if loader.batch_size is not None:
        return int(loader.batch_size)
    return int(getattr(loader.batch_sampler, "batch_size", 0)) or 32


def _probe(forward: TeacherForward, batch: Any, num_samples: int, split: str) -> FlatOutput:
    """One forward pass, checked as every later one is."""
    output = forward(batch)
    rows = len(output.num_positions)
    selected = forward.mapping.select(batch)
    made = num_rows(selected.args, selected.kwargs)
    if rows != num_samples or (made is not None and made != num_samples):
        raise AlignmentError(
            f"split {split!r}: {num_samples} samples gave {made} input rows and {rows} rows of "
            "logits. collate_fn and the teacher must keep one row for each sample."
        )
    if selected.labels is not None:
        check_labels(selected.labels, output.logits.shape[-1], range(num_samples))
    check_valid(encoded_batch(0, range(num_samples), output, {}, {}, ends_shard=False))
    return output


def encoded_batch(
    shard: int,
    samples: Sequence[int],
    output: FlatOutput,
    tensors: Mapping[str, Tensor],
    identity: Mapping[str, Any],
    *,
    ends_shard: bool,
) -> EncodedBatch:
    """A batch for the writer, with its checks and statistics computed where the logits are."""
    logits = output.logits
    usable = (logits.isfinite() | (logits == -torch.inf)).all(dim=-1)
    usable &= logits.isfinite().any(dim=-1)
    return EncodedBatch(
        shard=shard,
        samples=tuple(samples),
        tensors={**tensors, NUM_POSITIONS: output.num_positions.to(torch.int32)},
        arrays=identity,
        invalid=~usable,
        num_positions=output.num_positions,
        statistics=batch_statistics(logits, output.labels),
        ends_shard=ends_shard,
    )


def _fitted(codec: Codec, forward: TeacherForward, loader: sources.Loader) -> Codec:
    """The codec fitted to a pilot whose samples are drawn uniformly over the dataset."""
    if not codec.num_pilot_samples:
        return codec
    dataset: Any = loader.dataset
    rng = np.random.default_rng(0)
    count = min(codec.num_pilot_samples, len(dataset))
    numbers = np.sort(rng.choice(len(dataset), count, replace=False)).tolist()
    size = _batch_size(loader)
    parts = [numbers[start : start + size] for start in range(0, count, size)]
    logits = [forward(loader.collate_fn(sources.fetch(dataset, part))).logits for part in parts]
    return codec.fit(torch.cat(logits))


def _columns(codec: Codec, num_classes: int, key: str) -> tuple[Column, ...]:
    own = codec.columns(num_classes)
    reserved = [column.name for column in own if column.name in RESERVED]
    if reserved:
        raise UsageError(f"the codec {codec.name!r} uses reserved column names: {reserved}.")
    identity = [Column(name=FINGERPRINT, per="sample", dtype="uint64")]
    if is_stored(key):
        identity.append(Column(name=KEY, per="sample", dtype="uint64"))
    counts = Column(name=NUM_POSITIONS, per="sample", dtype="int32")
    return (*identity, counts, *own)
