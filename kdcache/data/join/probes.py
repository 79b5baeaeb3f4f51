"""Start-up checks of data and cache, before the first sample is dumped or used.

They look for what no per-sample fingerprint can see: a random dataset, a collate function that
is random, reorders or drops, classes in another order, labels that belong to other samples.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kdcache.columns import FINGERPRINT
from kdcache.data.batch.labels import label_nats, target_labels
from kdcache.data.batch.mapping import BatchMapping, Mapped
from kdcache.data.join.collated import check_collated
from kdcache.data.join.collation import check_collate
from kdcache.data.join.dataset import Join, JoinedBatch
from kdcache.data.samples import sources
from kdcache.data.samples.fingerprint import TOKENS, FingerprintSource, fingerprint
from kdcache.data.samples.keys import CONTENT, FIELD, INDEX
from kdcache.data.samples.label_digests import ChangedLabels
from kdcache.errors import AlignmentError, DataError, MismatchError, UsageError
from kdcache.losses.labels import IGNORE_INDEX

log = logging.getLogger(__name__)

NUM_PROBES = 1024
_BATCH = 32
# Standard errors of the probe's mean, and nats on top of them: no run is refused by chance.
_CANARY_SIGMAS = 6.0
_CANARY_NATS = 0.05
_OTHER_LABELS_NATS = 1.0
_SAME_SHARE = 0.1
_NATS = ("stored_cross_entropy", "stored_cross_entropy_squared")


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


def check_distinct(source: FingerprintSource, samples: Sequence[Any]) -> str:
    """Look whether a chosen fingerprint tells samples apart.

    Args:
        source: what is fingerprinted; equal inputs have equal fingerprints, so only a choice of
            the user's own can fail.
        samples: spread over the dataset.

    Returns:
        A warning where it tells few apart; empty otherwise.

    Raises:
        UsageError: samples that differ all have one fingerprint.
    """
    if source.function is None and not source.name.startswith((FIELD, TOKENS)):
        return ""
    try:
        different = len({fingerprint(sample) for sample in samples})
    except DataError:  # samples that have no fingerprint as a whole
        return ""
    told = len({source(sample) for sample in samples})
    if different > 1 and told == 1:
        raise UsageError(
            f"fingerprint {source.name!r} is the same for all {len(samples)} samples that were "
            f"looked at, {different} of which differ: it would check nothing. Name what tells "
            "samples apart, such as raw bytes, token ids, or a number of each sample."
        )
    if told < different / 2:
        return (
            f"fingerprint {source.name!r} has {told} values for {different} samples that differ: "
            "samples that share one can take each other's place unnoticed"
        )
    return ""


def check_join(joined: Join, class_names: Sequence[str] = ()) -> None:
    """Everything that a student's first step relies on, on about a thousand samples.

    Args:
        joined: the dataset or stream to train from.
        class_names: the student's class names in order; the dataset's own if empty.

    Raises:
        FingerprintMismatchError: a probed sample is not what the teacher saw.
        AlignmentError: collation breaks the pairing.
        MismatchError: class names or labels belong to another class order.
    """
    manifest = joined.view.manifest
    names = tuple(class_names) or sources.class_names(None, joined.dataset)
    if names and manifest.class_names:
        _check_class_names(manifest.class_names, names)
    elif names and len(names) != manifest.num_classes:
        raise MismatchError(
            f"there are {len(names)} class names ({', '.join(map(str, names[:4]))} ...), and "
            f"{joined.view.cache} has {manifest.num_classes:,} classes. Correct the names, or dump "
            "with the teacher of these classes."
        )
    few = next(iter(joined.probe(_BATCH, _BATCH)), None)
    if few is None:
        raise AlignmentError(f"the stream joined with {joined.view.cache} gives no sample.")
    first = joined.mapping.resolve(joined.user_collate(few.samples))
    _check_causal(manifest.identity.get("batch", ""), first)
    check_collate(few.indices, few.samples, joined.user_collate, first)
    # Where keys are no numbers, a reference is met by its row, wherever the sample is now.
    by_row = {one.get("sample"): one for one in manifest.references if manifest.key != INDEX}
    parts = joined.probe(NUM_PROBES, _BATCH)
    positions, labelled = 0, []
    changed = ChangedLabels(joined.view.commits)
    for part in parts:
        for number, sample, row in zip(part.indices, part.samples, part.rows, strict=True):
            if int(row) in by_row:
                check_collated(joined, number, sample, by_row.pop(int(row)))
        batch = joined.collate(part)
        positions += batch.targets.num_rows()
        labels = _labels(joined, batch)
        labelled.append(_labelled(batch, labels))
        changed.add(part.rows, part.indices, labels, batch.targets.num_positions)
    by_content = joined.copy.column(FINGERPRINT) if manifest.key == CONTENT else None
    if warning := changed.warning(by_content):
        log.warning("split %r: %s", manifest.split, warning)
    _warn_of_one_fingerprint(joined)
    nats, labels, top = (torch.cat(each) for each in zip(*labelled, strict=True))
    _check_canary(joined, nats, labels, top, positions)


def _warn_of_one_fingerprint(joined: Join) -> None:
    """Of caches that were dumped before that was refused."""
    stored = joined.copy.column(FINGERPRINT)
    if len(stored) > 1 and joined.source.name != "inputs" and bool((stored == stored[0]).all()):
        log.warning(
            "split %r: all %d samples of the cache have one fingerprint (%s), so nothing tells "
            "whether samples are what the teacher saw. Dump again with another fingerprint",
            joined.view.manifest.split,
            len(stored),
            joined.source.name,
        )


def _check_causal(stored: str, mapping: Mapped) -> None:
    """Raise MismatchError where targets are of the next token, and the student's are not.

    A mask may count as many positions for both; and without labels nothing else would tell.
    """
    if not isinstance(mapping, BatchMapping) or not stored.startswith("inputs="):
        return  # a function decided, on one side
    sides = [
        f"batch.causal {str(is_so).lower()}"
        for is_so in (" causal=True" in stored, mapping.causal or False)
    ]
    if sides[0] != sides[1]:
        raise MismatchError(
            f"the cache was dumped with {sides[0]}, and this run has {sides[1]}: targets would be "
            "of other tokens than the student's positions. Use the mapping of the dump."
        )


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


def _labels(joined: Join, batch: JoinedBatch) -> Tensor | None:
    """(P,) labels of a batch's positions, as far as they can be told without a model."""
    selected = joined.mapping.resolve(batch.batch).select(batch.batch)
    return target_labels(selected, batch.targets)


def _labelled(batch: JoinedBatch, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Of every labelled position: the targets' cross-entropy, the label, the teacher's class."""
    if labels is None:
        none = torch.zeros(0, dtype=torch.int64)
        return none.double(), none, none
    known = labels != IGNORE_INDEX
    return label_nats(batch.targets, labels), labels[known], batch.targets.top_class()[known]


def _check_canary(joined: Join, now: Tensor, labels: Tensor, top: Tensor, positions: int) -> None:
    """Hold the targets' cross-entropy on this run's labels against the value at the dump.

    Where more or fewer of the positions have labels than then, these may be harder ones
    (completions and not whole texts, for one), and only a gross difference is refused.
    """
    total = dict.fromkeys(("positions", "labelled", *_NATS), 0.0)
    for commit in joined.view.commits:
        for name in total:
            total[name] += commit.statistics.get(name, 0.0)
    if not total["labelled"] or not len(now):
        return
    mean = total["stored_cross_entropy"] / total["labelled"]
    # Rounding may leave it below 0 where all values are equal.
    variance = max(0.0, total["stored_cross_entropy_squared"] / total["labelled"] - mean**2)
    share, before = len(now) / positions, total["labelled"] / total["positions"]
    nats = _CANARY_NATS if abs(share - before) <= _SAME_SHARE else _OTHER_LABELS_NATS
    allowed = _CANARY_SIGMAS * math.sqrt(variance / len(now)) + nats * (1 + mean)
    found = float(now.mean())
    # One side only: mixed-up labels are less likely to the teacher, not more.
    if found - mean > allowed:
        raise MismatchError(
            f"the teacher's cross-entropy on this run's labels is {found:.3f} nats over "
            f"{len(now):,} probed positions; at the dump it was {mean:.3f}. Labels and targets "
            "name different things: other class order, other labels, or labels of other samples."
            f"{_confused(joined.view.manifest.class_names, labels, top)}"
        )


def _confused(names: Sequence[str], labels: Tensor, top: Tensor) -> str:
    """The class that labels and teacher most often disagree about."""
    wrong = labels != top
    if not bool(wrong.any()):
        return ""
    label = int(labels[wrong].mode().values)
    teacher = int(top[wrong & (labels == label)].mode().values)
    of_label = labels == label
    number = int((top[of_label] == teacher).sum())

    def called(a_class: int) -> str:
        return f"class {a_class}" + (f" ({names[a_class]!r})" if names else "")

    return (
        f" Of {int(of_label.sum()):,} positions labelled {called(label)}, the teacher takes "
        f"{number:,} for {called(teacher)}."
    )
