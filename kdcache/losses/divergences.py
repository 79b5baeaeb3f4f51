"""Divergences between teacher and student distributions, one value for each position.

Pure functions of logits and targets at temperature T, without the factor in T. The student's
side is always its full log-softmax over all C classes: renormalised on the kept ones, it would
feel nothing of the mass that it puts elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.targets import DenseTargets, TopKTargets


def dense_kl(student_logits: Tensor, targets: DenseTargets, temperature: float) -> Tensor:
    """KL(teacher || student) at T over all classes, (P,) nats.

    Args:
        student_logits: (P, C) float32 or float64, raw.
        targets: P positions of C classes; no gradient flows.
        temperature: T > 0.
    """
    teacher_logits = targets.logits().detach().to(student_logits.dtype)
    log_p = (teacher_logits / temperature).log_softmax(dim=-1)
    return forward_kl(log_p, (student_logits / temperature).log_softmax(dim=-1))


def bucket_kl(student_logits: Tensor, targets: TopKTargets, temperature: float) -> Tensor:
    """KL(teacher || student) at T over K kept classes and one bucket of all others, (P,) nats.

    Merging classes never raises a KL divergence: this is a lower bound of the dense one, and
    equal to it where K = C.

    Args:
        student_logits: (P, C) float32 or float64, raw.
        targets: P positions of C classes; no gradient flows.
        temperature: T > 0.

    Raises:
        UnsupportedTargetsError: T is not one that the targets were stored for.
    """
    log_p = targets.bucket_log_p(temperature).detach().to(student_logits.dtype)
    log_q = (student_logits / temperature).log_softmax(dim=-1)
    return forward_kl(log_p, bucket_log_q(log_q, targets.ids.long()))


def bucket_log_q(log_q: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of the kept classes and, last, of all others together.

    The others are summed over the complement; 1 - sum(kept) would lose a small tail to rounding.

    Args:
        log_q: (P, C), normalised.
        ids: (P, K) int64, no class twice.

    Returns:
        (P, K + 1); the tail is -inf where nothing is left for it.
    """
    # The lowest finite number takes no mass either, and unlike -inf leaves the logsumexp a finite
    # gradient where nothing else is left: K = C, or a student that masks every other class.
    floor = torch.finfo(log_q.dtype).min
    tail = log_q.scatter(-1, ids, floor).logsumexp(dim=-1, keepdim=True)
    tail = tail.masked_fill(tail < floor / 2, -torch.inf)
    return torch.cat([log_q.gather(-1, ids), tail], dim=-1)


def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q), (P,) nats; infinite where the student masks a class that the teacher does not.

    Args:
        log_p: (P, C) teacher, normalised; -inf is a masked class.
        log_q: (P, C) student, normalised.
    """
    p = log_p.exp()
    # Masked before the product: 0 * -inf is NaN, and so is its gradient behind a later mask.
    absent = p == 0
    return (p * (log_p.masked_fill(absent, 0) - log_q.masked_fill(absent, 0))).sum(dim=-1)
