"""Whether an objective can teach anything: its gradient reaches the student."""

from __future__ import annotations

from torch import Tensor

from kdcache.data.batch.forward import FlatOutput
from kdcache.errors import DataError
from kdcache.losses import Objective


def check_graph(total: Tensor, output: FlatOutput, objective: Objective) -> None:
    """Raise DataError for an objective without a graph, which no optimiser could lower.

    Args:
        total: what is minimised.
        output: the student's.
        objective: of which it is the value.
    """
    if total.requires_grad:
        return
    names = [name for name, coefficient in objective.losses.items() if coefficient]
    detached = [name for name in names if name in output.losses]
    if detached == names:
        raise DataError(
            f"nothing can be trained: the only losses with a coefficient, {', '.join(names)}, are "
            "those that the student returned, and they have no graph. It computes them detached "
            "(.detach(), .item(), torch.no_grad()): return them as they are, or give a coefficient "
            "to a loss that kdcache computes."
        )
    raise DataError(
        "nothing can be trained: the student's output has no graph that leads to its parameters. "
        "Either its forward returns it detached (.detach(), .data, .numpy(), torch.no_grad(), "
        "argmax), or its parameters were frozen (requires_grad) after the training began, perhaps "
        "by a pipeline or a callback. No optimiser step was made with it."
    )
