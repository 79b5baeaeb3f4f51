"""What a batch says of itself by convention, where nobody says it: names, places, values.

Everything that is guessed about a batch is guessed here, and nothing that was said is replaced.
What cannot be told for certain is refused, with the setting that says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdcache.data.leaves import Path, describe
from kdcache.errors import DataError
from kdcache.losses.labels import IGNORE_INDEX

_MODEL_INPUTS = frozenset(
    {"input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds"}
    | {"pixel_values", "pixel_mask", "input_values", "input_features", "decoder_input_ids"}
)
_LABELS = ("labels", "label", "label_ids")
_MASK = "attention_mask"
_DECODER = "decoder_input_ids"

# So many labels repeat the input in no other task by chance, such as tokens that were masked.
_FEW = 8


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Where the parts of a batch are.

    Attributes:
        inputs: paths of positional inputs, or name -> path; empty: the batch itself is the input,
            since a bare tensor has no path.
        labels: path of the labels, or None.
        mask: path of a mask that may be one of the positions, or None.
    """

    inputs: tuple[Path, ...] | Mapping[str, Path]
    labels: Path | None = None
    mask: Path | None = None


def find_parts(batch: Any) -> Parts:
    """Inputs, labels and mask of a batch by its structure and names.

    Args:
        batch: (x, y), (x,), x, or a mapping with Hugging Face names.

    Raises:
        DataError: its structure does not tell.
    """
    if isinstance(batch, Tensor):
        return Parts(inputs=())
    if isinstance(batch, Mapping):
        return _by_name(batch)
    if isinstance(batch, tuple | list) and len(batch) in (1, 2):
        return Parts(inputs=(0,), labels=1 if len(batch) == 2 else None)
    raise DataError(
        f"cannot tell which parts of {describe(batch)} are model inputs. Say so: "
        "batch: {inputs: [0, 1], labels: 2}, or batch: {inputs: all} for model(*batch)."
    )


def _by_name(batch: Mapping[str, Any]) -> Parts:
    labels = next((name for name in _LABELS if name in batch), None)
    names = [name for name in batch if name in _MODEL_INPUTS]
    unknown = [name for name in batch if name not in _MODEL_INPUTS and name != labels]
    if not names or unknown:
        raise DataError(
            f"cannot tell which parts of {describe(batch)} are model inputs. Say so, by the "
            "names that the model takes: batch: {inputs: {x: image}, labels: digit}."
        )
    # With decoder inputs the logits are the decoder's, and this is the encoder's mask.
    has_mask = _MASK in names and _DECODER not in names
    return Parts(
        inputs={name: name for name in names}, labels=labels, mask=_MASK if has_mask else None
    )


def tokens_of(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Tensor | None, Tensor | None]:
    """Ids and attention mask (B, L) of what the logits are of: of a decoder, where there is one."""
    values, mask = (*kwargs.values(), *args), _MASK
    if _DECODER in kwargs:
        values, mask = (kwargs[_DECODER],), f"decoder_{_MASK}"
    real = kwargs.get(mask)
    is_real = isinstance(real, Tensor) and real.dim() == 2
    return next(filter(_is_tokens, values), None), real if is_real else None


def _is_tokens(value: object) -> bool:
    """Whether an input can be token ids, (B, L)."""
    return isinstance(value, Tensor) and value.dim() == 2 and not value.is_floating_point()


def check_not_own_tokens(labels: Any, ids: Any) -> bool:
    """Raise DataError where labels are the input ids themselves, and nobody said what that means.

    Without a shift a model would be trained to repeat its input.

    Args:
        labels: of the batch, of any kind.
        ids: the input that they may repeat.

    Returns:
        Whether that can be told: False where hardly anything is labelled.
    """
    both = isinstance(labels, Tensor) and isinstance(ids, Tensor)
    if not both or labels.dim() != 2 or labels.shape != ids.shape or ids.is_floating_point():
        return True
    known = labels != IGNORE_INDEX
    if labels.shape[1] == 1 or not bool((labels == ids)[known].all()):
        return True
    if int(known.sum()) >= _FEW:
        raise DataError(
            "the labels are the input ids themselves. For a causal language model, whose logits at "
            "position t predict token t + 1, set batch.causal: true; where a position's label is "
            "its own token, set it to false."
        )
    return False
