"""The k most probable classes of a position, and the exact mass of all others together.

A truncated distribution alone is no target: its tail at a temperature T needs the sum of
p**(1/T) over the classes left out, which is not recoverable later and is therefore stored for
every declared temperature, computed over the complement in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from kdcache.codecs.protocol import FixedCodec
from kdcache.columns import Column
from kdcache.errors import CacheCorruptedError, UsageError, suggest
from kdcache.targets import TopKTargets, check_temperature

DType = Literal["float16", "float32"]


def _id_dtype(num_classes: int) -> str:
    """The narrowest unsigned type that holds every class number."""
    widths = {"uint8": 1 << 8, "uint16": 1 << 16}
    return next((name for name, size in widths.items() if num_classes <= size), "int32")


@dataclass(frozen=True, kw_only=True)
class TopKCodec(FixedCodec):
    """The K largest log-probabilities, ids, tail sums and offset.

    Attributes:
        k: classes kept per position (all of them where there are fewer).
        dtype: of the stored log-probabilities.
        temperatures: the temperatures that students may train at.
    """

    name: ClassVar[str] = "topk"
    k: int = 32
    dtype: DType = "float16"
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperatures", tuple(float(t) for t in self.temperatures))
        if type(self.k) is not int or self.k < 1:
            raise UsageError(f"the topk codec keeps at least one class: k is {self.k!r}.")
        if self.dtype not in get_args(DType):
            raise UsageError(
                f"the topk codec has no dtype {self.dtype!r}. "
                f"{suggest(str(self.dtype), get_args(DType))}"
            )
        if not self.temperatures or not all(0 < t < float("inf") for t in self.temperatures):
            raise UsageError(f"temperatures are positive numbers, not {self.temperatures}.")

    def settings(self) -> Mapping[str, Any]:
        """``{"k": ..., "dtype": ..., "temperatures": [...]}``."""
        return {"k": self.k, "dtype": self.dtype, "temperatures": list(self.temperatures)}

    def columns(self, num_classes: int) -> tuple[Column, ...]:
        """``ids`` and ``log_p`` (K,), ``tail_log_sums`` (S,) and ``offset``, per position."""
        kept = (min(self.k, num_classes),)
        sums = (len(self.temperatures),)
        return (
            Column(name="ids", per="position", dtype=_id_dtype(num_classes), shape=kept),
            Column(name="log_p", per="position", dtype=self.dtype, shape=kept),
            Column(name="tail_log_sums", per="position", dtype="float32", shape=sums),
            Column(name="offset", per="position", dtype="float32"),
        )

    def encode(self, logits: Tensor, draws: Tensor) -> Mapping[str, Tensor]:  # noqa: ARG002
        """See :class:`~kdcache.codecs.protocol.Codec`."""
        logits = logits.float()
        num_classes = logits.shape[-1]
        offset = logits.logsumexp(dim=-1)
        # Not logits - offset: at a common offset of 1e4 that would cost log_p its last digits.
        log_p = logits.log_softmax(dim=-1)
        kept, ids = log_p.topk(min(self.k, num_classes), dim=-1)
        tail = log_p.scatter(-1, ids, -torch.inf)
        sums = torch.stack([(tail / t).logsumexp(dim=-1) for t in self.temperatures], dim=-1)
        return {
            "ids": ids.to(getattr(torch, _id_dtype(num_classes))),
            "log_p": kept.to(getattr(torch, self.dtype)),
            "tail_log_sums": sums,
            "offset": offset,
        }

    def decode(
        self, columns: Mapping[str, Tensor], num_positions: Tensor, num_classes: int
    ) -> TopKTargets:
        """See :class:`~kdcache.codecs.protocol.Codec`."""
        ids = columns["ids"]
        if ids.device.type == "cpu" and ids.numel():  # on a device it would have to be waited for
            wide = ids.long()
            if not (wide.min() >= 0 and wide.max() < num_classes):
                raise CacheCorruptedError(
                    f"a kept class is not among the {num_classes:,} of the cache: its column 'ids' "
                    "is not what a top-k codec writes. Dump again."
                )
        return TopKTargets(
            ids=ids,
            log_p=columns["log_p"],
            tail_log_sums=columns["tail_log_sums"],
            offset=columns["offset"],
            temperatures=self.temperatures,
            num_positions=num_positions,
            num_classes=num_classes,
        )

    def check_temperature(self, temperature: float) -> None:
        """Only the declared temperatures can be served."""
        check_temperature(temperature, self.temperatures)
