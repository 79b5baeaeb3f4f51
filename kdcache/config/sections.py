"""From raw sections to one stage's experiment: keys and types are checked, nothing is built."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from kdcache.config.typed import checked
from kdcache.errors import UsageError, suggest
from kdcache.experiment import (
    COMPONENTS,
    MODELS,
    SCHEDULER,
    DumpExperiment,
    StudentExperiment,
)

Experiment = TypeVar("Experiment", DumpExperiment, StudentExperiment)

KINDS = (DumpExperiment, StudentExperiment)

_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


def parse(kind: type[Experiment], raw: Mapping[str, Any]) -> Experiment:
    """Check raw sections and make one stage's experiment of them.

    Raises:
        UsageError: an unknown key (with the nearest known one), a missing section, a value of
            another type.
    """
    refuse_unknown(raw, {name for one in KINDS for name in typing.get_type_hints(one)})
    for name, hint in (pair for one in KINDS for pair in typing.get_type_hints(one).items()):
        # Also of the other stage, which will look at no more than that here.
        if dataclasses.is_dataclass(hint) and isinstance(raw.get(name), Mapping):
            refuse_unknown(raw[name], typing.get_type_hints(hint), f"{name}.")
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for item in dataclasses.fields(kind):
        value = raw.get(item.name)
        if value is None and _is_required(item):
            raise UsageError(
                f"the experiment has no {item.name!r}. Name a file that has it (-c "
                f"experiment.yaml), or give --{item.name} on the command line."
            )
        if item.name in raw and not (value is None and _is_section(hints[item.name])):
            values[item.name] = _section(item.name, value, hints[item.name])
    return kind(**values)


def _section(name: str, value: Any, hint: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        checked(value, Mapping[str, Any], name)
        inner = typing.get_type_hints(hint)
        refuse_unknown(value, inner, f"{name}.")
        return hint(
            **{
                k: _section(f"{name}.{k}", v, inner[k])
                for k, v in value.items()
                if not (v is None and dataclasses.is_dataclass(inner[k]))
            }
        )
    found = checked(value, hint, name)
    if name in COMPONENTS and value is not None:
        check_component(value, name)
    if name == "pipelines":
        for split, component in value.items():
            check_component(component, f"{name}.{split}")
    return found


def check_component(section: Any, where: str) -> str:
    """The class path of a ``class_path`` / ``init_args`` section; UsageError where it is none."""
    if not isinstance(section, Mapping):
        raise UsageError(f"{where} has class_path and perhaps init_args below it, not {section!r}.")
    refuse_unknown(section, component_keys(where), f"{where}.")
    path = section.get("class_path")
    if not isinstance(path, str):
        raise UsageError(f"{where} needs a class_path, such as my_module.MyClass.")
    weights = section.get("weights")
    if weights is not None and not isinstance(weights, str):
        raise UsageError(f"{where}.weights is the path of a file, not {weights!r}.")
    interval = section.get("interval", "epoch")
    if interval not in ("epoch", "step"):
        raise UsageError(f"{where}.interval is epoch or step, not {interval!r}.")
    arguments = section.get("init_args")
    if arguments is not None and not isinstance(arguments, Mapping):
        raise UsageError(f"{where}.init_args are names with values, not {arguments!r}.")
    return path


def component_keys(name: str) -> frozenset[str]:
    """The keys of a component's section; everything else on the command line is an argument."""
    known = frozenset({"class_path", "init_args"})
    if name == SCHEDULER:
        return known | {"interval"}
    return known | {"weights"} if name in MODELS else known


def refuse_unknown(section: Mapping[str, Any], known: Iterable[str], prefix: str = "") -> None:
    """Raise UsageError for the first key that is not known, with the nearest one that is."""
    names = set(known)
    for key in section:
        if key not in names:
            further = "" if prefix else _in_a_section(str(key))
            raise UsageError(
                f"unknown key {prefix + str(key)!r}. {further}{suggest(str(key), names)}"
            )


def _in_a_section(key: str) -> str:
    """``Did you mean 'distill.temperature'?`` for a key that stands one level below."""
    found = [
        f"{section}.{key}"
        for kind in KINDS
        for section, hint in typing.get_type_hints(kind).items()
        if dataclasses.is_dataclass(hint) and key in typing.get_type_hints(hint)
    ]
    return f"Did you mean {found[0]!r}? " if found else ""


def _is_required(item: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return item.default is missing and item.default_factory is missing


def _is_section(hint: Any) -> bool:
    """Whether an empty section, which YAML reads as null, means its default."""
    return dataclasses.is_dataclass(hint) or typing.get_origin(hint) is dict


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of an experiment, for its help.

    Attributes:
        name: dotted, as on the command line.
        about: what it is.
        default: None where there is none, or nothing to say.
        is_required: whether the experiment needs it.
    """

    name: str
    about: str
    default: Any
    is_required: bool


def keys_of(kind: type, prefix: str = "") -> Iterator[Key]:
    """Every key of an experiment in order; sections of the other stage are one line."""
    hints = typing.get_type_hints(kind)
    about = {name: " ".join(text.replace("``", "").split()) for name, text in _attributes(kind)}
    for item in dataclasses.fields(kind):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type) and item.name not in about:
            yield from keys_of(hint, f"{prefix}{item.name}.")
            continue
        made = item.default_factory
        default = item.default if made is dataclasses.MISSING else made()
        is_shown = not dataclasses.is_dataclass(default) and default not in (
            dataclasses.MISSING,
            None,
            {},
        )
        yield Key(
            name=prefix + item.name,
            about=about[item.name],
            default=default if is_shown else None,
            is_required=_is_required(item),
        )


def _attributes(kind: type) -> list[tuple[str, str]]:
    """(name, text) of the attributes that a docstring describes."""
    _, _, attributes = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    return _ATTRIBUTE.findall(attributes)
