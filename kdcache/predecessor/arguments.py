"""The predecessor's arguments held against their types, before anything is dumped or trained.

A string where a number belongs, a class where an object does: told at once, by name.
"""

from __future__ import annotations

import inspect
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import nn

from kdcache.errors import UsageError

Kind = tuple[Callable[[Any], bool], str]
"""What holds of a value, and in words what it should be."""

_ANY: Kind = (lambda _: True, "")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _whole(least: int) -> Kind:
    def holds(value: Any) -> bool:
        is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        return is_whole and value >= least

    return holds, f"a whole number from {least}"


def _makes_one(value: Any) -> bool:
    """Whether it can be called without arguments: a class may need some."""
    if not callable(value):
        return False
    try:
        inspect.signature(value).bind()
    except (TypeError, ValueError):
        return not isinstance(value, type)
    return True


_TEXT: Kind = (lambda value: isinstance(value, str), "a text")
_FLAG: Kind = (lambda value: isinstance(value, bool), "True or False")
_KINDS: Mapping[str, Kind] = {
    "num_gpu_used": _whole(0),
    "max_epoch": _whole(1),
    "num_lr_warm_up_epoch": _whole(0),
    "seed": _whole(0),
    "accumulate_grad_batches": _whole(1),
    "num_nodes": _whole(1),
    **dict.fromkeys(
        ("optimize_method", "scheduler_method", "comet_info_path", "comet_exp_name"), _TEXT
    ),
    **dict.fromkeys(("log_to_comet", "deterministic", "verbose"), _FLAG),
    "learning_rate": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "temperature": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "track_grad_norm": (
        lambda value: value == "inf" or _is_number(value),
        "a number, 'inf', or -1 for none",
    ),
    "student_model": (
        lambda value: isinstance(value, nn.Module),
        "an nn.Module that is made: Student(), not Student",
    ),
    "teacher_model": (
        lambda value: isinstance(value, nn.Module) or _makes_one(value),
        "an nn.Module that is made, or a function that makes one",
    ),
    "logging_param": (
        lambda value: isinstance(value, Mapping | Namespace),
        "a mapping of names to values, or a Namespace",
    ),
    "train_data_loader": (
        lambda value: hasattr(value, "__iter__") and hasattr(value, "dataset"),
        "a DataLoader",
    ),
}


def check_arguments(given: Mapping[str, Any], constructor: Callable[..., None]) -> None:
    """Raise UsageError for the first argument of another type than it should have.

    Args:
        given: name -> value of all of them.
        constructor: whose defaults may stand, whatever they are.
    """
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(constructor).parameters.items()
    }
    for name, value in given.items():
        if name in defaults and value is not defaults[name]:
            holds, wanted = _KINDS.get(name, _ANY)
            if not holds(value):
                raise UsageError(f"{name} is {wanted}, not {value!r:.100}.")
