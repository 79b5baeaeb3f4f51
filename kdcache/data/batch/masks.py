"""Which positions count: masks that a batch holds, and the shift of causal models.

A causal model's logits at position t predict token t + 1. What a batch says of tokens (labels,
masks, segments) is moved here to the positions that predict them, all of it together, so that the
rest of the package only knows positions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kdcache.data.batch.leaves import Path, describe, leaf
from kdcache.errors import DataError, UsageError
from kdcache.losses.labels import IGNORE_INDEX

LABELLED = "labelled"
PREDICTED = "predicted:"
FUNCTION = "function:"
OUTPUT = "output:"

MaskSource = Path | Callable[[Any], Tensor]
"""Where a mask comes from.

A path: a leaf of the batch, nonzero where there is a token (or a position). ``labelled``: where the
label is not the ignore index. ``predicted:<path>``: a leaf that says which tokens are to be
predicted (causal models only). ``function:<class path>``, or in Python the function itself: from
the batch to a mask. ``output:<path>``: a leaf of what the model returned, of the positions' shape.
"""


def is_mask_source(source: object) -> bool:
    """Whether a value can say where a mask comes from."""
    if isinstance(source, bool) or source in (PREDICTED, FUNCTION, OUTPUT):
        return False
    return isinstance(source, int | str) or callable(source)


def import_function(path: str) -> Callable[[Any], Any]:
    """A function of the user's own by its class path; UsageError where there is none."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"batch: {path!r} cannot be imported ({error}). Give a function's class path, such as "
            "my_module.my_function."
        ) from error
    if not callable(found):
        raise UsageError(f"batch: {path!r} is {describe(found)}, not callable. Name a function.")
    return found  # type: ignore[no-any-return]


def describe_source(source: MaskSource) -> str:
    """Stable text for the manifest."""
    if isinstance(source, int | str):
        return str(source)
    name = getattr(source, "__qualname__", type(source).__qualname__)
    return f"{FUNCTION}{source.__module__}.{name}"


def output_paths(sources: Sequence[MaskSource]) -> tuple[str, ...]:
    """The paths of the masks in the model's output, where any is asked for."""
    names = [source for source in sources if isinstance(source, str)]
    return tuple(name.removeprefix(OUTPUT) for name in names if name.startswith(OUTPUT))


def next_tokens(values: Tensor, fill: int) -> Tensor:
    """What (B, L) says of token t + 1 at every t; ``fill`` at the last, which predicts nothing."""
    moved = torch.full_like(values, fill)
    moved[:, :-1] = values[:, 1:]
    return moved


def with_ignored(labels: Any, ignore_index: int) -> Any:
    """Labels in which one more number marks a position without a label.

    Args:
        labels: of the batch, of any kind; only whole numbers can be equal to a number.
        ignore_index: the number.

    Returns:
        int64 labels with -100 there, whichever integer type they had (uint8 holds no -100).
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        return labels
    labels = labels.long()
    return labels.masked_fill(labels == ignore_index, IGNORE_INDEX)


def shifted_labels(labels: Any) -> Tensor:
    """Labels (B, L) of tokens at the positions that predict them.

    Raises:
        DataError: there is not one whole number for each token of a batch of sequences.
    """
    if not isinstance(labels, Tensor) or labels.dim() != 2 or labels.is_floating_point():
        what = (
            f"{labels.dtype} of shape {tuple(labels.shape)}"
            if isinstance(labels, Tensor)
            else (describe(labels))
        )
        raise DataError(
            f"batch.causal moves labels by one token: it takes whole numbers (B, L), and these are "
            f"{what}. Correct the labels (batch.labels), or leave batch.causal out."
        )
    return next_tokens(labels.long(), IGNORE_INDEX)  # uint8 holds no -100


def batch_mask(
    sources: Sequence[MaskSource],
    batch: Any,
    labels: Tensor | None,
    *,
    causal: bool,
    real: Tensor | None = None,
    segments: Tensor | None = None,
    like: Tensor | None = None,
) -> Tensor | None:
    """The mask over positions that a batch alone tells; None where all of them count.

    Args:
        sources: all of them have to agree that a position counts.
        batch: the user's.
        labels: of the positions (already shifted), or None.
        causal: whether masks are of tokens, and move to the positions that predict them.
        real: (B, L) attention mask among the model's inputs: under ``causal`` a position whose own
            token is padding never counts.
        segments: (B, L) numbers of packed sequences: no position predicts another one's token.
        like: (B, L, ...) anything of the tokens' shape, where nothing else tells it.

    Raises:
        DataError: a mask is no tensor, or there are no labels to take one from.
    """
    masks = [
        found
        for source in sources
        if (found := _mask(source, batch, labels, causal=causal)) is not None
    ]
    if causal:
        masks += _causal_parts(real, segments)
        if not masks:
            masks = _all_but_last(labels if labels is not None else like)
    if not masks:
        return None
    shapes = {tuple(mask.shape) for mask in masks}
    if len(shapes) > 1:
        raise DataError(
            f"the masks of a batch have different shapes: {', '.join(map(str, sorted(shapes)))}. "
            "Each says of every position whether it counts (batch.mask, batch.segments)."
        )
    first, *others = masks
    for mask in others:
        first = first.bool() & mask.bool()
    return first


def _mask(source: MaskSource, batch: Any, labels: Tensor | None, *, causal: bool) -> Tensor | None:
    if isinstance(source, str) and source.startswith(OUTPUT):
        return None
    if source == LABELLED:
        if labels is None:
            raise DataError(
                "batch.mask says 'labelled', and the batch has no labels. Say where they are "
                "(batch.labels), or name another mask."
            )
        return labels.long() != IGNORE_INDEX  # 156, in uint8
    is_predicted = isinstance(source, str) and source.startswith(PREDICTED)
    if isinstance(source, int | str):
        path = source.removeprefix(PREDICTED) if isinstance(source, str) else source
        name, mask = f"batch.mask {source!r}", leaf(batch, path, "batch.mask")
    else:
        name, mask = f"batch.mask {describe_source(source)}", source(batch)
    if not isinstance(mask, Tensor):
        raise DataError(f"{name} is {describe(mask)}, not a tensor.")
    if mask.is_floating_point() and mask.device.type == "cpu" and bool((mask < 0).any()):
        raise DataError(
            f"{name} has negative numbers, as masks have that are added to scores. Name one that "
            "is nonzero where a position counts."
        )
    if not causal:
        return mask
    _check_tokens(mask, name)
    following = next_tokens(mask, 0).bool()
    return following if is_predicted else mask.bool() & following


def _causal_parts(real: Tensor | None, segments: Tensor | None) -> list[Tensor]:
    parts = []
    if real is not None:
        parts.append(real.bool() & next_tokens(real, 0).bool())
    if segments is not None:
        _check_tokens(segments, "batch.segments")
        # Compared before the shift's fill, which may be some segment's number.
        same = torch.zeros_like(segments, dtype=torch.bool)
        same[:, :-1] = segments[:, 1:] == segments[:, :-1]
        parts.append(same)
    return parts


def _all_but_last(like: Tensor | None) -> list[Tensor]:
    if like is None:
        raise DataError(
            "batch.causal needs to know where sequences end: name labels, a mask, or an input of "
            "token ids (B, L) (batch.labels, batch.mask, batch.inputs)."
        )
    mask = torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
    mask[:, -1:] = False
    return [mask]


def _check_tokens(values: object, name: str) -> None:
    if not isinstance(values, Tensor):
        raise DataError(f"{name} is {describe(values)}; of a causal model's tokens it is (B, L).")
    if values.dim() != 2:
        raise DataError(
            f"{name} has the shape {tuple(values.shape)}; of a causal model's tokens it is (B, L)."
        )
