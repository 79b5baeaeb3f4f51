"""The LightningModule of stage two: a student, an objective, and validation through pipelines.

It holds the student only. Neither the optimiser nor a checkpoint has ever seen a teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kdcache.data.batch import Mapped, parse_mapping
from kdcache.data.forward import FlatOutput, forward
from kdcache.data.join import JoinedBatch
from kdcache.errors import AlignmentError, UsageError
from kdcache.losses import LossSum, Objective
from kdcache.targets import SoftTargets
from kdcache.train.pipelines import RESULT, AccuracyPipeline, run_pipeline

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
MakeScheduler = Callable[[torch.optim.Optimizer], Any]


class StudentModule(pl.LightningModule):
    """Trains a student on joined batches (user batch, soft targets).

    Args:
        student: returns raw logits, as a teacher does; may return its own losses beside them, in
            a dict with "logits" and "loss" (name -> scalar).
        losses: loss name -> coefficient; see :class:`kdcache.losses.Objective`.
        temperature: T > 0 of the losses on soft targets.
        batch: which leaves of the user's batch are the student's inputs, labels and mask.
        optimizer: from parameters to an optimiser; Adam with ``learning_rate`` if None.
        scheduler: from the optimiser to a learning-rate schedule, stepped once an epoch.
        learning_rate: of the default optimiser.
        validation: name -> DataLoader of a validation set: the user's own batches, or joined.
        pipelines: name -> inference pipeline; :class:`AccuracyPipeline` where none is given.

    Logs ``train_<loss>`` for every loss and ``train_final_loss``, and ``<set>_<number>`` for
    every number that a pipeline returns.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        losses: Mapping[str, float] | None = None,
        temperature: float = 1.0,
        batch: Mapped | Mapping[str, Any] | str | None = None,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
        learning_rate: float = 1e-3,
        validation: Mapping[str, Any] | None = None,
        pipelines: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        chosen = {"kd_loss": 1.0} if losses is None else losses
        self.objective = Objective(losses=chosen, temperature=temperature)
        self.mapping = parse_mapping(batch, "student")
        self.record: dict[str, Any] = {}
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self._learning_rate = learning_rate
        self._validation = dict(validation or {})
        given = pipelines or {}
        unknown = next((name for name in given if name not in self._validation), None)
        if unknown is not None:
            raise UsageError(
                f"there is a pipeline for {unknown!r}, and no such validation set; the sets are "
                f"{', '.join(self._validation) or 'none'}."
            )
        self._pipelines = {
            name: given.get(name, AccuracyPipeline(self.mapping)) for name in self._validation
        }

    @property
    def monitor(self) -> tuple[str, str]:
        """(logged name, "min" or "max") of what tells a better checkpoint."""
        if not self._validation:
            return "train_final_loss", "min"
        first = next(iter(self._validation))
        return f"{first}_{RESULT}", getattr(self._pipelines[first], "mode", "max")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
        """The objective on one batch: a scalar with a graph, 0 where no position is valid."""
        user_batch, targets = (
            (batch.batch, batch.targets) if isinstance(batch, JoinedBatch) else (batch, None)
        )
        output = forward(self.student, self.mapping, user_batch)
        self.mapping = output.mapping
        if targets is not None:
            check_positions(output, targets)
        terms = self.objective.terms(output.logits, targets, output.labels, output.losses)
        total = self.objective.total(terms)
        self._log_step(terms, total, len(output.num_positions))
        return total

    def _log_step(self, terms: Mapping[str, LossSum], total: Tensor, batch_size: int) -> None:
        values = {f"train_{name}": term.mean().detach() for name, term in terms.items()}
        values["train_final_loss"] = total.detach()
        self.log_dict(values, on_step=True, on_epoch=True, batch_size=batch_size)

    def val_dataloader(self) -> Any:
        """One item a validation set: whole sets are scored by their pipelines."""
        names: Any = list(self._validation)
        return DataLoader(names, batch_size=1, collate_fn=_only)

    def validation_step(self, batch: str, batch_idx: int) -> None:  # noqa: ARG002
        """Score the student on one whole validation set, through its pipeline."""
        if not isinstance(batch, str):
            raise UsageError(
                "validation sets go to StudentModule(validation={name: loader}), not to the "
                "Trainer: each is scored as a whole by its inference pipeline."
            )
        results = run_pipeline(self._pipelines[batch], batch, self.student, self._validation[batch])
        values = {f"{batch}_{name}": value for name, value in results.items()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1)

    def configure_optimizers(self) -> Any:
        """The given optimiser over the student's parameters, and its schedule."""
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        if self._make_optimizer is None:
            optimizer: torch.optim.Optimizer = torch.optim.Adam(parameters, lr=self._learning_rate)
        else:
            optimizer = self._make_optimizer(parameters)
        if self._make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self._make_scheduler(optimizer)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down which cache the student was trained from."""
        checkpoint["kdcache"] = dict(self.record)


def _only(names: list[str]) -> str:
    return names[0]


def check_positions(output: FlatOutput, targets: SoftTargets) -> None:
    """Raise AlignmentError unless student and teacher have the same positions in each sample.

    On an accelerator only shapes are compared, which needs no wait for it.
    """
    rows = int(targets.num_positions.shape[0]), len(output.num_positions)
    if rows[0] != rows[1]:
        raise AlignmentError(
            f"the student made {rows[1]} rows of a batch of {rows[0]} samples. Return one row of "
            "logits for each sample."
        )
    expected = targets.num_rows()
    on_cpu = output.num_positions.device.type == "cpu"
    same = not on_cpu or bool((output.num_positions == targets.num_positions).all())
    if expected != len(output.logits) or not same:
        raise AlignmentError(
            f"the student has {len(output.logits)} valid positions in this batch, the teacher had "
            f"{expected}. Use the mask of the dump (batch.mask), and a student with the teacher's "
            "resolution or length."
        )
