"""The objective: which losses a student trains on, with which coefficients, at which temperature.

A loss of the objective is a built-in, a function of the user's own (a name with a dot is its class
path), or *deferred*: to be returned by the student. No name is ever ignored or overwritten.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdcache.errors import UsageError, suggest
from kdcache.losses.labels import IGNORE_INDEX, student_loss
from kdcache.losses.loss_sum import LossSum
from kdcache.losses.own_loss import LossFunction, check_result, import_loss
from kdcache.losses.precision import autocast_off, widen
from kdcache.losses.target_losses import TARGET_LOSSES, check_temperature_value
from kdcache.targets import SoftTargets

if TYPE_CHECKING:
    from kdcache.codecs import Codec

STUDENT_LOSS = "student_loss"
BUILT_IN = frozenset({*TARGET_LOSSES, STUDENT_LOSS})


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The weighted sum of losses that a student minimises.

    Attributes:
        losses: loss name -> coefficient, any finite number. A loss with coefficient 0 must exist,
            but is not computed.
        temperature: T > 0 of the losses on soft targets.
        ignore_index: the label of positions that have none.

    Raises:
        UsageError: at construction, for a coefficient, temperature or class path that is wrong.
    """

    losses: Mapping[str, float]
    temperature: float = 1.0
    ignore_index: int = IGNORE_INDEX
    _own: Mapping[str, LossFunction] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_coefficients(self.losses)
        check_temperature_value(self.temperature)
        own = {name: import_loss(name, BUILT_IN) for name in self.losses if "." in name}
        object.__setattr__(self, "losses", {k: float(v) for k, v in self.losses.items()})
        object.__setattr__(self, "temperature", float(self.temperature))
        object.__setattr__(self, "_own", own)

    @property
    def deferred(self) -> tuple[str, ...]:
        """Names that only the student can fill: known to be right once it has returned a loss."""
        return tuple(name for name in self.losses if name not in BUILT_IN | self._own.keys())

    @property
    def needs_targets(self) -> bool:
        """Whether any loss is computed from soft targets."""
        return bool(self._target_names())

    def check_codec(self, codec: Codec) -> None:
        """Refuse, before the first step, a temperature that the cache cannot serve.

        Built-in losses only: your own says so itself, when it first reads the targets.

        Raises:
            UnsupportedTargetsError: the codec did not store what the temperature needs.
        """
        used = [TARGET_LOSSES[name] for name in self._target_names() if name in TARGET_LOSSES]
        if any(loss.temperature_exponent for loss in used):
            codec.check_temperature(self.temperature)

    def terms(
        self,
        student_logits: Tensor,
        targets: SoftTargets | None = None,
        labels: Tensor | None = None,
        student_losses: Mapping[str, Tensor | float] | None = None,
        *,
        label_problem: str = "",
    ) -> dict[str, LossSum]:
        """Every loss of one batch, unweighted.

        Args:
            student_logits: (P, C), raw, flat over valid positions.
            targets: soft targets of the same positions; None only where ``needs_targets`` is not.
            labels: (P,) class numbers, for the built-in ``student_loss``.
            student_losses: what the student returned: name -> scalar tensor or number. Each
                counts once a batch; those without a coefficient are there to be logged.
            label_problem: where ``labels`` are None although the batch has some: what they are.

        Raises:
            UsageError: a loss that nobody computes, or that both sides do; or no labels, no
                targets, no scalar where one is needed.
            DataError, UnsupportedTargetsError: see :func:`kdcache.losses.kd_loss`.
        """
        returned = student_losses or {}
        self._check_names(returned)
        terms = {
            name: _returned_term(name, value, student_logits) for name, value in returned.items()
        }
        for name in self._target_names():
            terms[name] = self._target_term(name, student_logits, targets)
        if self.losses.get(STUDENT_LOSS) and STUDENT_LOSS not in returned:
            if labels is None:
                unusable = f"those of the batch cannot be used: {label_problem}"
                raise UsageError(
                    "the loss 'student_loss' needs labels, and "
                    f"{unusable if label_problem else 'the batch has none'}. Say where they are "
                    "(batch.labels), return a student_loss from the student, or drop its "
                    "coefficient."
                )
            terms[STUDENT_LOSS] = student_loss(student_logits, labels, self.ignore_index)
        return terms

    def total(self, terms: Mapping[str, LossSum]) -> Tensor:
        """The scalar to minimise: the terms' means, weighted with the coefficients.

        Args:
            terms: from ``terms``, or added up over a window of batches.
        """
        first, *others = (c * terms[name].mean() for name, c in self.losses.items() if c)
        return sum(others, start=first)

    def _target_names(self) -> list[str]:
        known = TARGET_LOSSES.keys() | self._own.keys()
        return [name for name, coefficient in self.losses.items() if coefficient and name in known]

    def _target_term(
        self, name: str, student_logits: Tensor, targets: SoftTargets | None
    ) -> LossSum:
        if targets is None:
            raise UsageError(
                f"the loss {name!r} needs soft targets, and the batch has none. Train on batches "
                "joined with a teacher cache, or drop its coefficient."
            )
        if name in TARGET_LOSSES:
            return TARGET_LOSSES[name](student_logits, targets, self.temperature)
        with autocast_off(student_logits):
            result = self._own[name](widen(student_logits), targets, self.temperature)
        return check_result(name, result)

    def _check_names(self, returned: Mapping[str, object]) -> None:
        for name in returned:
            if name in TARGET_LOSSES or name in self._own:
                raise UsageError(
                    f"the student returned a loss called {name!r}, which kdcache computes from "
                    "the soft targets; neither is overwritten. Return it under another name, and "
                    "give that one a coefficient."
                )
        for name in self.deferred:
            if name not in returned:
                raise UsageError(
                    f"nobody computes the loss {name!r}: it is not built in, and the student did "
                    f"not return it. {suggest(name, BUILT_IN | returned.keys())}"
                )


def _check_coefficients(losses: object) -> None:
    if not isinstance(losses, Mapping) or not losses:
        raise UsageError(
            f"the losses are a mapping of names to coefficients with at least one entry, not "
            f"{losses!r}. {suggest('', BUILT_IN)}"
        )
    for name, coefficient in losses.items():
        if not isinstance(name, str) or not name:
            raise UsageError(f"a loss is named by a string, not {name!r}.")
        if not _is_number(coefficient) or not math.isfinite(coefficient):
            raise UsageError(
                f"the coefficient of {name!r} is a finite number, not {coefficient!r}."
            )
    if not any(losses.values()):
        raise UsageError(
            f"every coefficient is 0 ({', '.join(losses)}): there is nothing to train on."
        )


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _returned_term(name: str, value: object, student_logits: Tensor) -> LossSum:
    """A loss that the student returned: already a mean, so it counts once."""
    if isinstance(value, Tensor) and value.dim() == 0:
        # Half precision would round a window's sum; the student's own graph is kept.
        scalar = value if value.dtype == torch.float64 else value.float()
    elif _is_number(value):
        scalar = torch.full((), float(value), device=student_logits.device)  # type: ignore[arg-type]
    else:
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise UsageError(
            f"the student returned the loss {name!r} as {type(value).__name__}{shape}. Return a "
            "scalar: a number, or a tensor reduced to one with .mean() or .sum()."
        )
    return LossSum(sum=scalar, count=torch.ones((), dtype=torch.int64, device=scalar.device))
