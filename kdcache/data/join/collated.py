"""What collation makes of the reference samples: stage two holds it against the dump's.

Fingerprints are taken before collation, so a flip or another normalisation inside ``collate_fn``
passes them. Each reference sample is collated alone, and the teacher's inputs are compared.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kdcache.columns import FINGERPRINT
from kdcache.data.batch.leaves import leaf
from kdcache.data.batch.mapping import Mapped
from kdcache.data.samples import sources
from kdcache.data.samples.fingerprint import FingerprintSource, array_of, fingerprint
from kdcache.data.samples.keys import INDEX
from kdcache.data.samples.references import describe, farthest
from kdcache.errors import AlignmentError, DataError
from kdcache.store import LocalCopy, View

log = logging.getLogger(__name__)

COLLATED = "collated"
"""Where a reference has it."""

# Decoders and resizes differ in low bits between processors and library versions.
_LOW_BITS = 1e-3


class Joined(Protocol):
    """What is looked at: the user's samples and collation, and the cache's view of them."""

    dataset: Any
    view: View
    source: FingerprintSource
    mapping: Mapped
    user_collate: Callable[[list[Any]], Any]

    @property
    def copy(self) -> LocalCopy:
        """The local copy of the view."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How a collated input differs from the dump's.

    Attributes:
        text: in words.
        is_certain: whether it is another input for certain: of one shape, with other values.
    """

    text: str
    is_certain: bool


def collated_alone(collate_fn: Callable[[list[Any]], Any], sample: Any) -> Any | None:
    """A batch of one sample; None of a function that needs more of them."""
    try:
        return collate_fn([sample])
    except Exception:  # the user's own: in whole batches it may be right all the same
        return None


def describe_collated(mapping: Mapped, batch: Any) -> dict[str, Any]:
    """The teacher's inputs in a batch of one sample, by their paths where they have any.

    Args:
        mapping: resolved.
        batch: what the collate function made of the one sample.
    """
    paths = mapping.input_paths()
    found = {} if paths is None else _leaves(batch, paths)
    if not found:
        selected = mapping.select(batch)
        values: list[Any] = [*selected.args, *(selected.kwargs[k] for k in sorted(selected.kwargs))]
        return {"inputs": _inputs_of(mapping), "arrays": _arrays(values)}
    return {"paths": list(found), "arrays": _arrays(list(found.values()))}


def difference(stored: object, mapping: Mapped, batch: Any) -> Difference | None:
    """How a reference's collated inputs differ from the stored ones; None: not, or not to be told.

    Args:
        stored: of the reference; nothing in caches that were made before it was kept.
        mapping: the student's, resolved.
        batch: what the student's collate function makes of the one sample.
    """
    if not isinstance(stored, Mapping) or not isinstance(stored.get("arrays"), list):
        return None
    paths = stored.get("paths")
    if isinstance(paths, list):
        found = _leaves(batch, tuple(paths))
        if len(found) != len(paths):
            return None  # the student's batch has no such leaves: it sees something else
        now = _arrays(list(found.values()))
    elif stored.get("inputs") == _inputs_of(mapping):
        now = describe_collated(mapping, batch)["arrays"]
    else:
        return None
    if len(now) != len(stored["arrays"]):
        return Difference(text="another number of arrays", is_certain=False)
    for number, (old, new) in enumerate(zip(stored["arrays"], now, strict=True)):
        name = f"input {paths[number]!r}" if isinstance(paths, list) else f"input {number}"
        found_one = _compared(old, new, name) if isinstance(old, Mapping) else None
        if found_one is not None:
            return found_one
    return None


def _compared(old: Mapping[str, Any], new: Mapping[str, Any], name: str) -> Difference | None:
    if old.get("digest") == new["digest"]:
        return None
    for what in ("shape", "dtype"):
        if old.get(what) != new[what]:
            text = f"{what} of {name} was {old.get(what)}, is {new[what]}"
            return Difference(text=text, is_certain=False)
    apart, size = farthest(old, new), max(map(abs, old.get("values") or [0.0]))
    # Relative to the largest value; a change outside of the few recorded values has apart 0, and
    # only its digest tells.
    if 0 < apart <= _LOW_BITS * max(size, _LOW_BITS) and "float" in str(new["dtype"]):
        return Difference(text=f"values of {name} differ by up to {apart:.2g}", is_certain=False)
    by = f"by up to {apart:.3g}" if apart else "in a part"
    return Difference(text=f"values of {name} differ {by}", is_certain=True)


def _leaves(batch: Any, paths: tuple[Any, ...]) -> dict[Any, Any]:
    """Path -> what is there; a path that leads nowhere is left out."""
    found = {}
    for path in paths:
        try:
            found[path] = leaf(batch, path, "batch.inputs")
        except DataError:
            continue
    return found


def _inputs_of(mapping: Mapped) -> str:
    # Labels and mask may differ: they are no part of what the teacher was given.
    return mapping.describe().partition(" labels=")[0]


def _arrays(values: list[Any]) -> list[dict[str, Any]]:
    arrays = [value for value in values if array_of(value) is not None]
    described: list[dict[str, Any]] = describe(0, arrays)["arrays"]
    return [
        {**one, "digest": f"{fingerprint(_plain(value)):016x}"}
        for one, value in zip(described, arrays, strict=True)
    ]


def _plain(value: Any) -> Any:
    """Without the sign of zeros and the payload of NaN, which no model tells apart."""
    array = array_of(value)
    if array is None or array[0].dtype.kind != "f":
        return value
    return np.nan_to_num(array[0]) + 0.0


def check_collated(joined: Joined, number: int, sample: Any, reference: Mapping[str, Any]) -> None:
    """Hold what collation makes of a reference sample against the dump's.

    Raises:
        AlignmentError: it is another input.
    """
    batch = collated_alone(joined.user_collate, sample)
    if batch is None:
        return
    found = difference(reference.get(COLLATED), joined.mapping.resolve(batch), batch)
    if found is None:
        return
    then = joined.view.manifest.identity.get("collate", "")
    text = (
        f"sample {number}, collated alone, is not what the teacher was given at the dump, though "
        f"the sample itself is: {found.text}. The collate function was {then} then, and is "
        f"{path_of(joined.user_collate)} now"
    )
    if found.is_certain:
        raise AlignmentError(
            f"{text}. Targets would be of other inputs. Use the collate function of the dump, or "
            "dump again with this one."
        )
    log.warning("%s: right where the student is meant to see the samples in another form", text)


def check_references(joined: Joined) -> None:
    """Hold what collation makes of the reference samples against the dump's, by their numbers.

    Where keys are no numbers, :func:`kdcache.data.join.probes.check_join` looks at those that its
    probe comes upon.

    Raises:
        AlignmentError: it makes other inputs of one.
    """
    manifest = joined.view.manifest
    if manifest.key != INDEX or sources.is_stream(joined.dataset):
        return
    for reference in manifest.references:
        number = reference.get("sample")
        if type(number) is int and 0 <= number < len(joined.dataset):
            (sample,) = sources.fetch(joined.dataset, [number], manifest.split)
            # Another sample is told of as such, where it is joined.
            if joined.source(sample) == int(joined.copy.column(FINGERPRINT)[number]):
                check_collated(joined, number, sample, reference)


def path_of(function: object) -> str:
    """``module.name`` of a function, or of an object's class."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
