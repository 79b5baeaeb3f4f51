"""What a column is: one homogeneous thing, stored per sample, per position or per entry.

Value types only. Codecs say which columns they make, the store writes and reads them; neither
needs to know the other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import UsageError

Array = NDArray[Any]
Per = Literal["sample", "position", "entry"]

NUM_POSITIONS = "num_positions"
NUM_ENTRIES = "num_entries"
FINGERPRINT = "fingerprint"
KEY = "key"
RESERVED = frozenset({NUM_POSITIONS, FINGERPRINT, KEY})
"""Columns that the dump and the join own; a codec's columns have other names."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9_-])?")
DTYPES = frozenset(
    {"uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"}
    | {"float16", "float32", "float64"}
)
_MAX_COMPONENTS = 1 << 22
_TAKEN = frozenset({"zarr.json"})


def is_name(text: str) -> bool:
    """Whether a split, column or table may be called so: one path component, no tricks."""
    return _NAME.fullmatch(text) is not None and ".." not in text and text.casefold() not in _TAKEN


@dataclass(frozen=True, kw_only=True)
class Column:
    """One stored column.

    Attributes:
        name: the Zarr array's name.
        per: what one row belongs to: a sample, a position, or an entry of a position.
        dtype: NumPy name of the stored numbers (bfloat16 goes in as uint16).
        shape: shape of one row; () for a scalar.
    """

    name: str
    per: Per
    dtype: str
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise UsageError(f"a column cannot be called {self.name!r}.")
        if self.per not in get_args(Per):
            raise UsageError(f"column {self.name!r} is per {self.per!r}, not {get_args(Per)}.")
        if self.dtype not in DTYPES:
            raise UsageError(f"column {self.name!r} cannot hold {self.dtype!r}.")
        if any(size < 1 for size in self.shape) or math.prod(self.shape) > _MAX_COMPONENTS:
            raise UsageError(f"column {self.name!r} cannot have rows of shape {self.shape}.")

    @property
    def row_bytes(self) -> int:
        """Decoded bytes of one row."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def check_rows(self, rows: Array, num_rows: int) -> None:
        """Raise UsageError unless ``rows`` is exactly (num_rows, *shape) of this dtype."""
        wanted = (num_rows, *self.shape)
        if rows.shape != wanted or rows.dtype != np.dtype(self.dtype):
            raise UsageError(
                f"column {self.name!r} takes {self.dtype} rows of shape {wanted}, not "
                f"{rows.dtype} of shape {rows.shape}: the codec's columns() and encode() disagree."
            )

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {
            "name": self.name,
            "per": self.per,
            "dtype": self.dtype,
            "shape": list(self.shape),
        }


def check_columns(columns: Sequence[Column]) -> None:
    """Raise UsageError unless the columns fit together: unique names, counts where needed."""
    by_name = {column.name: column for column in columns}
    # Some file systems do not tell "Ids" from "ids".
    if len({name.casefold() for name in by_name}) != len(columns):
        raise UsageError(f"two columns have the same name: {[c.name for c in columns]}.")
    needed: Mapping[str, Per] = {NUM_POSITIONS: "sample"}
    if any(column.per == "entry" for column in columns):
        needed = {**needed, NUM_ENTRIES: "position"}
    for name, per in needed.items():
        count = by_name.get(name)
        if count is None or count.per != per or count.dtype != "int32" or count.shape != ():
            raise UsageError(f"columns per position or entry need an int32 {name!r} per {per}.")


def num_rows(column: Column, columns: Mapping[str, Array], num_samples: int) -> int:
    """How many rows a column has, from the counts stored beside it."""
    if column.per == "sample":
        return num_samples
    counts = columns[NUM_POSITIONS if column.per == "position" else NUM_ENTRIES]
    return int(counts.sum(dtype=np.int64))
