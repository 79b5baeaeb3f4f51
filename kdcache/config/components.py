"""Building what ``class_path`` and ``init_args`` name: classes, functions, constructor methods."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kdcache.config.sections import check_component
from kdcache.config.typed import checked, resolved_annotations, takes_mapping
from kdcache.errors import UsageError, nearest, suggest

# As near as this, a name is misspelt; else it is an argument of another class.
_MISSPELT = 0.8


def build(
    component: Mapping[str, Any],
    where: str,
    *given: Any,
    names: Mapping[str, Callable[..., Any]] = MappingProxyType({}),
) -> Any:
    """Make what a section names, and every section with a class_path below its init_args.

    An argument that is annotated as a dict or Mapping gets the section itself.

    Args:
        component: the section.
        where: its name, for errors.
        given: positional arguments that the caller adds in front (parameters, an optimiser).
        names: what may be named instead of a class path.

    Raises:
        UsageError: the class path, or an argument's name or type, is wrong.
    """
    path = check_component(component, where)
    target = names[path] if path in names else import_path(path, where, names)
    if not callable(target):
        raise UsageError(f"{where}: {path!r} cannot be called.")
    arguments = component.get("init_args") or {}
    try:
        parameters = list(inspect.signature(target).parameters.values())[len(given) :]
    except ValueError:  # some of those that are written in C say nothing about themselves
        return target(*given, **build_nested(arguments, where))
    _check_names(parameters, arguments, path, where)
    named = {p.name: p for p in parameters if p.name in arguments}
    wanted = resolved_annotations(target, named)
    values = {}
    for name, value in arguments.items():
        at = f"{where}.{name}"
        hint = wanted.get(name, Any)
        built = value if takes_mapping(hint) else build_nested(value, at)
        is_default = name in named and named[name].default is built
        values[name] = built if is_default else checked(built, hint, at)
    return target(*given, **values)


def build_model(component: Mapping[str, Any], where: str) -> Any:
    """Make a teacher or student, and load the weights that its section names.

    Raises:
        UsageError, DataError: see :func:`build` and :func:`kdcache.weights.load_weights`.
    """
    model = build(component, where)
    weights = component.get("weights")
    if weights is not None:
        from kdcache.weights import load_weights

        load_weights(model, weights)
    return model


def build_nested(value: Any, where: str) -> Any:
    """A plain value with every section that has a class_path built."""
    if isinstance(value, Mapping):
        if "class_path" in value:
            return build(value, where)
        return {name: build_nested(item, f"{where}.{name}") for name, item in value.items()}
    return [build_nested(item, where) for item in value] if isinstance(value, list) else value


def _check_names(
    parameters: list[inspect.Parameter], arguments: Mapping[str, Any], path: str, where: str
) -> None:
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = [p for p in parameters if p.kind not in (*starred, inspect.Parameter.POSITIONAL_ONLY)]
    names = {p.name for p in named}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    foreign = [str(name) for name in arguments if name not in names and not takes_any]
    if foreign:
        text = f"{where}: {path} takes no {', '.join(map(repr, foreign))}."
        if len(foreign) == 1:
            text += f" {suggest(foreign[0], names)}"
        else:
            text += f" {suggest('', names)}"
        if not all(difflib.get_close_matches(name, names, cutoff=_MISSPELT) for name in foreign):
            text += (
                f" The arguments beside the class path that it replaces were kept; "
                f"--{where}.init_args '{{}}' drops them."
            )
        raise UsageError(text)
    for p in named:
        if p.default is p.empty and p.name not in arguments:
            raise UsageError(f"{where}: {path} needs {p.name!r}; set {where}.{p.name}.")


def import_path(path: str, where: str, names: Iterable[str] = ()) -> Any:
    """What a class path names: a class, a function, or a class's own constructor method.

    Args:
        path: dotted.
        where: its name, for errors.
        names: what could have been named instead.
    """
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UsageError(
            f"{where}: {path!r} is no class path; it is like my_module.MyClass. "
            f"{suggest(path, names) if names else ''}".strip()
        )
    for split in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:split])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name + ".").startswith(error.name + "."):
                continue
            raise UsageError(f"{where}: importing {name!r} failed: {error}.") from error
        except ImportError as error:
            raise UsageError(f"{where}: importing {name!r} failed: {error}.") from error
        return _member(found, name, parts[split:], where)
    modules = [path.stem for path in Path.cwd().glob("*.py")]
    raise UsageError(
        f"{where}: there is no module {parts[0]!r} for {path!r}. {nearest(parts[0], modules)}"
        "Modules in the current folder can be imported."
    )


def _member(found: Any, name: str, parts: list[str], where: str) -> Any:
    for part in parts:
        if not hasattr(found, part):
            names = [known for known in dir(found) if not known.startswith("_")]
            raise UsageError(f"{where}: {name!r} has no {part!r}. {nearest(part, names)}".strip())
        found = getattr(found, part)
    return found


def fingerprint_function(name: str) -> Callable[[Any], Any] | None:
    """The function that ``dump.fingerprint`` names; None for one of the built-in sources."""
    if "." not in name or ":" in name:  # a path into a sample has dots, too
        return None
    found = import_path(name, "dump.fingerprint")
    if not callable(found):
        raise UsageError(f"dump.fingerprint: {name!r} cannot be called.")
    return found  # type: ignore[no-any-return]
