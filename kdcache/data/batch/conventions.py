"""What a batch says of itself by convention, where nobody says it: names, places, values.

Everything that is guessed about a batch is guessed here, and nothing that was said is replaced.
What cannot be told for certain is refused, with the setting that says it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdcache.data.batch.leaves import Path, describe, leaf
from kdcache.data.batch.masks import LABELLED
from kdcache.data.batch.signature import DECODER, SHIFTED, Signature
from kdcache.errors import DataError, UsageError
from kdcache.losses.labels import IGNORE_INDEX

_MASK = "attention_mask"
_DECODER_MASK = f"decoder_{_MASK}"
_TOKEN_IDS = ("input_ids", DECODER)
_MODEL_INPUTS = frozenset(
    {"input_ids", _MASK, "token_type_ids", "position_ids", "inputs_embeds", "pixel_values"}
    | {"pixel_mask", "input_values", "input_features", DECODER, _DECODER_MASK}
)
_LABELS = ("labels", "label", "label_ids")

# So many labels repeat the input in no other task by chance, such as tokens that were masked; and
# so many different ones, where an input may also be a mask or a number of a segment.
_FEW = 8
_FEW_VALUES = {True: 2, False: 3}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Where the parts of a batch are.

    Attributes:
        inputs: paths of positional inputs, or name -> path; empty: the batch itself is the input,
            since a bare tensor has no path.
        labels: path of the labels, or None.
        mask: of the positions, or one that may be; None: all of them count.
        is_of_positions: whether that is certain.
        left_out: names in the batch that the model does not take.
    """

    inputs: tuple[Path, ...] | Mapping[str, Path]
    labels: Path | None = None
    mask: Path | None = None
    is_of_positions: bool = False
    left_out: tuple[str, ...] = ()


def find_parts(
    batch: Any,
    signature: Signature | None = None,
    *,
    labels: Path | None = None,
    said: Collection[object] = (),
) -> Parts:
    """Inputs, labels and mask of a batch by its structure and names.

    Args:
        batch: (x, y), (x,), x, or a mapping with names that the model takes, or Hugging Face's.
        signature: of the model; None: it says nothing.
        labels: where they are, if that was said.
        said: paths that were said to be masks and the like.

    Raises:
        DataError: its structure does not tell.
    """
    if isinstance(batch, Mapping):
        return _by_name(batch, signature, labels, said)
    required = signature.required if signature is not None else frozenset()
    if len(required) > 1:
        raise DataError(
            f"cannot tell which parts of {describe(batch)} are model inputs: the model's forward "
            f"must be given {', '.join(sorted(required))}. Say so: batch: {{inputs: [0, 1], "
            "labels: 2}, or batch: {inputs: all} for model(*batch)."
        )
    if isinstance(batch, Tensor):
        return Parts(inputs=(), labels=labels)
    if isinstance(batch, tuple | list) and len(batch) in (1, 2):
        second = 1 if len(batch) == 2 else None
        return Parts(inputs=(0,), labels=second if labels is None else labels)
    raise DataError(
        f"cannot tell which parts of {describe(batch)} are model inputs. Say so: "
        "batch: {inputs: [0, 1], labels: 2}, or batch: {inputs: all} for model(*batch)."
    )


def _by_name(
    batch: Mapping[str, Any],
    signature: Signature | None,
    labels: Path | None,
    said: Collection[object],
) -> Parts:
    found = [name for name in _LABELS if name in batch]
    if labels is None and len(found) > 1:
        raise DataError(
            f"cannot tell which of {' and '.join(found)} are the labels. Say so: batch: {{labels: "
            f"{found[0]}}}."
        )
    chosen = labels if labels is not None else next(iter(found), None)
    labelling = {chosen, *found} - _MODEL_INPUTS
    names = _inputs(batch, signature, labelling)
    _check_collated(batch, signature, [*names, *found])
    inputs: dict[str, Path] = {name: name for name in names}
    mask = _mask(batch, names, chosen)
    if signature is not None and signature.decodes_labels and chosen is not None:
        is_given = any(name.startswith("decoder_input") for name in names)
        if not is_given and _is_tokens(leaf(batch, chosen, "batch.labels")):
            # Without a function for it the model does that where it is given labels.
            is_own = signature.shift is None
            inputs |= {"labels": chosen} if is_own else {DECODER: f"{SHIFTED}{chosen}"}
            mask = LABELLED
    left = [name for name in batch if name not in {*names, *labelling, *said}]
    problem = _problem(signature, inputs, left)
    if problem is not None:
        raise DataError(
            f"cannot tell which parts of {describe(batch)} are model inputs{problem}. Say so, by "
            "the names that the model takes: batch: {inputs: {x: image}, labels: digit}; or with a "
            "function of your own, batch: my_module.select."
        )
    return Parts(
        inputs=inputs,
        labels=chosen,
        mask=mask,
        is_of_positions=mask == LABELLED,
        left_out=tuple(left) if signature is not None and signature.others != "taken" else (),
    )


def _check_collated(
    batch: Mapping[str, Any], signature: Signature | None, names: Collection[str]
) -> None:
    """Raise DataError for lists where a model of transformers takes tensors."""
    if signature is None or signature.others != "ignored":
        return
    for name in names:
        value = batch[name]
        is_list = isinstance(value, list | tuple) and not name.startswith("pixel")
        if is_list and value and isinstance(value[0], Tensor) and value[0].dim() == 1:
            raise DataError(
                f"{name!r} is a list of {len(value)} tensors of shape {tuple(value[0].shape)}: so "
                "PyTorch collates samples that hold lists of numbers, turned round. Let the "
                'dataset give tensors (with_format("torch")), or give the DataLoader a collate_fn '
                "that pads."
            )


def _inputs(
    batch: Mapping[str, Any], signature: Signature | None, labelling: Collection[object]
) -> list[str]:
    """Names in a batch of what a model is given, or may be."""
    usual = [name for name in batch if name in _MODEL_INPUTS]
    if signature is None:
        return usual
    if signature.others == "taken":
        return usual or [name for name in batch if name not in labelling]
    # A model that is given labels computes a loss of its own: only one that must have them is.
    own = {n for n in signature.names if n not in labelling or n in signature.required}
    return [n for n in batch if n in own or (n in usual and signature.others != "refused")]


def _problem(
    signature: Signature | None, inputs: Collection[str], left: Sequence[str]
) -> str | None:
    """Why inputs cannot be told, after "cannot tell which parts"; None where they can."""
    if signature is None or signature.others == "taken":
        is_told = inputs and (signature is not None or not left)
        return None if is_told else ", and the names are not all of those that are usual"
    takes = f": the model's forward takes {', '.join(sorted(signature.names))}"
    missing = sorted(signature.required.difference(inputs))
    if missing:
        return f"{takes}, of which {', '.join(missing)} must be given"
    if signature.others == "unknown" and left:
        return f"{takes} and **kwargs, which may be {', '.join(left)}"
    return None if inputs else takes


def _mask(batch: Mapping[str, Any], names: Collection[str], labels: Path | None) -> str | None:
    """What is the mask of positions, or may be."""
    if DECODER not in names:
        return _MASK if _MASK in batch else None
    # The logits are the decoder's, and the attention mask the encoder's.
    tokens: Any = None if labels is None else leaf(batch, labels, "batch.labels")
    if _is_tokens(tokens) and tokens.shape == batch[DECODER].shape:
        return LABELLED
    return _DECODER_MASK if _DECODER_MASK in batch else None


def tokens_of(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Tensor | None, Tensor | None]:
    """Ids and attention mask (B, L) of what the logits are of: of a decoder, where there is one."""
    values, mask = (*kwargs.values(), *args), _MASK
    if DECODER in kwargs:
        values, mask = (kwargs[DECODER],), _DECODER_MASK
    real = kwargs.get(mask)
    is_real = isinstance(real, Tensor) and real.dim() == 2
    return next(filter(_is_tokens, values), None), real if is_real else None


def _is_tokens(value: object) -> bool:
    """Whether an input can be token ids, (B, L)."""
    return isinstance(value, Tensor) and value.dim() == 2 and not value.is_floating_point()


def token_paths(inputs: object) -> list[tuple[Path, bool]]:
    """Paths of the inputs that may be the tokens whose labels a batch has, each with: for certain.

    Args:
        inputs: of a resolved mapping.
    """
    if not isinstance(inputs, Mapping):
        return [(path, False) for path in inputs] if isinstance(inputs, tuple) else []
    if DECODER in inputs:
        is_made = str(inputs[DECODER]).startswith(SHIFTED)
        return [] if is_made else [(inputs[DECODER], True)]
    others = _MODEL_INPUTS.union(_LABELS)
    return [
        (path, name in _TOKEN_IDS)
        for name, path in inputs.items()
        if name in _TOKEN_IDS or name not in others
    ]


def check_not_own_tokens(labels: Any, ids: Any, *, is_certain: bool) -> bool:
    """Raise DataError where labels are the input ids themselves, and nobody said what that means.

    Without a shift a model would be trained to repeat its input.

    Args:
        labels: of the batch, of any kind.
        ids: the input that they may repeat.
        is_certain: whether that input is token ids; else it may be a mask, or any numbers.

    Returns:
        Whether that can be told: False where hardly anything is labelled, or all of it alike.
    """
    both = isinstance(labels, Tensor) and isinstance(ids, Tensor)
    if not both or labels.dim() != 2 or labels.shape != ids.shape or ids.is_floating_point():
        return True
    known = labels != IGNORE_INDEX
    if labels.shape[1] == 1 or not bool((labels == ids)[known].all()):
        return True
    values = labels[known].unique()
    if int(known.sum()) >= _FEW and len(values) >= _FEW_VALUES[is_certain]:
        raise DataError(
            "the labels are the input ids themselves. For a causal language model, whose logits at "
            "position t predict token t + 1, set batch.causal: true; where a position's label is "
            "its own token, set it to false."
        )
    return False


def check_not_next_tokens(labels: Any, ids: Any, *, is_certain: bool) -> None:
    """Raise UsageError where labels are the next tokens, and ``causal`` would move them again.

    Args:
        labels: of the batch, of any kind.
        ids: the input whose tokens they may be.
        is_certain: whether that input is token ids.
    """
    both = _is_tokens(labels) and _is_tokens(ids)
    if not both or labels.shape != ids.shape or labels.shape[1] == 1:
        return
    known = labels != IGNORE_INDEX
    if bool((labels == ids)[known].all()):
        return
    following, known = labels[:, :-1], known[:, :-1]
    if not bool((following == ids[:, 1:])[known].all()):
        return
    found = following[known]
    if len(found) >= _FEW and len(found.unique()) >= _FEW_VALUES[is_certain]:
        raise UsageError(
            "batch.causal: true moves labels by one token, and they have been moved already: each "
            "label is the next token of the input. Leave batch.causal out, or give the tokens "
            "themselves as labels."
        )
