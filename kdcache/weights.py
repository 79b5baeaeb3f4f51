"""Weights from a file into a model: safetensors, or a PyTorch file that can hold nothing else.

A pickle may run code when it is read, so PyTorch files are read with ``weights_only=True``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from torch import Tensor, nn

from kdcache.errors import DataError, UsageError

_STUDENT = "student."


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load all weights of a model.

    Args:
        model: changed in place.
        path: ``.safetensors`` (such as a run's ``student.safetensors``), or a file of
            ``torch.save``: a state dict, or a checkpoint with one under "state_dict" (of a student
            run: the student's part of it).

    Raises:
        UsageError: there is no such file.
        DataError: it is damaged, holds more than weights, or weights of another model.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"weights: there is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            load_model(model, str(path))
        else:
            model.load_state_dict(_state_dict(path))
    except DataError:
        raise
    except Exception as error:  # of safetensors, pickle, zip or torch: whatever is wrong with it
        text = " ".join(str(error).split())
        raise DataError(
            f"the weights in {path} cannot be loaded into {type(model).__name__}: {text:.600} "
            "Give a file of this model's own weights, as safetensors or as a plain state dict."
        ) from error


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    found: Any = torch.load(path, map_location="cpu", weights_only=True)
    is_checkpoint = isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping)
    if is_checkpoint:
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise DataError(
            f"{path} holds no state dict (names with tensors). Write one with "
            "torch.save(model.state_dict(), path)."
        )
    if is_checkpoint and all(name.startswith(_STUDENT) for name in found):
        return {name.removeprefix(_STUDENT): value for name, value in found.items()}
    return found
