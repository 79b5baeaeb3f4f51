"""Several losses in one pass over chunks of positions, with their gradient, at little memory.

The weights of the losses are known beforehand, so the gradient of the total is computed while a
chunk of logits is in cache, in the forward pass; the backward pass only multiplies. The full
(P, C) in float32 never exists, and on :class:`~kdcache.outputs.DeferredLogits` no (P, C) at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdcache.errors import DataError, UsageError, suggest
from kdcache.losses.divergences import DIVERGENCES
from kdcache.losses.fused.chunk import Comparison, Factor, chunk_losses
from kdcache.losses.fused.heads import Layer, blocks, through_layer, through_logits, wide
from kdcache.losses.labels import IGNORE_INDEX, STUDENT_LOSS, no_labels, usable_labels
from kdcache.losses.loss_sum import LossSum
from kdcache.losses.precision import autocast_off, check_floating
from kdcache.losses.target_losses import TARGET_LOSSES, no_targets
from kdcache.outputs import DeferredLogits
from kdcache.targets import DenseTargets, SoftTargets, TopKTargets, rows_of

FUSED = frozenset({*DIVERGENCES, STUDENT_LOSS})
"""The losses that this pass can compute."""


def fused_losses(
    student: Tensor | DeferredLogits,
    targets: SoftTargets | None,
    labels: Tensor | None,
    *,
    weights: Mapping[str, Factor],
    temperature: float,
    rows: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> tuple[Tensor, dict[str, LossSum]]:
    """The weighted sum of several losses, and each of them.

    Values and gradients are those of the plain functions (:func:`kdcache.losses.kd_loss`, ...).
    Can be differentiated once. Under ``torch.no_grad``, or where nothing requires a gradient, none
    is made.

    Args:
        student: raw logits (R, C) of any float dtype; or hidden states (R, D) and their layer,
            whose products follow autocast as F.linear does. Losses are computed in float32
            (float64 stays) in either case.
        targets: P positions of C classes; None where no divergence is asked for.
        labels: (P,) integer class numbers, or ``ignore_index``; None where ``student_loss`` is
            not asked for.
        weights: loss name -> factor of its sum in the total: a number, or a scalar tensor on the
            student's device (or the CPU), which is not waited for and gets no gradient.
        temperature: T > 0 of the divergences; ``student_loss`` is at 1.
        rows: (P,) int64, which rows of ``student`` are the valid positions, each once; the others
            are not looked at, and get a gradient of 0. None: all R = P.
        ignore_index: the label of positions that have none.

    Returns:
        The total, a scalar with a graph; and name -> loss, unweighted and without a graph.

    Raises:
        UsageError: a loss that cannot be fused, or that has no targets or labels.
        DataError, UnsupportedTargetsError: see :func:`kdcache.losses.kd_loss`.
    """
    tensors: tuple[Any, ...] = (student,)
    if isinstance(student, DeferredLogits):
        tensors = (student.hidden, student.weight, student.bias)
    check_floating(tensors[0])
    layer = _layer(student) if isinstance(student, DeferredLogits) else None
    comparison = _comparison(
        student.shape,
        None if rows is None else len(rows),
        targets,
        labels,
        weights=weights,
        temperature=temperature,
        ignore_index=ignore_index,
    )
    problem = _Problem(comparison=comparison, rows=rows, layer=layer)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        total, *sums = _Fused.apply(problem, *tensors)  # type: ignore[no-untyped-call]
    else:
        with torch.no_grad():
            solution = _solve(problem, tensors, (False,) * len(tensors))
        total, sums = solution.total, solution.sums
    positions = student.shape[0] if rows is None else len(rows)
    counts = {
        name: torch.full((), positions, dtype=torch.int64, device=student.device)
        for name in weights
    }
    if comparison.labels is not None:
        counts[STUDENT_LOSS] = (comparison.labels != ignore_index).sum()
    return total, {
        name: LossSum(sum=value, count=counts[name])
        for name, value in zip(weights, sums, strict=True)
    }


def _comparison(
    shape: torch.Size,
    num_positions: int | None,
    targets: SoftTargets | None,
    labels: Tensor | None,
    *,
    weights: Mapping[str, Factor],
    temperature: float,
    ignore_index: int,
) -> Comparison:
    """What is asked for, checked as the plain functions check it."""
    unknown = next((name for name in weights if name not in FUSED), None)
    if unknown is not None:
        raise UsageError(f"the loss {unknown!r} cannot be fused. {suggest(unknown, FUSED)}")
    if not weights:
        raise UsageError(f"no loss is given: there is nothing to compute. {suggest('', FUSED)}")
    for name in weights:
        if name == STUDENT_LOSS:
            if labels is None:
                raise no_labels()
            labels = usable_labels(labels, shape, ignore_index, num_positions)
        elif targets is None:
            raise no_targets(name)
        else:
            TARGET_LOSSES[name].check(shape, targets, temperature, num_positions)
    divergences = weights.keys() - {STUDENT_LOSS}
    kept = targets if isinstance(targets, DenseTargets | TopKTargets) and divergences else None
    if isinstance(kept, TopKTargets):
        # Refuses a temperature that they cannot serve, also where there is no position.
        rows_of(kept, slice(0)).bucket_log_p(temperature)
    return Comparison(
        weights={name: _factor(weight) for name, weight in weights.items()},
        targets=kept,
        labels=labels if STUDENT_LOSS in weights else None,
        temperature=temperature if divergences else 1.0,
        ignore_index=ignore_index,
    )


def _factor(weight: Factor) -> Factor:
    """A number, wherever that needs no wait for a device."""
    if isinstance(weight, Tensor) and weight.device.type != "cpu":
        return weight.detach()
    return float(weight)


def _layer(student: DeferredLogits) -> Layer:
    """Its products are in what F.linear would take: autocast leaves float64 alone."""
    kind, dtype = student.device.type, student.hidden.dtype
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    elif student.weight.dtype != dtype:
        raise DataError(
            f"hidden states in {dtype} with a weight in {student.weight.dtype} make no logits. "
            "Cast one of them, or train under autocast."
        )
    return Layer(dtype=dtype, scale=student.scale, softcap=student.softcap)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Problem:
    """All but the tensors that may get a gradient."""

    comparison: Comparison
    rows: Tensor | None
    layer: Layer | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Solution:
    """The total, the losses' sums, and d total / d tensors divided by ``scale``."""

    total: Tensor
    sums: tuple[Tensor, ...]
    gradients: tuple[Tensor | None, ...]
    scale: Factor


def _solve(
    problem: _Problem, tensors: Sequence[Any], needs_gradient: tuple[bool, ...]
) -> _Solution:
    """Tensors are the logits; or hidden states, weight and bias (or None) of the layer."""
    rows, layer, comparison = problem.rows, problem.layer, problem.comparison
    weights = comparison.weights
    scale: Factor = 1.0
    stored = tensors[0].dtype if layer is None else layer.dtype
    if stored == torch.float16 and any(needs_gradient):
        # A probability times 1 / positions is often less than float16 can hold.
        scale = _largest(weights.values())
        scaled = {name: weight / scale for name, weight in weights.items()}
        comparison = dataclasses.replace(comparison, weights=scaled)
    num_positions = len(tensors[0]) if rows is None else len(rows)
    values = tensors[0].new_empty((len(weights), num_positions), dtype=wide(stored))

    def overwrite(logits: Tensor, block: slice) -> None:
        found = chunk_losses(logits, comparison.rows(block), gradient=any(needs_gradient))
        for row, name in enumerate(weights):
            values[row, block] = found[name]

    gradients: tuple[Tensor | None, ...]
    # Losses stay in float32; what autocast asks of the layer's products is in layer.dtype.
    with autocast_off(tensors[0]):
        if layer is None:
            gradients = through_logits(
                tensors[0], rows, overwrite, needs_gradient=needs_gradient[0]
            )
        else:
            hidden, weight, bias = tensors
            gradients = through_layer(
                layer, (hidden, weight, bias), rows, overwrite, needs_gradient=needs_gradient
            )
    sums = values.sum(dim=1).unbind()
    first, *others = (weight * value for weight, value in zip(weights.values(), sums, strict=True))
    return _Solution(
        total=sum(others, start=first), sums=tuple(sums), gradients=gradients, scale=scale
    )


def _largest(weights: Collection[Factor]) -> Factor:
    """The largest size among weights, more than 0, without waiting for a device."""
    numbers = [abs(weight) for weight in weights if not isinstance(weight, Tensor)]
    tensors = [weight.abs() for weight in weights if isinstance(weight, Tensor)]
    largest = max(numbers, default=0.0) or torch.finfo(torch.float32).tiny
    return torch.stack(tensors).amax().clamp(min=largest) if tensors else largest


class _Fused(torch.autograd.Function):
    """Solves in the forward pass; the backward pass multiplies with what comes in.

    It gives the gradient away, multiplied in place, and so solves again where a retained graph is
    gone through a second time.
    """

    @staticmethod
    def forward(ctx: Any, problem: _Problem, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        solution = _solve(problem, tensors, ctx.needs_input_grad[1:])
        ctx.problem, ctx.scale, ctx.gradients = problem, solution.scale, solution.gradients
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(*solution.sums)
        return solution.total, *solution.sums

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # once_differentiable lets through what would then miss this loss's curvature.
            raise UsageError(
                "fused losses have a first derivative only, and create_graph=True asks for a "
                "second. Use the plain functions (kdcache.losses.kd_loss, ...)."
            )
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            needs_gradient = ctx.needs_input_grad[1:]
            gradients = _solve(ctx.problem, ctx.saved_tensors, needs_gradient).gradients
        factor = grad_total * ctx.scale
        return None, *(None if g is None else _multiply(g, factor) for g in gradients)


def _multiply(gradient: Tensor, factor: Tensor) -> Tensor:
    """Multiply in place, in float32: a loss scale of 65,536 is no float16, nor 1/3 a bfloat16."""
    # total.backward() comes in with 1. On another device, looking would wait for it.
    if factor.device.type == "cpu" and float(factor) == 1:
        return gradient
    if gradient.dtype == wide(gradient.dtype):
        return gradient.mul_(factor)
    for block in blocks(len(gradient), gradient.shape[1], gradient.device, "logits"):
        gradient[block] = gradient[block].to(factor.dtype) * factor
    return gradient
