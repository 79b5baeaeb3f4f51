"""What a codec is: logits to columns of fixed dtype, and back to soft targets. No files here.

A codec is a frozen value with a name and settings; both stand in the cache's manifest, which is
the only place that stage two learns them from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from torch import Tensor

from kdcache.columns import Array, Column
from kdcache.targets import SoftTargets


@runtime_checkable
class Codec(Protocol):
    """Logits to columns and back.

    ``encode`` runs in stage one on the device that holds the logits; ``decode`` in stage two.
    Columns are per position, or per entry of a position: then ``num_entries`` (per position,
    int32) is one of the codec's columns. Reserved names: see ``kdcache.columns.RESERVED``.
    """

    name: ClassVar[str]
    """Name in the manifest: a built-in's short name, or the class path of your own codec."""

    num_pilot_samples: ClassVar[int]
    """Samples that ``fit`` wants to see, drawn uniformly over the dataset; 0: nothing to fit."""

    def settings(self) -> Mapping[str, Any]:
        """JSON values from which the constructor makes an equal codec (tables apart)."""
        ...

    def columns(self, num_classes: int) -> tuple[Column, ...]:
        """The columns that ``encode`` makes for C classes."""
        ...

    def fit(self, logits: Tensor) -> Self:
        """A codec fitted to pilot logits (P, C) drawn uniformly over the dataset.

        Returns ``self`` where there is nothing to fit.
        """
        ...

    def tables(self) -> Mapping[str, Array]:
        """Arrays that fitted codecs need to decode; stored once per cache."""
        ...

    def with_tables(self, tables: Mapping[str, Array]) -> Self:
        """The codec with the tables that a cache holds."""
        ...

    def encode(self, logits: Tensor, draws: Tensor) -> Mapping[str, Tensor]:
        """Encode flat logits.

        Args:
            logits: (P, C) float, raw (temperature 1), finite or -inf.
            draws: (P, 2) int64, sample key and position within the sample: the identity under
                which a sampled codec seeds its draws.

        Returns:
            Column name -> rows, in the columns' dtypes.

        Raises:
            DataError: a value that the codec cannot hold.
        """
        ...

    def decode(
        self, columns: Mapping[str, Tensor], num_positions: Tensor, num_classes: int
    ) -> SoftTargets:
        """Soft targets from stored columns; cheap, the widening is left to the losses."""
        ...

    def check_temperature(self, temperature: float) -> None:
        """Raise UnsupportedTargetsError where there can be no targets at temperature T."""
        ...


class FixedCodec:
    """The parts of the protocol that are empty for a codec without tables."""

    num_pilot_samples: ClassVar[int] = 0

    def fit(self, logits: Tensor) -> Self:  # noqa: ARG002
        """Nothing to fit."""
        return self

    def tables(self) -> Mapping[str, Array]:
        """No tables."""
        return {}

    def with_tables(self, tables: Mapping[str, Array]) -> Self:  # noqa: ARG002
        """No tables."""
        return self
