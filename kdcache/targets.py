"""What the losses are handed: soft targets as value types, flat over the valid positions.

They hold the packed columns as they were stored and widen on the device that asks, so a batch
travels small. One type for each kind of target; a codec's ``decode`` makes them.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from kdcache.errors import UnsupportedTargetsError


@dataclass(frozen=True, kw_only=True, eq=False)
class SoftTargets(ABC):
    """What every kind of soft target has.

    Attributes:
        num_positions: (B,) integer, valid positions of each sample; rows of all other tensors
            are these positions, sample after sample, (P, ...) with P = num_positions.sum().
        num_classes: C.
    """

    num_positions: Tensor
    num_classes: int

    @abstractmethod
    def num_rows(self) -> int:
        """P, read from a shape: no wait for a GPU."""

    @abstractmethod
    def top_class(self) -> Tensor:
        """The teacher's most probable class of every position, (P,) int64."""

    @abstractmethod
    def label_log_p(self, labels: Tensor) -> Tensor:
        """The teacher's log-probability of a class per position, at temperature 1.

        Args:
            labels: (P,) int64; a negative one stands for no label and gives any number.

        Returns:
            (P,) float32; where the class was not kept, its share of the tail.
        """

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        tensors: dict[str, Any] = {
            item.name: change(value)
            for item in dataclasses.fields(self)
            if isinstance(value := getattr(self, item.name), Tensor)
        }
        return dataclasses.replace(self, **tensors)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same targets on another device; from pinned memory to a GPU never with a wait.

        Lightning asks for ``non_blocking`` where it moves tensors, and not here: every step would
        wait until the device has done all before it.
        """
        to_gpu = torch.device(device).type == "cuda"
        return self._map(
            lambda tensor: tensor.to(
                device, non_blocking=non_blocking or (to_gpu and tensor.is_pinned())
            )
        )

    def pin_memory(self) -> Self:
        """The same targets in page-locked memory (called by a DataLoader that pins)."""
        return self._map(Tensor.pin_memory)


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseTargets(SoftTargets):
    """All C logits of every position.

    Attributes:
        values: (P, C), any float dtype; raw logits, or logits minus ``offset``.
        offset: (P,) float32 to add back, or None where ``values`` are raw.
    """

    values: Tensor
    offset: Tensor | None = None

    def logits(self) -> Tensor:
        """The teacher's raw logits (temperature 1), (P, C) float32."""
        values = self.values.float()
        return values if self.offset is None else values + self.offset.unsqueeze(-1)

    def num_rows(self) -> int:
        """See :class:`SoftTargets`."""
        return len(self.values)

    def top_class(self) -> Tensor:
        """See :class:`SoftTargets`."""
        return self.values.argmax(dim=-1)

    def label_log_p(self, labels: Tensor) -> Tensor:
        """See :class:`SoftTargets`."""
        log_p = self.values.float().log_softmax(dim=-1)
        return log_p.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class TopKTargets(SoftTargets):
    """The K largest log-probabilities of every position, and what is left of the others.

    Attributes:
        ids: (P, K) class numbers, any integer dtype, descending probability.
        log_p: (P, K) log-probabilities at temperature 1, any float dtype.
        tail_log_sums: (P, S) float32, log of the sum of p**(1/T) over the classes that are not
            kept, for each declared temperature; -inf where K = C.
        temperatures: the S declared temperatures.
        offset: (P,) float32, log of the sum of exp(logit): raw logit = log_p + offset. None where
            only log-probabilities are known.
    """

    ids: Tensor
    log_p: Tensor
    tail_log_sums: Tensor
    temperatures: tuple[float, ...]
    offset: Tensor | None = None

    def bucket_log_p(self, temperature: float) -> Tensor:
        """Log-probabilities of the kept classes and, last, of all others together.

        Args:
            temperature: T, one of ``temperatures`` (any T where K = C).

        Returns:
            (P, K + 1) float32, normalised, at temperature T.

        Raises:
            UnsupportedTargetsError: the tail at this T was not stored, and cannot be derived.
        """
        # Divided as log-probabilities: exp(log_p / T) is p**(1 / T), which the tail's sum is of
        # too.
        kept = self.log_p.float() / temperature
        if self.ids.shape[-1] == self.num_classes:
            tail = kept.new_full((len(kept), 1), -torch.inf)
        else:
            check_temperature(temperature, self.temperatures)
            tail = self.tail_log_sums[:, self.temperatures.index(temperature), None]
        # Normalised here, so that the rounding of stored values leaves a distribution.
        return torch.cat([kept, tail], dim=-1).log_softmax(dim=-1)

    def num_rows(self) -> int:
        """See :class:`SoftTargets`."""
        return len(self.ids)

    def top_class(self) -> Tensor:
        """See :class:`SoftTargets`."""
        return self.ids[:, 0].long()

    def label_log_p(self, labels: Tensor) -> Tensor:
        """See :class:`SoftTargets`."""
        log_p = self.log_p.float()
        is_label = self.ids.long() == labels.unsqueeze(-1)
        kept = torch.where(is_label, log_p, -torch.inf).amax(dim=-1)
        if 1.0 in self.temperatures:
            tail = self.tail_log_sums[:, self.temperatures.index(1.0)]
        else:  # from what is kept, whose rounding may be more than a small tail
            tail = (1 - log_p.exp().sum(dim=-1)).clamp(min=1e-8).log()
        # The tail's classes are not told apart: each has an equal share of it.
        left = max(1, self.num_classes - log_p.shape[-1])
        return torch.where(is_label.any(dim=-1), kept, tail - math.log(left))


_Targets = TypeVar("_Targets", bound=SoftTargets)


def rows_of(targets: _Targets, rows: slice) -> _Targets:
    """The targets of consecutive positions; ``num_positions`` stays that of the whole.

    Targets of a user's own kind cannot be cut: they come back whole.
    """
    if not isinstance(targets, DenseTargets | TopKTargets):
        return targets
    parts: dict[str, Any] = {
        item.name: value[rows]
        for item in dataclasses.fields(targets)
        if item.name != "num_positions" and isinstance(value := getattr(targets, item.name), Tensor)
    }
    return dataclasses.replace(targets, **parts)


def check_temperature(temperature: float, declared: tuple[float, ...]) -> None:
    """Raise UnsupportedTargetsError unless T is among the declared temperatures."""
    if temperature not in declared:
        raise UnsupportedTargetsError(
            f"this cache cannot give targets at temperature {temperature:g}: it holds the top k, "
            "and the total of all other classes at temperature "
            f"{', '.join(f'{t:g}' for t in declared)} only. Train at one of these, or dump again "
            f"with targets.temperatures including {temperature:g}."
        )
