"""Losses of one chunk of positions, and the gradient of their weighted sum, in closed form.

Everything happens in place while the chunk is in a processor's cache: a chunk of logits goes in,
d total / d logits comes out. Nothing here has a graph; ``divergences`` says what the losses are.

A softmax over K kept classes and one bucket of all others needs the full width only for the
others' largest logit m, e_j = exp(z_j - m) and their sum: everything else is (n, K + 1). And the
gradient of any divergence at a class of the bucket is e_j times one number for each position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from kdcache.losses.divergences import DIVERGENCES, Pair, bucket_log_p, dense_log_p
from kdcache.losses.labels import STUDENT_LOSS
from kdcache.targets import DenseTargets, TopKTargets, rows_of

Factor = Tensor | float


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What the student's logits are compared with, and how much of it each loss takes.

    Attributes:
        weights: loss name -> factor of its sum in the total: divergences and ``student_loss``.
        targets: dense or top-k, of P positions; None where no divergence is asked for.
        labels: (P,) int64, checked; None where ``student_loss`` is not asked for.
        temperature: T > 0 of the divergences.
        ignore_index: the label of positions that have none.
    """

    weights: Mapping[str, Factor]
    targets: DenseTargets | TopKTargets | None
    labels: Tensor | None
    temperature: float
    ignore_index: int

    def rows(self, rows: slice) -> Self:
        """The same for consecutive positions."""
        return dataclasses.replace(
            self,
            targets=None if self.targets is None else rows_of(self.targets, rows),
            labels=None if self.labels is None else self.labels[rows],
        )

    def split(self) -> tuple[Self, ...]:
        """Comparisons that each need one softmax: divergences and labels apart, unless T is 1."""
        if self.targets is None or self.labels is None or self.temperature == 1:
            return (self,)
        hard = {STUDENT_LOSS: self.weights[STUDENT_LOSS]}
        soft = {name: factor for name, factor in self.weights.items() if name != STUDENT_LOSS}
        return (
            dataclasses.replace(self, weights=soft, labels=None),
            dataclasses.replace(self, weights=hard, targets=None, temperature=1.0),
        )


def chunk_losses(logits: Tensor, comparison: Comparison, *, gradient: bool) -> dict[str, Tensor]:
    """Losses of n positions, name -> (n,), unweighted; 0 where a position has no label.

    Args:
        logits: (n, C) float32 or float64, no graph. Overwritten: with the gradient of the
            weighted sum of all losses if that is asked for.
        comparison: of the same n positions.
        gradient: whether to make it.

    Raises:
        UnsupportedTargetsError: T is not one that the targets were stored for.
    """
    first, *others = comparison.split()
    # Before the first comparison, which overwrites the logits.
    copies = [logits.clone() for _ in others]
    values = _one_softmax(logits, first, gradient=gradient)
    for copy, other in zip(copies, others, strict=True):
        values.update(_one_softmax(copy, other, gradient=gradient))
        if gradient:
            logits.add_(copy)
    return values


def _one_softmax(logits: Tensor, comparison: Comparison, *, gradient: bool) -> dict[str, Tensor]:
    labels = _Labels.of(comparison, logits.dtype)
    if comparison.temperature != 1:
        logits.div_(comparison.temperature)
    targets = comparison.targets
    if isinstance(targets, DenseTargets):
        return _over_classes(logits, comparison, targets, labels, gradient=gradient)
    return _over_buckets(logits, comparison, targets, labels, gradient=gradient)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Labels:
    """Labels of n positions: class numbers (any where there is none), and what each weighs."""

    index: Tensor
    is_label: Tensor
    weight: Tensor

    @classmethod
    def of(cls, comparison: Comparison, dtype: torch.dtype) -> Self | None:
        """None where no cross entropy is asked for."""
        if comparison.labels is None:
            return None
        labels = comparison.labels.unsqueeze(-1)
        is_label = labels != comparison.ignore_index
        return cls(
            # gather and scatter take no -100; class 0 stands in for it, with the weight 0.
            index=labels.masked_fill(~is_label, 0),
            is_label=is_label,
            weight=is_label.to(dtype) * comparison.weights[STUDENT_LOSS],
        )

    def cross_entropy(self, log_q: Tensor) -> Tensor:
        """(n,) from the labels' log-probabilities (n, 1)."""
        return -log_q.masked_fill(~self.is_label, 0).squeeze(-1)


def _over_classes(
    logits: Tensor,
    comparison: Comparison,
    targets: DenseTargets,
    labels: _Labels | None,
    *,
    gradient: bool,
) -> dict[str, Tensor]:
    pair = Pair(
        log_p=dense_log_p(targets, comparison.temperature, logits.dtype),
        log_q=logits.log_softmax(dim=-1),
    )
    values = _divergences(pair, comparison)
    if labels is not None:
        values[STUDENT_LOSS] = labels.cross_entropy(pair.log_q.gather(-1, labels.index))
    if gradient:
        # dD/dz = slope - q * sum(slope). The slope of cross entropy is -weight at the label and 0
        # elsewhere: it joins the sum here, and the gradient in one place below.
        slope = _slope(pair, comparison)
        of_all = slope.sum(dim=-1, keepdim=True)
        if labels is not None:
            of_all = of_all - labels.weight
        torch.addcmul(slope, pair.q, of_all, value=-1, out=logits)
        if labels is not None:
            logits.scatter_add_(-1, labels.index, -labels.weight)
    return values


def _over_buckets(
    logits: Tensor,
    comparison: Comparison,
    targets: TopKTargets | None,
    labels: _Labels | None,
    *,
    gradient: bool,
) -> dict[str, Tensor]:
    """Without targets no class is kept, and the bucket holds them all."""
    ids = (
        logits.new_empty((len(logits), 0), dtype=torch.int64)
        if targets is None
        else targets.ids.long()
    )
    # Kept classes and labels are read before -inf takes the kept ones out of the bucket.
    kept = logits.gather(-1, ids)
    at_label = None if labels is None else logits.gather(-1, labels.index)
    if ids.shape[-1]:
        logits.scatter_(-1, ids, -torch.inf)
    # Where no class is left the largest logit is -inf, and -inf - -inf NaN.
    top = logits.amax(dim=-1, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
    # The logits' own memory: what is left in it at the end is the gradient that the caller finds.
    exps = logits.sub_(top).exp_()
    mass = exps.sum(dim=-1, keepdim=True)
    # Relative to the largest logit of all: an offset common to them must not cost digits.
    highest = torch.cat([kept, top], dim=-1).amax(dim=-1, keepdim=True)
    buckets = torch.cat([kept - highest, top - highest + mass.log()], dim=-1)
    norm = buckets.logsumexp(dim=-1, keepdim=True)
    log_q = buckets - norm

    values: dict[str, Tensor] = {}
    bucket_slope, of_all = torch.zeros_like(log_q), torch.zeros_like(norm)
    if targets is not None:
        log_p = bucket_log_p(targets, comparison.temperature, logits.dtype)
        pair = Pair(log_p=log_p, log_q=log_q)
        values = _divergences(pair, comparison)
        if gradient:
            bucket_slope = _slope(pair, comparison)
            of_all = bucket_slope.sum(dim=-1, keepdim=True)
    if labels is not None and at_label is not None:
        values[STUDENT_LOSS] = labels.cross_entropy(at_label - highest - norm)
        of_all = of_all - labels.weight
    if gradient:
        bucket_gradient = bucket_slope - log_q.exp() * of_all
        # A class of the bucket has the share e_j / mass of it; mass is 1 or more, or all e_j are 0.
        exps.mul_(bucket_gradient[:, -1:] / mass.clamp(min=1))
        if ids.shape[-1]:
            exps.scatter_(-1, ids, bucket_gradient[:, :-1])
        if labels is not None:
            exps.scatter_add_(-1, labels.index, -labels.weight)
    return values


def _divergences(pair: Pair, comparison: Comparison) -> dict[str, Tensor]:
    return {
        name: divergence.value(pair) * comparison.temperature**divergence.temperature_exponent
        for name, divergence in DIVERGENCES.items()
        if name in comparison.weights
    }


def _slope(pair: Pair, comparison: Comparison) -> Tensor:
    """The slopes (n, B) of the weighted sum, with the 1 / T of the softmax's input."""
    temperature, weights = comparison.temperature, comparison.weights
    first, *others = (
        divergence.slope(pair)
        * (weights[name] * temperature ** (divergence.temperature_exponent - 1))
        for name, divergence in DIVERGENCES.items()
        if name in weights
    )
    return sum(others, start=first)
