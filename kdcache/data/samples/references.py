"""What a few samples looked like at the dump, to say later how far apart two inputs are.

A fingerprint tells only that an input differs. A reference keeps, for each array of a sample, its
dtype, shape, moments and a few values: enough to tell a decoder's low bits from another image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdcache.data.samples.fingerprint import array_of

NUM_REFERENCES = 8
_VALUES = 16


def _arrays(value: Any) -> list[tuple[np.ndarray[Any, Any], str]]:
    found = array_of(value)
    if found is not None:
        return [found]
    if isinstance(value, str | bytes):
        content = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        return [(np.frombuffer(content, np.uint8), type(value).__name__)]
    if isinstance(value, list | tuple) and all(isinstance(n, int | float) for n in value):
        return [(np.asarray(value, np.float64), "numbers")]  # such as token ids
    if isinstance(value, Mapping):
        return [array for key in sorted(value, key=str) for array in _arrays(value[key])]
    if isinstance(value, Sequence):
        return [array for item in value for array in _arrays(item)]
    return []


def _picked(array: np.ndarray[Any, Any]) -> list[float]:
    flat = array.reshape(-1)
    if not flat.size or flat.dtype.kind not in "biuf":
        return []
    at = np.linspace(0, flat.size - 1, min(_VALUES, flat.size)).astype(np.int64)
    # JSON has no NaN, and 7 digits are about what a float32 holds.
    return [float(f"{value:.7g}") for value in np.nan_to_num(flat[at].astype(np.float64))]


def describe(sample: int, content: Any) -> dict[str, Any]:
    """One reference: the sample's number, and dtype, shape and a few values of each array."""
    arrays = [
        {"dtype": name, "shape": list(array.shape), "values": _picked(array)}
        for array, name in _arrays(content)
    ]
    return {"sample": sample, "arrays": arrays}


def compare(reference: Mapping[str, Any], content: Any) -> str:
    """One phrase: how a sample's content now differs from its reference."""
    now = describe(0, content)["arrays"]
    then = reference.get("arrays")
    if not isinstance(then, list) or len(then) != len(now):
        return "another number of arrays"
    if not now:
        return "no values to compare"
    apart = 0.0
    for old, new in zip(then, now, strict=True):
        for what in ("dtype", "shape"):
            if old.get(what) != new[what]:
                return f"{what} was {old.get(what)}, is {new[what]}"
        apart = max(apart, farthest(old, new))
    return f"values differ by up to {apart:.3g}" if apart else "no difference in what was recorded"


def farthest(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """The largest difference between the recorded values of two arrays of one shape."""
    pair = np.asarray(old.get("values", []), float), np.asarray(new["values"], float)
    if pair[0].shape != pair[1].shape or not pair[0].size:
        return 0.0
    return float(np.abs(pair[0] - pair[1]).max())
