"""What can be known of a split's data before any teacher is asked.

Two runs over the same data come to the same facts; a complete cache is held against them even
where the teacher is not built.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from torch import Tensor

from kdcache.data.batch.mapping import Mapped
from kdcache.data.join.collated import COLLATED, collated_alone, describe_collated
from kdcache.data.samples import sources
from kdcache.data.samples.fingerprint import TOKENS, FingerprintSource, fingerprint
from kdcache.data.samples.keys import FIELD
from kdcache.data.samples.references import NUM_REFERENCES, describe
from kdcache.data.samples.vocabulary import IDENTITY, find_vocabulary
from kdcache.dump.preparation.teacher import class_path
from kdcache.errors import DataError, UsageError, suggest
from kdcache.store import UNKNOWN_LENGTH

_NUM_PROBES = 32
_MAX_TEXT = 400
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_DEFAULT_BATCH = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitData:
    """A split's loader, its first batch, and a few samples spread over the dataset.

    Attributes:
        split: its name.
        loader: the user's.
        num_samples: N; of a stream, ``UNKNOWN_LENGTH``.
        batch_size: samples that go through the teacher together.
        first: the samples of the first batch.
        batch: what the user's collate function makes of them.
        numbers: of the probed samples.
        probed: the probed samples.
    """

    split: str
    loader: sources.Loader
    num_samples: int
    batch_size: int
    first: Sequence[Any]
    batch: Any
    numbers: Sequence[int]
    probed: Sequence[Any]

    @classmethod
    def of(cls, split: str, loader: sources.Loader, num_samples: int | None = None) -> SplitData:
        """Look at a split, or at its first ``num_samples``; DataError for an empty dataset."""
        sources.check_batched(loader)
        dataset: Any = loader.dataset
        is_stream = sources.is_stream(dataset)
        size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
        batch_size = int(size or _DEFAULT_BATCH)
        length = UNKNOWN_LENGTH if is_stream else num_samples or len(dataset)
        if is_stream:  # looked at where it begins: nothing else can be asked for
            samples = sources.in_turn(dataset, split)
            begun = list(itertools.islice(samples, max(batch_size, _NUM_PROBES)))
            first, probed = begun[:batch_size], begun[:_NUM_PROBES]
            numbers = list(range(len(probed)))
        else:
            first = sources.fetch(dataset, range(min(batch_size, length)), split)
            numbers = sources.spread(length, _NUM_PROBES)
            probed = sources.fetch(dataset, numbers, split)
        if not probed:
            raise DataError(f"split {split!r} is empty: there is nothing to dump.")
        return cls(
            split=split,
            loader=loader,
            num_samples=length,
            batch_size=batch_size,
            first=first,
            batch=sources.collated(loader.collate_fn, list(first), range(len(first)), split),
            numbers=numbers,
            probed=probed,
        )

    @property
    def is_stream(self) -> bool:
        """Whether samples come one after another, and cannot be asked for by number."""
        return sources.is_stream(self.loader.dataset)

    def probed_again(self) -> Sequence[Any]:
        """The probed samples, drawn once more."""
        dataset: Any = self.loader.dataset
        if self.is_stream:
            samples = sources.in_turn(dataset, self.split)
            return list(itertools.islice(samples, len(self.numbers)))
        return sources.fetch(dataset, self.numbers, self.split)

    def collate(self, samples: Sequence[Any], numbers: Sequence[int]) -> Any:
        """What the user's collate function makes of some samples."""
        return sources.collated(self.loader.collate_fn, list(samples), numbers, self.split)

    def pilot(self, count: int) -> Iterator[tuple[Sequence[int], list[Any]]]:
        """(numbers, samples) batch by batch: drawn uniformly, or where a stream begins."""
        dataset: Any = self.loader.dataset
        if self.is_stream:
            samples = list(itertools.islice(sources.in_turn(dataset, self.split), count))
            for at in range(0, len(samples), self.batch_size):
                part = samples[at : at + self.batch_size]
                yield range(at, at + len(part)), part
            return
        count = min(count, self.num_samples)
        chosen = np.random.default_rng(0).choice(self.num_samples, count, replace=False)
        numbers = np.sort(chosen).tolist()
        for at in range(0, count, self.batch_size):
            part = numbers[at : at + self.batch_size]
            yield part, sources.fetch(dataset, part, self.split)

    def identity(
        self, source: FingerprintSource, class_names: Sequence[str], vocabulary: str
    ) -> dict[str, str]:
        """Named hashes of the data, for the manifest.

        Args:
            source: what is fingerprinted.
            class_names: in class order, where they are known.
            vocabulary: the tokenizer's digest; empty: that of the loader's own, if it has one.
        """
        vocabulary = vocabulary or find_vocabulary(None, self.loader)
        contents = [source.content(sample) for sample in self.probed]
        return {
            "dataset.class": class_path(self.loader.dataset),
            "dataset.probe": f"xxh3:{fingerprint(contents):016x}",
            "dataset.transform": described(getattr(self.loader.dataset, "transform", None)),
            "collate": class_path(self.loader.collate_fn),
            "class_names": f"xxh3:{xxhash.xxh3_64_hexdigest(chr(0).join(class_names).encode())}",
            **({IDENTITY: vocabulary} if vocabulary else {}),
        }

    def references(
        self, source: FingerprintSource, mapping: Mapped
    ) -> tuple[Mapping[str, Any], ...]:
        """What a few samples look like, and what collation makes of each alone.

        Args:
            source: what is fingerprinted.
            mapping: the teacher's, resolved.
        """
        found = []
        for n in sources.spread(len(self.probed), NUM_REFERENCES):
            described = describe(self.numbers[n], source.content(self.probed[n]))
            alone = collated_alone(self.loader.collate_fn, self.probed[n])
            if alone is not None:
                described[COLLATED] = describe_collated(mapping, alone)
            found.append(described)
        return tuple(found)


def described(value: Any) -> str:
    """What an object says of itself, without the addresses of this process; empty for None."""
    text = "" if value is None else _ADDRESS.sub("", repr(value))
    return text if len(text) <= _MAX_TEXT else f"xxh3:{xxhash.xxh3_64_hexdigest(text.encode())}"


def choose_source(
    wanted: str | Callable[[Any], Any], mapping: Mapped, sample: Any, batch: Any
) -> FingerprintSource:
    """What is fingerprinted: the model's input leaves where the sample has them, or all of it.

    Args:
        wanted: ``inputs``, ``sample``, ``field:<path>``, ``tokens:<path>``, or a function from a
            sample to what counts.
        mapping: resolved.
        sample: one sample, before collation.
        batch: a batch, after it.
    """
    if callable(wanted):
        return FingerprintSource(name=class_path(wanted), function=wanted)
    if wanted.startswith(FIELD):
        source = FingerprintSource(name=wanted, paths=(wanted.removeprefix(FIELD),))
        source(sample)  # a path that leads nowhere is said now
        return source
    if wanted.startswith(TOKENS):
        source = FingerprintSource.of_tokens(wanted)
        source(sample)
        return source
    if wanted not in ("inputs", "sample"):
        known = ["inputs", "sample", f"{FIELD}<path>", f"{TOKENS}<path>"]
        raise UsageError(f"fingerprint: {wanted!r} is none. {suggest(wanted, known)}")
    paths = mapping.input_paths() if wanted == "inputs" else None
    source = FingerprintSource(name="inputs", paths=paths) if paths else FingerprintSource()
    try:
        before, after = source.content(sample), source.content(batch)
    except DataError:
        return FingerprintSource()
    # A collate function may build its batch anew: there, the path that leads to the inputs in a
    # batch may lead to the label in a sample, or to the first letter of a text.
    return source if _is_collated(before, after) else FingerprintSource()


def _is_collated(before: Any, after: Any) -> bool:
    """Whether a batch's leaf can be what became of a sample's: one axis more, or the same outline.

    Args:
        before: of one sample.
        after: of the batch.
    """
    if isinstance(after, Tensor):
        axes = _num_axes(before)
        return axes is not None and axes + 1 == after.dim()
    if isinstance(after, Mapping):
        return (
            isinstance(before, Mapping)
            and before.keys() == after.keys()
            and all(_is_collated(before[key], after[key]) for key in after)
        )
    if isinstance(after, list | tuple):
        if not isinstance(before, list | tuple):
            return isinstance(before, str | bytes) and all(
                isinstance(v, type(before)) for v in after
            )
        return len(before) == len(after) and all(map(_is_collated, before, after))
    return False


def _num_axes(value: Any) -> int | None:
    """Axes of an array, an image, a number, or a list of them; None for anything else."""
    if isinstance(value, bool | int | float):
        return 0
    if isinstance(value, list | tuple):
        inner = _num_axes(value[0]) if value else 0
        return None if inner is None else 1 + inner
    if isinstance(value, Tensor):
        return value.dim()
    is_array = isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array_interface__")
    return np.ndim(value) if is_array else None
