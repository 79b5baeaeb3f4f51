"""One pass of a student over a validation set, which feeds any number of metrics.

Logits are looked at a chunk at a time, and losses computed in chunks, so that vocabularies and
students that defer their logits fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor, nn

from kdcache.data.batch.forward import FlatOutput, forward
from kdcache.data.batch.mapping import Mapped
from kdcache.data.join.dataset import JoinedBatch
from kdcache.errors import DataError
from kdcache.losses import LossSum, fused_losses
from kdcache.losses.labels import STUDENT_LOSS
from kdcache.targets import DenseTargets, SoftTargets, TopKTargets
from kdcache.train.step.positions import check_positions

KD_LOSS = "kd_loss"
_CHUNK_NUMBERS = 1 << 24


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """A student's answer to one batch, and what it is held against.

    Attributes:
        batch: the user's.
        output: flat over P valid positions.
        targets: of the same positions; None where the set is not joined.
        top: (P,) int64, the student's most probable class.
        losses: at temperature 1: ``student_loss`` where there are labels, ``kd_loss`` where the
            targets are known at that temperature.
    """

    batch: Any
    output: FlatOutput
    targets: SoftTargets | None
    top: Tensor
    losses: Mapping[str, LossSum]


class Metric(Protocol):
    """Numbers of a whole set, from sums over its batches."""

    def add(self, scored: Scored) -> None:
        """Take one batch into account; nothing is waited for."""

    def results(self) -> dict[str, float]:
        """Name -> value over all batches; what cannot be said of such a set is left out."""

    @property
    def lower_bounds(self) -> frozenset[str]:
        """Which of the results are lower bounds of what they are called."""


class Sums:
    """Sums by name, kept on the device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, **values: Tensor) -> None:
        """Add to each."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def read(self) -> dict[str, float]:
        """Name -> sum."""
        return {name: float(value) for name, value in self._sums.items()}


@torch.no_grad()  # not inference_mode: what a student keeps from here may meet gradients later
def score(model: nn.Module, loader: Any, mapping: Mapped, metrics: Sequence[Metric]) -> str:
    """Run a model over a set, on the device it is on, in eval mode.

    Args:
        model: the student; its mode is put back.
        loader: the user's batches, or joined ones.
        mapping: where inputs, labels and mask are.
        metrics: each gets every batch.

    Returns:
        What is wrong with the labels of the last batch; empty where nothing is.

    Raises:
        AlignmentError: the student has other positions than the teacher had.
        DataError: the student's logits are NaN or +inf, which argmax would take for an answer.
    """
    was_training = model.training
    model.eval()
    sums, label_problem = Sums(), ""
    try:
        for batch in loader:
            scored, lost = _scored(model, mapping, batch)
            sums.add(lost=lost, all=torch.ones_like(scored.top).sum())
            for metric in metrics:
                metric.add(scored)
            label_problem = scored.output.label_problem
    finally:
        model.train(was_training)
    _check_lost(sums.read())
    return label_problem


def _scored(model: nn.Module, mapping: Mapped, batch: Any) -> tuple[Scored, Tensor]:
    """A batch scored, and at how many positions the logits are none."""
    batch = move_data_to_device(batch, next(model.parameters()).device)
    targets = batch.targets if isinstance(batch, JoinedBatch) else None
    user_batch = batch.batch if isinstance(batch, JoinedBatch) else batch
    output = forward(model, mapping, user_batch)
    if targets is not None:
        check_positions(output, targets)
    tops, lost = [output.num_positions[:0]], output.num_positions.new_zeros(())
    for _, logits in output.chunks(rows_at_once(output.num_classes)):
        tops.append(logits.argmax(dim=-1))
        lost = lost + (~(logits < torch.inf).all(dim=-1)).sum()  # -inf: a class that it masks
    names = [STUDENT_LOSS] if output.labels is not None else []
    if targets is not None and serves(targets, 1.0):
        names.append(KD_LOSS)
    scored = Scored(
        batch=user_batch,
        output=output,
        targets=targets,
        top=torch.cat(tops),
        losses=losses_of(output, targets, names, 1.0),
    )
    return scored, lost


def losses_of(
    output: FlatOutput, targets: SoftTargets | None, names: Sequence[str], temperature: float
) -> Mapping[str, LossSum]:
    """Built-in losses over a batch's positions, in one chunked pass."""
    if not names:
        return {}
    _, losses = fused_losses(
        output.all_logits,
        targets if KD_LOSS in names else None,
        output.labels if STUDENT_LOSS in names else None,
        weights=dict.fromkeys(names, 1.0),
        temperature=temperature,
        rows=output.rows,
    )
    return losses


def rows_at_once(num_classes: int) -> int:
    """How many positions are looked at together."""
    return max(1, _CHUNK_NUMBERS // num_classes)


def serves(targets: SoftTargets, temperature: float) -> bool:
    """Whether targets are known at a temperature: top-k ones only where it was declared."""
    if isinstance(targets, TopKTargets):
        return temperature in targets.temperatures or not is_cut(targets)
    return isinstance(targets, DenseTargets)


def is_cut(targets: SoftTargets) -> bool:
    """Whether there are classes of which only the sum is known."""
    return isinstance(targets, TopKTargets) and targets.ids.shape[-1] < targets.num_classes


def _check_lost(sums: Mapping[str, float]) -> None:
    if sums.get("lost"):
        raise DataError(
            f"the student's logits are NaN or +inf at {sums['lost']:.0f} of {sums['all']:.0f} "
            "positions of a validation set, so that no score of it is one. A lower learning rate "
            "helps, or a precision of more range (bf16-mixed, 32-true)."
        )
