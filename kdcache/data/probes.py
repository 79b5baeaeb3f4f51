"""Start-up checks of data and cache, before the first sample is dumped or used.

They look for what no per-sample fingerprint can see: a random dataset or collate function, a
collate that reorders or drops, classes in another order, labels that belong to other samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache.data.batch import Mapped, Selected
from kdcache.data.fingerprint import fingerprint
from kdcache.data.join import IGNORE_INDEX, CachedDataset, JoinedBatch
from kdcache.errors import AlignmentError, MismatchError

NUM_PROBES = 1024
_BATCH = 32
_CANARY_SIGMAS = 6.0
_CANARY_NATS = 0.05


def spread(length: int, count: int) -> list[int]:
    """At most ``count`` numbers spread evenly over 0 to length - 1, both ends included."""
    if length <= count:
        return list(range(length))
    return [int(n) for n in np.unique(np.linspace(0, length - 1, count).astype(np.int64))]


def check_repeatable(
    draw: Callable[[int], Any], indices: Sequence[int], describe: Callable[[Any], int]
) -> None:
    """Raise AlignmentError where a sample, drawn twice, differs.

    Args:
        draw: from a number to a sample.
        indices: samples to try.
        describe: the fingerprint.
    """
    for index in indices:
        if describe(draw(index)) != describe(draw(index)):
            raise AlignmentError(
                f"the dataset is random: sample {index}, drawn twice, differs. A cached target is "
                "valid only for the input that the teacher saw. Remove the random augmentation for "
                "the dump and for the students."
            )


def check_collate(
    samples: Sequence[Any], collate_fn: Callable[[list[Any]], Any], mapping: Mapped
) -> None:
    """Raise AlignmentError where a collate function is random, reorders, drops or crops.

    The same samples are collated twice, and once in another order: rows must follow their samples.

    Args:
        samples: some samples of the dataset.
        collate_fn: the user's.
        mapping: the resolved batch mapping.
    """
    if len(samples) < 2:
        return
    first = _leaves(mapping.select(collate_fn(list(samples))))
    second = _leaves(mapping.select(collate_fn(list(samples))))
    if fingerprint(first) != fingerprint(second):
        raise AlignmentError(
            "collate_fn is random: the same samples, collated twice, differ. The check of what the "
            "teacher saw is made before collation and cannot see this; make collation deterministic"
            " and move randomness into the dataset."
        )
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    permuted = _leaves(mapping.select(collate_fn([samples[i] for i in order])))
    for before, after in zip(first, permuted, strict=True):
        if len(before) != len(samples) or len(after) != len(samples):
            raise AlignmentError(
                f"collate_fn made {len(before)} rows of {len(samples)} samples. Targets cannot be "
                "paired with them; return one row for each sample, in their order."
            )
        wanted = before[order]
        if wanted.shape != after.shape or not torch.equal(
            wanted.nan_to_num() if wanted.is_floating_point() else wanted,
            after.nan_to_num() if after.is_floating_point() else after,
        ):
            raise AlignmentError(
                "collate_fn reorders its samples: the same samples in another order gave rows that "
                "do not follow them (sorting by length does this). Targets are paired by order "
                "within a batch; sort in the sampler, or not at all."
            )


def _leaves(selected: Selected) -> list[Tensor]:
    found: list[Tensor] = []

    def visit(value: Any) -> None:
        if isinstance(value, Tensor) and value.dim():
            found.append(value)
        elif isinstance(value, Mapping):
            for key in sorted(value, key=str):
                visit(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                visit(item)

    for value in (selected.args, selected.kwargs, selected.labels, selected.mask):
        visit(value)
    return found


def check_join(joined: CachedDataset, class_names: Sequence[str] = ()) -> None:
    """Everything that a student's first step relies on, on about a thousand samples.

    Args:
        joined: the dataset to train from.
        class_names: the student's class names in order, where known.

    Raises:
        FingerprintMismatchError: a probed sample is not what the teacher saw.
        AlignmentError: collation breaks the pairing.
        MismatchError: class names or labels belong to another class order.
    """
    manifest = joined.view.manifest
    if class_names and manifest.class_names:
        _check_class_names(manifest.class_names, tuple(class_names))
    probes = spread(len(joined), NUM_PROBES)
    cross_entropies: list[Tensor] = []
    for start in range(0, len(probes), _BATCH):
        part = joined.__getitems__(probes[start : start + _BATCH])
        if start == 0:
            first = joined._user_collate(part.samples)
            check_collate(part.samples, joined._user_collate, joined.mapping.resolve(first))
        cross_entropies.append(_cross_entropy(joined, joined.collate_fn(part)))
    _check_canary(joined, torch.cat(cross_entropies))


def _check_class_names(cache: tuple[str, ...], run: tuple[str, ...]) -> None:
    if cache == run:
        return
    at = next(
        (i for i, (a, b) in enumerate(zip(cache, run, strict=False)) if a != b),
        min(len(cache), len(run)),
    )
    pair = [names[at] if at < len(names) else "(none)" for names in (cache, run)]
    raise MismatchError(
        f"class {at} is {pair[0]!r} in the cache and {pair[1]!r} in this run ({len(cache)} and "
        f"{len(run)} classes). Targets and labels would name different things. Restore the class "
        "order of the dump."
    )


def _cross_entropy(joined: CachedDataset, batch: JoinedBatch) -> Tensor:
    """The teacher's cross-entropy on each labelled position of a joined batch."""
    labels = joined.mapping.resolve(batch.batch).select(batch.batch).labels
    rows = int(batch.targets.num_positions.sum())
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.numel() != rows:
        return torch.zeros(0)
    log_p = batch.targets.label_log_p(labels.reshape(-1))
    return -log_p[labels.reshape(-1) != IGNORE_INDEX]


def _check_canary(joined: CachedDataset, now: Tensor) -> None:
    """Hold the teacher's cross-entropy on this run's labels against the value at the dump."""
    total = {"labelled": 0.0, "cross_entropy": 0.0, "cross_entropy_squared": 0.0}
    for commit in joined.view.commits:
        for name in total:
            total[name] += commit.statistics.get(name, 0.0)
    if not total["labelled"] or not len(now):
        return
    mean = total["cross_entropy"] / total["labelled"]
    variance = max(0.0, total["cross_entropy_squared"] / total["labelled"] - mean**2)
    allowed = _CANARY_SIGMAS * math.sqrt(variance / len(now)) + _CANARY_NATS * (1 + mean)
    found = float(now.mean())
    if found - mean > allowed:
        raise MismatchError(
            f"the teacher's cross-entropy on this run's labels is {found:.3f} nats over "
            f"{len(now):,} probed positions; at the dump it was {mean:.3f}. Labels and targets "
            "name different things: other class order, other labels, or labels of other samples."
        )
