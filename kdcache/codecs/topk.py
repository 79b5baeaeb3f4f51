"""The k most probable classes of a position, and the exact mass of all others together.

A truncated distribution alone is no target: its tail at a temperature T needs the sum of
p**(1/T) over the classes left out, which is not recoverable later and is therefore stored for
every declared temperature, computed over the complement in float32.

Encoding goes through blocks of positions: a few copies of (P, C) logits at C = 128k would be
gigabytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from kdcache.codecs.protocol import FixedCodec
from kdcache.columns import Column
from kdcache.errors import CacheCorruptedError, UsageError, suggest
from kdcache.targets import TopKTargets, check_temperature

DType = Literal["float16", "float32"]

# Numbers of a block: its copies stay in a CPU's cache, or are small beside a GPU's memory.
_BLOCK_NUMBERS = {"cpu": 1 << 19}
_MOST_NUMBERS = 1 << 26
_MOST_SQUARES = 3


def _id_dtype(num_classes: int) -> str:
    """The narrowest unsigned type that holds every class number."""
    widths = {"uint8": 1 << 8, "uint16": 1 << 16}
    return next((name for name, size in widths.items() if num_classes <= size), "int32")


def _blocks(num_positions: int, num_classes: int, device: torch.device) -> Iterator[slice]:
    """Consecutive positions, few enough for temporary copies of their logits.

    Never one alone where there are more: PyTorch's threads then share the sum over its classes,
    and its last bit would depend on how positions are cut.
    """
    most = _BLOCK_NUMBERS.get(device.type, _MOST_NUMBERS)
    count = max(1, num_positions // max(2, most // num_classes))
    ends = [num_positions * block // count for block in range(count + 1)]
    return itertools.starmap(slice, itertools.pairwise(ends))


def _log_sums(log_p: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Log of the sum of p**(1/T) for every T, (n, S); -inf where no class is left.

    Relative to the largest p, so that a small tail does not vanish. The exponentials are most of
    the work at a vocabulary's width: those at T / 2 are the squares of those at T, of which at
    most three follow one another, since each doubles the rounding of the last.

    Args:
        log_p: (n, C), -inf for a class that does not count. Overwritten.
        temperatures: the S temperatures, in any order.
    """
    # Clamped for K = C, where all are -inf, and -inf - -inf would be NaN.
    top = log_p.amax(dim=-1, keepdim=True).clamp_(min=torch.finfo(log_p.dtype).min)
    relative = log_p.sub_(top)
    sums: dict[float, Tensor] = {}
    powers, at, squared = relative, math.inf, 0
    for temperature in sorted(set(temperatures), reverse=True):
        squared += 1
        if at == 2 * temperature and squared <= _MOST_SQUARES:
            powers.square_()
        else:
            powers, squared = (relative / temperature).exp_(), 0
        at = temperature
        sums[at] = powers.sum(dim=-1).log() + top.squeeze(-1) / at
    return torch.stack([sums[t] for t in temperatures], dim=-1)


@dataclass(frozen=True, kw_only=True)
class TopKCodec(FixedCodec):
    """The K largest log-probabilities, ids, tail sums and perhaps offset.

    Attributes:
        k: classes kept per position (all of them where there are fewer).
        dtype: of the stored log-probabilities.
        temperatures: the temperatures that students may train at.
        offset: keep the log of the sum of exp(logit), which makes logits of log-probabilities
            again; False where only those are known, or 4 bytes a position are too many.
    """

    name: ClassVar[str] = "topk"
    k: int = 32
    dtype: DType = "float16"
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    offset: bool = True

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
        if type(self.offset) is not bool:
            raise UsageError(f"the topk codec's offset is true or false, not {self.offset!r}.")

    def settings(self) -> Mapping[str, Any]:
        """``{"k": ..., "dtype": ..., "temperatures": [...]}``; ``"offset"`` if it is not kept."""
        kept = {"k": self.k, "dtype": self.dtype, "temperatures": list(self.temperatures)}
        return kept if self.offset else {**kept, "offset": False}

    def columns(self, num_classes: int) -> tuple[Column, ...]:
        """``ids`` and ``log_p`` (K,), ``tail_log_sums`` (S,) and ``offset``, per position."""
        kept = (min(self.k, num_classes),)
        sums = (len(self.temperatures),)
        columns = (
            Column(name="ids", per="position", dtype=_id_dtype(num_classes), shape=kept),
            Column(name="log_p", per="position", dtype=self.dtype, shape=kept),
            Column(name="tail_log_sums", per="position", dtype="float32", shape=sums),
        )
        offset = (Column(name="offset", per="position", dtype="float32"),)
        return (*columns, *offset) if self.offset else columns

    def encode(self, logits: Tensor, draws: Tensor) -> Mapping[str, Tensor]:  # noqa: ARG002
        """See :class:`~kdcache.codecs.protocol.Codec`."""
        num_positions, num_classes = logits.shape
        made = {
            column.name: torch.empty(
                (num_positions, *column.shape),
                dtype=getattr(torch, column.dtype),
                device=logits.device,
            )
            for column in self.columns(num_classes)
        }
        for rows in _blocks(num_positions, num_classes, logits.device):
            for name, values in self._encode_block(logits[rows].float()).items():
                made[name][rows] = values
        return made

    def _encode_block(self, logits: Tensor) -> Mapping[str, Tensor]:
        """Columns of a few positions, in the types that they are computed in."""
        # Not logits - offset: at a common offset of 1e4 that would cost log_p its last digits.
        tail = logits.log_softmax(dim=-1)
        log_p, ids = tail.topk(min(self.k, logits.shape[-1]), dim=-1)
        # The tail is the others' own sum: 1 - sum(kept) of stored float16 would err by 1.6 %.
        tail.scatter_(-1, ids, -torch.inf)
        made = {"ids": ids, "log_p": log_p, "tail_log_sums": _log_sums(tail, self.temperatures)}
        if self.offset:
            # At the largest class, which no mask hides and whose log_p is rounded least.
            made["offset"] = logits.gather(-1, ids[:, :1]).squeeze(-1) - log_p[:, 0]
        return made

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
            offset=columns.get("offset"),
            temperatures=self.temperatures,
            num_positions=num_positions,
            num_classes=num_classes,
        )

    def check_temperature(self, temperature: float) -> None:
        """Only the declared temperatures can be served."""
        check_temperature(temperature, self.temperatures)
