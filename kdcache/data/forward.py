"""One forward pass of a model over a user's batch, flat over its valid positions.

The same function serves the teacher in stage one and the student in stage two, so that both count
the same positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdcache.data.batch import Mapped
from kdcache.data.labels import check_class_axis, flat_labels, label_problem
from kdcache.outputs import count_positions, flatten_positions, read_output


@dataclass(frozen=True, kw_only=True, eq=False)
class FlatOutput:
    """A model's output for one batch.

    Attributes:
        logits: (P, C) raw, in the model's dtype.
        labels: (P,) int64, or None where there are none of the positions' shape.
        num_positions: (B,) int64.
        losses: the losses that the model returned itself.
        mapping: the batch mapping, with everything that was inferred filled in.
        label_problem: why there are no labels although the batch has some; empty otherwise.
    """

    logits: Tensor
    labels: Tensor | None
    num_positions: Tensor
    losses: Mapping[str, Tensor | float]
    mapping: Mapped
    label_problem: str = ""


def forward(model: Callable[..., Any], mapping: Mapped, batch: Any) -> FlatOutput:
    """Run a model on the inputs that the mapping finds in a batch.

    Args:
        model: called with the inputs; see :func:`kdcache.outputs.read_output` for what it may
            return.
        mapping: where inputs, labels and mask are.
        batch: the user's batch, on the model's device.

    Raises:
        DataError: there is one class, or another axis than the last holds them.
    """
    mapping = mapping.resolve(batch)
    selected = mapping.select(batch)
    output = read_output(selected.call(model), mapping.class_dim)
    mapping, mask = mapping.fit_to(output.logits, selected)
    check_class_axis(selected.labels, output.logits)
    num_positions = count_positions(output.logits, mask)  # checks the mask's shape
    shape = output.logits.shape[:-1]
    labels = flat_labels(selected.labels, shape, mask)
    return FlatOutput(
        logits=flatten_positions(output.logits, mask, trailing=1),
        labels=labels,
        num_positions=num_positions,
        losses=output.losses,
        mapping=mapping,
        label_problem=label_problem(selected.labels, shape) if labels is None else "",
    )
