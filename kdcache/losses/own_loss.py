"""Target losses of the user's own, named by their class path."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable

from torch import Tensor

from kdcache.errors import UsageError, suggest
from kdcache.losses.loss_sum import LossSum
from kdcache.targets import SoftTargets

LossFunction = Callable[[Tensor, SoftTargets, float], LossSum]
"""(student logits (P, C), targets, T) -> LossSum: what every target loss is."""


def import_loss(name: str, built_in: Iterable[str]) -> LossFunction:
    """The function at a class path (``module.attribute``).

    Args:
        name: the path; its module is imported.
        built_in: losses that need no path, for the suggestion.

    Raises:
        UsageError: there is no such module or function, or it takes other arguments.
    """
    module_name, _, attribute = name.rpartition(".")
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"{name!r} is no loss and no class path. {suggest(name, built_in)}")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"the loss {name!r} cannot be imported: {error}. A name with a dot is the class path "
            f"of a loss of your own; the others have none. {suggest(name, built_in)}"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise UsageError(
            f"the module {module_name!r} has no function {attribute!r}. {suggest(attribute, known)}"
        )
    _check_signature(name, function)
    return function  # type: ignore[no-any-return]


def _check_signature(name: str, function: Callable[..., object]) -> None:
    """Raise UsageError where a loss could not be called as it will be."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some of those that are written in C say nothing about themselves
        return
    try:
        # Bound, not counted: defaults, *args and callable objects are all fine.
        signature.bind("student_logits", "targets", "temperature")
    except TypeError as error:
        raise UsageError(
            f"the loss {name!r} takes {signature}, and is called with three positional arguments "
            f"({error}). Write it as (student_logits, targets, temperature) -> LossSum: logits "
            "(P, C), the teacher's soft targets, and T."
        ) from error


def check_result(name: str, result: object) -> LossSum:
    """The LossSum that a loss of the user's own returned; UsageError for anything else."""
    if not isinstance(result, LossSum):
        raise UsageError(
            f"the loss {name!r} returned {type(result).__name__}, not a LossSum. Return "
            "LossSum.over(values), one value for each position, (P,)."
        )
    return result
