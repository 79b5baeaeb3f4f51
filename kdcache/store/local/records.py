"""Flat tables of records: all columns of a sample side by side, taken at random in one step.

Three tables at most (samples, positions, entries), each a NumPy array of records in memory or
mapped from a file; where the rows of the table below begin is stored in each record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdcache.columns import NUM_ENTRIES, NUM_POSITIONS, Array, Column, Per
from kdcache.errors import CacheCorruptedError

TABLES: tuple[Per, ...] = ("sample", "position", "entry")
Tables = dict[Per, Array]
_FIRST = "__first"
_MAX_RECORD_BYTES = 64 << 20


@dataclass(frozen=True)
class RecordTypes:
    """NumPy record types of the three tables; a table without columns has no bytes.

    Where every sample has equally many positions (and there are no entries) the columns per
    position are folded into the sample's record, unless that would be empty or huge.

    Attributes:
        tables: per -> record type.
        num_positions: positions of every sample, or None where samples differ.
    """

    tables: Mapping[Per, np.dtype[Any]]
    num_positions: int | None

    @classmethod
    def of(cls, columns: Sequence[Column], num_positions: Array) -> RecordTypes:
        """Types for a view's columns, given every sample's number of positions."""
        by_per: dict[Per, list[tuple[Any, ...]]] = {"sample": [], "position": [], "entry": []}
        for column in columns:
            by_per[column.per].append((column.name, column.dtype, column.shape))
        first = int(num_positions[0])
        kept = [item for item in by_per["sample"] if item[0] != NUM_POSITIONS]
        record_bytes = sum(
            column.row_bytes * (first if column.per == "position" else 1)
            for column in columns
            if column.name != NUM_POSITIONS
        )
        uniform = bool((num_positions == first).all()) and not by_per["entry"]
        if uniform and 0 < record_bytes <= _MAX_RECORD_BYTES:
            folded = [(name, dtype, (first, *shape)) for name, dtype, shape in by_per["position"]]
            tables: Mapping[Per, list[tuple[Any, ...]]] = {"sample": kept + folded}
            return cls({per: np.dtype(tables.get(per, [])) for per in TABLES}, first)
        if by_per["position"]:
            by_per["sample"].append((_FIRST, "int64", ()))
        if by_per["entry"]:
            by_per["position"].append((_FIRST, "int64", ()))
        return cls({per: np.dtype(by_per[per]) for per in TABLES}, None)

    def allocate(
        self, rows: Mapping[Per, int], make: Callable[[Per, np.dtype[Any], int], Array]
    ) -> Tables:
        """All three tables from ``make(per, dtype, rows)``; those without columns stay empty."""
        return {
            per: make(per, dtype, rows[per]) if dtype.itemsize and rows[per] else np.zeros(0, dtype)
            for per, dtype in self.tables.items()
        }

    def num_bytes(self, rows: Mapping[Per, int]) -> int:
        """Bytes of all tables together."""
        return sum(rows[per] * dtype.itemsize for per, dtype in self.tables.items())


class RecordWriter:
    """Fills the tables shard by shard, in order."""

    def __init__(self, columns: Sequence[Column], types: RecordTypes, tables: Tables) -> None:
        self._columns = columns
        self._types = types
        self._tables = tables
        self._done: dict[Per, int] = dict.fromkeys(TABLES, 0)

    def append(self, columns: Mapping[str, Array]) -> None:
        """Add the decoded columns of the next shard."""
        num_samples = len(columns[NUM_POSITIONS])
        if self._types.num_positions is None:
            self._append_separate(columns)
        else:
            samples = slice(self._done["sample"], self._done["sample"] + num_samples)
            record = self._types.tables["sample"]
            for name in record.names or ():
                rows = columns[name].reshape(num_samples, *record[name].shape)
                self._tables["sample"][name][samples] = rows
        self._done["sample"] += num_samples

    def _append_separate(self, columns: Mapping[str, Array]) -> None:
        # Where this shard begins in each table, before any of them grows by it.
        first = dict(self._done)
        for column in self._columns:
            rows = columns[column.name]
            stop = first[column.per] + len(rows)
            self._tables[column.per][column.name][first[column.per] : stop] = rows
            if column.per != "sample":
                self._done[column.per] = stop
        if self._types.tables["position"].names:
            self._number("sample", first["sample"], columns[NUM_POSITIONS], first["position"])
        if self._types.tables["entry"].names:
            self._number("position", first["position"], columns[NUM_ENTRIES], first["entry"])

    def _number(self, per: Per, start: int, counts: Array, first: int) -> None:
        """Store where each record's rows begin in the table below."""
        counts = counts.astype(np.int64)
        starts = first + np.cumsum(counts) - counts
        self._tables[per][_FIRST][start : start + len(counts)] = starts


def take_records(
    columns: Sequence[Column], types: RecordTypes, tables: Tables, samples: Array
) -> dict[str, Array]:
    """Rows of some samples; see :meth:`kdcache.store.LocalCopy.take`."""
    records = tables["sample"].take(samples)
    rows = {name: records[name] for name in records.dtype.names or () if name != _FIRST}
    if types.num_positions is not None:
        rows[NUM_POSITIONS] = np.full(len(records), types.num_positions, np.int32)
        for column in columns:
            if column.per == "position":
                rows[column.name] = rows[column.name].reshape(-1, *column.shape)
    elif types.tables["position"].names:
        rows |= _below(tables["position"], records[_FIRST], rows[NUM_POSITIONS])
        first = rows.pop(_FIRST, None)
        if first is not None:
            rows |= _below(tables["entry"], first, rows[NUM_ENTRIES])
    return {name: _apart(array) for name, array in rows.items()}


def _apart(array: Array) -> Array:
    """Rows with strides of their own: one row counts as contiguous with those of its record."""
    return np.ascontiguousarray(array) if len(array) > 1 else array.copy()


def _below(table: Array, first: Array, counts: Array) -> dict[str, Array]:
    """Records first[i] to first[i] + counts[i] of a table, for all i, flat."""
    counts = counts.astype(np.int64)
    # Checked before any memory is asked for: a flipped bit in a mapped file can say anything.
    if counts.size and not (min(counts.min(), first.min()) >= 0 and _fits(table, first, counts)):
        raise CacheCorruptedError(
            "the local copy of the cache is damaged: a sample's rows lie outside of its table. "
            "kdcache verify CACHE --local-copy names the copy; remove it, it is made again."
        )
    before = np.cumsum(counts) - counts
    wanted = np.arange(int(counts.sum())) + np.repeat(first - before, counts)
    records = table.take(wanted)
    return {name: records[name] for name in records.dtype.names or ()}


def _fits(table: Array, first: Array, counts: Array) -> bool:
    return bool((first <= len(table) - counts).all())
