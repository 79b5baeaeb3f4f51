"""Everything that is decided about a split before its first shard: one look at data and teacher.

The result is the manifest. Two processes that look at the same data with the same teacher come
to the same one, so none has to tell the others.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache.codecs import Codec, codec_settings
from kdcache.columns import FINGERPRINT, KEY, NUM_POSITIONS, RESERVED, Column
from kdcache.data.batch.forward import FlatOutput
from kdcache.data.batch.output_kind import OUTPUT, check_output
from kdcache.data.join.collation import check_collate
from kdcache.data.join.probes import check_distinct, check_repeatable
from kdcache.data.samples import sources
from kdcache.data.samples.fingerprint import FingerprintSource
from kdcache.data.samples.keys import INDEX, check_unique, is_stored
from kdcache.dump.measurements.drift import NUM_SAMPLES, measure_drift, warning_text
from kdcache.dump.preparation.answers import ANSWERS, answers_of, first_log_p
from kdcache.dump.preparation.pilot import measure_pilot
from kdcache.dump.preparation.split_data import SplitData, choose_source
from kdcache.dump.preparation.teacher import TeacherForward, class_path
from kdcache.dump.shards.encoding import check_rows, check_valid, encode, invalid_positions
from kdcache.dump.shards.keyed import KeyedBatch, KeyedDataset
from kdcache.errors import DataError, UsageError
from kdcache.store import UNKNOWN_LENGTH, Manifest, table_digest
from kdcache.version import __version__

log = logging.getLogger(__name__)

MAX_SHARD_BYTES = 64 << 20
MIN_SHARD_BYTES = 1 << 20
_MAX_SHARDS = 256
_SHARDS_TO_SHARE = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitPlan:
    """What the loop needs to know of a split.

    Attributes:
        manifest: as it will stand in the cache.
        codec: fitted, where it is of that kind.
        source: what is fingerprinted.
        log_p: what the teacher said of the first positions, (P, C) float64.
    """

    manifest: Manifest
    codec: Codec
    source: FingerprintSource
    log_p: Tensor


def choose_samples_per_shard(num_samples: int, batch_size: int, sample_bytes: float) -> int:
    """Samples of a shard: whole batches, about N / 256 samples.

    Small targets get larger shards (a megabyte, as long as eight processes could still share
    the work), because every shard costs a few small files; 64 MB is the most, or one batch.

    Args:
        num_samples: N; a stream, whose N is not known, gets shards of a megabyte.
        batch_size: samples that go through the teacher together.
        sample_bytes: decoded bytes of one sample.
    """
    per_megabyte = min(MIN_SHARD_BYTES / sample_bytes, num_samples / _SHARDS_TO_SHARE)
    is_stream = num_samples == UNKNOWN_LENGTH
    wanted = max(0 if is_stream else num_samples / _MAX_SHARDS, per_megabyte)
    most = int(MAX_SHARD_BYTES / sample_bytes / batch_size)
    batches = max(1, min(round(wanted / batch_size), most))
    return min(batches * batch_size, num_samples)


def plan_split(
    *,
    split: str,
    data: SplitData,
    forward: TeacherForward,
    codec: Codec,
    class_names: Sequence[str],
    vocabulary: str,
    key: str,
    fingerprinted: str | Callable[[Any], Any],
    samples_per_shard: int | None,
    precision: str,
    weights: str,
    pilot: bool,
) -> SplitPlan:
    """Look at a split and its teacher once, and write down what the cache will say of it.

    With a pilot, what the codec and the batches do to a few samples is measured.

    Raises:
        DataError: logits or labels that no target should hold.
        AlignmentError: a random dataset or collate function, or one that reorders or drops.
    """
    numbers = range(len(data.first))
    output = forward(data.batch)
    kind = check_output(output, "teacher")  # first: a logarithm of what is negative is NaN
    _check(output, forward, data.batch, numbers)
    if output.chosen:
        log.info("the teacher's logits are %s", output.chosen)
    if output.label_problem:
        log.warning(
            "split %r: labels are not used, and no accuracy is measured: %s",
            split,
            output.label_problem,
        )
    mapping = forward.mapping
    if mapping.note:
        log.info("split %r: the teacher %s", split, mapping.note)
    mapping.check_shift(data.batch)
    source = choose_source(fingerprinted, mapping, data.first[0], data.batch)
    _check_data(data, forward, source, key)
    if warning := check_distinct(source, data.probed):
        log.warning("split %r: %s", split, warning)
    num_classes = output.logits.shape[-1]
    if class_names and len(class_names) != num_classes:
        raise DataError(
            f"the teacher has {num_classes} classes, the data names {len(class_names)}: "
            f"{', '.join(class_names[:4])} ... Correct the one that is wrong."
        )
    codec = _fitted(codec, forward, data)
    dataset = KeyedDataset(data.loader.dataset, data.loader.collate_fn, source, key, split)
    identity = dataset.identity(data.first, numbers)
    keyed = KeyedBatch(samples=tuple(numbers), identity=identity, batch=data.batch)
    encoded = encode(codec, 0, keyed, output, key=key, ends_shard=False)
    per_sample = sum(rows.numel() * rows.element_size() for rows in encoded.tensors.values())
    sample_bytes = per_sample / len(data.first) + 8
    manifest = Manifest(
        split=split,
        num_samples=data.num_samples,
        samples_per_shard=samples_per_shard
        or choose_samples_per_shard(data.num_samples, data.batch_size, sample_bytes),
        batch_size=data.batch_size,
        num_classes=num_classes,
        codec=codec_settings(codec),
        columns=_columns(codec, num_classes, key),
        tables={name: table_digest(table) for name, table in codec.tables().items()},
        key=key,
        fingerprint=source.to_json(),
        identity={
            **data.identity(source, class_names, vocabulary),
            "teacher.class": class_path(forward.module),
            "teacher.weights": weights,
            "batch": mapping.describe(),
            "precision": precision,
            "torch": torch.__version__.split("+")[0],
        },
        class_names=tuple(class_names),
        references=_with_answers(data.references(source, mapping), output.logits),
        pilot=_pilot(codec, forward, data) if pilot else {},
        created={
            "kdcache": __version__,
            OUTPUT: kind,
            "numpy": np.__version__,
            "torch": torch.__version__,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )
    log_p = first_log_p(output.logits)
    return SplitPlan(manifest=manifest, codec=codec, source=source, log_p=log_p)


def _with_answers(
    references: Sequence[Mapping[str, Any]], logits: Tensor
) -> tuple[Mapping[str, Any], ...]:
    """The first of them has what the teacher said of the first positions."""
    first, *others = references
    return ({**first, ANSWERS: answers_of(logits)}, *others)


def _check_data(
    data: SplitData, forward: TeacherForward, source: FingerprintSource, key: str
) -> None:
    """Everything that a dump would only be found to be useless by, on the probed samples."""
    if data.is_stream and key == INDEX:
        raise UsageError(
            "the samples of a stream have no numbers that a student could ask for. Dump with key: "
            "content, or key: field:<path>."
        )
    source.of_each(data.probed, data.numbers, data.split)
    check_repeatable(data.numbers, data.probed, data.probed_again(), source)
    data.collate(data.probed, data.numbers)
    check_collate(data.numbers, data.probed, data.loader.collate_fn, forward.mapping)
    if is_stored(key):
        check_unique(key, data.numbers, data.probed)


def _probe(forward: TeacherForward, batch: Any, samples: Sequence[int]) -> FlatOutput:
    """One forward pass, checked as every later one is."""
    output = forward(batch)
    _check(output, forward, batch, samples)
    return output


def _check(output: FlatOutput, forward: TeacherForward, batch: Any, samples: Sequence[int]) -> None:
    check_rows(output, forward.mapping.select(batch), samples, output.logits.shape[-1])
    check_valid(invalid_positions(output.logits), output.num_positions, samples)


def _fitted(codec: Codec, forward: TeacherForward, data: SplitData) -> Codec:
    """The codec fitted to a pilot whose samples are drawn uniformly over the dataset."""
    if not codec.num_pilot_samples:
        return codec
    parts = data.pilot(codec.num_pilot_samples)
    logits = [
        _probe(forward, data.collate(samples, numbers), numbers).logits
        for numbers, samples in parts
    ]
    return codec.fit(torch.cat(logits))


def _pilot(codec: Codec, forward: TeacherForward, data: SplitData) -> dict[str, float]:
    """Fidelity, and how far targets depend on the batch, on the probed samples."""
    collate, size = data.loader.collate_fn, data.batch_size
    parts = [slice(at, at + size) for at in range(0, len(data.probed), size)]
    found = measure_pilot(
        codec,
        (
            _probe(forward, data.collate(data.probed[part], numbers), numbers)
            for part in parts
            for numbers in [data.numbers[part]]
        ),
    )
    chosen = sources.spread(len(data.probed), NUM_SAMPLES)
    samples, numbers = [data.probed[n] for n in chosen], [data.numbers[n] for n in chosen]
    drift = measure_drift(forward, collate, samples, numbers)
    if drift is None:
        return found
    if text := warning_text(drift):
        log.warning("%s", text)
    values = {f"drift_{name}": value for name, value in drift.to_json().items()}
    return {**found, **{name: float(value) for name, value in values.items() if value is not None}}


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
