"""The ``batch:`` section of an experiment file, or what stands for it in Python, as a mapping."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kdcache.data.batch.mapping import BatchMapping, Mapped
from kdcache.data.batch.masks import FUNCTION, MaskSource, import_function
from kdcache.data.batch.selection import CallableMapping
from kdcache.errors import UsageError, suggest

_SIDES = ("teacher", "student")
_FOUND = {"mask_inferred", "left_out", "signature"}
_KNOWN = {item.name for item in dataclasses.fields(BatchMapping)} - _FOUND


def parse_mapping(spec: object, side: Literal["teacher", "student"]) -> Mapped:
    """The mapping of one side from an experiment file's ``batch:`` section.

    Args:
        spec: None; a mapping with the fields of :class:`BatchMapping`, or with ``teacher`` and
            ``student``, each such a mapping; or a function from a batch to
            :class:`~kdcache.data.batch.selection.Selected`, or its class path.
        side: whose mapping is wanted.

    Raises:
        UsageError: an unknown key, a value of the wrong kind, a function that is not there.
    """
    if isinstance(spec, BatchMapping | CallableMapping):
        return spec
    if spec is None:
        return BatchMapping()
    if isinstance(spec, str):
        return CallableMapping(import_function(spec))
    if callable(spec):
        return CallableMapping(spec)
    spec = _plain(spec)
    if not isinstance(spec, Mapping):
        raise UsageError(f"batch: is a mapping or a class path, not {spec!r}.")
    if spec.keys() & set(_SIDES):
        _refuse_unknown(spec, set(_SIDES))
        return parse_mapping(spec.get(side), side)
    _refuse_unknown(spec, _KNOWN)
    if spec.get("inputs") in ([], (), {}):
        raise UsageError("batch.inputs is empty. Name the model's inputs, or leave it out.")
    mask = spec.get("mask")
    if isinstance(mask, list):
        mask = tuple(map(_imported, mask))
    return BatchMapping(**{**spec, "mask": _imported(mask)})


def _plain(value: Any) -> Any:
    """Mappings and sequences of any class (OmegaConf's, say) as dicts and lists."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    return value


def _imported(source: Any) -> MaskSource | Any:
    """A mask's source with the function that it names."""
    if isinstance(source, str) and source.startswith(FUNCTION):
        return import_function(source.removeprefix(FUNCTION))
    return source


def _refuse_unknown(spec: Mapping[str, Any], known: set[str]) -> None:
    unknown = next((name for name in spec if name not in known), None)
    if unknown is not None:
        raise UsageError(f"unknown key 'batch.{unknown}'. {suggest(str(unknown), known)}")
