"""Plain arguments of our functions in Python, held against their types and made plain.

NumPy's numbers become Python's: they come out of every sweep, and a manifest, which is JSON, has
no others. What a value means is for whoever takes it.
"""

from __future__ import annotations

import numbers
import operator
from collections.abc import Mapping
from typing import Any

from kdcache.errors import UsageError

FULL_PRECISIONS: Mapping[str, str] = {
    "16": "16-mixed",
    "bf16": "bf16-mixed",
    "32": "32-true",
    "64": "64-true",
}
"""Lightning's short names of precisions, which it also takes as numbers, and what they mean."""


def flag(value: object, name: str) -> bool:
    """True or False, in Python or NumPy; UsageError for anything else, such as "no"."""
    if isinstance(value, bool):
        return value
    if type(value).__module__ == "numpy" and type(value).__name__.rstrip("_") == "bool":
        return bool(value)
    raise UsageError(f"{name} is True or False, not {value!r:.100}.")


def whole_number(value: Any, name: str, *, least: int = 1) -> int:
    """A whole number, of any integer type; UsageError for anything else, such as 20.0."""
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = None
    if found is None or found < least:
        raise UsageError(f"{name} is a whole number, at least {least}, not {value!r:.100}.")
    return found


def number(value: object, name: str) -> float:
    """A number of any real type, as a float; UsageError for anything else, such as "30"."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UsageError(f"{name} is a number, not {value!r:.100}.")
    return float(value)


def text(value: object, name: str, example: str) -> str:
    """A text; UsageError for anything else, with an example of one."""
    if not isinstance(value, str):
        raise UsageError(f"{name} is a text, such as {example!r}, not {value!r:.100}.")
    return value


def texts(value: Any, name: str) -> tuple[str, ...]:
    """Several texts in order; UsageError for one text alone, and for what are no texts."""
    found = () if isinstance(value, str) else _items(value)
    if isinstance(value, str) or found is None:
        raise UsageError(f"{name} is a list of texts, such as ['cat', 'dog'], not {value!r:.100}.")
    wrong = next((item for item in found if not isinstance(item, str)), None)
    if wrong is not None or None in found:
        raise UsageError(
            f"{name} is a list of texts, and one of them is {wrong!r:.100}. Make them texts: "
            f"[str(name) for name in {name}]."
        )
    return found


def _items(value: Any) -> tuple[Any, ...] | None:
    try:
        return tuple(value)
    except TypeError:
        return None


def precision(value: object, name: str) -> str:
    """One of Lightning's precisions by its full name: 16 and "16" are ``16-mixed``."""
    is_short = type(value) is int or isinstance(value, str)
    if not is_short:
        raise UsageError(
            f"{name} is one of Lightning's, such as '32-true' or 'bf16-mixed', not {value!r:.100}."
        )
    return FULL_PRECISIONS.get(str(value), str(value))
