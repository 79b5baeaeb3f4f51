"""The fingerprint of a sample: 64 bits over the content, dtype and shape of what a model sees.

The canonical form is: for every value a tag, its type and size, then its bytes (little-endian,
row-major); a NumPy array and a torch tensor of equal dtype and content are equal. xxh3-64 of that
is the fingerprint. Never ``hash()``, which is salted per process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from kdcache.data.batch import Path, leaf
from kdcache.errors import DataError

ALGORITHM = "xxh3_64"


def fingerprint(value: Any) -> int:
    """64-bit fingerprint of a nested value.

    Args:
        value: tensors, arrays, images with ``tobytes``, numbers, texts, bytes, None, and
            mappings and sequences of them.

    Raises:
        DataError: something in it has no canonical form.
    """
    state = xxhash.xxh3_64()
    _update(state, value)
    return state.intdigest()


def array_of(value: Any) -> tuple[np.ndarray[Any, Any], str] | None:
    """A tensor, array or image as (contiguous array, dtype name); None for anything else."""
    if isinstance(value, Tensor):
        name = str(value.dtype).removeprefix("torch.")
        value = value.detach().cpu().contiguous()
        if value.dtype is torch.bfloat16:
            value = value.view(torch.uint16)
        return value.numpy(), name
    if isinstance(value, np.ndarray | np.generic):
        array = np.ascontiguousarray(value)
        return array.reshape(np.shape(value)), array.dtype.name
    if hasattr(value, "tobytes") and hasattr(value, "mode") and hasattr(value, "size"):
        return np.asarray(value), f"image {value.mode}"
    return None


def _update(state: xxhash.xxh3_64, value: Any) -> None:
    found = array_of(value)
    if found is not None:
        array, name = found
        if array.dtype.hasobject:
            raise DataError("an array of Python objects has no fingerprint. Store numbers or text.")
        state.update(f"A{name}{array.shape}".encode())
        state.update(array.tobytes() if array.ndim == 0 else np.ascontiguousarray(array).data)
    elif value is None or isinstance(value, bool | int | float):
        state.update(f"N{type(value).__name__} {value!r};".encode())
    elif isinstance(value, str | bytes):
        content = value.encode() if isinstance(value, str) else value
        state.update(f"{type(value).__name__}{len(content)};".encode() + content)
    elif isinstance(value, Mapping):
        state.update(f"M{len(value)};".encode())
        for key in sorted(value, key=str):
            _update(state, str(key))
            _update(state, value[key])
    elif isinstance(value, Sequence):
        state.update(f"L{len(value)};".encode())
        for item in value:
            _update(state, item)
    else:
        raise DataError(
            f"a {type(value).__name__} has no fingerprint. Make it a tensor, array, number or "
            "text, or choose what is fingerprinted (dump.fingerprint)."
        )


@dataclass(frozen=True)
class FingerprintSource:
    """Which part of ``dataset[i]`` is fingerprinted.

    Attributes:
        name: ``inputs`` (the leaves at ``paths``), ``sample`` (all of it), or the class path of
            ``function``.
        paths: leaves of the sample, where the source is ``inputs``.
        function: from a sample to what is fingerprinted, where the user has chosen one.
    """

    name: str = "sample"
    paths: tuple[Path, ...] = ()
    function: Callable[[Any], Any] | None = None

    def content(self, sample: Any) -> Any:
        """What is fingerprinted of a sample."""
        if self.function is not None:
            return self.function(sample)
        return [leaf(sample, path) for path in self.paths] if self.paths else sample

    def __call__(self, sample: Any) -> int:
        """The sample's fingerprint."""
        return fingerprint(self.content(sample))

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {"algorithm": ALGORITHM, "source": self.name, "paths": list(self.paths)}
