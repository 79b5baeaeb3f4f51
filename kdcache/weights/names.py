"""What a model's tensors are called without the wrappers around it, or around its parts.

``torch.compile``, ``DataParallel`` and ``DistributedDataParallel`` put a name of their own into
every tensor's. In a model they are told by type, so that a part which a user has called ``module``
keeps its name. A file has no types: there a name goes only where what is left is the model's.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

_WRAPPERS = (
    *("_orig_mod", "module"),
    *("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"),
)
"""Names that wrappers, PyTorch's and Lightning's, have for what they wrap."""

_MOST_IN_A_NAME = 6
"""Wrappers that are looked for in one name: what is tried grows as 2 to this power."""


def plain_state(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """A model's state dict with the names that it has without wrappers."""
    return {_plain_name(model, name): value for name, value in state.items()}


def state_for(model: nn.Module, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Somebody's state dict with the names that a model, perhaps wrapped, has for the same.

    Returns:
        The state itself where it has these names: one of PyTorch's also says which versions of
        modules wrote it.
    """
    own = {_plain_name(model, name): name for name in model.state_dict()}
    names = {found: own.get(plain, found) for found, plain in matched(state, own).items()}
    if all(found == name for found, name in names.items()):
        return state
    return {names[found]: value for found, value in state.items()}


def _plain_name(model: nn.Module, name: str) -> str:
    kept = []
    module: nn.Module | None = model
    for part in name.split("."):
        if module is None or part != _wrapped(module):
            kept.append(part)
        module = None if module is None else module._modules.get(part)
    return ".".join(kept)


def _wrapped(module: nn.Module) -> str | None:
    """The name under which a wrapper has what it wraps; None for any other module."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "module"
    # torch.compile's class is not public, and importing its module takes seconds.
    is_compiled = type(module).__module__.startswith("torch._dynamo.")
    return "_orig_mod" if is_compiled and "_orig_mod" in module._modules else None


def innermost(model: nn.Module) -> nn.Module:
    """A model without the wrappers around it; its parts keep theirs."""
    while (name := _wrapped(model)) is not None:
        model = model._modules[name]  # type: ignore[assignment]
    return model


@contextmanager
def unwrapped(model: nn.Module) -> Iterator[nn.Module]:
    """The model without wrappers around it and its parts, for as long as the context lasts.

    Parameters are the same; the wrappers are put back at its end.
    """
    replaced = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is not None and _wrapped(child) is not None
    ]
    for parent, name, child in replaced:
        parent._modules[name] = innermost(child)
    try:
        yield innermost(model)
    finally:
        for parent, name, child in replaced:
            parent._modules[name] = child


def matched(found: Collection[str], own: Collection[str]) -> dict[str, str]:
    """Which tensor of a model each one of a file is.

    Names that are the model's stay as they are. Otherwise what all names begin with goes
    (``module.``, or a name under which another module has held the model), on either side, and
    wrappers' names within; but only if all names are then different ones of the model's.

    Args:
        found: names in a file.
        own: the model's, without wrappers.

    Returns:
        Name in the file -> name in the model; the same one where no way leads to the model's.
    """
    shorter = {name: name for name in own}  # without what all begin with -> own
    while True:
        names = _matched(found, shorter)
        if names is not None:
            return {name: shorter[rest] for name, rest in names.items()}
        if (fewer := _without_head(shorter)) is None:
            return {name: name for name in found}
        shorter = {rest: shorter[name] for name, rest in fewer.items()}


def _matched(found: Collection[str], known: Collection[str]) -> dict[str, str] | None:
    own = set(known)
    names = {name: name for name in found}
    while True:
        if own.issuperset(names.values()):
            return names
        within = {name: _without_wrappers(rest, own) for name, rest in names.items()}
        if own.issuperset(within.values()) and len(set(within.values())) == len(within):
            return within
        fewer = _without_head(names.values())
        if fewer is None:
            return None
        names = {name: fewer[rest] for name, rest in names.items()}


def _without_head(names: Collection[str]) -> dict[str, str] | None:
    """Name -> what follows the part that all names begin with; None where there is none."""
    parts = {name: name.partition(".") for name in names}
    is_common = len({head for head, _, _ in parts.values()}) == 1
    if not is_common or not all(rest for _, _, rest in parts.values()):
        return None
    return {name: rest for name, (_, _, rest) in parts.items()}


def _without_wrappers(name: str, known: Collection[str]) -> str:
    """The known name that is left when the fewest wrappers' names are taken out."""
    parts = name.split(".")
    at = [number for number, part in enumerate(parts) if part in _WRAPPERS][:_MOST_IN_A_NAME]
    for size in range(len(at) + 1):
        for taken in itertools.combinations(at, size):
            rest = ".".join(part for number, part in enumerate(parts) if number not in taken)
            if rest in known:
                return rest
    return name
