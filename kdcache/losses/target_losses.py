"""The built-in losses on soft targets, each with the kinds of targets and the power of T it takes.

What is measured stands in ``divergences`` and ``logit_distances``; here it is checked, computed
in float32 and scaled, the same way for all.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdcache.errors import DataError, UnsupportedTargetsError, UsageError
from kdcache.losses.divergences import DIVERGENCES, Divergence, over_buckets, over_classes
from kdcache.losses.logit_distances import cosine_distance, squared_error
from kdcache.losses.loss_sum import LossSum
from kdcache.losses.precision import autocast_off, widen
from kdcache.targets import DenseTargets, SoftTargets, TopKTargets

Measure = Callable[[Tensor, Any, float], Tensor]
"""(student logits (P, C), targets of one kind, T) -> (P,) values."""


@dataclass(frozen=True, kw_only=True)
class TargetLoss:
    """One loss between the student's logits and soft targets.

    Attributes:
        name: as it stands among the coefficients.
        measures: how each supported kind of targets is measured.
        temperature_exponent: the loss is multiplied by T to this power, once, so that gradients
            stay comparable across temperatures; 0 where T plays no part in it.
    """

    name: str
    measures: Mapping[type[SoftTargets], Measure]
    temperature_exponent: int

    def __call__(self, student_logits: Tensor, targets: SoftTargets, temperature: float) -> LossSum:
        """The loss, summed over positions.

        Args:
            student_logits: (P, C), any float dtype; computed in float32 (float64 stays).
            targets: P positions of C classes; no gradient flows.
            temperature: T > 0, dimensionless.

        Raises:
            DataError: the student has other classes or positions than the targets.
            UnsupportedTargetsError: this loss is not defined on such targets, or not at this T.
            UsageError: T is not a positive number.
        """
        measure = self.check(student_logits.shape, targets, temperature)
        with autocast_off(student_logits):
            values = measure(widen(student_logits), targets, temperature)
            # Within the graph, so that the gradient is multiplied too: on the value alone, T = 4
            # left it 16 times too small.
            return LossSum.over(values * temperature**self.temperature_exponent)

    def check(
        self,
        shape: torch.Size,
        targets: SoftTargets,
        temperature: float,
        num_positions: int | None = None,
    ) -> Measure:
        """How such targets are measured; an error where they cannot be, as for a call.

        Args:
            shape: of the student's logits, (rows, C).
            targets: P positions of C classes.
            temperature: T.
            num_positions: how many of the rows are valid positions; None: all.
        """
        measure = self._measure(targets)
        check_temperature_value(temperature)
        _check_shape(shape, targets, num_positions)
        return measure

    def takes(self, targets: SoftTargets) -> bool:
        """Whether the loss is defined on targets of this kind."""
        return isinstance(targets, tuple(self.measures))

    def _measure(self, targets: SoftTargets) -> Measure:
        for kind, measure in self.measures.items():
            if isinstance(targets, kind):
                return measure
        given = type(targets).__name__
        able = [name for name, loss in TARGET_LOSSES.items() if loss.takes(targets)]
        remedy = f"use one that is defined on them ({', '.join(able)}), or " if able else ""
        raise UnsupportedTargetsError(
            f"{self.name} cannot be computed on {given}, only on "
            f"{' and '.join(kind.__name__ for kind in self.measures)}: {remedy}dump again with "
            "targets.codec: dense."
        )


def no_targets(name: str) -> UsageError:
    """The error for a loss that needs soft targets where there are none."""
    return UsageError(
        f"the loss {name!r} needs soft targets, and the batch has none. Train on batches joined "
        "with a teacher cache, or drop its coefficient."
    )


def check_temperature_value(temperature: Any) -> None:
    """Raise UsageError unless T is a positive finite number."""
    number = isinstance(temperature, numbers.Real) and not isinstance(temperature, bool)
    if not number or not math.isfinite(temperature) or temperature <= 0:
        raise UsageError(f"the temperature is a positive number, not {temperature!r}.")


def _check_shape(shape: torch.Size, targets: SoftTargets, num_positions: int | None) -> None:
    if len(shape) != 2:
        raise DataError(
            f"losses take the student's logits flat over valid positions, (P, C), not of shape "
            f"{tuple(shape)}. kdcache.outputs.flatten_positions flattens them."
        )
    rows, classes = shape
    positions = rows if num_positions is None else num_positions
    if classes != targets.num_classes:
        raise DataError(
            f"the student has {classes} classes, the teacher's targets {targets.num_classes}: they "
            "cannot be compared. Give the student an output for each of the teacher's classes. If "
            "the classes are on another axis, name it (batch.class_dim). If one of the two pads "
            f"its vocabulary, say the true size (batch.num_classes: "
            f"{min(classes, targets.num_classes)}; at the dump too, if it is the teacher)."
        )
    # Not num_positions.sum(): reading it would wait for the device.
    stored = {
        len(value)
        for name, value in vars(targets).items()
        if isinstance(value, Tensor) and name != "num_positions"
    }
    if stored != {positions}:
        raise DataError(
            f"the student has {positions} positions, the teacher's targets "
            f"{' or '.join(map(str, sorted(stored)))}. Both need the same mask (batch.mask), and "
            "one row for each valid position."
        )


def _of_divergence(divergence: Divergence) -> TargetLoss:
    def dense(student_logits: Tensor, targets: DenseTargets, temperature: float) -> Tensor:
        return divergence.value(over_classes(student_logits, targets, temperature))

    def topk(student_logits: Tensor, targets: TopKTargets, temperature: float) -> Tensor:
        return divergence.value(over_buckets(student_logits, targets, temperature))

    return TargetLoss(
        name=divergence.name,
        measures={DenseTargets: dense, TopKTargets: topk},
        temperature_exponent=divergence.temperature_exponent,
    )


TARGET_LOSSES: Mapping[str, TargetLoss] = {
    **{name: _of_divergence(divergence) for name, divergence in DIVERGENCES.items()},
    "cos_embed_loss": TargetLoss(
        name="cos_embed_loss", measures={DenseTargets: cosine_distance}, temperature_exponent=0
    ),
    "mse_logits": TargetLoss(
        name="mse_logits", measures={DenseTargets: squared_error}, temperature_exponent=0
    ),
}
"""Name -> built-in loss."""


def kd_loss(student_logits: Tensor, targets: SoftTargets, temperature: float) -> LossSum:
    """Forward KL(teacher || student) at temperature T times T**2, in nats.

    T**2 keeps gradients comparable across temperatures (Hinton et al. 2015, arXiv:1503.02531,
    section 2). On DenseTargets the KL over all classes; on TopKTargets over the K kept classes
    and one bucket of all others: a lower bound, equal where K = C.

    Args:
        student_logits: (P, C), raw: a student that divides by T itself is asked for T = 1.
        targets: P positions of C classes.
        temperature: T > 0, dimensionless.

    Returns:
        Sum over the P positions; infinite where the student masks (-inf) a class that the
        teacher does not.

    Raises:
        DataError, UnsupportedTargetsError, UsageError: see :class:`TargetLoss`.
    """
    return TARGET_LOSSES["kd_loss"](student_logits, targets, temperature)


def reverse_kl(student_logits: Tensor, targets: SoftTargets, temperature: float) -> LossSum:
    """Reverse KL(student || teacher) at temperature T times T**2, in nats.

    Arguments and errors as for :func:`kd_loss`; on TopKTargets a lower bound, as there. Infinite,
    and without a usable gradient, where the student has mass on what the teacher masks (-inf):
    mask the student's logits too.
    """
    return TARGET_LOSSES["reverse_kl"](student_logits, targets, temperature)


def jensen_shannon(student_logits: Tensor, targets: SoftTargets, temperature: float) -> LossSum:
    """Jensen-Shannon divergence at temperature T times T**2, in nats: at most T**2 * log 2 each.

    (KL(teacher || M) + KL(student || M)) / 2 with M the mean of the two. Arguments and errors as
    for :func:`kd_loss`; on TopKTargets a lower bound, as there. Finite under any mask.
    """
    return TARGET_LOSSES["jensen_shannon"](student_logits, targets, temperature)


def total_variation(student_logits: Tensor, targets: SoftTargets, temperature: float) -> LossSum:
    """Total variation at temperature T times T: half the sum of |p - q|, at most T each.

    Times T and not T**2: it is linear in a small difference of logits / T, and so its gradient
    scales as 1/T. Arguments and errors as for :func:`kd_loss`; on TopKTargets a lower bound, as
    there. Finite under any mask.
    """
    return TARGET_LOSSES["total_variation"](student_logits, targets, temperature)


def mse_logits(student_logits: Tensor, targets: SoftTargets, temperature: float) -> LossSum:
    """Squared difference of raw logits: mean over classes, summed over positions.

    Arguments and errors as for :func:`kd_loss`; DenseTargets only, and T plays no part. Classes
    that the teacher masks (-inf) are left out of the mean.
    """
    return TARGET_LOSSES["mse_logits"](student_logits, targets, temperature)


def cos_embed_loss(student_logits: Tensor, targets: SoftTargets, temperature: float) -> LossSum:
    """1 - cosine similarity of raw logits, summed over positions.

    Torch's CosineEmbeddingLoss with target 1. Arguments and errors as for :func:`kd_loss`;
    DenseTargets only, and T plays no part: the cosine has no scale. Classes that the teacher
    masks (-inf) are left out.
    """
    return TARGET_LOSSES["cos_embed_loss"](student_logits, targets, temperature)
