"""What the losses of one optimiser step are divided by, over its micro-batches and ranks."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor

from kdcache.data.batch.forward import FlatOutput
from kdcache.errors import UsageError
from kdcache.losses import StepCounts
from kdcache.losses.labels import IGNORE_INDEX, STUDENT_LOSS
from kdcache.train.step.windows import WindowBatch


class StepCounter:
    """Adds up counts once a step; one small sum over ranks, where there are several.

    Args:
        needs_labels: whether labelled positions divide a loss of the objective.
    """

    def __init__(self, *, needs_labels: bool) -> None:
        self._needs_labels = needs_labels
        self._counts: Tensor | None = None

    def __call__(
        self, trainer: pl.Trainer, window: WindowBatch | None, output: FlatOutput
    ) -> StepCounts | None:
        """The counts of the step that a micro-batch belongs to; None where it is all of it.

        Args:
            trainer: says how many batches and ranks a step has.
            window: the micro-batch with its window's counts, where the loader looks ahead.
            output: of the student on it.

        Raises:
            UsageError: batches are accumulated, and their counts are not known ahead; or another
                number of them than was looked ahead for.
        """
        if num_parts(trainer) == 1:
            return None
        if trainer.accumulate_grad_batches == 1:
            self._counts = _over_ranks(trainer, _own(output))
        elif window is None:
            raise UsageError(
                f"Lightning adds up {trainer.accumulate_grad_batches} batches a step, and how many "
                "positions they have together has to be known before the first. Give the Trainer "
                "module.windowed(loader)."
            )
        # Lightning steps by its own count of batches: a window that begins elsewhere would divide
        # by what another step has.
        elif self._counts is not None and window.is_first != _begins_step(trainer):
            raise UsageError(
                f"Lightning adds up {trainer.accumulate_grad_batches} batches a step, and the "
                "loader had looked ahead for another number when the epoch began. Give the Trainer "
                "accumulate_grad_batches itself what the first epoch adds up."
            )
        elif window.is_first or self._counts is None:
            is_used = output.labels is not None and STUDENT_LOSS not in output.losses
            if self._needs_labels and is_used and not window.is_known:
                raise UsageError(
                    "the labels of a batch cannot be counted before the model has run (its output "
                    "decides which positions count), so batches cannot be accumulated exactly. "
                    "Give the batch a mask (batch.mask), or leave trainer.accumulate_grad_batches."
                )
            # Once a step and not once a batch: all micro-batches of a window share its counts, and
            # all ranks meet here together.
            self._counts = _over_ranks(trainer, window.window.to(output.num_positions.device))
        # Tensors, not numbers: they divide the losses on the device, and nothing waits for them.
        positions, labelled, samples, batches = self._counts.unbind()
        return StepCounts(positions=positions, labelled=labelled, samples=samples, batches=batches)


def _begins_step(trainer: pl.Trainer) -> bool:
    """Whether the current batch is the first of an optimiser step."""
    return trainer.fit_loop.batch_idx % trainer.accumulate_grad_batches == 0


def num_parts(trainer: pl.Trainer) -> int:
    """Micro-batches of a full window, times ranks: what Lightning and the strategy divide by."""
    return int(trainer.accumulate_grad_batches * trainer.world_size)


def _own(output: FlatOutput) -> Tensor:
    """(4,) int64: positions, labels, samples and batches of one batch, without a wait."""
    device = output.num_positions.device
    known = 0 if output.labels is None else (output.labels != IGNORE_INDEX).sum()
    counts = (output.num_rows, known, len(output.num_positions), 1)
    return torch.stack([torch.as_tensor(n, dtype=torch.int64, device=device) for n in counts])


def _over_ranks(trainer: pl.Trainer, counts: Tensor) -> Tensor:
    total = trainer.strategy.reduce(counts, reduce_op="sum")
    return torch.as_tensor(total)
