"""The LightningModule of stage two: a student, an objective, and validation through pipelines.

It holds the student only. Neither the optimiser nor a checkpoint has ever seen a teacher.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal, get_args

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kdcache.data.batch.forward import FlatOutput, forward
from kdcache.data.batch.mapping import Mapped
from kdcache.data.batch.output_kind import look_at_student
from kdcache.data.batch.section import parse_mapping
from kdcache.data.join.dataset import JoinedBatch
from kdcache.data.samples.order import EpochOrder
from kdcache.errors import UsageError, suggest
from kdcache.losses import LossSum, Objective
from kdcache.losses.evaluation import Reduction
from kdcache.losses.labels import STUDENT_LOSS
from kdcache.train.interruption.randomness import of_this_rank, random_states, restore_random_state
from kdcache.train.interruption.resume import (
    PLATEAU_RESUMED,
    RECORD,
    StepParts,
    align,
    check_same,
)
from kdcache.train.optimization.optimizers import (
    MakeOptimizer,
    made_optimizer,
    optimizer_maker,
    trainable,
)
from kdcache.train.optimization.schedules import MakeScheduler, Schedule, for_lightning
from kdcache.train.results.record import describe_optimizer, describe_scheduler
from kdcache.train.step.diagnostics import check_norm, differences, gradient_norm
from kdcache.train.step.finite import FiniteObjective, Note, non_finite_error
from kdcache.train.step.graph import check_graph
from kdcache.train.step.hidden import HiddenHead
from kdcache.train.step.logged import TOTAL, num_averaged, step_losses
from kdcache.train.step.positions import check_positions
from kdcache.train.step.step_counts import StepCounter, num_parts
from kdcache.train.step.windows import WindowBatch, WindowLoader, Windows, check_sampler
from kdcache.train.trainer_options import check_precision
from kdcache.train.validation.sets import Names, Validation
from kdcache.weights import plain_state, state_for

log = logging.getLogger(__name__)

DEFAULT_LOSSES: Mapping[str, float] = {"kd_loss": 1.0}
Head = Literal["logits", "hidden"]
_STATE = "kdcache_state"


class StudentModule(pl.LightningModule):
    """Trains a student on joined batches (user batch, soft targets).

    Args:
        student: returns raw logits, as a teacher does; may return its own losses beside them, in
            a dict with "logits" and "loss" (name -> scalar). Where it is in eval mode as a whole,
            it is put into training mode.
        losses: loss name -> coefficient; see :class:`kdcache.losses.Objective`.
        temperature: T > 0 of the losses on soft targets.
        batch: which entries of a batch are the student's inputs, labels and mask.
        reduction: how divergences are averaged, over positions or per sample; see
            :data:`kdcache.losses.evaluation.Reduction`.
        optimizer: from parameters to an optimiser; or a name, see
            :data:`kdcache.train.optimization.optimizers.OPTIMIZERS`; Adam if None.
        scheduler: from the optimiser to a schedule, stepped once an epoch (ReduceLROnPlateau looks
            at what ``monitor`` names); a name of
            :data:`kdcache.train.optimization.schedules.SCHEDULES`; or a ``Schedule`` of that
            module, which may be stepped at every step.
        learning_rate: of an optimiser that is named, or None.
        head: what the losses begin with: ``logits``, or ``hidden`` states and the output layer, so
            that all logits of a batch never exist at once; see :mod:`kdcache.train.step.hidden`.
        validation: name -> DataLoader of a validation set: the user's own batches, or joined for
            a built-in pipeline; or a :class:`~kdcache.train.validation.sets.ValidationSet` of both.
        pipelines: name -> inference pipeline, or the name of a built-in one, see
            :data:`kdcache.train.pipelines.PIPELINES`; accuracy where none is given.
        grad_norm: p of the norm of the gradient that is logged; None: none is.
        monitor: what tells better checkpoints: ``train_<loss>``, or ``<set>_inference_result``;
            None: the first set's, ``train_final_loss`` without validation.

    Logs ``train_<loss>`` for every loss and ``train_final_loss``, ``train_logit_diff`` and
    ``train_prob_diff`` (:func:`kdcache.train.step.diagnostics.differences`) and
    ``grad_<p>_norm_total`` at every step that is logged, and ``<set>_<number>`` for every number
    that a pipeline returns.

    Attributes:
        objective: losses, coefficients, temperature.
        record: plain values that every checkpoint holds under ``kdcache``; optimiser and
            schedule are added when they are made.
        validation: the sets, their pipelines, the latest scores.
        needs_scores: after training: whether the last validation saw other weights than these.
        learning_rate: of a named optimiser; where it is set to another value, as Lightning's
            ``LearningRateFinder`` does, of all parameters of any optimiser.

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
        reduction: Reduction = "position_mean",
        optimizer: str | MakeOptimizer | None = None,
        scheduler: str | MakeScheduler | Schedule | None = None,
        learning_rate: float = 1e-3,
        head: Head = "logits",
        validation: Mapping[str, Any] | None = None,
        pipelines: Mapping[str, Any] | None = None,
        grad_norm: float | None = 2.0,
        monitor: str | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        if not student.training:  # as models come from a checkpoint of transformers
            student.train()
        chosen = DEFAULT_LOSSES if losses is None else losses
        self.objective = Objective(losses=chosen, temperature=temperature, reduction=reduction)
        self.mapping = parse_mapping(batch, "student").bound(student)
        self.record: dict[str, Any] = {}
        self.needs_scores = bool(validation)
        if head not in get_args(Head):
            raise UsageError(f"there is no head {head!r}. {suggest(str(head), get_args(Head))}")
        self._hidden = HiddenHead(student) if head == "hidden" else None
        self._counter = StepCounter(needs_labels=bool(self.objective.losses.get(STUDENT_LOSS)))
        self._order: EpochOrder | None = None
        self._loader: WindowLoader | None = None
        self._random: Mapping[str, Any] | None = None
        self._resumed: Mapping[str, Any] = {}
        self._finite = FiniteObjective()
        self._monitor = monitor
        self._grad_norm = check_norm(grad_norm)
        self._scored: object = None
        self._has_looked = False
        self._make_optimizer = optimizer_maker(optimizer, learning_rate)
        self.learning_rate = self._given_rate = self._made_with = learning_rate
        self._schedule = Schedule.of(scheduler)
        self.validation = Validation(
            validation or {}, pipelines or {}, batch=self.mapping, temperature=temperature
        )
        if monitor is not None and not monitor.startswith("train_"):
            self.validation.check_result(monitor)

    @property
    def has_validation(self) -> bool:
        """Whether there is any validation set."""
        return bool(self.validation)

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Set -> numbers of its last validation."""
        return self.validation.scores

    @property
    def lower_bounds(self) -> tuple[str, ...]:
        """Which of the logged scores (``<set>_<number>``) are lower bounds."""
        return self.validation.lower_bounds

    @property
    def monitor(self) -> tuple[str, str]:
        """(logged name, "min" or "max") of what tells a better checkpoint."""
        results = self.validation.results
        name = self._monitor or next(iter(results), f"train_{TOTAL}")
        return name, results.get(name, "min")

    def windowed(self, loader: DataLoader[Any]) -> WindowLoader:
        """The same loader, looking one accumulation window ahead: what a Trainer is to be given.

        With it a step's gradient is that of all its micro-batches as one batch, however unevenly
        positions and labels are spread over them.
        """
        windows = Windows(done=self._done, size=self._window, mapping=lambda: self.mapping)
        found = WindowLoader.like(loader, windows)
        self._order, self._loader = found.order, found
        return found

    def _done(self) -> int:
        """Batches before a pass: a checkpoint from within an epoch goes on with what is left."""
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def _window(self, taken: int) -> int:
        """Micro-batches of the next optimiser step, the epoch's last one perhaps a shorter one."""
        size = self.trainer.accumulate_grad_batches
        return int(max(0, min(size - taken % size, self.trainer.num_training_batches - taken)))

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Forget a checkpoint that an earlier training, or a learning-rate finder, has loaded."""
        self._resumed, self._random = {}, None

    def on_fit_start(self) -> None:
        """Say the same order of samples on all ranks; refuse a precision that rounds targets."""
        if self.learning_rate != self._made_with:  # a finder was here: schedules begin with it
            self._resumed = {}  # of the finder's own checkpoint
            self.trainer.strategy.setup_optimizers(self.trainer)
        if self._order is not None:
            self._order.seeded(self.trainer.strategy.broadcast(torch.initial_seed()))
        elif self.trainer.world_size > 1 and self._loader is not None:
            check_sampler(self._loader)
        check_precision(str(self.trainer.precision))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
        """The objective on one batch: a scalar with a graph, 0 where no position is valid."""
        window = batch if isinstance(batch, WindowBatch) else None
        given = batch if window is None else window.batch
        user_batch, targets = (
            (given.batch, given.targets) if isinstance(given, JoinedBatch) else (given, None)
        )
        output = forward(self._hidden or self.student, self.mapping, user_batch)
        if output.mapping.note != self.mapping.note and self.trainer.is_global_zero:
            log.info("the student %s", output.mapping.note)
        self.mapping = output.mapping
        self._has_looked = self._has_looked or look_at_student(output)
        if targets is not None:
            check_positions(output, targets)
        evaluation = self.objective.evaluate(
            output.all_logits,
            targets,
            output.labels,
            output.losses,
            rows=output.rows,
            counts=self._counter(self.trainer, window, output),
            label_problem=output.label_problem,
        )
        check_graph(evaluation.total, output, self.objective)
        self._log_step(evaluation.terms, window, output)
        if self._is_logged():
            found = differences(output, targets, self.objective.temperature)
            values = {f"train_{name}": value for name, value in found.items()}
            self.log_dict(values, batch_size=output.num_rows, sync_dist=True)
        # Lightning divides by the micro-batches of a full window, the strategy by the ranks; the
        # counts have done both.
        return evaluation.total * num_parts(self.trainer)

    def _log_step(
        self, terms: Mapping[str, LossSum], window: WindowBatch | None, output: FlatOutput
    ) -> None:
        losses = step_losses(terms, self.objective, self._monitor)
        for name, value in losses.items():
            counted = num_averaged(
                name,
                self.objective,
                rows=output.num_rows,
                samples=len(output.num_positions),
                labelled=None if window is None else window.labelled,
            )
            self.log(
                f"train_{name}",
                value,
                on_step=True,
                on_epoch=True,
                batch_size=counted,
                sync_dist=True,
            )
        self._finite.note(
            Note(
                epoch=self.current_epoch,
                step=self.global_step,
                total=losses.pop(TOTAL),
                losses=losses,
            )
        )

    def _is_logged(self) -> bool:
        """Whether values of the current step reach a logger."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool(every) and (self.global_step + 1) % every == 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: ARG002
        """Log the gradient's norm, before it is clipped."""
        if self._grad_norm is not None and self._is_logged():
            norm = gradient_norm(self.student.parameters(), self._grad_norm)
            self.log(f"grad_{self._grad_norm}_norm_total", norm)

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
        self.validation.begin(self.trainer, self.student)

    def on_train_epoch_end(self) -> None:
        """Before Lightning writes checkpoints of the epoch."""
        self._check_finite()

    def _check_finite(self) -> None:
        """Raise DataError on all processes where one has a bad note: none waits for another."""
        bad = self._finite.read()
        if self.trainer.strategy.reduce_boolean_decision(bad is not None, all=False):
            raise non_finite_error(bad, self.trainer.precision)

    def val_dataloader(self) -> Names:
        """One item a validation set: whole sets are scored by their pipelines."""
        return self.validation.names(self.trainer)

    def validation_step(self, batch: str | None, batch_idx: int) -> None:  # noqa: ARG002
        """Score the student on one whole validation set, through its pipeline."""
        self.validation.score(batch, self.student)

    def on_validation_epoch_end(self) -> None:
        """Log the scores of all sets, whichever rank has scored them."""
        values = self.validation.finish(self.student)
        self._scored = self._weights()
        # The largest of equal values, where their mean over ranks would be rounded.
        self.log_dict(values, on_epoch=True, batch_size=1, sync_dist=True, reduce_fx="max")

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
        rate = None if self.learning_rate == self._given_rate else self.learning_rate
        optimizer = made_optimizer(self._make_optimizer, trainable(self.student), rate)
        self.record |= {"optimizer": describe_optimizer(optimizer), "found_learning_rate": rate}
        self._made_with = self.learning_rate
        check_same("optimizer", self._resumed.get("optimizer"), self.record["optimizer"])
        if self._schedule is None:
            check_same("scheduler", self._resumed.get("scheduler"), None)
            return optimizer
        scheduler = self._schedule.made(optimizer, self.trainer)
        self.record["scheduler"] = describe_scheduler(scheduler)
        check_same("scheduler", self._resumed.get("scheduler"), self.record["scheduler"])
        if self._resumed and isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            log.warning(PLATEAU_RESUMED)
        every = self.trainer.check_val_every_n_epoch if self.has_validation else 1
        found = for_lightning(
            scheduler, self._schedule.interval, monitor=self.monitor, every=every or 1
        )
        return {"optimizer": optimizer, "lr_scheduler": found}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down the cache, how it is trained, what is random; weights without wrappers."""
        checkpoint["state_dict"] = plain_state(self, checkpoint["state_dict"])
        checkpoint[RECORD] = {**self.record, "batch": self.mapping.describe()}
        seed = None if self._order is None else self._order.order_seed
        checkpoint[_STATE] = {
            "order_seed": seed,
            "random": random_states(),
            "parts": self._parts()._asdict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the order of samples and the random numbers of an interrupted training."""
        if "state_dict" in checkpoint:
            checkpoint["state_dict"] = state_for(self, checkpoint["state_dict"])
        state = checkpoint.get(_STATE, {})
        self._resumed = checkpoint.get(RECORD, {}) if "loops" in checkpoint else {}
        self._random = of_this_rank(state["random"]) if "random" in state else None
        if self._order is not None and state.get("order_seed") is not None:
            self._order.order_seed = state["order_seed"]
        if "loops" in checkpoint:
            progress = checkpoint["loops"]["fit_loop"]
            is_ordered = self._order is not None
            align(progress, self._parts(), before=state.get("parts"), is_ordered=is_ordered)

    def _parts(self) -> StepParts:
        trainer = self.trainer
        return StepParts(batches=trainer.accumulate_grad_batches, ranks=trainer.world_size)

    def on_train_start(self) -> None:
        """From here on random numbers are drawn as they would have been."""
        if self._random is not None:
            restore_random_state(self._random)
            self._random = None
