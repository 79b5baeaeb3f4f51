"""Start-up checks of data and cache, before the first sample is dumped or used.

They look for what no per-sample fingerprint can see: a random dataset or collate function, a
collate that reorders or drops, classes in another order, labels that belong to other samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache.data.batch import Mapped, Selected
from kdcache.data.fingerprint import fingerprint
from kdcache.data.join import CachedDataset, JoinedBatch
from kdcache.data.labels import label_nats, target_labels
from kdcache.errors import AlignmentError, MismatchError

NUM_PROBES = 1024
_BATCH = 32
_REPEATED, _REPEATS = 4, 8
_CANARY_SIGMAS = 6.0
_CANARY_NATS = 0.05


def spread(length: int, count: int) -> list[int]:
    """At most ``count`` numbers spread evenly over 0 to length - 1, both ends included."""
    if length <= count:
        return list(range(length))
    return [int(n) for n in np.unique(np.linspace(0, length - 1, count).astype(np.int64))]


def check_repeatable(
    numbers: Sequence[int],
    drawn: Sequence[Any],
    again: Sequence[Any],
    describe: Callable[[Any], int],
) -> None:
    """Raise AlignmentError where a sample, drawn twice, differs.

    Args:
        numbers: of the samples.
        drawn: the samples.
        again: the same, drawn a second time.
        describe: the fingerprint.
    """
    for number, first, second in zip(numbers, drawn, again, strict=True):
        if describe(first) != describe(second):
            raise AlignmentError(
                f"the dataset is random: sample {number}, drawn twice, differs. A cached target is "
                "valid only for the input that the teacher saw. Remove the random augmentation for "
                "the dump and for the students."
            )


def check_collate(
    samples: Sequence[Any], collate_fn: Callable[[list[Any]], Any], mapping: Mapped
) -> None:
    """Raise AlignmentError where a collate function is random, reorders, drops or crops.

    A few samples are collated several times over, all of them once in another order: rows must
    follow their samples.

    Args:
        samples: some samples of the dataset.
        collate_fn: the user's.
        mapping: the resolved batch mapping.
    """

    def collated(order: Iterable[int]) -> list[Tensor]:
        return _leaves(mapping.select(collate_fn([samples[number] for number in order])))

    few = range(min(len(samples), _REPEATED))
    if len({fingerprint(collated(few)) for _ in range(_REPEATS)}) > 1:
        raise AlignmentError(
            "collate_fn is random: the same samples, collated twice, differ. The check of what the "
            "teacher saw is made before collation and cannot see this; make collation deterministic"
            " and move randomness into the dataset."
        )
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    first, permuted = collated(range(len(samples))), collated(order)
    rows = {len(leaf) for leaf in (*first, *permuted)}
    if rows - {len(samples)} or len(first) != len(permuted):
        raise AlignmentError(
            f"collate_fn made {sorted(rows)} rows of {len(samples)} samples. Targets cannot be "
            "paired with them; return one row for each sample, in their order."
        )
    if any(not _same(a[order], b) for a, b in zip(first, permuted, strict=True)):
        raise AlignmentError(
            "collate_fn reorders its samples: the same samples in another order gave rows that "
            "do not follow them (sorting by length does this). Targets are paired by order "
            "within a batch; sort in the sampler, or not at all."
        )


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal in shape and content, where NaN equals NaN."""
    return a.shape == b.shape and fingerprint(a) == fingerprint(b)


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
    samples = joined.__getitems__(spread(len(joined), _BATCH)).samples
    first = joined.mapping.resolve(joined.user_collate(samples))
    check_collate(samples, joined.user_collate, first)
    probes = spread(len(joined), NUM_PROBES)
    cross_entropies: list[Tensor] = []
    for start in range(0, len(probes), _BATCH):
        part = joined.__getitems__(probes[start : start + _BATCH])
        cross_entropies.append(_cross_entropies(joined, joined.collate_fn(part)))
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


def _cross_entropies(joined: CachedDataset, batch: JoinedBatch) -> Tensor:
    labels = target_labels(joined.mapping.resolve(batch.batch).select(batch.batch), batch.targets)
    return torch.zeros(0) if labels is None else label_nats(batch.targets, labels)


def _check_canary(joined: CachedDataset, now: Tensor) -> None:
    """Hold the targets' cross-entropy on this run's labels against the value at the dump."""
    total = dict.fromkeys(("labelled", "stored_cross_entropy", "stored_cross_entropy_squared"), 0.0)
    for commit in joined.view.commits:
        for name in total:
            total[name] += commit.statistics.get(name, 0.0)
    if not total["labelled"] or not len(now):
        return
    mean = total["stored_cross_entropy"] / total["labelled"]
    variance = max(0.0, total["stored_cross_entropy_squared"] / total["labelled"] - mean**2)
    allowed = _CANARY_SIGMAS * math.sqrt(variance / len(now)) + _CANARY_NATS * (1 + mean)
    found = float(now.mean())
    if found - mean > allowed:
        raise MismatchError(
            f"the teacher's cross-entropy on this run's labels is {found:.3f} nats over "
            f"{len(now):,} probed positions; at the dump it was {mean:.3f}. Labels and targets "
            "name different things: other class order, other labels, or labels of other samples."
        )
