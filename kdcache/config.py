"""One experiment file for both stages: reading it, overriding it, and building what it names.

Each stage takes the sections that it needs and ignores exactly the other stage's known ones; any
other key is an error. Stage two never looks into ``teacher``.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from kdcache.errors import UsageError, suggest
from kdcache.experiment import COMPONENTS, DumpExperiment, StudentExperiment

Experiment = TypeVar("Experiment", DumpExperiment, StudentExperiment)
Raw = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, with 1e-3 read as a number (YAML 1.1 wants 1.0e-3)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_file(path: Path) -> Raw:
    """An experiment file as nested plain values; UsageError where it is none."""
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a safe loader
    except OSError as error:
        raise UsageError(f"the experiment file {path} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no sections; see the README for an experiment file.")
    return found


def merge(base: Raw, over: Mapping[str, Any]) -> Raw:
    """``over`` on top of ``base``; another class_path starts with fresh init_args."""
    merged = dict(base)
    if "class_path" in over and over["class_path"] != base.get("class_path"):
        merged.pop("init_args", None)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        merged[key] = merge(dict(old), value) if both else copy.deepcopy(value)  # type: ignore[arg-type]
    return merged


def override(raw: Raw, name: str, text: str) -> Raw:
    """The raw sections with one dotted key set from the command line.

    ``student.width`` is short for ``student.init_args.width``; a value is read as YAML.
    """
    parts = name.split(".")
    if parts[0] in COMPONENTS and len(parts) > 1 and parts[1] not in ("class_path", "init_args"):
        parts.insert(1, "init_args")
    try:
        value = yaml.load(text, _Loader)  # a safe loader
    except yaml.YAMLError as error:
        raise UsageError(f"--{name} {text!r} is not a valid value.") from error
    # Assigning a mapping replaces it; assigning below it changes one entry.
    result = copy.deepcopy(raw)
    section = result
    for part in parts[:-1]:
        inner = section.get(part)
        section[part] = dict(inner) if isinstance(inner, Mapping) else {}
        section = section[part]
    if parts[-1] == "class_path" and section.get("class_path") != value:
        section.pop("init_args", None)
    section[parts[-1]] = value
    return result


def parse(kind: type[Experiment], raw: Raw) -> Experiment:
    """Check raw sections and make one stage's experiment of them.

    Raises:
        UsageError: an unknown key (with the nearest known one), a missing section, a value of
            another type.
    """
    fields = {item.name: item for item in dataclasses.fields(kind)}
    known = {
        item.name for one in (DumpExperiment, StudentExperiment) for item in dataclasses.fields(one)
    }
    _refuse_unknown(raw, known, "")
    mine = {key: value for key, value in raw.items() if key in fields}
    for name, item in fields.items():
        section = mine.get(name)
        if name in COMPONENTS and isinstance(section, Mapping):
            _refuse_unknown(section, {"class_path", "init_args"}, f"{name}.")
        required = item.default is dataclasses.MISSING and (
            item.default_factory is dataclasses.MISSING
        )
        if required and section is None:
            raise UsageError(
                f"the experiment has no {name!r}. Add it to the file, or give --{name} on the "
                "command line."
            )
    parser = parser_of(kind)
    for name in fields:
        section = mine.get(name)
        options = {action.dest for action in parser._actions}
        below = {dest.split(".")[1] for dest in options if dest.startswith(f"{name}.")}
        if below and isinstance(section, Mapping):
            _refuse_unknown(section, below, f"{name}.")
    try:
        found = parser.parse_object(mine)
        return kind(**vars(parser.instantiate(found)))
    except ArgumentError as error:
        raise UsageError(" ".join(str(error).split())) from error


def parser_of(kind: type[Experiment]) -> ArgumentParser:
    """The typed parser behind one stage's experiment; also prints its help."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
    parser.add_class_arguments(kind, as_group=False)
    return parser


def to_yaml(experiment: DumpExperiment | StudentExperiment) -> str:
    """An experiment as a file would say it, defaults included."""
    plain = dataclasses.asdict(experiment)
    return yaml.safe_dump(plain, sort_keys=False)


def _refuse_unknown(section: Mapping[str, Any], known: set[str], prefix: str) -> None:
    for key in section:
        if key not in known:
            raise UsageError(f"unknown key {prefix + str(key)!r}. {suggest(str(key), known)}")


def import_path(path: str, where: str) -> Any:
    """What a class path names: a class, a function, or a class's own constructor method."""
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UsageError(f"{where}: {path!r} is no class path; it is like my_module.MyClass.")
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
        for part in parts[split:]:
            if not hasattr(found, part):
                names = [n for n in vars(found) if not n.startswith("_")]
                raise UsageError(f"{where}: {name!r} has no {part!r}. {_nearest(part, names)}")
            found = getattr(found, part)
        return found
    modules = [path.stem for path in Path.cwd().glob("*.py")]
    raise UsageError(
        f"{where}: there is no module {parts[0]!r} for {path!r}. {_nearest(parts[0], modules)}"
        "Modules in the current folder can be imported."
    )


def fingerprint_function(name: str) -> Callable[[Any], Any] | None:
    """The function that ``dump.fingerprint`` names; None for one of the built-in sources."""
    if "." not in name:
        return None
    found = import_path(name, "dump.fingerprint")
    if not callable(found):
        raise UsageError(f"dump.fingerprint: {name!r} cannot be called.")
    return found  # type: ignore[no-any-return]


def _nearest(name: str, known: Sequence[str]) -> str:
    """``Did you mean ...?`` alone: the whole list would be long."""
    text = suggest(name, known)
    return text.split("Known:")[0]


def build(component: Mapping[str, Any], where: str, *given: Any) -> Any:
    """Make what a ``class_path`` / ``init_args`` section names.

    Args:
        component: the section.
        where: its name, for errors.
        given: positional arguments that the caller adds in front (parameters, an optimiser).

    Raises:
        UsageError: the class path, or an argument's name or type, is wrong.
    """
    path = component.get("class_path")
    if not isinstance(path, str):
        raise UsageError(f"{where} needs a class_path, such as my_module.MyClass.")
    target = import_path(path, where)
    arguments = dict(component.get("init_args") or {})
    if not callable(target):
        raise UsageError(f"{where}: {path!r} cannot be called.")
    return target(*given, **_checked(target, path, arguments, where, len(given)))


def _checked(target: Any, path: str, arguments: Raw, where: str, num_given: int) -> Raw:
    """Arguments with names checked against the signature, and types where it has them."""
    parameters = list(inspect.signature(target).parameters.values())[num_given:]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return {name: _built(value, f"{where}.{name}") for name, value in arguments.items()}
    names = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY)}
    for name in arguments:
        if name not in names:
            raise UsageError(f"{where}: {path} takes no {name!r}. {suggest(name, names)}")
    missing = [
        p.name
        for p in parameters
        if p.default is p.empty and p.name in names and p.name not in arguments
    ]
    if missing:
        raise UsageError(f"{where}: {path} needs {missing[0]!r}; set {where}.{missing[0]}.")
    skip = {p.name for p in parameters if p.name not in arguments}
    first = set(list(inspect.signature(target).parameters)[:num_given])
    parser = ArgumentParser(exit_on_error=False)
    add = parser.add_class_arguments if inspect.isclass(target) else parser.add_function_arguments
    try:
        skipped: Any = skip | first
        add(target, as_group=False, fail_untyped=False, skip=skipped)
        return dict(vars(parser.instantiate(parser.parse_object(arguments))))
    except ArgumentError as error:
        raise UsageError(f"{where}: {path}: {' '.join(str(error).split())}") from error


def _built(value: Any, where: str) -> Any:
    is_component = isinstance(value, Mapping) and "class_path" in value
    return build(value, where) if is_component else value
