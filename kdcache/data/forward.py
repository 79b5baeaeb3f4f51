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
from kdcache.data.labels import flat_labels
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
    """

    logits: Tensor
    labels: Tensor | None
    num_positions: Tensor
    losses: Mapping[str, Tensor | float]
    mapping: Mapped


def forward(model: Callable[..., Any], mapping: Mapped, batch: Any) -> FlatOutput:
    """Run a model on the inputs that the mapping finds in a batch.

    Args:
        model: called with the inputs; see :func:`kdcache.outputs.read_output` for what it may
            return.
        mapping: where inputs, labels and mask are.
        batch: the user's batch, on the model's device.
    """
    mapping = mapping.resolve(batch)
    selected = mapping.select(batch)
    output = read_output(selected.call(model), mapping.class_dim)
    mapping, mask = mapping.fit_to(output.logits, selected)
    num_positions = count_positions(output.logits, mask)  # checks the mask's shape
    return FlatOutput(
        logits=flatten_positions(output.logits, mask, trailing=1),
        labels=flat_labels(selected.labels, output.logits.shape[:-1], mask),
        num_positions=num_positions,
        losses=output.losses,
        mapping=mapping,
    )
