"""How far stored targets are from what the teacher said, position by position.

Distances are between what a student's loss would compare at temperature 1; see
:func:`distributions`. They are measured where the logits are, in blocks of positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from kdcache.targets import DenseTargets, SoftTargets, TopKTargets

FLOOR = -80.0
"""Lowest log-probability: its exp is nothing beside 1, and 1 / exp of it is still a float32."""

# Temporary copies of a block stay in a CPU's cache, or small beside a GPU's memory.
_BLOCK_NUMBERS = {"cpu": 1 << 18}
_MOST_NUMBERS = 1 << 24


def row_blocks(logits: Tensor, targets: SoftTargets) -> Iterator[slice]:
    """Consecutive positions of logits (P, C), few enough for temporary copies of them.

    Targets of a user's own kind cannot be cut: all positions are one block.
    """
    most = _BLOCK_NUMBERS.get(logits.device.type, _MOST_NUMBERS)
    size = max(1, most // max(1, logits.shape[-1]))
    if not isinstance(targets, DenseTargets | TopKTargets):
        size = max(1, len(logits))
    for start in range(0, len(logits), size):
        yield slice(start, start + size)


def clamped(logits: Tensor) -> Tensor:
    """Log-probabilities (P, C), none below ``FLOOR``: finite, and as good as none there."""
    return logits.log_softmax(dim=-1).clamp_(min=FLOOR)


def kl_divergence(log_p: Tensor, log_q: Tensor, p: Tensor | None = None) -> Tensor:
    """KL(p || q), (P,) nats, in a form that keeps its digits where p and q are nearly equal.

    Every term, p * (q/p - 1 - log(q/p)), is 0 or more; the usual p * log(p/q) cancels, and
    leaves rounding of the size of what is measured. Equal arguments give exactly 0.

    Args:
        log_p: (P, C) normalised, none below ``FLOOR``.
        log_q: the same.
        p: exp of ``log_p``, where it is there already.
    """
    p = log_p.exp() if p is None else p
    difference = log_q - log_p
    return torch.expm1(difference).sub_(difference).mul_(p).sum(dim=-1)


def fidelity(
    logits: Tensor, log_p: Tensor, p: Tensor, targets: SoftTargets
) -> tuple[Tensor, Tensor] | None:
    """What storing the targets has cost.

    Args:
        logits: (P, C) float32, the teacher's.
        log_p: (P, C) of the logits, as :func:`clamped` gives it.
        p: exp of ``log_p``.
        targets: the same positions, decoded.

    Returns:
        (P,) KL(teacher || stored) in nats between the two :func:`distributions`, at most 80; and
        (P,) the probability of the classes that are stored one by one (1 for dense targets).
        None for targets of a user's own kind.
    """
    pair = _distributions(logits, log_p, p, targets)
    if pair is None:
        return None
    if isinstance(targets, TopKTargets):
        return kl_divergence(*pair), p.gather(-1, targets.ids.long()).sum(dim=-1)
    kl = kl_divergence(*pair, p=p)
    return kl, torch.ones_like(kl)


def distributions(logits: Tensor, targets: SoftTargets) -> tuple[Tensor, Tensor] | None:
    """The teacher's distribution and the stored one, as a student's loss compares them at T = 1.

    For dense targets that is over all C classes. For top-k targets it is over K classes and one
    bucket of all others, so a KL between the two is what rounding has cost: a lower bound of the
    KL over C classes, which says nothing about how the bucket was made up. (Where T = 1 is not
    among their temperatures, the lowest of them is taken.)

    Args:
        logits: (P, C) float32, the teacher's.
        targets: the same positions, decoded.

    Returns:
        Log-probabilities (P, C) or (P, K + 1), none below ``FLOOR``; None for targets of a user's
        own kind.
    """
    log_p = clamped(logits)
    return _distributions(logits, log_p, log_p.exp(), targets)


def _distributions(
    logits: Tensor, log_p: Tensor, p: Tensor, targets: SoftTargets
) -> tuple[Tensor, Tensor] | None:
    if isinstance(targets, DenseTargets):
        return log_p, clamped(targets.logits())
    if not isinstance(targets, TopKTargets):
        return None
    temperature, ids = _lowest_temperature(targets), targets.ids.long()
    if temperature != 1:
        log_p = clamped(logits / temperature)
        p = log_p.exp()
    # Summed over the complement: 1 - sum(kept) would lose a small tail to rounding.
    tail = p.scatter(-1, ids, 0.0).sum(dim=-1, keepdim=True).log().clamp_(min=FLOOR)
    return torch.cat([log_p.gather(-1, ids), tail], dim=-1), _buckets(targets)


def _lowest_temperature(targets: TopKTargets) -> float:
    return 1.0 if 1.0 in targets.temperatures else min(targets.temperatures)


def _buckets(targets: TopKTargets) -> Tensor:
    return targets.bucket_log_p(_lowest_temperature(targets)).clamp_(min=FLOOR)


def stored_distribution(targets: SoftTargets) -> Tensor | None:
    """What is stored, over all classes, to be held against what is stored elsewhere.

    Top-k targets of equal ids are as far apart as their buckets are; where ids differ, classes
    that were not kept have equal shares of their bucket.

    Returns:
        Log-probabilities (P, C), none below ``FLOOR``; None for targets of a user's own kind.
    """
    if isinstance(targets, DenseTargets):
        return clamped(targets.logits())
    if not isinstance(targets, TopKTargets):
        return None
    buckets, ids = _buckets(targets), targets.ids.long()
    others = max(1, targets.num_classes - ids.shape[-1])
    share = buckets[:, -1:] - math.log(others)
    return share.expand(-1, targets.num_classes).scatter(-1, ids, buckets[:, :-1])
