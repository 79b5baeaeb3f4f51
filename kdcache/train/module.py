"""The LightningModule of stage two: a student, an objective, and validation through pipelines.

It holds the student only. Neither the optimiser nor a checkpoint has ever seen a teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdcache.data.batch import Mapped, parse_mapping
from kdcache.data.forward import forward
from kdcache.data.join import JoinedBatch
from kdcache.errors import UsageError
from kdcache.losses import LossSum, Objective
from kdcache.train.finite import FiniteObjective, Note, non_finite_error
from kdcache.train.pipelines import RESULT, AccuracyPipeline, check_pipeline, run_pipeline
from kdcache.train.positions import check_positions
from kdcache.train.record import describe_optimizer, describe_scheduler

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
MakeScheduler = Callable[[torch.optim.Optimizer], Any]

DEFAULT_LOSSES: Mapping[str, float] = {"kd_loss": 1.0}
_TOTAL = "final_loss"


class StudentModule(pl.LightningModule):
    """Trains a student on joined batches (user batch, soft targets).

    Args:
        student: returns raw logits, as a teacher does; may return its own losses beside them, in
            a dict with "logits" and "loss" (name -> scalar).
        losses: loss name -> coefficient; see :class:`kdcache.losses.Objective`.
        temperature: T > 0 of the losses on soft targets.
        batch: which leaves of the user's batch are the student's inputs, labels and mask.
        optimizer: from parameters to an optimiser; Adam with ``learning_rate`` if None.
        scheduler: from the optimiser to a learning-rate schedule, stepped once an epoch;
            ReduceLROnPlateau looks at what ``monitor`` names.
        learning_rate: of the default optimiser.
        validation: name -> DataLoader of a validation set: the user's own batches, or joined for
            the built-in pipeline.
        pipelines: name -> inference pipeline; :class:`AccuracyPipeline` where none is given.

    Logs ``train_<loss>`` for every loss and ``train_final_loss``, and ``<set>_<number>`` for
    every number that a pipeline returns.

    Attributes:
        objective: losses, coefficients, temperature.
        record: plain values that every checkpoint holds under ``kdcache``; optimiser and
            schedule are added when they are made.
        scores: set -> numbers of its last validation.
        needs_scores: after training: whether the last validation saw other weights than these.

    Raises:
        UsageError: a loss, coefficient, temperature or pipeline is wrong.
        DataError: in training, the objective is no longer finite.
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
        chosen = DEFAULT_LOSSES if losses is None else losses
        self.objective = Objective(losses=chosen, temperature=temperature)
        self.mapping = parse_mapping(batch, "student")
        self.record: dict[str, Any] = {}
        self.scores: dict[str, dict[str, float]] = {}
        self.needs_scores = bool(validation)
        self._finite = FiniteObjective()
        self._scored: object = None
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
        for name, pipeline in given.items():
            check_pipeline(pipeline, name)
        self._pipelines = {
            name: given.get(name, AccuracyPipeline(self.mapping)) for name in self._validation
        }

    @property
    def has_validation(self) -> bool:
        """Whether there is any validation set."""
        return bool(self._validation)

    @property
    def lower_bounds(self) -> tuple[str, ...]:
        """Which of the logged scores (``<set>_<number>``) are lower bounds."""
        return tuple(
            f"{split}_{name}"
            for split, pipeline in self._pipelines.items()
            for name in sorted(getattr(pipeline, "lower_bounds", ()))
        )

    @property
    def monitor(self) -> tuple[str, str]:
        """(logged name, "min" or "max") of what tells a better checkpoint."""
        if not self._validation:
            return f"train_{_TOTAL}", "min"
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
        terms = self.objective.terms(
            output.logits,
            targets,
            output.labels,
            output.losses,
            label_problem=output.label_problem,
        )
        total = self.objective.total(terms)
        self._log_step(terms, total, len(output.num_positions))
        return total

    def _log_step(self, terms: Mapping[str, LossSum], total: Tensor, batch_size: int) -> None:
        if _TOTAL in terms:
            raise UsageError(
                f"the student returned a loss called {_TOTAL!r}, the name under which the weighted "
                "sum is logged. Return it under another name."
            )
        losses = {name: term.mean().detach() for name, term in terms.items()}
        values = {f"train_{name}": value for name, value in losses.items()}
        values[f"train_{_TOTAL}"] = total.detach()
        self.log_dict(values, on_step=True, on_epoch=True, batch_size=batch_size, sync_dist=True)
        self._finite.note(
            Note(
                epoch=self.current_epoch,
                step=self.global_step,
                total=total.detach(),
                losses=losses,
            )
        )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Look whether the objective is finite, where that costs no wait of its own."""
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        if self._finite.is_due(
            step=self.global_step,
            log_every=self.trainer.log_every_n_steps,  # type: ignore[attr-defined]
            waits=not on_cpu or self.trainer.world_size > 1,
        ):
            self._check_finite()

    def on_validation_start(self) -> None:
        """Do not score a student that is lost."""
        self._check_finite()

    def on_train_epoch_end(self) -> None:
        """Before Lightning writes checkpoints of the epoch."""
        self._check_finite()

    def _check_finite(self) -> None:
        """Raise DataError on all processes where one has a bad note: none waits for another."""
        bad = self._finite.read()
        if self.trainer.strategy.reduce_boolean_decision(bad is not None, all=False):
            raise non_finite_error(bad, self.trainer.precision)

    def val_dataloader(self) -> Any:
        """One item a validation set: whole sets are scored by their pipelines."""
        return _Names(tuple(self._validation))

    def validation_step(self, batch: str, batch_idx: int) -> None:  # noqa: ARG002
        """Score the student on one whole validation set, through its pipeline."""
        if not isinstance(batch, str):
            raise UsageError(
                "validation sets go to StudentModule(validation={name: loader}), not to the "
                "Trainer: each is scored as a whole by its inference pipeline."
            )
        results = run_pipeline(self._pipelines[batch], batch, self.student, self._validation[batch])
        self.scores[batch] = results
        self._scored = self._weights()
        values = {f"{batch}_{name}": value for name, value in results.items()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def on_train_end(self) -> None:
        """Find out whether a callback, or a last epoch, left weights that nobody has scored."""
        is_old = self.has_validation and self._scored != self._weights()
        self.needs_scores = self.trainer.strategy.reduce_boolean_decision(is_old, all=False)

    def _weights(self) -> tuple[int, list[float]]:
        """What tells weights apart: steps; and sums, since a callback may put others in place."""
        sums = [float(parameter.detach().abs().sum()) for parameter in self.student.parameters()]
        return self.global_step, sums

    def configure_optimizers(self) -> Any:
        """The given optimiser over what of the student is trainable, and its schedule."""
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        if not parameters:
            raise UsageError(
                f"the student, {type(self.student).__name__}, has no parameter that requires a "
                "gradient: there is nothing to train."
            )
        if self._make_optimizer is None:
            optimizer: torch.optim.Optimizer = torch.optim.Adam(parameters, lr=self._learning_rate)
        else:
            optimizer = self._make_optimizer(parameters)
        self.record["optimizer"] = describe_optimizer(optimizer)
        if self._make_scheduler is None:
            return optimizer
        scheduler = self._make_scheduler(optimizer)
        self.record["scheduler"] = describe_scheduler(scheduler)
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": self._on_plateau(scheduler)}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def _on_plateau(self, scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau) -> dict[str, Any]:
        name, mode = self.monitor
        if scheduler.mode != mode:
            raise UsageError(
                f"ReduceLROnPlateau looks at {name}, where {mode} is better, and was made with "
                f"mode {scheduler.mode!r}: it would lower the learning rate while the student "
                f"improves. Set scheduler.mode to {mode}."
            )
        every = self.trainer.check_val_every_n_epoch if self._validation else 1
        return {"scheduler": scheduler, "monitor": name, "frequency": every or 1}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down which cache the student was trained from, and how."""
        checkpoint["kdcache"] = {**self.record, "batch": self.mapping.describe()}


class _Names:
    """Names of validation sets, one a step.

    No DataLoader, whose items ranks would share out; and without a length, since Lightning warns
    of one that is 0.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)
