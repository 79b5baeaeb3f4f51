"""Divergences between teacher and student distributions.

All are f-divergences of distributions over B buckets: all C classes, or K kept classes and one
bucket of all others. Merging classes never raises one, so over buckets it is a lower bound of the
one over classes, and equal to it where K = C. The factor in T is applied elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kdcache.targets import DenseTargets, TopKTargets


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Two normalised distributions over the same B buckets, and what is made of them only once.

    Attributes:
        log_p: (P, B) log-probabilities of the teacher, no graph; -inf is a masked class.
        log_q: (P, B) of the student.
    """

    log_p: Tensor
    log_q: Tensor

    @cached_property
    def p(self) -> Tensor:
        """(P, B)."""
        return self.log_p.exp()

    @cached_property
    def q(self) -> Tensor:
        """(P, B)."""
        return self.log_q.exp()

    @cached_property
    def log_m(self) -> Tensor:
        """Log of the mean of p and q; 0 where both are, which would leave a NaN gradient."""
        m = (self.p + self.q) / 2
        return m.masked_fill(m == 0, 1).log()

    @cached_property
    def p_over_q(self) -> Tensor:
        """Terms p * log(p / q)."""
        return _terms(self.p, self.log_p, self.log_q)

    @cached_property
    def q_over_p(self) -> Tensor:
        """Terms q * log(q / p)."""
        return _terms(self.q, self.log_q, self.log_p)

    @cached_property
    def p_over_m(self) -> Tensor:
        """Terms p * log(p / m)."""
        return _terms(self.p, self.log_p, self.log_m)

    @cached_property
    def q_over_m(self) -> Tensor:
        """Terms q * log(q / m)."""
        return _terms(self.q, self.log_q, self.log_m)


def _terms(a: Tensor, log_a: Tensor, log_b: Tensor) -> Tensor:
    """Terms a * log(a / b), 0 where a is: masked before the product, since 0 * inf is NaN."""
    return a * torch.where(a == 0, 0.0, log_a - log_b)


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """One divergence D(P, Q) of the teacher's P and the student's Q.

    Attributes:
        name: as it stands among the coefficients.
        terms: (P, B) that add up to D, in nats or probability.
        slope: (P, B), w_b = Q_b * dD/dQ_b up to a multiple of Q_b, which changes no gradient. For
            a class j of bucket b, whose share of it is q_j / Q_b, and logits z with q =
            softmax(z / T): dD/dz_j = (w_b * q_j / Q_b - q_j * sum(w)) / T.
        temperature_exponent: the loss is D times T to this power, so that its gradient stays
            comparable across temperatures.
    """

    name: str
    terms: Callable[[Pair], Tensor]
    slope: Callable[[Pair], Tensor]
    temperature_exponent: int

    def value(self, pair: Pair) -> Tensor:
        """D, (P,)."""
        return self.terms(pair).sum(dim=-1)


DIVERGENCES: Mapping[str, Divergence] = {
    divergence.name: divergence
    for divergence in (
        Divergence(  # Forward KL(P || Q).
            name="kd_loss",
            terms=lambda pair: pair.p_over_q,
            # Q * dD/dQ, with dD/dQ = -P / Q.
            slope=lambda pair: -pair.p,
            temperature_exponent=2,
        ),
        Divergence(  # KL(Q || P).
            name="reverse_kl",
            terms=lambda pair: pair.q_over_p,
            # Not Q * (log(Q / P) + 1): the 1 is a multiple of Q, and would only cost digits.
            slope=lambda pair: pair.q_over_p,
            temperature_exponent=2,
        ),
        Divergence(  # (KL(P || M) + KL(Q || M)) / 2.
            name="jensen_shannon",
            terms=lambda pair: (pair.p_over_m + pair.q_over_m) / 2,
            # dD/dQ is log(Q / M) / 2 alone: its part through M, -(P + Q) / (4 * M) = -1 / 2,
            # cancels the constant 1 / 2.
            slope=lambda pair: pair.q_over_m / 2,
            temperature_exponent=2,
        ),
        Divergence(
            name="total_variation",
            terms=lambda pair: (pair.q - pair.p).abs() / 2,
            slope=lambda pair: pair.q * (pair.q - pair.p).sign() / 2,
            # Not 2: near the teacher it is linear, not quadratic, in a difference of logits / T.
            temperature_exponent=1,
        ),
    )
}
"""Name -> divergence."""


def over_classes(student_logits: Tensor, targets: DenseTargets, temperature: float) -> Pair:
    """Teacher and student at T over all classes.

    Args:
        student_logits: (P, C) float32 or float64, raw.
        targets: P positions of C classes; no gradient flows.
        temperature: T > 0.
    """
    return Pair(
        log_p=dense_log_p(targets, temperature, student_logits.dtype),
        log_q=(student_logits / temperature).log_softmax(dim=-1),
    )


def over_buckets(student_logits: Tensor, targets: TopKTargets, temperature: float) -> Pair:
    """Teacher and student at T over K kept classes and, last, all others together.

    The student's side comes from its full log-softmax over all C classes: renormalised on the
    kept ones, it would feel nothing of the mass that it puts elsewhere.

    Args:
        student_logits: (P, C) float32 or float64, raw.
        targets: P positions of C classes; no gradient flows.
        temperature: T > 0.

    Raises:
        UnsupportedTargetsError: T is not one that the targets were stored for.
    """
    log_q = (student_logits / temperature).log_softmax(dim=-1)
    return Pair(
        log_p=bucket_log_p(targets, temperature, student_logits.dtype),
        log_q=bucket_log_q(log_q, targets.ids.long()),
    )


def dense_log_p(targets: DenseTargets, temperature: float, dtype: torch.dtype) -> Tensor:
    """The teacher at T over all classes, (P, C), no graph; an offset leaves it as it is."""
    values = targets.values.detach().to(dtype)
    # Division by 1 would be a copy of (P, C) for nothing.
    return (values if temperature == 1 else values / temperature).log_softmax(dim=-1)


def bucket_log_p(targets: TopKTargets, temperature: float, dtype: torch.dtype) -> Tensor:
    """The teacher at T over the kept classes and the others together, (P, K + 1), no graph."""
    return targets.bucket_log_p(temperature).detach().to(dtype)


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
