"""From a teacher's output to what the writer is handed: checked, encoded, summed up.

All of it runs where the logits are; nothing here waits for a device unless something is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdcache.codecs import Codec
from kdcache.columns import FINGERPRINT, KEY, NUM_POSITIONS, Array
from kdcache.data.batch.forward import FlatOutput
from kdcache.data.batch.labels import check_labels, check_single_label
from kdcache.data.batch.selection import Selected
from kdcache.data.samples.keys import CONTENT
from kdcache.dump.measurements.statistics import batch_statistics
from kdcache.dump.shards.keyed import KeyedBatch
from kdcache.errors import AlignmentError, DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedBatch:
    """What the loop hands over.

    Attributes:
        shard: the shard that these samples belong to.
        samples: their numbers, ascending.
        tensors: column name -> rows on any device.
        arrays: column name -> rows that never were on a device.
        invalid: (P,) bool, logits that are NaN or +inf, or a row without a finite one.
        num_positions: (B,) int64.
        labels: (P,) int64, -100 for none; None where nothing is labelled.
        statistics: (S,) float64, sums in the order of ``statistics.NAMES``.
        ends_shard: whether the shard is whole with this batch.
    """

    shard: int
    samples: tuple[int, ...]
    tensors: Mapping[str, Tensor]
    arrays: Mapping[str, Array]
    invalid: Tensor
    num_positions: Tensor
    labels: Tensor | None
    statistics: Tensor
    ends_shard: bool


def check_rows(
    output: FlatOutput, selected: Selected, samples: Sequence[int], num_classes: int
) -> None:
    """Hold a teacher's output and a batch's labels against the samples they belong to.

    Raises:
        AlignmentError: the batch or the logits have not one row for each sample.
        DataError: other classes than the batches before, a label that is no class.
    """
    made, rows = selected.num_rows(), len(output.num_positions)
    if rows != len(samples) or made not in (None, rows):
        raise AlignmentError(
            f"samples {samples[0]} to {samples[-1]}: {len(samples)} samples gave {made} input rows "
            f"and {rows} rows of logits. collate_fn and the teacher must keep one row for each "
            "sample."
        )
    if output.logits.shape[-1] != num_classes:
        raise DataError(
            f"samples {samples[0]} to {samples[-1]}: the teacher gave {output.logits.shape[-1]} "
            f"classes, {num_classes} before. Mend the teacher, or say batch.class_dim."
        )
    if output.labels is None:
        check_single_label(selected.labels, rows, num_classes)
    check_labels(selected.labels, num_classes, samples)


def invalid_positions(logits: Tensor) -> Tensor:
    """(P,) bool: NaN or +inf among a position's logits (P, C), or no finite one."""
    return ~logits.amax(dim=-1).isfinite()  # a NaN is the largest of all


def check_valid(invalid: Tensor, num_positions: Tensor, samples: Sequence[int]) -> None:
    """Raise DataError naming the first sample with a logit that no target should hold.

    Args:
        invalid: (P,) bool; see :func:`invalid_positions`.
        num_positions: (B,) int64.
        samples: (B,) their numbers.
    """
    if not bool(invalid.any()):
        return
    owner = np.repeat(samples, num_positions.cpu().numpy())
    raise DataError(
        f"the teacher's logits of sample {owner[invalid.cpu().numpy()][0]} are NaN, +inf, or all "
        f"-inf ({int(invalid.sum())} positions in this batch). Shards that were finished stay; "
        "this one was not written. Mend the sample, or what the teacher does with it, and run the "
        "same command again; a lower precision overflows, and another one needs a new cache."
    )


@torch.inference_mode()
def encode(
    codec: Codec, shard: int, keyed: KeyedBatch, output: FlatOutput, *, key: str, ends_shard: bool
) -> EncodedBatch:
    """Encode one batch on the device that holds its logits.

    Args:
        codec: with its tables.
        shard: that the samples belong to.
        keyed: the batch.
        output: what the teacher said of it; logits float32.
        key: source of the samples' keys, under which a codec seeds its draws.
        ends_shard: whether the shard is whole with this batch.

    Raises:
        DataError: a value that no target should hold, or that the codec cannot; names the sample.
    """
    # Only noted: whether any is set is asked in the writer's thread, without a wait here.
    invalid = invalid_positions(output.logits)
    draws = make_draws(keyed, output.num_positions, len(output.logits), key)
    try:
        tensors = codec.encode(output.logits, draws)
    except Exception:
        # A codec may fail over NaN in its own words: the logits' fault is told first.
        check_valid(invalid, output.num_positions, keyed.samples)
        _name_the_sample(codec, keyed.samples, output, draws)
        raise
    targets = codec.decode(tensors, output.num_positions, output.logits.shape[-1])
    counts = {NUM_POSITIONS: output.num_positions.to(torch.int32)}
    return EncodedBatch(
        shard=shard,
        samples=keyed.samples,
        tensors={name: _apart(rows, output.logits) for name, rows in tensors.items()} | counts,
        arrays=keyed.identity,
        invalid=invalid,
        num_positions=output.num_positions,
        labels=output.labels,
        statistics=batch_statistics(output.logits, output.labels, targets),
        ends_shard=ends_shard,
    )


def make_draws(keyed: KeyedBatch, num_positions: Tensor, num_rows: int, key: str) -> Tensor:
    """(P, 2) int64: the key of each position's sample, and its place within the sample."""
    numbers = np.asarray(keyed.samples, np.uint64)
    keys = keyed.identity[FINGERPRINT] if key == CONTENT else keyed.identity.get(KEY, numbers)
    return draws_of(torch.from_numpy(keys.view(np.int64)), num_positions, num_rows)


def draws_of(keys: Tensor, num_positions: Tensor, num_rows: int) -> Tensor:
    """The same from (B,) int64 keys, on the counts' device."""
    device = num_positions.device
    first = num_positions.cumsum(0) - num_positions
    # A copy that blocks would wait until the teacher is done with the batch.
    both = torch.stack([keys.to(device, non_blocking=True), first], dim=-1)
    # output_size is known, so that nothing waits for the sum of the counts.
    repeated = both.repeat_interleave(num_positions, dim=0, output_size=num_rows)
    places = torch.arange(num_rows, device=device) - repeated[:, 1]
    return torch.stack([repeated[:, 0], places], dim=-1)


def _apart(rows: Tensor, logits: Tensor) -> Tensor:
    """Rows that share no memory with the logits: a teacher may use its output buffer again."""
    is_same = rows.untyped_storage().data_ptr() == logits.untyped_storage().data_ptr()
    return rows.clone() if is_same and len(rows) else rows


def _name_the_sample(
    codec: Codec, samples: Sequence[int], output: FlatOutput, draws: Tensor
) -> None:
    """Raise a codec's DataError again with the sample that it refuses."""
    stop = 0
    for sample, count in zip(samples, output.num_positions.tolist(), strict=True):
        rows = slice(stop, stop + count)
        stop += count
        try:
            codec.encode(output.logits[rows], draws[rows])
        except DataError as error:
            raise DataError(f"sample {sample}: {error}") from error
