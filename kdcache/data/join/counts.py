"""What a batch, or one optimiser step, counts: known on the host before any model has run.

Losses on soft targets are divided by positions, cross entropy by labelled positions, both of the
whole step: so whoever accumulates gradients looks one step's batches ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from kdcache.data.batch.labels import flat_labels, is_class_numbers, target_labels
from kdcache.data.batch.mapping import Mapped
from kdcache.data.batch.section import parse_mapping
from kdcache.data.join.dataset import JoinedBatch
from kdcache.losses import StepCounts
from kdcache.losses.labels import IGNORE_INDEX


class BatchCounts(NamedTuple):
    """Of one batch; None where only a model's output tells.

    Attributes:
        positions: that count; known of a joined batch.
        labelled: those of them that have a label.
        samples: of a joined batch.
    """

    positions: int | None
    labelled: int | None
    samples: int | None = None


def batch_counts(mapping: Mapped, batch: Any) -> BatchCounts:
    """Count the positions and labels of a batch.

    Args:
        mapping: where labels and mask are.
        batch: joined, or the user's own, on the CPU.
    """
    user_batch = batch.batch if isinstance(batch, JoinedBatch) else batch
    selected = mapping.resolve(user_batch).select(user_batch)
    if isinstance(batch, JoinedBatch):
        return BatchCounts(
            positions=batch.targets.num_rows(),
            labelled=_num_labelled(target_labels(selected, batch.targets)),
            samples=len(batch.targets.num_positions),
        )
    labels, mask = selected.labels, selected.mask
    if labels is None or not is_class_numbers(labels) or mapping.output_masks:
        return BatchCounts(positions=None, labelled=None)
    if mask is not None and mask.shape != labels.shape:
        return BatchCounts(positions=None, labelled=None)
    return BatchCounts(
        positions=None, labelled=_num_labelled(flat_labels(labels, labels.shape, mask))
    )


def step_counts(batches: Sequence[JoinedBatch], batch: Any = None) -> StepCounts:
    """What the losses of one optimiser step are divided by, for :meth:`Objective.evaluate`.

    Over several processes, add their counts up (one small all-reduce), and multiply each loss by
    the number of processes where their gradients are averaged.

    Args:
        batches: the joined micro-batches of the step, on the CPU.
        batch: which entries of a batch are inputs, labels and mask; as in the experiment file.
    """
    mapping = parse_mapping(batch, "student").for_joining()
    counts = [batch_counts(mapping, one) for one in batches]
    labelled = [count.labelled for count in counts]
    return StepCounts(
        positions=sum(count.positions or 0 for count in counts),
        labelled=None if None in labelled else sum(number or 0 for number in labelled),
        batches=len(batches),
        samples=sum(count.samples or 0 for count in counts),
    )


def _num_labelled(labels: Tensor | None) -> int | None:
    return None if labels is None else int((labels != IGNORE_INDEX).sum())
