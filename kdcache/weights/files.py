"""A model's weights from a file, and into one that loads everywhere."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn

from kdcache.errors import DataError, UsageError
from kdcache.paths import local_path
from kdcache.weights.names import innermost, state_for, unwrapped
from kdcache.weights.pickles import read_plain, text_instead

log = logging.getLogger(__name__)

_CHECKPOINT = "state_dict"
_WAY_OUT = (
    "Where you trust it, open it in the program that wrote it, and save its weights alone: "
    "safetensors.torch.save_model(model, ...) or torch.save(model.state_dict(), ...)."
)
_NAMED = 4
"""Names of tensors that an error lists of each kind."""


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load all weights of a model.

    The file, the model or parts of either may be wrapped (``torch.compile``, ``DataParallel``,
    ``DistributedDataParallel``). What all names of a file begin with, such as the attribute under
    which a LightningModule held the model, may be missing in the model's. Of tied weights the file
    needs one.

    Args:
        model: changed in place.
        path: ``.safetensors`` (such as a run's ``student.safetensors``), or a file of
            ``torch.save``: a state dict, or a checkpoint that holds one.

    Raises:
        UsageError: there is no such file, or it is not one that holds weights.
        DataError: it is damaged, holds more than weights, or weights of another model.
    """
    path = local_path(path, "weights")
    state: Any = state_for(model, _read(path))
    own = model.state_dict()
    state |= _shared(own, state)
    rounded = [name for name, value in state.items() if _is_rounded(own.get(name), value)]
    if rounded:
        raise DataError(
            f"the weights in {path} are integers where {type(innermost(model)).__name__} has "
            f"fractions, in {_listed('tensors', rounded)}: they are quantised, or another model's. "
            "Give weights in a floating-point type."
        )
    try:
        model.load_state_dict(state)
    except Exception as error:  # torch's, or that of a hook of the model's
        raise DataError(
            f"the weights in {path} cannot be loaded into {type(innermost(model)).__name__}: "
            f"{_difference(model, state, error)} "
            "Give a file of this model's own weights, as safetensors or as a plain state dict."
        ) from error


def save_weights(model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Save a model's weights as safetensors that load into the model without wrappers.

    Args:
        model: may be wrapped, and may have wrapped parts.
        path: of the file.
        metadata: kept in the file.

    Raises:
        DataError: safetensors cannot hold them.
    """
    with unwrapped(model) as plain:
        try:
            save_model(plain, str(path), metadata=dict(metadata))
            return
        except Exception:  # of many kinds: safetensors does not check what it is given
            state = plain.state_dict()
    # Tensors that overlap, which become tensors of their own; or what is no tensor.
    others = [name for name, value in state.items() if not _is_tensor(value)]
    try:
        tensors = {n: state[n].detach().clone().contiguous() for n in state.keys() - set(others)}
        save_file(tensors, path, metadata=dict(metadata))
    except Exception as error:  # of safetensors, torch or the disk
        raise DataError(
            f"the weights of {type(innermost(model)).__name__} cannot be written to {path}: "
            f"{' '.join(str(error).split()):.300}"
        ) from error
    if others:
        log.warning(
            "%s holds tensors only: %s of %s is left out", path, others[0], type(model).__name__
        )


def _is_rounded(own: Any, value: Tensor) -> bool:
    is_fraction = _is_tensor(own) and (own.is_floating_point() or own.is_complex())
    return is_fraction and not (value.is_floating_point() or value.is_complex())


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.safetensors")) or sorted(
            p.name for p in path.glob("*.bin")
        )
        one = f" Give the file {path / inside[0]}." if len(inside) == 1 else ""
        raise UsageError(
            f"weights: {path} is a folder, not a file.{one} A folder that save_pretrained wrote is "
            "read by from_pretrained: class_path: my_module.MyModel.from_pretrained."
        )
    if not path.is_file():
        raise UsageError(
            f"weights: there is no file {path}, seen from {Path.cwd()}. Train the model first (a "
            "project of kdcache init has train_teacher.py for that), or correct the path."
        )
    if path.name.endswith(".index.json"):
        raise UsageError(
            f"weights: {path} is the index of weights that lie in several files. from_pretrained "
            f"reads the folder {path.parent}: class_path: my_module.MyModel.from_pretrained; or "
            "save the model in one file with safetensors.torch.save_model."
        )
    if path.suffix != ".safetensors":
        return _state_dict(path)
    try:
        return load_file(path)
    except Exception as error:  # of safetensors: whatever is wrong with it
        raise DataError(
            f"{path}: it is damaged, or no safetensors. {type(error).__name__}: {error}."
            f"{text_instead(path)}"
        ) from error


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The one state dict in a file of ``torch.save``."""
    found = read_plain(path, _WAY_OUT)
    if _is_state_dict(found):
        return found  # type: ignore[no-any-return]
    inside = [key for key, value in found.items() if _is_state_dict(value)] if _is(found) else []
    chosen = _CHECKPOINT if _CHECKPOINT in inside else inside[0] if len(inside) == 1 else None
    if chosen is not None:
        return found[chosen]  # type: ignore[no-any-return]
    several = f"It has {len(inside)} parts with weights ({', '.join(map(str, inside))}). "
    raise DataError(
        f"{path} holds {'more than one' if inside else 'no'} state dict (names with tensors). "
        f"{several if inside else ''}Write one with torch.save(model.state_dict(), path)."
    )


def _is(found: Any) -> bool:
    return isinstance(found, Mapping)


def _is_state_dict(found: Any) -> bool:
    is_filled = isinstance(found, Mapping) and bool(found)
    return is_filled and all(isinstance(k, str) and _is_tensor(v) for k, v in found.items())


def _shared(own: Mapping[str, Any], given: Collection[str]) -> dict[str, Tensor]:
    """Tensors of a model that a file may leave out: tied to, or parts of, others that it has.

    As they are: copied onto themselves, they are what is loaded into the others.
    """
    spans = {name: span for name, value in own.items() if (span := _span(value)) is not None}
    held = [spans[name] for name in given if name in spans]
    return {
        name: own[name]
        for name, (at, start, end) in spans.items()
        if name not in given and any(at == a and s <= start and end <= e for a, s, e in held)
    }


def _span(value: Any) -> tuple[int, int, int] | None:
    """(storage, first byte, last byte + 1) of a tensor that is one piece of memory."""
    # Others than plain ones (sharded, not yet initialised) may have no memory to ask for.
    if type(value) is not Tensor or value.is_meta or value.layout is not torch.strided:
        return None
    if not value.numel() or not value.is_contiguous():
        return None
    size = value.element_size()
    start = int(value.storage_offset()) * size
    return value.untyped_storage().data_ptr(), start, start + int(value.numel()) * size


def _difference(model: nn.Module, given: Mapping[str, Tensor], error: Exception) -> str:
    own = model.state_dict()
    shapes = [
        f"{name} is {tuple(own[name].shape)} in the model and {tuple(value.shape)} in the file"
        for name, value in given.items()
        if _is_tensor(own.get(name)) and own[name].shape != value.shape
    ]
    parts = [
        _listed("of the model's tensors are not in the file", [n for n in own if n not in given]),
        _listed("in the file are not the model's", [n for n in given if n not in own]),
        _listed("have another size", shapes),
    ]
    text = "; ".join(filter(None, parts))
    return f"{text}." if text else f"{' '.join(str(error).split()):.600}"


def _listed(what: str, names: Collection[str]) -> str:
    if not names:
        return ""
    more = ", ..." if len(names) > _NAMED else ""
    return f"{len(names)} {what} ({', '.join(list(names)[:_NAMED])}{more})"
