"""A run's record as hyper-parameters, which loggers want flat."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def flattened(record: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested plain values as one level: names joined by ``/``, lists and null as JSON.

    Args:
        record: names to plain values (text, numbers, booleans, None, lists, mappings).
        prefix: in front of all names.
    """
    flat: dict[str, str | int | float | bool] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}/")
        elif isinstance(value, str | int | float):
            flat[f"{prefix}{name}"] = value
        else:
            flat[f"{prefix}{name}"] = json.dumps(value)
    return flat
