"""All logits of a position, in float32, float16 or bfloat16.

The 16-bit forms store z - max(z) and max(z) apart: near the largest logits, which carry the
probability, the numbers are small and therefore precise (at a common offset of 60, raw bfloat16
costs a KL of 2.3e-3, this form 2.4e-5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from kdcache.codecs.protocol import FixedCodec
from kdcache.columns import Column
from kdcache.errors import DataError, UsageError, suggest
from kdcache.targets import DenseTargets

DType = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class DenseCodec(FixedCodec):
    """Every logit of every position.

    Attributes:
        dtype: ``float32`` is lossless; ``float16`` keeps 11 bits of z - max(z), ``bfloat16`` 8.
    """

    name: ClassVar[str] = "dense"
    dtype: DType = "float16"

    def __post_init__(self) -> None:
        if self.dtype not in get_args(DType):
            raise UsageError(
                f"the dense codec has no dtype {self.dtype!r}. "
                f"{suggest(str(self.dtype), get_args(DType))}"
            )

    def settings(self) -> Mapping[str, Any]:
        """``{"dtype": ...}``."""
        return {"dtype": self.dtype}

    def columns(self, num_classes: int) -> tuple[Column, ...]:
        """``values`` (C,) per position, and ``offset`` for the 16-bit forms."""
        stored = "uint16" if self.dtype == "bfloat16" else self.dtype
        values = Column(name="values", per="position", dtype=stored, shape=(num_classes,))
        if self.dtype == "float32":
            return (values,)
        return values, Column(name="offset", per="position", dtype="float32")

    def encode(self, logits: Tensor, draws: Tensor) -> Mapping[str, Tensor]:  # noqa: ARG002
        """See :class:`~kdcache.codecs.protocol.Codec`."""
        logits = logits.float()
        if self.dtype == "float32":
            return {"values": logits}
        offset = logits.amax(dim=-1)
        centred = logits - offset.unsqueeze(-1)
        values = centred.to(getattr(torch, self.dtype))
        # -inf is a mask and stays one; a finite number that overflows would become one.
        if bool((values.isinf() & ~centred.isinf()).any()):
            raise DataError(
                f"logits spread over {-centred[centred.isfinite()].min():.0f} do not fit into "
                f"{self.dtype}. Dump with targets.dtype bfloat16 or float32."
            )
        return {
            # Zarr v3 has no bfloat16 in its specification: its bits travel as uint16.
            "values": values.view(torch.uint16) if self.dtype == "bfloat16" else values,
            "offset": offset,
        }

    def decode(
        self, columns: Mapping[str, Tensor], num_positions: Tensor, num_classes: int
    ) -> DenseTargets:
        """See :class:`~kdcache.codecs.protocol.Codec`."""
        values = columns["values"]
        return DenseTargets(
            values=values.view(torch.bfloat16) if self.dtype == "bfloat16" else values,
            offset=columns.get("offset"),
            num_positions=num_positions,
            num_classes=num_classes,
        )

    def check_temperature(self, temperature: float) -> None:
        """All temperatures can be served."""
