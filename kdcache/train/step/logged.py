"""Which values of a training step are logged, and what an epoch's mean of each is taken over."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kdcache.errors import UsageError, suggest
from kdcache.losses import LossSum, Objective
from kdcache.losses.evaluation import is_per_sample
from kdcache.losses.labels import STUDENT_LOSS
from kdcache.train.step.diagnostics import DIFFERENCES

TOTAL = "final_loss"


def step_losses(
    terms: Mapping[str, LossSum], objective: Objective, monitor: str | None
) -> dict[str, Tensor]:
    """The mean of every loss of a step, and their weighted sum as ``final_loss``.

    Args:
        terms: loss name -> its sum and count, the student's own losses among them.
        objective: names the coefficients.
        monitor: the logged name that tells better checkpoints, if one is asked for.

    Returns:
        Loss name -> scalar, ``final_loss`` last.

    Raises:
        UsageError: the student returned a loss under a name that is taken, or ``monitor`` names a
            training loss that there is not.
    """
    taken = next((name for name in (TOTAL, *DIFFERENCES) if name in terms), None)
    if taken is not None:
        raise UsageError(
            f"the student returned a loss called {taken!r}, a name under which something else "
            "is logged. Return it under another name."
        )
    losses = {name: term.mean() for name, term in terms.items()}
    monitored = (monitor or "").removeprefix("train_")
    if (monitor or "").startswith("train_") and monitored not in (*losses, TOTAL):
        raise UsageError(f"monitor: no loss {monitored!r}. {suggest(monitored, losses)}")
    # Of means, as they are logged; what is minimised is divided by the counts of the whole step.
    weighted = [c * losses[name] for name, c in objective.losses.items() if c]
    return {**losses, TOTAL: torch.stack(weighted).sum()}


def num_averaged(
    name: str, objective: Objective, *, rows: int, samples: int, labelled: int | None
) -> int:
    """What an epoch's mean of a loss weighs a step with: its positions, labels or samples.

    Args:
        name: of the loss.
        objective: says whether the loss is averaged over samples.
        rows: valid positions of the batch.
        samples: of the batch.
        labelled: positions with a label, where that is known.
    """
    if is_per_sample(name, objective.reduction):
        return samples
    if name == STUDENT_LOSS and labelled is not None:
        return labelled
    return rows
