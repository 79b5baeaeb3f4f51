"""How often a student is right on labels, at what cross-entropy; and its teacher beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from kdcache.errors import UsageError
from kdcache.losses.labels import IGNORE_INDEX, STUDENT_LOSS
from kdcache.targets import DenseTargets, SoftTargets, TopKTargets, rows_of
from kdcache.train.pipelines.passes import Scored, Sums, is_cut, rows_at_once, serves

ACCURACY, CROSS_ENTROPY, PERPLEXITY = "accuracy", "cross_entropy", "perplexity"
TEACHER = "teacher_"

Value = TypeVar("Value")


def top_k_accuracy(k: int) -> str:
    """The name of the top-k accuracy."""
    return f"top_{k}_accuracy"


class LabelScores:
    """``accuracy``, ``top_<k>_accuracy``, ``cross_entropy`` (nats) and ``perplexity`` (its exp)
    over labelled positions; the same of the teacher, with ``teacher_`` in front, where its
    targets say it.

    Of a class that top-k targets do not keep, its probability is at most the smallest kept one,
    and at most the sum of those that are left: the teacher's cross-entropy is a lower bound.

    Args:
        top_k: k of the top-k accuracy; None: there is none.
        wanted: which of the results are given.
    """  # noqa: D205

    def __init__(self, *, top_k: int | None, wanted: frozenset[str]) -> None:
        self._top_k = top_k
        self._wanted = wanted
        self._student, self._teacher = Sums(), Sums()
        self._is_bound = False

    def add(self, scored: Scored) -> None:
        """See :class:`kdcache.train.pipelines.passes.Metric`."""
        output, targets, k = scored.output, scored.targets, self._top_k
        labels = output.labels
        if labels is None:
            return
        known = labels != IGNORE_INDEX
        self._student.add(
            labelled=known.sum(),
            right=((scored.top == labels) & known).sum(),
            nats=scored.losses[STUDENT_LOSS].sum.double(),
        )
        if k is not None:
            _check_top_k(k, output.num_classes)
            for part, logits in output.chunks(rows_at_once(output.num_classes)):
                self._student.add(within=_within(logits.topk(k).indices, labels[part]))
        if targets is None:
            return
        self._is_bound |= is_cut(targets)
        right = ((targets.top_class() == labels) & known).sum()
        self._teacher.add(labelled=known.sum(), right=right)
        for rows, some in _chunks(targets):
            self._add_teacher(some, labels[rows])

    def _add_teacher(self, targets: SoftTargets, labels: Tensor) -> None:
        known = labels != IGNORE_INDEX
        if serves(targets, 1.0):
            log_p = _label_log_p(targets, labels)
            self._teacher.add(nats=-torch.where(known, log_p, 0.0).sum(dtype=torch.float64))
        if self._top_k is not None:
            top = _top_classes(targets, self._top_k)
            if top is not None:
                self._teacher.add(within=_within(top, labels))

    def results(self) -> dict[str, float]:
        """See :class:`kdcache.train.pipelines.passes.Metric`."""
        teacher = {TEACHER + name: v for name, v in self._of(self._teacher.read()).items()}
        return {**self._of(self._student.read()), **teacher}

    def _of(self, sums: Mapping[str, float]) -> dict[str, float]:
        count = sums.get("labelled")
        if not count:
            return {}
        found = {ACCURACY: sums["right"] / count}
        if "within" in sums and self._top_k is not None:
            found[top_k_accuracy(self._top_k)] = sums["within"] / count
        if "nats" in sums:
            nats = sums["nats"] / count
            found |= {CROSS_ENTROPY: nats, PERPLEXITY: perplexity(nats)}
        return {name: value for name, value in found.items() if name in self._wanted}

    @property
    def lower_bounds(self) -> frozenset[str]:
        """See :class:`kdcache.train.pipelines.passes.Metric`."""
        names = (TEACHER + CROSS_ENTROPY, TEACHER + PERPLEXITY)
        return frozenset(names if self._is_bound else ())


def perplexity(nats: float) -> float:
    """exp, infinite where float64 cannot hold it."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def _within(top: Tensor, labels: Tensor) -> Tensor:
    """How many labels are among the top classes (P, k); one that is ignored is no class."""
    return (top == labels.unsqueeze(-1)).any(dim=-1).sum()


def _chunks(targets: SoftTargets) -> Iterator[tuple[slice, SoftTargets]]:
    """Some positions at a time; targets of a user's own kind, which cannot be cut, at once."""
    total = targets.num_rows()
    is_ours = isinstance(targets, DenseTargets | TopKTargets)
    size = rows_at_once(targets.num_classes) if is_ours else max(1, total)
    for start in range(0, total, size):
        rows = slice(start, min(start + size, total))
        yield rows, rows_of(targets, rows)


def _label_log_p(targets: SoftTargets, labels: Tensor) -> Tensor:
    """The teacher's log-probability of each label at temperature 1, or the most it may be."""
    if not isinstance(targets, TopKTargets) or not is_cut(targets):
        return targets.label_log_p(labels)
    log_p = targets.log_p.float()
    is_label = targets.ids.long() == labels.unsqueeze(-1)
    kept = torch.where(is_label, log_p, -torch.inf).amax(dim=-1)
    tail = targets.tail_log_sums[:, targets.temperatures.index(1.0)]
    return torch.where(is_label.any(dim=-1), kept, torch.minimum(tail, log_p[:, -1]))


def _top_classes(targets: SoftTargets, k: int) -> Tensor | None:
    """The teacher's k most probable classes, (P, k); None where they are not known."""
    if isinstance(targets, DenseTargets):
        return targets.values.topk(k).indices
    if isinstance(targets, TopKTargets) and targets.ids.shape[-1] >= k:
        return targets.ids[:, :k].long()
    return None


def _check_top_k(k: int, num_classes: int) -> None:
    if k > num_classes:
        raise UsageError(
            f"a top-{k} accuracy of {num_classes} classes is always 1. Nothing was scored; give "
            f"the accuracy pipeline a top_k below {num_classes}."
        )
