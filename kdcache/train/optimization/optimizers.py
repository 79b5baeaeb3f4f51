"""Optimisers by name, and what any other is given as: a function of the parameters.

The names are those of Knowledge-Distillation-Toolkit, with its settings.
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning_fabric.utilities.types import Optimizable
from torch import nn

from kdcache.errors import KdcacheError, UsageError, origin, suggest
from kdcache.paths import PACKAGE

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "adam_wav2vec2.0": functools.partial(torch.optim.Adam, betas=(0.9, 0.98), eps=1e-6),
    "adam_distilBert": functools.partial(torch.optim.Adam, eps=1e-6),
    "adamW_distilBert": functools.partial(torch.optim.AdamW, betas=(0.9, 0.98), eps=1e-6),
}
"""Name -> optimiser class, perhaps with settings; all take ``lr``."""


def optimizer_maker(spec: str | MakeOptimizer | None, learning_rate: float) -> MakeOptimizer:
    """From parameters to an optimiser.

    Args:
        spec: one of ``OPTIMIZERS``, or a function that says everything itself; Adam if None.
        learning_rate: of a named one.

    Raises:
        UsageError: the name is not known, or the rate is no number above 0.
    """
    if isinstance(spec, torch.optim.Optimizer):
        raise UsageError(
            f"optimizer is {type(spec).__name__} itself, made before the training. Give what makes "
            "it of the student's parameters: lambda parameters: "
            f"{type(spec).__name__}(parameters, lr=1e-3)."
        )
    if spec is not None and not isinstance(spec, str):
        if not callable(spec):
            raise UsageError(
                "optimizer is a name, or a function from parameters to an optimizer, not "
                f"{spec!r}. {suggest(str(spec), OPTIMIZERS)}"
            )
        return spec
    name = "adam" if spec is None else spec
    given: object = learning_rate
    is_number = isinstance(given, numbers.Real) and not isinstance(given, bool)
    if not is_number or not 0 < learning_rate < math.inf:
        raise UsageError(f"learning_rate is a number above 0, not {learning_rate!r}.")
    if name not in OPTIMIZERS:
        raise UsageError(f"there is no optimizer {name!r}. {suggest(name, OPTIMIZERS)}")
    return functools.partial(OPTIMIZERS[name], lr=float(learning_rate))


def made_optimizer(
    make: MakeOptimizer, parameters: list[nn.Parameter], learning_rate: float | None = None
) -> torch.optim.Optimizer:
    """The one optimiser of a training.

    Args:
        make: the user's function.
        parameters: what it is given.
        learning_rate: of all parameters, whatever it says itself; None: what it says.

    Raises:
        UsageError: the user's function raised, gave anything else, or an optimiser of other
            parameters.
    """
    found: Any = made_by(make, parameters, "optimizer")
    if not isinstance(found, Optimizable):
        raise UsageError(f"the optimizer function returned {_called(found)}. {_way_out(found)}")
    own = {id(parameter) for parameter in parameters}
    held = [parameter for group in found.param_groups for parameter in group["params"]]
    if not any(id(parameter) in own for parameter in held):
        raise UsageError(
            f"the optimizer function returned {type(found).__name__} over {len(held)} parameters, "
            "none of which is one of the student's that require a gradient: nothing would be "
            "trained. Make it of the parameters that the function is given."
        )
    for group in found.param_groups if learning_rate is not None else ():
        group["lr"] = learning_rate
    return found  # type: ignore[no-any-return]


def made_by(make: Callable[..., Any], given: Any, what: str, *more: Any, name: str = "") -> Any:
    """What a function of the user's, or a class, makes; UsageError with what it says of it.

    Args:
        make: the function.
        given: its first argument.
        what: it makes.
        more: its other arguments.
        name: of the function, where it has none of its own.
    """
    try:
        return make(given, *more)
    except KdcacheError:
        raise
    except Exception as error:
        named = name or name_of(make)
        of = "" if "<lambda>" in named else f" {named}"
        where = origin(error, skip=1)
        at = "" if where.startswith(str(PACKAGE)) else f" at {where}"  # of the user's own function
        raise UsageError(
            f"the {what}{of} cannot be made: {type(error).__name__}{at}: "
            f"{' '.join(str(error).split())}. Correct its arguments ({what}.init_args in an "
            f"experiment file; in Python give a function, such as lambda {_GIVEN[what]})."
        ) from error


def name_of(make: object) -> str:
    """The name of a function or class, also of one with some arguments set."""
    own = getattr(make, "__qualname__", None)
    if own is None and isinstance(make, functools.partial):
        return name_of(make.func)
    return str(own or type(make).__qualname__)


_GIVEN = {
    "optimizer": "parameters: Adam(parameters, lr=1e-3)",
    "scheduler": "optimizer: StepLR(optimizer, step_size=10)",
}


def _called(found: object) -> str:
    if found is None:
        return "None: perhaps its return is missing"
    if isinstance(found, list | tuple):
        return f"{len(found)} objects ({', '.join(type(one).__name__ for one in found)})"
    return f"a {type(found).__name__}"


def _way_out(found: object) -> str:
    several = found if isinstance(found, list | tuple) else ()
    if sum(isinstance(one, torch.optim.Optimizer) for one in several) > 1:
        return (
            "A student has one: for settings that differ between its parts, return one optimizer "
            "with parameter groups: Adam([{'params': first, 'lr': 1e-3}, {'params': second}])."
        )
    return "It returns one torch.optim.Optimizer; what changes its learning rate is the scheduler."


def trainable(student: nn.Module) -> list[nn.Parameter]:
    """What of a student an optimiser is given.

    Raises:
        UsageError: nothing.
    """
    parameters = [p for p in student.parameters() if p.requires_grad]
    if not parameters:
        raise UsageError(
            f"the student, {type(student).__name__}, has no parameter that requires a "
            "gradient: there is nothing to train."
        )
    return parameters
