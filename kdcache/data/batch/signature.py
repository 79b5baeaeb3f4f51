"""Which inputs a model takes by name: what its ``forward`` says, as ``transformers.Trainer`` does.

Nothing is called here, and nothing of transformers imported: only signatures are read.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

SHIFTED = "shifted:"
"""Begins a path among the inputs: of labels, of which the model makes its decoder's inputs."""

DECODER = "decoder_input_ids"

_WRAPPERS = frozenset({"torch", "peft", "deepspeed", "lightning_fabric", "lightning"})
_WRAPPED = ("_orig_mod", "module")  # of torch.compile; of DataParallel, DDP, FSDP
_INPUTS = re.compile(r"inputs=(\{.*?\}) labels=")

Others = Literal["refused", "ignored", "unknown", "taken"]
Shift = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What a model takes by name.

    Attributes:
        names: parameters that can be given by name.
        required: those of them without a default.
        others: what becomes of other names: they are ``refused``; they go into ``**kwargs``,
            where a model of transformers has only options (``ignored``), and of another one nobody
            knows (``unknown``); or there is no model at hand (``taken``), and whoever asks only
            wants rows, labels and mask.
        decodes_labels: whether a decoder's inputs can be made of labels that are tokens.
        shift: the model's function for that, from labels (B, L) with -100 to ids (B, L); None: it
            does that itself, where it is given ``labels``.
    """

    names: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    others: Others = "refused"
    decodes_labels: bool = False
    shift: Shift | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, model: Any) -> Signature | None:
        """What a model says, under whatever wraps it; None where it says nothing."""
        model = _unwrapped(model)
        parameters = _parameters(model)
        named = _by_name(parameters)
        if not named:
            return None
        is_known = isinstance(getattr(model, "main_input_name", None), str)  # transformers
        takes_others = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        others: Others = "ignored" if is_known else "unknown"
        shift = _shift_of(model) if DECODER in named else None
        shifts_itself = {DECODER, "labels"} <= named.keys() and _generates(model)
        return cls(
            names=frozenset(named),
            required=frozenset(name for name, one in named.items() if one.default is one.empty),
            others=others if takes_others else "refused",
            decodes_labels=shift is not None or shifts_itself,
            shift=shift,
        )

    @classmethod
    def of_description(cls, text: str) -> Signature | None:
        """As much as the description of a resolved mapping tells; None where that is nothing.

        Args:
            text: of :meth:`~kdcache.data.batch.mapping.BatchMapping.describe`, from a manifest.
        """
        found = _INPUTS.match(text)
        if found is None:
            return None
        inputs: Mapping[str, Any] = ast.literal_eval(found[1])
        is_shifted = str(inputs.get(DECODER, "")).startswith(SHIFTED)
        return cls(
            names=frozenset(inputs),
            required=frozenset(inputs) & {"labels"},
            decodes_labels=is_shifted,
            shift=_not_at_hand if is_shifted else None,
        )

    def without_model(self) -> Signature:
        """The names alone: no model travels with them to a worker."""
        return self if self.shift is None else replace(self, shift=_not_at_hand)


NO_MODEL = Signature(others="taken")
"""Stands for the model where there is none: where samples are joined with targets."""


def _unwrapped(model: Any) -> Any:
    """The model inside torch.compile, DataParallel, DDP, FSDP or PEFT, which name no input."""
    while type(model).__module__.split(".")[0] in _WRAPPERS and not _by_name(_parameters(model)):
        inner = [getattr(model, name, None) for name in _WRAPPED]
        base = getattr(model, "get_base_model", None)
        inner += [base() if callable(base) else None]
        found = next((one for one in inner if isinstance(one, nn.Module)), None)
        if found is None:
            break
        model = found
    return model


def _parameters(model: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(model.forward if hasattr(model, "forward") else model).parameters
    except (ValueError, TypeError):  # such as one that is compiled to machine code
        return {}


def _by_name(parameters: Mapping[str, inspect.Parameter]) -> dict[str, inspect.Parameter]:
    """Those that can be given by name; none where another can only be given by its place."""
    if any(one.kind is one.POSITIONAL_ONLY for one in parameters.values()):
        return {}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: one for name, one in parameters.items() if one.kind in kinds}


def _generates(model: Any) -> bool:
    """Whether its logits are of tokens; a classifier may have a decoder, too."""
    found = getattr(model, "can_generate", None)
    return callable(found) and bool(found())


def _shift_of(model: Any) -> Shift | None:
    """A model's own function from labels to decoder inputs.

    Some models of transformers have it as a method; others use ``shift_tokens_right`` of the module
    that defines them.
    """
    method = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if callable(method):
        return functools.partial(_prepared, method)
    config = getattr(model, "config", None)
    ids = [getattr(config, name, None) for name in ("pad_token_id", "decoder_start_token_id")]
    modules = [sys.modules.get(kind.__module__) for kind in type(model).__mro__]
    functions = [getattr(module, "shift_tokens_right", None) for module in modules]
    function: Any = next(filter(callable, functions), None)
    if function is None or None in ids or not _generates(model):
        return None
    return functools.partial(_shifted, function, ids)


def _prepared(method: Callable[..., Tensor], labels: Tensor) -> Tensor:
    return method(labels=labels)


def _shifted(function: Callable[..., Tensor], ids: list[Any], labels: Tensor) -> Tensor:
    return function(labels, *ids)


def _not_at_hand(labels: Tensor) -> Tensor:  # noqa: ARG001
    raise TypeError("there is no model here that would shift labels")
