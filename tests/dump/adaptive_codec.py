"""A codec of a user's own, as adaptive as the protocol allows.

Entries vary per position, a table is fitted from a pilot, and one number per position is drawn
at random, seeded by the draws that the dump hands over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from kdcache.columns import NUM_ENTRIES, Array, Column
from kdcache.targets import SoftTargets


@dataclass(frozen=True, kw_only=True, eq=False)
class AdaptiveTargets(SoftTargets):
    """The classes above a threshold, most probable first.

    Attributes:
        num_entries: (P,) classes kept of each position, at least 1.
        ids: (E,) their numbers.
        log_p: (E,) float32 their log-probabilities.
        coin: (P,) int64, what was drawn.
    """

    num_entries: Tensor
    ids: Tensor
    log_p: Tensor
    coin: Tensor

    def num_rows(self) -> int:
        return len(self.num_entries)

    def top_class(self) -> Tensor:
        first = self.num_entries.long().cumsum(0) - self.num_entries
        return self.ids.long()[first]

    def dense_log_p(self) -> Tensor:
        """(P, C), -inf for what was not kept."""
        dense = torch.full((self.num_rows(), self.num_classes), -torch.inf)
        owners = torch.arange(self.num_rows()).repeat_interleave(self.num_entries.long())
        dense[owners, self.ids.long()] = self.log_p
        return dense

    def label_log_p(self, labels: Tensor) -> Tensor:
        return self.dense_log_p().gather(-1, labels.clamp(min=0)[:, None]).squeeze(-1)


def toss(draws: Tensor) -> Tensor:
    """One number of 0 to 996 per position, from the identity of its draws alone."""
    return (draws[:, 0] * 31 + draws[:, 1] * 17 + 5).remainder(997)


@dataclass(frozen=True, kw_only=True, eq=False)
class AdaptiveCodec:
    """Keeps classes with p >= threshold; log-probabilities minus the pilot's mean of the class."""

    name: ClassVar[str] = "tests.dump.adaptive_codec.AdaptiveCodec"
    num_pilot_samples: ClassVar[int] = 12
    threshold: float = 0.15
    means: Tensor = field(default_factory=lambda: torch.zeros(0))

    def settings(self) -> Mapping[str, Any]:
        return {"threshold": self.threshold}

    def columns(self, num_classes: int) -> tuple[Column, ...]:
        return (
            Column(name=NUM_ENTRIES, per="position", dtype="int32"),
            Column(name="coin", per="position", dtype="uint16"),
            Column(name="ids", per="entry", dtype="uint16"),
            Column(name="residual", per="entry", dtype="float32"),
        )

    def fit(self, logits: Tensor) -> AdaptiveCodec:
        return dataclasses.replace(self, means=logits.log_softmax(-1).mean(0))

    def tables(self) -> Mapping[str, Array]:
        return {"means": self.means.numpy()}

    def with_tables(self, tables: Mapping[str, Array]) -> AdaptiveCodec:
        return dataclasses.replace(self, means=torch.from_numpy(np.array(tables["means"])))

    def encode(self, logits: Tensor, draws: Tensor) -> Mapping[str, Tensor]:
        log_p, ids = logits.log_softmax(-1).sort(-1, descending=True)
        kept = log_p.exp() >= self.threshold
        kept[:, 0] = True
        return {
            NUM_ENTRIES: kept.sum(-1).to(torch.int32),
            "coin": toss(draws).to(torch.uint16),
            "ids": ids[kept].to(torch.uint16),
            "residual": (log_p - self.means[ids])[kept],
        }

    def decode(
        self, columns: Mapping[str, Tensor], num_positions: Tensor, num_classes: int
    ) -> AdaptiveTargets:
        ids = columns["ids"].long()
        return AdaptiveTargets(
            num_positions=num_positions,
            num_classes=num_classes,
            num_entries=columns[NUM_ENTRIES],
            ids=ids,
            log_p=columns["residual"] + self.means[ids],
            coin=columns["coin"].long(),
        )

    def check_temperature(self, temperature: float) -> None:
        assert temperature == 1.0
