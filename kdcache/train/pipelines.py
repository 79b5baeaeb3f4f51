"""Inference pipelines: how a student is scored on a whole validation set.

A pipeline is any object with ``run_inference_pipeline(model, data_loader)`` that returns a dict
of numbers with "inference_result" among them, larger being better unless it has ``mode = "min"``.
It is called without gradients, with the student in eval mode, once for each pass over its set.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor, nn

from kdcache.data.batch import BatchMapping, Mapped
from kdcache.data.forward import FlatOutput, forward
from kdcache.data.join import JoinedBatch
from kdcache.errors import DataError, UsageError
from kdcache.losses import LossSum, fused_losses
from kdcache.losses.labels import IGNORE_INDEX
from kdcache.targets import SoftTargets, TopKTargets
from kdcache.train.positions import check_positions

RESULT = "inference_result"
_CHUNK_NUMBERS = 1 << 24


class AccuracyPipeline:
    """Top-1 accuracy on labels; beside it the distance to the teacher where it is cached.

    Args:
        batch: where inputs and labels are.

    Attributes:
        mode: larger is better.
        lower_bounds: the results of the last run that are lower bounds of what they are called.
    """

    mode: Literal["max", "min"] = "max"

    def __init__(self, batch: Mapped | None = None) -> None:
        self.mapping: Mapped = batch or BatchMapping()
        self.lower_bounds: frozenset[str] = frozenset()

    @torch.no_grad()  # not inference_mode: what a student keeps from here may meet gradients later
    def run_inference_pipeline(self, model: nn.Module, data_loader: Any) -> dict[str, float]:
        """Score a model, on the device it is on, in eval mode.

        Args:
            model: the student.
            data_loader: the user's batches, or joined ones.

        Returns:
            ``accuracy`` and ``cross_entropy`` (nats; its exp is the perplexity) over labelled
            positions; for joined batches ``teacher_kl``, KL(teacher || student) in nats per
            position at temperature 1, and ``teacher_agreement``, the share of positions where both
            have the same top class. ``inference_result`` is the accuracy, or without labels the
            agreement.

            Top-k targets know the K kept classes and one bucket of all others: from them
            ``teacher_kl`` is a lower bound of the KL over all C classes (exact where K = C). It
            compares students of one cache, not caches; ``lower_bounds`` then names it. Where they
            do not hold temperature 1, it is left out.

        Raises:
            AlignmentError: the student has other positions than the teacher had.
            DataError: there is neither a label nor a target; or the student's logits are NaN or
                +inf, which argmax would take for an answer.
        """
        was_training = model.training
        model.eval()
        sums: dict[str, Tensor] = {}
        self.lower_bounds, label_problem = frozenset(), ""
        try:
            for batch in data_loader:
                found, label_problem = self._batch_sums(model, batch)
                for name, value in found.items():
                    sums[name] = sums[name] + value if name in sums else value
        finally:
            model.train(was_training)
        return _results({name: float(value) for name, value in sums.items()}, label_problem)

    def _batch_sums(self, model: nn.Module, batch: Any) -> tuple[dict[str, Tensor], str]:
        """Sums over a batch's positions, and what is wrong with its labels."""
        batch = move_data_to_device(batch, next(model.parameters()).device)
        targets = batch.targets if isinstance(batch, JoinedBatch) else None
        user_batch = batch.batch if isinstance(batch, JoinedBatch) else batch
        output = forward(model, self.mapping, user_batch)
        if targets is not None:
            check_positions(output, targets)
            if isinstance(targets, TopKTargets) and targets.ids.shape[-1] < targets.num_classes:
                self.lower_bounds = frozenset({"teacher_kl"})
        top, lost = _top_classes(output)
        return _sums(output, targets, top) | {"lost": lost}, output.label_problem


def _top_classes(output: FlatOutput) -> tuple[Tensor, Tensor]:
    """The student's top class of every position, (P,), and how many have logits that are none."""
    tops, lost = [output.num_positions[:0]], output.num_positions.new_zeros(())
    for _, logits in output.chunks(max(1, _CHUNK_NUMBERS // output.num_classes)):
        tops.append(logits.argmax(dim=-1))
        lost = lost + (~(logits < torch.inf).all(dim=-1)).sum()  # -inf: a class that it masks
    return torch.cat(tops), lost


def _sums(output: FlatOutput, targets: SoftTargets | None, top: Tensor) -> dict[str, Tensor]:
    """Sums over a batch's positions, by what they are divided by and what they are of."""
    sums = {"all": torch.ones_like(top).sum()}
    weights = {"kd_loss": 1.0} if targets is not None and _serves_one(targets) else {}
    if output.labels is not None:
        weights["student_loss"] = 1.0
    losses: Mapping[str, LossSum] = {}
    if weights:
        _, losses = fused_losses(
            output.all_logits,
            targets if "kd_loss" in weights else None,
            output.labels,
            weights=weights,
            temperature=1.0,
            rows=output.rows,
        )
    if output.labels is not None:
        known = output.labels != IGNORE_INDEX
        nats = losses["student_loss"].sum.double()
        right = (top == output.labels) & known
        sums |= {"labelled": known.sum(), "correct": right.sum(), "cross_entropy": nats}
    if targets is not None:
        sums |= {"positions": sums["all"], "same": (top == targets.top_class()).sum()}
        if "kd_loss" in losses:
            sums["kl"] = losses["kd_loss"].sum.double()
    return sums


def _serves_one(targets: SoftTargets) -> bool:
    """Whether targets are known at temperature 1: top-k ones only where it was declared."""
    if not isinstance(targets, TopKTargets) or 1.0 in targets.temperatures:
        return True
    return targets.ids.shape[-1] == targets.num_classes


def _results(sums: Mapping[str, float], label_problem: str) -> dict[str, float]:
    if sums.get("lost"):
        raise DataError(
            f"the student's logits are NaN or +inf at {sums['lost']:.0f} of {sums['all']:.0f} "
            "positions of a validation set, so that no score of it is one. A lower learning rate "
            "helps, or a precision of more range (bf16-mixed, 32-true)."
        )
    results: dict[str, float] = {}
    if sums.get("positions"):
        if "kl" in sums:
            results["teacher_kl"] = sums["kl"] / sums["positions"]
        results["teacher_agreement"] = sums["same"] / sums["positions"]
    if sums.get("labelled"):
        results["accuracy"] = sums["correct"] / sums["labelled"]
        results["cross_entropy"] = sums["cross_entropy"] / sums["labelled"]
    if not results:
        unusable = f"no cached targets, and labels that cannot be used: {label_problem}"
        raise DataError(
            "a validation set has "
            f"{unusable if label_problem else 'neither labels nor cached targets'}. There is "
            "nothing to score: name the labels (batch.labels), or give the set a pipeline of its "
            "own."
        )
    return {RESULT: results.get("accuracy", results.get("teacher_agreement", 0.0)), **results}


def check_pipeline(pipeline: Any, name: str) -> None:
    """Raise UsageError for an object that is no pipeline, before anything is trained."""
    if not callable(getattr(pipeline, "run_inference_pipeline", None)):
        raise UsageError(
            f"the pipeline of {name!r}, {type(pipeline).__name__}, has no method "
            "run_inference_pipeline(model, data_loader)."
        )
    mode = getattr(pipeline, "mode", "max")
    if mode not in ("max", "min"):
        raise UsageError(
            f"the pipeline of {name!r} has the mode {mode!r}; it is 'max' where a larger {RESULT} "
            "is better, 'min' where a smaller one is."
        )


def run_pipeline(pipeline: Any, name: str, model: nn.Module, loader: Any) -> dict[str, float]:
    """Run any pipeline; UsageError unless it returned a dict of numbers with a result."""
    results = pipeline.run_inference_pipeline(model, loader)
    who = f"the pipeline of {name!r}, {type(pipeline).__name__},"
    if not isinstance(results, Mapping) or RESULT not in results:
        raise UsageError(
            f"{who} returned {results!r:.200}. It should return a dict with a number under "
            f"{RESULT!r}."
        )
    found = {}
    for key, value in results.items():
        plain = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if isinstance(plain, bool) or not isinstance(plain, numbers.Real):
            raise UsageError(
                f"{who} returned {type(value).__name__} under {key!r}. Everything that it returns "
                "is logged, so it should be one number."
            )
        found[str(key)] = float(plain)
    return found
