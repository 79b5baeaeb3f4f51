"""What a run was, in plain values: enough to say it again, also where there is no experiment file.

Objects are told by their class, optimisers and schedules by their settings as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdcache.weights import innermost

RECORD_FILE = "run.json"


def plain(value: Any) -> Any:
    """A value as JSON can hold it: an object by its class, NaN and infinity as text.

    Everything in a record goes through here once, so that ``run.json`` is valid JSON and a
    checkpoint can be loaded without running anyone's code.
    """
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    is_text = isinstance(value, str | bytes)
    if isinstance(value, Sequence | set | frozenset) and not is_text:
        return [plain(item) for item in value]
    is_scalar = isinstance(value, np.generic) or (isinstance(value, Tensor) and value.dim() == 0)
    if is_scalar:
        value = value.item()
    is_odd = isinstance(value, float) and not math.isfinite(value)
    if is_odd or isinstance(value, str | PurePath):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def describe_student(student: nn.Module) -> dict[str, Any]:
    """Class and size of a student, whatever it is wrapped in."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in student.parameters()]
    return {
        "student": plain(type(innermost(student))),
        "num_parameters": sum(size for size, _ in sizes),
        "num_trainable": sum(size for size, is_trained in sizes if is_trained),
    }


def describe_data(data: Any, loader: Any) -> dict[str, Any]:
    """Classes of the user's data, and how they are batched.

    Args:
        data: what the user gave.
        loader: of the training split.
    """
    return {
        "data": plain(type(data)),
        "dataset": plain(type(loader.dataset)),
        "batch_size": getattr(loader, "batch_size", None),
    }


def describe_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Class of an optimiser, and what it was made with."""
    return {"class": plain(type(optimizer)), "settings": plain(getattr(optimizer, "defaults", {}))}


def describe_scheduler(scheduler: Any) -> dict[str, Any]:
    """Class of a schedule, and the plain part of its state when it is made."""
    state = scheduler.state_dict() if hasattr(scheduler, "state_dict") else {}
    settings = {name: value for name, value in state.items() if not name.startswith("_")}
    return {"class": plain(type(scheduler)), "settings": plain(settings)}


def write_record(output: Path, record: Mapping[str, Any]) -> None:
    """Write what a run was and what came out of it, as plain values."""
    text = json.dumps(plain(record), indent=2, sort_keys=True, allow_nan=False)
    (output / RECORD_FILE).write_text(text + "\n", encoding="utf-8")
