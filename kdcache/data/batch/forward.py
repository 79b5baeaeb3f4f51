"""One forward pass of a model over a user's batch, flat over its positions.

The same function serves the teacher in stage one and the student in stage two, so that both count
the same positions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdcache.data.batch.labels import check_class_axis, flat_labels, label_problem
from kdcache.data.batch.leaves import describe, leaf
from kdcache.data.batch.mapping import Mapped
from kdcache.data.batch.masks import OUTPUT
from kdcache.errors import DataError
from kdcache.outputs import DeferredLogits, Logits, count_positions, read_output


@dataclass(frozen=True, kw_only=True, eq=False)
class FlatOutput:
    """A model's output for one batch.

    Attributes:
        all_logits: (R, C) raw, in the model's dtype: a row for every position, valid or not.
        rows: (P,) int64, the rows that are valid positions, sample after sample; None: all are.
        labels: (P,) int64, or None where there are none of the positions' shape.
        num_positions: (B,) int64.
        losses: the losses that the model returned itself.
        mapping: the batch mapping, with everything that was inferred filled in.
        chosen: which of several returned values the logits are, in words; empty where one was.
        label_problem: why there are no labels although the batch has some; empty otherwise.
    """

    all_logits: Logits
    rows: Tensor | None
    labels: Tensor | None
    num_positions: Tensor
    losses: Mapping[str, Tensor | float]
    mapping: Mapped
    chosen: str = ""
    label_problem: str = ""

    @property
    def num_rows(self) -> int:
        """P, read from a shape: no wait for a GPU."""
        return self.all_logits.shape[0] if self.rows is None else len(self.rows)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.all_logits.shape[-1]

    @functools.cached_property
    def logits(self) -> Tensor:
        """Logits of the valid positions, (P, C)."""
        return self._logits(slice(None))

    def chunks(self, size: int) -> Iterator[tuple[slice, Tensor]]:
        """Logits of the valid positions, at most ``size`` at a time: (which positions, (p, C))."""
        for start in range(0, self.num_rows, size):
            part = slice(start, min(start + size, self.num_rows))
            yield part, self._logits(part)

    def by_sample(self) -> Iterator[Tensor]:
        """Logits of each sample's valid positions, (P_i, C); waits for the device."""
        start = 0
        for number in self.num_positions.tolist():
            yield self._logits(slice(start, start + number))
            start += number

    def _logits(self, part: slice) -> Tensor:
        source = self.all_logits
        at: Any = part if self.rows is None else self.rows[part]
        if isinstance(source, DeferredLogits):
            return dataclasses.replace(source, hidden=source.hidden[at]).logits()
        return source[at]

    def widened(self) -> FlatOutput:
        """The same in float32, the valid positions alone."""
        return dataclasses.replace(self, all_logits=self.logits.float(), rows=None)


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
    mapping = mapping.bound(model).resolve(batch)
    selected = mapping.select(batch)
    returned = mapping.with_decoder_inputs(selected).call(model)
    output = read_output(returned, mapping.class_dim, mapping.num_classes, mapping.output)
    shape = output.logits.shape[:-1]
    mapping, mask = mapping.fit_to(shape, selected)
    for path in mapping.output_masks:
        mask = _with_output_mask(returned, path, mask)
    check_class_axis(selected.labels, output.logits.shape)
    num_positions = count_positions(output.logits, mask)  # checks the mask's shape
    labels = flat_labels(selected.labels, shape, mask)
    return FlatOutput(
        all_logits=_flat(output.logits),
        rows=None if mask is None else mask.reshape(-1).nonzero().squeeze(-1),
        labels=labels,
        num_positions=num_positions,
        losses=output.losses,
        chosen=output.chosen,
        mapping=mapping,
        label_problem=label_problem(selected.labels, shape) if labels is None else "",
    )


def _flat(logits: Logits) -> Logits:
    if isinstance(logits, DeferredLogits):
        hidden = logits.hidden
        return dataclasses.replace(logits, hidden=hidden.reshape(-1, hidden.shape[-1]))
    return logits.reshape(-1, logits.shape[-1])


def _with_output_mask(returned: Any, path: str, mask: Tensor | None) -> Tensor:
    """The mask that a model returned, and where there is another, only where both agree."""
    found = leaf(returned, path, f"batch.mask {OUTPUT}")
    if not isinstance(found, Tensor):
        raise DataError(
            f"batch.mask {OUTPUT}{path} is {describe(found)} of the model's output, not a tensor."
        )
    if mask is None:
        return found
    if mask.shape != found.shape:
        raise DataError(
            f"the model returned a mask of shape {tuple(found.shape)} ({OUTPUT}{path}), and there "
            f"is one of {tuple(mask.shape)} (batch.mask). Both say which positions count."
        )
    return found.bool() & mask.bool()
