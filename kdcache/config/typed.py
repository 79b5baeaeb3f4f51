"""Plain values held against type annotations, and converted where the annotation says so.

Simple types are checked here; jsonargparse converts to all others (paths, enums, tuples, ...),
one value at a time. Given whole sections it would build classes that they name, and read text
such as "5" or "null" as something else.
"""

from __future__ import annotations

import datetime
import inspect
import types
import typing
from collections.abc import Mapping, MutableMapping
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from kdcache.errors import UsageError

_MAPPINGS = (dict, Mapping, MutableMapping)
_UNIONS = (typing.Union, types.UnionType)


def checked(value: Any, wanted: Any, where: str) -> Any:
    """A value as its annotation wants it.

    Args:
        value: plain, or an object that was built from a class path.
        wanted: a type annotation; one that cannot be checked takes any value.
        where: the value's name, for errors.

    Raises:
        UsageError: the value is of another type.
    """
    kinds = _kinds(wanted)
    is_free = Any in kinds or inspect.Parameter.empty in kinds
    if is_free or any(type(value) is kind for kind in kinds):
        return value
    if float in kinds and type(value) is int:
        return float(value)
    for kind in kinds:
        inner = typing.get_args(kind)
        if typing.get_origin(kind) in _MAPPINGS and isinstance(value, Mapping):
            names = [checked(name, inner[0], f"a key of {where}") for name in value]
            items = [checked(item, inner[1], f"{where}.{name}") for name, item in value.items()]
            return dict(zip(names, items, strict=True))
        if typing.get_origin(kind) is list and isinstance(value, list):
            return [checked(item, inner[0], where) for item in value]
    return _converted(value, wanted, where)


def takes_mapping(wanted: Any) -> bool:
    """Whether an annotation asks for a mapping itself, not for what one describes."""
    return any((typing.get_origin(kind) or kind) in _MAPPINGS for kind in _kinds(wanted))


def _kinds(wanted: Any) -> tuple[Any, ...]:
    """The types of a union; the one type otherwise."""
    return typing.get_args(wanted) if typing.get_origin(wanted) in _UNIONS else (wanted,)


def _converted(value: Any, wanted: Any, where: str) -> Any:
    if value is None:  # which jsonargparse takes for no value at all
        raise _other_type(value, wanted, where)
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    try:
        parser.add_argument("--value", type=wanted)
    except ValueError:  # an annotation that jsonargparse does not know
        return value
    try:
        return parser.instantiate(parser.parse_object({"value": value})).value
    except ArgumentError as error:
        raise _other_type(value, wanted, where) from error


def _other_type(value: Any, wanted: Any, where: str) -> UsageError:
    text = f"{where} should be {_name(wanted)}, not {value!r}."
    written = _written(value) if str in _kinds(wanted) else None
    if written is not None:
        text += (
            f" YAML reads it so: a text that looks like something else has quotes, "
            f'{where}: "{written}" in a file, --{where} \'"{written}"\' in a shell.'
        )
    return UsageError(text)


def _written(value: Any) -> str | None:
    """How a text may have been written that YAML read as something else; None if it is no text."""
    if isinstance(value, Mapping):
        *others, (key, inner) = value.items() or [("", "")]
        is_text = not others and isinstance(key, str) and not isinstance(inner, Mapping | list)
        return f"{key}: {inner}".removesuffix(": None") + ":" * (inner is None) if is_text else None
    if isinstance(value, bool | int | float):  # 010 is 8, and yes is true: it cannot be known
        return "..."
    return str(value) if isinstance(value, datetime.date) else None


def _name(wanted: Any) -> str:
    kinds = _kinds(wanted)
    if len(kinds) > 1:
        return " | ".join(map(_name, kinds))
    if typing.get_origin(wanted) is typing.Literal:
        return " | ".join(map(repr, typing.get_args(wanted)))
    if wanted is types.NoneType:
        return "None"
    text = wanted.__name__ if isinstance(wanted, type) and not typing.get_args(wanted) else wanted
    return str(text).replace("typing.", "")


def resolved_annotations(
    target: Any, parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """The annotation of every parameter, resolved; Any where a name in it cannot be found.

    Names may be missing on purpose: imported only for the type checker.
    """
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    names = getattr(function, "__globals__", {})
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        holder = types.SimpleNamespace(__annotations__={name: parameter.annotation})
        try:
            found[name] = typing.get_type_hints(holder, globalns=names)[name]
        except (NameError, TypeError, AttributeError, SyntaxError):
            found[name] = Any
    return found
