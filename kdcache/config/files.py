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
    """``over`` on top of ``base``; another class_path starts with fresh init_args and weights."""
    merged = dict(base)
    if "class_path" in over and over["class_path"] != base.get("class_path"):
        merged.pop("init_args", None)
        merged.pop("weights", None)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            merged[key] = merge(old, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def override(raw: Mapping[str, Any], name: str, text: str) -> Raw:
    """The raw sections with one dotted key set from the command line.

    ``student.width`` is short for ``student.init_args.width``; a value is read as YAML. A mapping
    replaces what was there, a key below it changes one entry.
    """
    parts = name.split(".")
    if parts[0] in COMPONENTS and len(parts) > 1 and parts[1] not in component_keys(parts[0]):
        parts.insert(1, "init_args")
    try:
        value = yaml.load(text, _Loader)  # a safe loader
    except yaml.YAMLError as error:
        raise UsageError(f"--{name}: {text!r} is not a valid value.") from error
    result = copy.deepcopy(dict(raw))
    section = result
    for part in parts[:-1]:
        inner = section.get(part)
        section[part] = dict(inner) if isinstance(inner, Mapping) else {}
        section = section[part]
    if parts[-1] == "class_path" and section.get("class_path") != value:
        section.pop("init_args", None)
        section.pop("weights", None)
    section[parts[-1]] = value
    return spelt_out(result)


def to_yaml(experiment: DumpExperiment | StudentExperiment) -> str:
    """An experiment as a file would say it, defaults included."""
    plain = dataclasses.asdict(experiment)
    return str(yaml.dump(plain, Dumper=_Dumper, sort_keys=False))
