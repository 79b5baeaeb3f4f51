"""The objective: which losses a student trains on, with which coefficients, at which temperature.

A loss of the objective is a built-in, a function of the user's own (a name with a dot is its class
path), or *deferred*: to be returned by the student. No name is ever ignored or overwritten.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from kdcache.errors import UsageError, suggest
from kdcache.losses.evaluation import (
    Evaluation,
    Reduction,
    StepCounts,
    is_per_sample,
    share,
)
from kdcache.losses.fused.one_pass import FUSED, fused_losses
from kdcache.losses.labels import IGNORE_INDEX, STUDENT_LOSS, no_labels
from kdcache.losses.loss_sum import LossSum
from kdcache.losses.own_loss import LossFunction, check_result, import_loss
from kdcache.losses.precision import autocast_off, widen
from kdcache.losses.target_losses import TARGET_LOSSES, check_temperature_value, no_targets
from kdcache.outputs import DeferredLogits
from kdcache.targets import SoftTargets

if TYPE_CHECKING:
    from kdcache.codecs import Codec

BUILT_IN = frozenset({*TARGET_LOSSES, STUDENT_LOSS})


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The weighted sum of losses that a student minimises.

    Attributes:
        losses: loss name -> coefficient, any finite number. A loss with coefficient 0 must exist,
            but is not computed.
        temperature: T > 0 of the losses on soft targets.
        reduction: how divergences are averaged; all other losses are means over positions.
        ignore_index: the label of positions that have none.

    Raises:
        UsageError: at construction, for a coefficient, temperature, reduction or class path that
            is wrong.
    """

    losses: Mapping[str, float]
    temperature: float = 1.0
    reduction: Reduction = "position_mean"
    ignore_index: int = IGNORE_INDEX
    _own: Mapping[str, LossFunction] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_coefficients(self.losses)
        check_temperature_value(self.temperature)
        if self.reduction not in get_args(Reduction):
            raise UsageError(
                f"there is no reduction {self.reduction!r}. "
                f"{suggest(str(self.reduction), get_args(Reduction))}"
            )
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

    def evaluate(
        self,
        student: Tensor | DeferredLogits,
        targets: SoftTargets | None = None,
        labels: Tensor | None = None,
        student_losses: Mapping[str, Tensor | float] | None = None,
        *,
        rows: Tensor | None = None,
        counts: StepCounts | None = None,
        label_problem: str = "",
    ) -> Evaluation:
        """The scalar to minimise on one batch, and every loss of it.

        Each loss is divided by what the whole optimiser step counts, so that the totals of its
        batches add up to the objective of all of them as one batch. (A loss of your own is its
        mean times this batch's share of the positions: the same, where it counts positions.)

        ``mse_logits``, ``cos_embed_loss`` and losses of your own are computed on the logits of
        all positions at once; the others as :func:`kdcache.losses.fused_losses` does.

        Args:
            student: raw logits (R, C), or hidden states (R, D) and their output layer.
            targets: soft targets of the P valid positions; None only where ``needs_targets`` is
                not.
            labels: (P,) class numbers, for the built-in ``student_loss``.
            student_losses: what the student returned: name -> scalar tensor or number. Each
                counts once a batch; those without a coefficient are there to be logged.
            rows: (P,) int64, which rows of ``student`` are valid positions; None: all.
            counts: of the optimiser step that this batch is a part of; None: it is all of it.
            label_problem: where ``labels`` are None although the batch has some: what they are.

        Raises:
            UsageError: a loss that there is not, or that both sides do; or no labels, no
                targets, no count, no scalar where one is needed.
            DataError, UnsupportedTargetsError: see :func:`kdcache.losses.kd_loss`.
        """
        returned = student_losses or {}
        self._check_names(returned)
        names = self._target_names()
        if names and targets is None:
            raise no_targets(names[0])
        if self.losses.get(STUDENT_LOSS) and STUDENT_LOSS not in returned:
            if labels is None:
                raise no_labels(label_problem)
            names.append(STUDENT_LOSS)
        else:
            labels = None
        batch = _Batch(student=student, targets=targets, labels=labels, rows=rows)
        counts = counts or batch.counts(self.ignore_index)
        terms = {name: _returned_term(name, returned[name], student.device) for name in returned}
        parts = [
            share(coefficient, counts.batches) * terms[name].sum
            for name, coefficient in self.losses.items()
            if coefficient and name in returned
        ]
        for part, found in (
            self._fused_part(batch, counts, [name for name in names if name in FUSED]),
            self._plain_part(batch, counts, [name for name in names if name not in FUSED]),
        ):
            parts.extend(part)
            terms.update(found)
        first, *others = parts
        return Evaluation(
            total=sum(others, start=first),
            terms={name: term.detach() for name, term in terms.items()},
        )

    def _fused_part(
        self, batch: _Batch, counts: StepCounts, names: list[str]
    ) -> tuple[list[Tensor], dict[str, LossSum]]:
        if not names:
            return [], {}
        weights = {
            name: share(self.losses[name], counts.of(name, self.reduction)) for name in names
        }
        total, terms = fused_losses(
            batch.student,
            batch.targets,
            batch.labels,
            weights=weights,
            temperature=self.temperature,
            rows=batch.rows,
            ignore_index=self.ignore_index,
        )
        for name in terms:
            if is_per_sample(name, self.reduction):
                samples = torch.full_like(terms[name].count, batch.num_samples)
                terms[name] = dataclasses.replace(terms[name], count=samples)
        return [total], terms

    def _plain_part(
        self, batch: _Batch, counts: StepCounts, names: list[str]
    ) -> tuple[list[Tensor], dict[str, LossSum]]:
        if not names or batch.targets is None:
            return [], {}
        logits = batch.logits()
        parts, terms = [], {}
        for name in names:
            weight = share(self.losses[name], counts.positions)
            if name in TARGET_LOSSES:
                terms[name] = TARGET_LOSSES[name](logits, batch.targets, self.temperature)
                parts.append(weight * terms[name].sum)
                continue
            with autocast_off(logits):
                result = self._own[name](widen(logits), batch.targets, self.temperature)
            terms[name] = check_result(name, result)
            parts.append(weight * batch.num_positions * terms[name].mean())
        return parts, terms

    def _target_names(self) -> list[str]:
        known = TARGET_LOSSES.keys() | self._own.keys()
        return [name for name, coefficient in self.losses.items() if coefficient and name in known]

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
                    f"there is no loss {name!r}: it is not built in, and the student did "
                    f"not return it. {suggest(name, BUILT_IN | returned.keys())}"
                )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Batch:
    """The arguments of ``evaluate``; labels only where they are used."""

    student: Tensor | DeferredLogits
    targets: SoftTargets | None
    labels: Tensor | None
    rows: Tensor | None

    @property
    def num_positions(self) -> int:
        return self.student.shape[0] if self.rows is None else len(self.rows)

    @property
    def num_samples(self) -> int:
        return 0 if self.targets is None else len(self.targets.num_positions)

    def counts(self, ignore_index: int) -> StepCounts:
        """Of a step that is this batch alone."""
        labelled = None if self.labels is None else (self.labels != ignore_index).sum()
        return StepCounts(
            positions=self.num_positions,
            labelled=labelled,
            batches=1,
            samples=self.num_samples,
        )

    def logits(self) -> Tensor:
        """(P, C): of the valid positions, all at once."""
        student, rows = self.student, slice(None) if self.rows is None else self.rows
        if isinstance(student, DeferredLogits):
            return dataclasses.replace(student, hidden=student.hidden[rows]).logits()
        return student[rows]


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


def _returned_term(name: str, value: object, device: torch.device) -> LossSum:
    """A loss that the student returned: already a mean, so it counts once."""
    if isinstance(value, Tensor) and value.dim() == 0:
        # Half precision would round a window's sum; the student's own graph is kept.
        scalar = value if value.dtype == torch.float64 else value.float()
    elif _is_number(value):
        scalar = torch.full((), float(value), device=device)  # type: ignore[arg-type]
    else:
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise UsageError(
            f"the student returned the loss {name!r} as {type(value).__name__}{shape}. Return a "
            "scalar: a number, or a tensor reduced to one with .mean() or .sum()."
        )
    return LossSum(sum=scalar, count=torch.ones((), dtype=torch.int64, device=scalar.device))
