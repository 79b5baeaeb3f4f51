"""How imported samples become a shard: the columns of a dump, and the sums of its commit.

The sums are those of ``kdcache.dump.measurements.statistics`` that can be known without logits.
The label of a position is the token that came next. Entropy is not among them, nor what storing
has cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kdcache.codecs import TopKCodec
from kdcache.columns import FINGERPRINT, NUM_POSITIONS, Array, Column
from kdcache.data.batch.labels import MAX_NATS, label_nats
from kdcache.data.samples.fingerprint import fingerprint, token_ids
from kdcache.importers.records import Record
from kdcache.importers.rows import TopRows, top_rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One record on its way into a shard.

    Attributes:
        fingerprint: of its token ids.
        rows: of its positions.
    """

    fingerprint: int
    rows: TopRows


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How records become columns.

    Attributes:
        codec: whose columns they are.
        num_classes: C.
        shift: see :mod:`kdcache.importers.rows`.
    """

    codec: TopKCodec
    num_classes: int
    shift: int

    def columns(self) -> tuple[Column, ...]:
        """The same as a dump has that is keyed by content or number."""
        return (
            Column(name=FINGERPRINT, per="sample", dtype="uint64"),
            Column(name=NUM_POSITIONS, per="sample", dtype="int32"),
            *self.codec.columns(self.num_classes),
        )

    def position_bytes(self) -> int:
        """Decoded bytes of one position."""
        return sum(column.row_bytes for column in self.columns() if column.per == "position")

    def sample(self, record: Record) -> Sample:
        """A record's fingerprint and rows; DataError where it is no such sample."""
        rows = top_rows(record, shift=self.shift, k=self.codec.k, num_classes=self.num_classes)
        return Sample(fingerprint=fingerprint(token_ids(record.tokens)), rows=rows)

    def shard(self, samples: Sequence[Sample]) -> dict[str, Array]:
        """The columns of a shard."""
        found = {
            FINGERPRINT: np.asarray([sample.fingerprint for sample in samples], np.uint64),
            NUM_POSITIONS: np.asarray([len(sample.rows.ids) for sample in samples]),
            "ids": np.concatenate([sample.rows.ids for sample in samples]),
            "log_p": np.concatenate([sample.rows.log_p for sample in samples]),
            "tail_log_sums": np.concatenate([sample.rows.tail_log_sum for sample in samples]),
        }
        with np.errstate(over="ignore"):  # below float16's range is as good as -inf
            return {
                column.name: found[column.name].astype(column.dtype) for column in self.columns()
            }

    def statistics(self, samples: Sequence[Sample], shard: dict[str, Array]) -> dict[str, float]:
        """The sums of a shard's commit.

        ``cross_entropy_unknown`` is there where some tokens have no log-probability of their own:
        then the teacher's cross-entropy is not known, but that of the targets is.
        """
        targets = self.codec.decode(
            {column.name: torch.from_numpy(shard[column.name]) for column in self._stored()},
            torch.from_numpy(shard[NUM_POSITIONS]),
            self.num_classes,
        )
        labels = torch.from_numpy(np.concatenate([sample.rows.labels for sample in samples]))
        stored = label_nats(targets, labels)
        own = -np.concatenate([sample.rows.label_log_p for sample in samples])
        unknown = np.isnan(own)
        kept = np.concatenate([np.exp(sample.rows.log_p).sum(axis=1) for sample in samples])
        sums = {
            "positions": len(own),
            "compared": len(own),
            "kept_mass": kept.clip(max=1.0).sum(),
            "labelled": len(own),
            "correct": int((targets.top_class() == labels).sum()),
            "cross_entropy": own[~unknown].clip(min=0.0, max=MAX_NATS).sum(),
            "stored_cross_entropy": stored.sum(),
            "stored_cross_entropy_squared": stored.square().sum(),
        }
        if unknown.any():
            sums["cross_entropy_unknown"] = int(unknown.sum())
        return {name: float(value) for name, value in sums.items()}

    def _stored(self) -> tuple[Column, ...]:
        return self.codec.columns(self.num_classes)
