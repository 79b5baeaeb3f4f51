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

from kdcache.data.batch.leaves import Path, leaf
from kdcache.errors import DataError, KdcacheError, SampleError, origin

ALGORITHM = "xxh3_64"
TOKENS = "tokens:"
"""Begins a source whose leaf is token ids: equal ids are equal, whatever holds them."""

_NUMPY_FLOATS = frozenset({torch.float16, torch.float32, torch.float64})
_NAMES = {
    dtype: str(dtype).removeprefix("torch.")
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
}


def fingerprint(value: Any) -> int:
    """64-bit fingerprint of a nested value.

    Args:
        value: tensors, arrays, images with ``tobytes``, numbers, texts, bytes, None, and
            mappings and sequences of them.

    Raises:
        DataError: something in it has no canonical form.
    """
    state = xxhash.xxh3_64()
    try:
        _update(state, value)
    except RecursionError as error:
        raise DataError("a sample that contains itself has no fingerprint.") from error
    return state.intdigest()


def array_of(value: Any) -> tuple[np.ndarray[Any, Any], str] | None:
    """A tensor, array or image as (array, dtype name); None for anything else.

    Raises:
        DataError: it holds no plain numbers (objects, records, a sparse tensor).
    """
    if isinstance(value, Tensor):
        return _tensor_array(value), _NAMES[value.dtype]
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.hasobject or array.dtype.names is not None:
            raise DataError(
                "an array of objects or records has no fingerprint. Store numbers or text."
            )
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        return array, array.dtype.name
    if hasattr(value, "tobytes") and hasattr(value, "mode") and hasattr(value, "size"):
        # Mode P: pixels are numbers of colours, which the palette makes visible.
        palette = value.getpalette() if value.mode == "P" else None
        colours = "" if palette is None else f" {fingerprint(palette):016x}"
        return np.asarray(value), f"image {value.mode}{colours}"
    return None


def _tensor_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    dtype = tensor.dtype
    try:
        if dtype.is_floating_point and dtype not in _NUMPY_FLOATS:  # bfloat16, float8: their bits
            tensor = tensor.view(torch.uint16 if dtype.itemsize == 2 else torch.uint8)
        return tensor.numpy(force=True)
    except (RuntimeError, TypeError) as error:
        raise DataError(f"a {dtype} tensor has no fingerprint: {error}.") from error


def _update(state: xxhash.xxh3_64, value: Any) -> None:
    if isinstance(value, list | tuple):
        # A tag and a length before each content: ["ab", "c"] and ["a", "bc"] have other bytes.
        state.update(b"L%d;" % len(value))
        if set(map(type, value)) == {int}:  # token ids: the same bytes, ten times as fast
            state.update(("Nint %x;" * len(value) % tuple(value)).encode())
            return
        for item in value:
            _update(state, item)
        return
    found = array_of(value)
    if found is not None:
        array, name = found
        state.update(f"A{name}{array.shape}".encode())
        # Most arrays give their bytes without a copy; dates and texts do not.
        is_plain = array.dtype.kind in "biufc" and array.size
        state.update(np.ascontiguousarray(array).data if is_plain else array.tobytes())
    elif isinstance(value, bool | float | complex) or value is None:
        state.update(f"N{type(value).__name__} {value!r};".encode())
    elif isinstance(value, int):
        state.update(f"Nint {value:x};".encode())
    elif isinstance(value, str):
        # Undecodable file names become texts with lone surrogates, which plain UTF-8 refuses.
        content = value.encode("utf-8", "surrogatepass")
        state.update(b"str%d;" % len(content) + content)
    elif isinstance(value, bytes | bytearray):
        state.update(b"bytes%d;" % len(value) + value)
    elif isinstance(value, Mapping):
        state.update(b"M%d;" % len(value))
        # In one order, whichever the mapping was filled in; by type first, since 1 and "1" differ.
        for key in sorted(value, key=lambda key: (type(key).__name__, str(key))):
            _update(state, key)
            _update(state, value[key])
    elif isinstance(value, Sequence):
        _update(state, list(value))
    else:
        raise DataError(
            f"a {type(value).__name__} has no fingerprint. Make it a tensor, array, number or "
            "text, or choose what is fingerprinted (dump.fingerprint)."
        )


def token_ids(value: Any) -> np.ndarray[Any, Any]:
    """Token ids as an (L,) int64 array: a list, array or tensor of any integer type.

    Raises:
        DataError: it is something else.
    """
    found, array = array_of(value), value
    if found is not None:  # of an image, or a float type that NumPy has not, only bits are there
        array = found[0] if found[1] == found[0].dtype.name else None
    try:
        ids = np.asarray(array)
    except (ValueError, TypeError, RuntimeError):  # such as lists of uneven length
        ids = np.empty((0, 0))
    is_empty = ids.shape == (0,)  # no number says of which type it is
    if ids.ndim != 1 or not (is_empty or ids.dtype.kind in "iu") or _is_too_large(ids):
        shape = f" of {ids.dtype} and shape {ids.shape}" if isinstance(array, np.ndarray) else ""
        raise DataError(
            f"a {type(value).__name__}{shape} is no token ids: a flat list, array or tensor of "
            "whole numbers is. Name another leaf (dump.fingerprint: tokens:<path>), or "
            "fingerprint the inputs as they are."
        )
    return ids.astype(np.int64)


def _is_too_large(ids: np.ndarray[Any, Any]) -> bool:
    """Whether an id does not fit into int64."""
    return ids.dtype == np.uint64 and bool((ids > np.uint64(np.iinfo(np.int64).max)).any())


@dataclass(frozen=True)
class FingerprintSource:
    """Which part of ``dataset[i]`` is fingerprinted.

    Attributes:
        name: ``inputs`` (the leaves at ``paths``), ``sample`` (all of it), ``field:<path>``,
            ``tokens:<path>`` (token ids, in any integer type and container; ``tokens:`` alone
            where a sample is nothing but its ids), or the class path of ``function``.
        paths: leaves of the sample, where the source is ``inputs``, a field or tokens.
        function: from a sample to what is fingerprinted, where the user has chosen one.
    """

    name: str = "sample"
    paths: tuple[Path, ...] = ()
    function: Callable[[Any], Any] | None = None

    @classmethod
    def of_tokens(cls, name: str) -> FingerprintSource:
        """The source that ``tokens:<path>`` names."""
        path = name.removeprefix(TOKENS)
        return cls(name=name, paths=(path,) if path else ())

    def content(self, sample: Any) -> Any:
        """What is fingerprinted of a sample.

        Raises:
            DataError: the user's function raised; or there is no such leaf, or no token ids.
        """
        if self.function is not None:
            return self._called(self.function, sample)
        if not self.paths:
            return token_ids(sample) if self.name == TOKENS else sample
        found = [leaf(sample, path, "fingerprinted path") for path in self.paths]
        return token_ids(found[0]) if self.name.startswith(TOKENS) else found

    def _called(self, function: Callable[[Any], Any], sample: Any) -> Any:
        try:
            return function(sample)
        except KdcacheError:
            raise
        except Exception as error:
            raise DataError(
                f"the fingerprint function {self.name} raised at {origin(error, skip=1)}:\n"
                f"  {type(error).__name__}: {error}\n"
                "Mend it, or the sample; or choose another fingerprint (dump.fingerprint)."
            ) from error

    def __call__(self, sample: Any) -> int:
        """The sample's fingerprint."""
        return fingerprint(self.content(sample))

    def of_each(
        self, samples: Sequence[Any], numbers: Sequence[Any], split: str
    ) -> np.ndarray[Any, Any]:
        """The fingerprints of some samples, (B,) uint64.

        Args:
            samples: as the dataset gave them.
            numbers: theirs, for the error.
            split: that they are of.

        Raises:
            SampleError: a sample has none: it has no such leaf, or one without canonical form.
        """
        found: list[int] = []
        try:
            for sample in samples:
                found.append(self(sample))
        except DataError as error:
            raise SampleError(
                f"sample {numbers[len(found)]} of split {split!r} has no fingerprint: {error}"
            ) from error
        return np.asarray(found, np.uint64)

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {"algorithm": ALGORITHM, "source": self.name, "paths": list(self.paths)}
