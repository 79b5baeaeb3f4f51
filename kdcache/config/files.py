"""Experiment files as nested plain values: read, laid over one another, overridden, written."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kdcache.config.sections import component_keys
from kdcache.errors import UsageError
from kdcache.experiment import COMPONENTS, DumpExperiment, StudentExperiment

Raw = dict[str, Any]

# YAML 1.1 reads 1e-3 as text (it wants 1.0e-3). Reader and writer agree on ours.
_EXPONENT = (
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, with 1e-3 read as a number and a key given twice refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """YAML's own would let the second of two equal keys win silently."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    text = f"the key {key.value!r} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """YAML's safe dumper, with the text '1e-3' quoted."""


_Loader.add_implicit_resolver(*_EXPONENT)
_Dumper.add_implicit_resolver(*_EXPONENT)


def read_file(path: Path) -> Raw:
    """An experiment file as nested plain values; UsageError where it is none."""
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a safe loader
    except OSError as error:
        raise UsageError(f"the experiment file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the experiment file {path} is no text in UTF-8.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no sections; see the README for an experiment file.")
    return spelt_out(found)


def spelt_out(raw: Raw) -> Raw:
    """Sections with components that are only named, ``optimizer: adam``, as such a section."""

    def component(value: Any) -> Any:
        return {"class_path": value} if isinstance(value, str) else value

    found = {name: component(raw[name]) if name in COMPONENTS else raw[name] for name in raw}
    if isinstance(found.get("pipelines"), Mapping):
        found["pipelines"] = {name: component(one) for name, one in found["pipelines"].items()}
    return found


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Raw:
    """``over`` on top of ``base``, mapping by mapping; everything else is replaced whole.

    What stands beside a class_path stays when another one is laid over it: weights are loaded into
    the other class too, and arguments that it does not take are refused where it is built.
    Dropping them here would train or dump something else than the files say.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            merged[key] = merge(old, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def override(raw: Mapping[str, Any], name: str, text: str) -> Raw:
    """The raw sections with one dotted key set from the command line.

    ``student.width`` is short for ``student.init_args.width``, and ``optimizer adam`` for
    ``optimizer.class_path adam``; a value is read as YAML. A mapping replaces what was there, a
    key below it changes one entry.

    Raises:
        UsageError: the value is no YAML, or the key would lie below a value that is no mapping.
    """
    parts = name.split(".")
    if parts[0] in COMPONENTS and len(parts) > 1 and parts[1] not in component_keys(parts[0]):
        parts.insert(1, "init_args")
    value = _value(name, text)
    is_component = parts[0] in COMPONENTS if len(parts) == 1 else parts[:-1] == ["pipelines"]
    if is_component and isinstance(value, str):
        parts.append("class_path")
    result = copy.deepcopy(dict(raw))
    section = result
    for number, part in enumerate(parts[:-1], start=1):
        inner = section.get(part)
        if not (inner is None or isinstance(inner, Mapping)):
            raise UsageError(
                f"--{name}: {'.'.join(parts[:number])} is {inner!r}, which has no keys of its own. "
                f"Give it a new value as a whole: --{'.'.join(parts[:number])} VALUE."
            )
        section[part] = dict(inner or {})
        section = section[part]
    section[parts[-1]] = value
    return spelt_out(result)


def _value(name: str, text: str) -> Any:
    """A word of the command line, read as YAML.

    Raises:
        UsageError: it is no YAML, or YAML would take a part of it for a comment.
    """
    try:
        value = yaml.load(text, _Loader)  # a safe loader
    except yaml.YAMLError as error:
        hint = " In YAML # begins a comment: put text into quotes." if "#" in text else ""
        raise UsageError(f"--{name}: {text!r} is not a valid value.{hint}") from error
    if not any(_means(text[: at.start()], value) for at in re.finditer(r"(?<!\S)#", text)):
        return value
    if isinstance(value, str) and text.startswith(value):  # a name such as "run #3"
        return text
    raise UsageError(
        f"--{name}: in {text!r} a comment begins with #, and what follows would be lost. Put text "
        "into quotes of its own, or leave the comment out."
    )


def _means(text: str, value: Any) -> bool:
    """Whether a text is a value's, so that what followed it was a comment."""
    try:
        return bool(yaml.load(text, _Loader) == value)
    except yaml.YAMLError:  # cut within quotes or brackets
        return False


def dropped(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of everything that was set before and is not there afterwards."""
    found: dict[str, Any] = {}
    for key, old in before.items():
        new = after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found |= {f"{key}.{name}": value for name, value in dropped(old, new).items()}
        elif key not in after or (isinstance(old, Mapping) and not isinstance(new, Mapping)):
            found[key] = old
    return found


def to_yaml(experiment: DumpExperiment | StudentExperiment) -> str:
    """An experiment as a file would say it, defaults included."""
    plain = dataclasses.asdict(experiment)
    return str(yaml.dump(plain, Dumper=_Dumper, sort_keys=False))
