"""Where a student's logits come from, block by block, and where their gradient goes.

A block of positions is handed out as float32 numbers (float64 stays) that the caller overwrites
with d total / d logits. The memory taken is that of the gradients that are asked for, and of one
block. Nothing here has a graph, and autocast is off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Overwrite = Callable[[Tensor, slice], None]
"""(logits (n, C), which of the P positions) -> None; leaves their gradient in the logits."""

# Numbers of a block. On a CPU, 4 MB of logits about fit into the cores' L2 caches (half as many
# are as fast on one core, but threads wait for each other twice as often); products with a layer's
# weights are fast only over many positions.
_CPU_NUMBERS = {"logits": 1 << 20, "layer": 1 << 24}
_MOST_NUMBERS = 1 << 26


def blocks(
    num_positions: int, num_classes: int, device: torch.device, head: Literal["logits", "layer"]
) -> Iterator[slice]:
    """Consecutive positions, few enough for copies of their logits.

    Args:
        num_positions: P.
        num_classes: C.
        device: where the logits are.
        head: whether they are there, or made by a layer.
    """
    most = _CPU_NUMBERS[head] if device.type == "cpu" else _MOST_NUMBERS
    size = max(1, most // max(1, num_classes))
    for start in range(0, num_positions, size):
        yield slice(start, min(start + size, num_positions))


def wide(dtype: torch.dtype) -> torch.dtype:
    """What numbers of a dtype are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def through_logits(
    logits: Tensor, rows: Tensor | None, overwrite: Overwrite, *, needs_gradient: bool
) -> tuple[Tensor | None]:
    """Hand out logits that are there.

    Args:
        logits: (R, C), any float dtype.
        rows: (P,) which of them are valid positions, each once; None: all.
        overwrite: called for each block.
        needs_gradient: whether what it leaves is kept.

    Returns:
        The gradient, (R, C) in the logits' dtype, 0 in all other rows.
    """
    num_rows, num_classes = logits.shape
    num_positions = num_rows if rows is None else len(rows)
    gradient = None
    if needs_gradient:
        # Where rows are picked, the others keep a gradient of 0; otherwise every row is written.
        gradient = torch.empty_like(logits) if rows is None else torch.zeros_like(logits)
    for block in blocks(num_positions, num_classes, logits.device, "logits"):
        if rows is None and gradient is not None and logits.dtype == wide(logits.dtype):
            # The gradient's memory holds the block of logits first: no further copy.
            overwrite(gradient[block].copy_(logits[block]), block)
            continue
        picked = logits[block] if rows is None else logits.index_select(0, rows[block])
        # index_select has made a copy; a slice is the student's own memory, not to be overwritten.
        chunk = picked.to(wide(logits.dtype), copy=rows is None)
        overwrite(chunk, block)
        if gradient is not None:
            _put(gradient, rows, block, chunk)
    return (gradient,)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """How an output layer computes, beside its tensors.

    Attributes:
        dtype: of its products, as F.linear would choose it.
        scale: factor on its output.
        softcap: bound of the logits' size, or None.
    """

    dtype: torch.dtype
    scale: float
    softcap: float | None


def through_layer(
    layer: Layer,
    tensors: tuple[Tensor, Tensor, Tensor | None],
    rows: Tensor | None,
    overwrite: Overwrite,
    *,
    needs_gradient: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Hand out logits that an output layer makes of hidden states; all of them never exist.

    Args:
        layer: how it computes.
        tensors: hidden states (R, D), weight (C, D), and bias (C,) or None.
        rows: (P,) which of the hidden states are valid positions, each once; None: all.
        overwrite: called for each block.
        needs_gradient: which of the tensors do.

    Returns:
        Their gradients: (R, D) in the hidden states' dtype; (C, D) and (C,) in float32 (float64
        stays), since they are sums over blocks.
    """
    hidden, weight, bias = tensors
    num_positions = len(hidden) if rows is None else len(rows)
    summed = wide(layer.dtype)
    of_hidden, of_weight, of_bias = (
        torch.zeros_like(tensor, dtype=dtype) if needed and tensor is not None else None
        for tensor, dtype, needed in zip(
            tensors, (hidden.dtype, summed, summed), needs_gradient, strict=True
        )
    )
    weight = weight.to(layer.dtype)
    bias = None if bias is None else bias.to(layer.dtype)

    # A function of its own, so that no block is held while the next one is made.
    def one(block: slice) -> None:
        states = hidden[block] if rows is None else hidden.index_select(0, rows[block])
        states = states.to(layer.dtype)
        chunk, bend = _cap(F.linear(states, weight, bias).to(summed), layer)
        # The product wanted many positions at once; the losses want few, that stay in cache.
        for piece in blocks(len(chunk), len(weight), chunk.device, "logits"):
            overwrite(chunk[piece], slice(block.start + piece.start, block.start + piece.stop))
        if not any(needs_gradient):
            return
        if bend is not None:
            chunk.mul_(bend)
        if layer.scale != 1:
            chunk.mul_(layer.scale)
        if of_bias is not None:
            of_bias.add_(chunk.sum(dim=0))
        chunk = chunk.to(layer.dtype)
        if of_hidden is not None:
            _put(of_hidden, rows, block, chunk @ weight)
        if of_weight is not None:
            _add_product(of_weight, chunk, states)

    for block in blocks(num_positions, len(weight), hidden.device, "layer"):
        one(block)
    return of_hidden, of_weight, of_bias


def _cap(output: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
    """Logits from the layer's output, in place, and d logit / d (scale * output) if not 1."""
    if layer.scale != 1:
        output.mul_(layer.scale)
    if layer.softcap is None:
        return output, None
    output.div_(layer.softcap).tanh_()
    # d (cap * tanh(x / cap)) / dx = 1 - tanh(x / cap)**2: the cap itself cancels.
    bend = 1 - output.square()
    return output.mul_(layer.softcap), bend


def _put(into: Tensor, rows: Tensor | None, block: slice, values: Tensor) -> None:
    if rows is None:
        into[block] = values
    else:
        into.index_copy_(0, rows[block], values.to(into.dtype))


def _add_product(total: Tensor, gradient: Tensor, states: Tensor) -> None:
    """Add gradient.T @ states to a sum over blocks."""
    # addmm_ makes no (C, D) on the way, but takes numbers of one dtype only.
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.T, states)
    else:
        total += gradient.T @ states
