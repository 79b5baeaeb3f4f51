"""One leaf of a nested batch or sample, found by its path.

Mappings, sequences, named tuples and objects with attributes are containers; texts are not.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kdcache.errors import DataError, suggest

Path = int | str
"""A position, a name, or a dotted path such as ``0.image``."""

_NUMBER = re.compile(r"-?\d+")


@functools.cache
def _steps(path: Path) -> tuple[tuple[str, int | None], ...]:
    """The parts of a dotted path, each as a name and, where it is one, as a number."""
    parts = str(path).split(".")
    return tuple((part, int(part) if _NUMBER.fullmatch(part) else None) for part in parts)


def leaf(value: Any, path: Path, setting: str = "path") -> Any:
    """The leaf of a nested value at a path.

    Args:
        value: a batch or a sample: mappings, sequences and objects with attributes.
        path: where the leaf is.
        setting: what the path came from, for the error.

    Raises:
        DataError: there is nothing; says where the path ends.
    """
    found = value
    for name, number in _steps(path):
        try:
            found = _step(found, name, number)
        except (KeyError, IndexError, AttributeError) as error:
            hint = suggest(name, map(str, found)) if isinstance(found, Mapping) else ""
            raise DataError(
                f"{setting} {str(path)!r} leads nowhere: {describe(found)} has no {name!r}. {hint}"
            ) from error
    return found


def _step(value: Any, name: str, number: int | None) -> Any:
    if isinstance(value, tuple | list) and number is not None:
        return value[number]
    if isinstance(value, Mapping):
        return value[number] if number is not None and name not in value else value[name]
    if number is not None and isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return value[number]
    found = getattr(value, name)
    if callable(found):  # a list's "index" is no leaf
        raise AttributeError(name)
    return found


def describe(value: Any) -> str:
    """A few words for an error: what a container is and what it holds."""
    if isinstance(value, Mapping):
        return f"a mapping of {', '.join(map(repr, value))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
