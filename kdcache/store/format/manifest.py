"""The manifest of one view of one split: the sole authority on codec, shapes and identity.

It stands in the view's Zarr group attributes, and is written before the first shard; only an
extension, when the dataset has grown, replaces it. What
two runs must agree on is compared field by field; when and by what it was made is not.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kdcache.columns import Column, check_columns
from kdcache.errors import CacheCorruptedError, MismatchError, UsageError
from kdcache.store.format.fields import Fields
from kdcache.store.format.files import json_text, read_json
from kdcache.store.format.layout import ATTRIBUTE, END_FILE, FORMAT_VERSION, GROUP_FILE, view_name
from kdcache.store.format.origins import DATA, origin_of

MAX_SHARDS = 1 << 20
"""A view with more shards than this was given far too few samples per shard."""

# One more than Fields.integer() lets through: no file can claim it.
UNKNOWN_LENGTH = (1 << 53) + 1
"""``num_samples`` of a stream whose end was not reached yet."""

_MAX_COLUMNS = 256
_MAX_AXES = 4
_MAX_EXTENSIONS = 1 << 16
# What the first writer decides for all, what is measured anew or only for people, and how the view
# grew; of class names the identity has a hash.
_NOT_COMPARED = frozenset(
    {
        "created",
        "class_names",
        "earlier_data",
        "extended_from",
        "pilot",
        "references",
        "samples_per_shard",
        "tables",
    }
)
_MEANING = {
    "identity.teacher.weights": "The teacher has other weights.",
    "identity.dataset.probe": "The dataset has other samples, or gives them in another order.",
}
_GROWN = frozenset({"num_samples", "identity.dataset.probe"})


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a (split, view) of a cache is.

    Attributes:
        split: its name.
        view: its number (0 until views of an augmentation are dumped).
        num_samples: N; keys by index are 0 to N - 1. Of a stream, ``UNKNOWN_LENGTH`` until its
            end record is there.
        extended_from: earlier values of ``num_samples``, ascending, where the dataset has grown;
            no shard crosses one.
        earlier_data: one of them, as text -> the data's part of :attr:`origin` until then.
        samples_per_shard: samples of every shard but the last ones, fixed at creation.
        batch_size: samples that went through the teacher together (within one shard).
        num_classes: C.
        codec: name and settings; enough to decode the columns.
        columns: every stored column, the codec's and the store's own.
        tables: name -> digest of the codec's tables, which stand once per cache.
        key: where a sample's key comes from: ``index``, ``content`` or ``field:<name>``.
        fingerprint: algorithm and source of the samples' fingerprints.
        identity: named hashes of all that decides the targets (teacher, data, batch ...).
        class_names: the names in class order, where known; their hash is in ``identity``.
        references: what a few samples looked like at the dump, to say how far others are.
        pilot: numbers measured before the first shard (fidelity, drift), to hold others against.
        created: versions and time; informative, never compared.
    """

    split: str
    view: int = 0
    num_samples: int
    extended_from: tuple[int, ...] = ()
    earlier_data: Mapping[str, str] = field(default_factory=dict)
    samples_per_shard: int
    batch_size: int
    num_classes: int
    codec: Mapping[str, Any]
    columns: tuple[Column, ...]
    tables: Mapping[str, str] = field(default_factory=dict)
    key: str = "index"
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    references: tuple[Mapping[str, Any], ...] = ()
    pilot: Mapping[str, float] = field(default_factory=dict)
    created: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if min(self.num_samples, self.samples_per_shard, self.batch_size, self.num_classes) < 1:
            raise UsageError("a split needs at least one sample, one class and one per batch.")
        if list(self._ends) != sorted({*self._ends}) or self._ends[0] < 1:
            raise UsageError(f"a split cannot grow from {self.extended_from} to its length.")
        if not self.earlier_data.keys() <= {str(length) for length in self.extended_from}:
            raise UsageError("'earlier_data' is of lengths that the split did not grow from.")
        if self.num_shards > MAX_SHARDS and not self.is_open:
            raise UsageError(
                f"{self.num_samples:,} samples at {self.samples_per_shard:,} a shard are "
                f"{self.num_shards:,} shards, at most {MAX_SHARDS:,} are allowed. Ask for more "
                "samples per shard."
            )
        check_columns(self.columns)

    @property
    def is_open(self) -> bool:
        """Whether it is of a stream whose end was not reached yet."""
        return self.num_samples == UNKNOWN_LENGTH

    @property
    def _ends(self) -> tuple[int, ...]:
        return (*self.extended_from, self.num_samples)

    @cached_property
    def _stretches(self) -> tuple[list[int], list[int]]:
        """First sample and first shard of every stretch between extensions, and one past all."""
        samples, shards = [0], [0]
        for stop in self._ends:
            # -(-n // k) rounds up: the last shard of a stretch may be short, and none crosses its
            # end.
            shards.append(shards[-1] - (samples[-1] - stop) // self.samples_per_shard)
            samples.append(stop)
        return samples, shards

    @cached_property
    def origin(self) -> dict[str, str]:
        """Which dump it is, part by part; a shard's commit record says the same."""
        columns = {column.name: column.to_json() for column in self.columns}
        return origin_of(
            self.identity,
            batch_size=self.batch_size,
            codec=self.codec,
            layout=[self.num_classes, self.codec, columns, self.tables],
            keys=[self.key, self.fingerprint],
            view=f"{self.split}/{view_name(self.view)}",
        )

    def data_before(self, stop: int) -> list[str]:
        """What was named as data before the dataset grew from sample ``stop`` or beyond it."""
        return [data for length, data in self.earlier_data.items() if stop <= int(length)]

    def grown_to(self, other: Manifest) -> Manifest:
        """This one with the length and the data of another, which begin with its own."""
        length = str(self.num_samples)
        return replace(
            self,
            num_samples=other.num_samples,
            extended_from=(*self.extended_from, self.num_samples),
            earlier_data={**self.earlier_data, length: self.origin[DATA]},
            identity=other.identity,
            references=other.references,
        )

    @property
    def num_shards(self) -> int:
        """Shards that a complete view has; of an open stream, the most that it may have."""
        number = self._stretches[1][-1]
        return min(number, MAX_SHARDS) if self.is_open else number

    def missing(self, done: Collection[int]) -> tuple[int, ...]:
        """Numbers of the shards that are not among ``done``, ascending.

        Of an open stream: the gaps, and the one after the last.
        """
        stop = min(self.num_shards, max(done, default=-1) + 2) if self.is_open else self.num_shards
        return tuple(shard for shard in range(stop) if shard not in done)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """[start, stop) of the samples that a shard holds."""
        samples, shards = self._stretches
        at = bisect.bisect_right(shards, shard) - 1
        if not 0 <= at < len(samples) - 1:
            raise IndexError(f"there are {self.num_shards} shards, no {shard}.")
        first = samples[at] + (shard - shards[at]) * self.samples_per_shard
        return first, min(first + self.samples_per_shard, samples[at + 1])

    def to_json(self) -> dict[str, Any]:
        """As it stands in the group's attributes."""
        values: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        values["num_samples"] = None if self.is_open else self.num_samples
        values["extended_from"] = list(self.extended_from)
        values["columns"] = [column.to_json() for column in self.columns]
        values["class_names"] = list(self.class_names)
        values["references"] = [dict(reference) for reference in self.references]
        return {"format": FORMAT_VERSION, **values}

    @classmethod
    def from_json(cls, value: object, where: str) -> Manifest:
        """Read a manifest; CacheCorruptedError names the field that cannot be."""
        at = Fields(value, where)
        version = at.integer("format")
        if version != FORMAT_VERSION:
            raise CacheCorruptedError(
                f"{where} has format version {version}; this kdcache reads {FORMAT_VERSION}. "
                "Install the version that wrote it, or dump again."
            )
        if isinstance(value, dict) and "earlier_data" not in value:
            raise CacheCorruptedError(
                f"{where} has no 'earlier_data': an earlier kdcache wrote it, whose shards do not "
                "say which dump they are of (format 0 was still changing). Dump again."
            )
        columns, names = at.items("columns"), at.items("class_names")
        if len(columns) > _MAX_COLUMNS or not all(isinstance(name, str) for name in names):
            raise CacheCorruptedError(f"{where}: too many columns, or class names are no texts.")
        extended_from, references = at.items("extended_from"), at.items("references")
        if len(extended_from) > _MAX_EXTENSIONS or not all(type(n) is int for n in extended_from):
            raise CacheCorruptedError(f"{where}: 'extended_from' should be a list of integers.")
        if not all(isinstance(reference, dict) for reference in references):
            raise CacheCorruptedError(f"{where}: 'references' should be a list of objects.")
        try:
            return cls(
                split=at.text("split", at_most=64),
                view=at.integer("view", at_most=999_999),
                num_samples=_length(at),
                extended_from=tuple(extended_from),
                earlier_data=at.texts("earlier_data"),
                samples_per_shard=at.integer("samples_per_shard", at_least=1),
                batch_size=at.integer("batch_size", at_least=1),
                num_classes=at.integer("num_classes", at_least=1, at_most=1 << 31),
                codec=at.mapping("codec"),
                columns=tuple(
                    read_column(column, f"{where}, column {number}")
                    for number, column in enumerate(columns)
                ),
                tables=at.texts("tables"),
                key=at.text("key", at_most=256),
                fingerprint=at.mapping("fingerprint"),
                identity=at.texts("identity"),
                class_names=tuple(names),
                references=tuple(references),
                pilot=at.numbers("pilot"),
                created=at.texts("created"),
            )
        except UsageError as error:
            raise CacheCorruptedError(f"{where}: {error}") from error


def _length(at: Fields) -> int:
    found = at.optional_integer("num_samples")
    if found is None:
        return UNKNOWN_LENGTH
    return at.integer("num_samples", at_least=1)


def read_manifest(view: Path) -> Manifest:
    """The manifest of a view's folder; of a stream, with the length in its end record.

    Raises:
        FileNotFoundError: there is no view.
        CacheCorruptedError: it cannot be read, or is that of another split or view.
    """
    where = view / GROUP_FILE
    attributes = read_json(where).get("attributes")
    content = attributes.get(ATTRIBUTE) if isinstance(attributes, dict) else None
    manifest = Manifest.from_json(content, str(where))
    if (manifest.split, view_name(manifest.view)) != (view.parent.name, view.name):
        raise CacheCorruptedError(
            f"{where} says that it is view {manifest.view} of split {manifest.split!r}: the folder "
            "was renamed or copied. Give it its own name back, or dump this split."
        )
    return _ended(manifest, view / END_FILE) if manifest.is_open else manifest


def _ended(manifest: Manifest, record: Path) -> Manifest:
    try:
        at = Fields(read_json(record), str(record))
    except FileNotFoundError:
        return manifest
    length = at.integer("num_samples", at_least=1)
    try:
        return replace(manifest, num_samples=length)
    except UsageError as error:
        raise CacheCorruptedError(f"{record}: {error}") from error


def read_column(value: object, where: str) -> Column:
    """Read one column of a manifest; CacheCorruptedError for anything that is not one."""
    at = Fields(value, where)
    shape = at.items("shape")
    if len(shape) > _MAX_AXES or not all(type(size) is int for size in shape):
        raise CacheCorruptedError(f"{where}: 'shape' should be at most {_MAX_AXES} integers.")
    return Column(
        name=at.text("name", at_most=64),
        per=at.text("per", at_most=16),  # type: ignore[arg-type]  # checked by Column
        dtype=at.text("dtype", at_most=16),
        shape=tuple(shape),
    )


def _flat(value: object, name: str = "") -> dict[str, Any]:
    """Nested objects as dotted names, so that a difference names the smallest field."""
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    prefix = f"{name}." if name else ""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}{key}")
    return flat


def differences(cache: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted field name -> (cache's value, this run's), where the two differ."""
    ours, theirs = _flat(cache), _flat(run)
    names = sorted(ours.keys() | theirs.keys())
    absent = "(none)"
    pairs = {name: (ours.get(name, absent), theirs.get(name, absent)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def difference_table(
    found: Mapping[str, tuple[Any, Any]], sides: tuple[str, str] = ("cache", "this run")
) -> str:
    """One aligned line a field: name, the value on either side."""
    width = max(len(name) for name in found)
    lines = [
        f"  {name:<{width}}  {sides[0]} {_short(one)}   {sides[1]} {_short(other)}"
        for name, (one, other) in found.items()
    ]
    return "\n".join(lines)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 48 else f"{text[:45]}..."


def check_same(cache: Manifest, run: Manifest, where: Path) -> None:
    """Raise MismatchError unless ``run`` may continue the dump that ``cache`` describes."""
    # How long a stream is, nobody knows before its end.
    skipped = _NOT_COMPARED | ({"num_samples"} if run.is_open else frozenset())

    def comparable(manifest: Manifest) -> dict[str, Any]:
        # Through JSON, because that is how the cache's came here: a tuple is a list there.
        values = json.loads(json_text(manifest.to_json(), "the manifest"))
        columns = {
            column.name: f"{column.dtype}{list(column.shape)} per {column.per}"
            for column in manifest.columns
        }
        kept = {name: value for name, value in values.items() if name not in skipped}
        return {**kept, "columns": columns}

    found = differences(comparable(cache), comparable(run))
    if found:
        remedy = "Restore these settings to resume, or choose a new cache path."
        if found.keys() <= _GROWN and cache.num_samples < run.num_samples:
            remedy = "If samples were added at the dataset's end, --extend dumps only those."
        meaning = "".join(f"{text} " for name, text in _MEANING.items() if name in found)
        raise MismatchError(
            f"{where} was begun with other settings.\n{difference_table(found)}\n"
            f"{meaning}Nothing was written. {remedy}"
        )
