"""Shards of other dumps among a cache's own: refused, or what is read is the original.

    python -m scripts.checks.foreign_shards [--mixtures 200] [--seed 0]

Two or three dumps differ in exactly one of teacher, precision, batch mapping, codec setting and
order of the dataset. Their files are mixed as by hand with ``cp -r``: shards with their commit
records, records or shards alone, the index, the manifest, all of a view; in complete caches and in
those of an interrupted dump, with and without an index. Every mixture is then opened and joined,
verified, merged with another part of the data, dumped into again, and repaired. What is read must
be the dump that the manifest names, to the bit, or nothing: anything else is a miss (exit code 1).
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, Dataset

import kdcache
from kdcache.columns import Array
from kdcache.errors import KdcacheError
from kdcache.store import View, open_cache
from kdcache.tools.merge import merge_caches
from kdcache.tools.verify import verify_cache

REFUSED, SAME, OTHER = "refused", "original", "otherwise"
NUM_SAMPLES, MORE_SAMPLES, SHARD, WIDTH, NUM_CLASSES = 40, 16, 8, 4, 6


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What two dumps may differ in, each value the index of one of three."""

    teacher: int = 0
    precision: int = 0
    mapping: int = 0
    codec: int = 0
    order: int = 0


FACTORS = ("teacher", "precision", "mapping", "codec", "order")
PRECISIONS = ("32-true", "64-true", "bf16-true")
MAPPINGS: tuple[dict[str, Any], ...] = (
    {"inputs": ["left"], "labels": "label"},
    {"inputs": ["right"], "labels": "label"},
    {"inputs": ["left"], "labels": "other_label"},
)
# The columns of all three are alike: nothing in a shard's shapes tells them apart.
CODECS = tuple(kdcache.TopKCodec(k=3, temperatures=(1.0, hot)) for hot in (2.0, 3.0, 4.0))


class Samples(Dataset[dict[str, Any]]):
    """Random pairs of vectors with two labels."""

    def __init__(self, numbers: Array) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = int(self.numbers[index])
        left, right = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(number))
        return {"left": left, "right": right, "label": number % 5, "other_label": number % 3}


def data(settings: Settings, *, is_more: bool = False) -> DataLoader[Any]:
    """The samples in a settings' order, or some others."""
    numbers = np.arange(NUM_SAMPLES)
    if settings.order:
        numbers = np.random.default_rng(settings.order).permutation(numbers)
    more = np.arange(NUM_SAMPLES, NUM_SAMPLES + MORE_SAMPLES)
    return DataLoader(Samples(more if is_more else numbers), batch_size=4)


def dump(cache: Path, settings: Settings, *, is_more: bool = False) -> View:
    """Dump with some settings, or go on with it."""
    torch.manual_seed(settings.teacher)
    return kdcache.dump_teacher(
        nn.Linear(WIDTH, NUM_CLASSES),
        data(settings, is_more=is_more),
        cache,
        codec=CODECS[settings.codec],
        batch=MAPPINGS[settings.mapping],
        precision=PRECISIONS[settings.precision],
        key="content",
        samples_per_shard=SHARD,
        pilot=False,
        progress=False,
        accelerator="cpu",
    )["train"]


def whole(view: View) -> dict[str, Array]:
    """All columns of a complete view."""
    view.check_complete()
    shards = [view.read_shard(commit) for commit in view.commits]
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


def is_same(found: Mapping[str, Array], expected: Mapping[str, Array], start: int = 0) -> bool:
    """Whether columns are, to the bit, those of as many samples from one on."""
    counts = {len(rows) for rows in found.values()}
    (number,) = counts  # one position a sample
    return found.keys() == expected.keys() and all(
        rows.tobytes() == expected[name][start : start + number].tobytes()
        for name, rows in found.items()
    )


class Mixing:
    """One mixture: a copy of a dump, with files of others put into it.

    Args:
        folder: of the new cache.
        view: of the dump that is copied.
        rng: what is put where.
    """

    def __init__(self, folder: Path, view: View, rng: np.random.Generator) -> None:
        shutil.copytree(view.cache, folder)
        self.folder = folder / view.folder.relative_to(view.cache)
        self._rng = rng
        self.done: list[str] = []
        if rng.random() < 0.4:  # a dump that was interrupted
            self._unlink(self.folder / "index.json")
            for shard in self._some(view):
                self._unlink(self.folder / "commits" / f"shard-{shard:06d}.json")
            self.done.append("interrupted")
        elif rng.random() < 0.3:
            self._unlink(self.folder / "index.json")
            self.done.append("no index")

    def _unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def _some(self, view: View) -> list[int]:
        """Some shards: one, all, or any number between."""
        total = view.manifest.num_shards
        count = int(self._rng.choice([1, total, self._rng.integers(1, total + 1)]))
        return sorted(self._rng.choice(total, count, replace=False).tolist())

    def put(self, donor: View) -> None:
        """Copy something of another dump over what is here."""
        ways: dict[str, Callable[[View], None]] = {
            "shards": self._shards,
            "shards and index": lambda view: (self._shards(view), self._file(view, "index.json"))[
                0
            ],
            "records": lambda view: self._shards(view, arrays=False),
            "arrays": lambda view: self._shards(view, records=False),
            "all but the manifest": self._all_but_the_manifest,
            "index": lambda view: self._file(view, "index.json"),
            "manifest": lambda view: self._file(view, "zarr.json"),
            "all": lambda view: self._tree(view.folder, self.folder),
        }
        shares = np.asarray([8, 2, 2, 1, 3, 1, 2, 1])
        way = str(self._rng.choice(list(ways), p=shares / shares.sum()))
        ways[way](donor)
        self.done.append(way)

    def _file(self, donor: View, name: str) -> None:
        shutil.copy(donor.folder / name, self.folder / name)

    def _tree(self, source: Path, target: Path) -> None:
        shutil.copytree(source, target, dirs_exist_ok=True)

    def _shards(self, donor: View, *, records: bool = True, arrays: bool = True) -> None:
        for shard in self._some(donor):
            name = f"shard-{shard:06d}"
            if records:
                self._file(donor, f"commits/{name}.json")
            for attempt in donor.folder.glob(f"{name}.*") if arrays else ():
                self._tree(attempt, self.folder / attempt.name)

    def _all_but_the_manifest(self, donor: View) -> None:
        manifest = (self.folder / "zarr.json").read_bytes()
        self._tree(donor.folder, self.folder)
        (self.folder / "zarr.json").write_bytes(manifest)


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """A mixture, and the dump that its manifest names.

    Attributes:
        cache: its folder.
        settings: of that dump.
        original: its columns.
        more: a cache of other samples, dumped in the same way.
    """

    cache: Path
    settings: Settings
    original: dict[str, Array]
    more: Path

    def opened(self) -> bool:
        """Every shard that opening gives, and what a student is given."""
        view = open_cache(self.cache)["train"]
        for commit in view.commits:
            if not is_same(view.read_shard(commit), self.original, commit.start):
                return False
        loader = data(self.settings)
        joined = kdcache.CachedDataset(
            loader.dataset, view, batch=MAPPINGS[self.settings.mapping], local_copy=self.cache
        )
        return is_same(joined.copy.take(np.arange(NUM_SAMPLES)), self.original)

    def verified(self) -> bool:
        """What ``verify`` calls sound."""
        if not verify_cache(self.cache).is_sound:
            raise KdcacheError("not sound")
        return is_same(whole(open_cache(self.cache)["train"]), self.original)

    def merged(self) -> bool:
        """What a merge with more samples takes over."""
        target = self.cache.with_name("merged")
        shutil.rmtree(target, ignore_errors=True)
        found = whole(merge_caches([self.cache, self.more], target)["train"])
        return is_same({name: rows[:NUM_SAMPLES] for name, rows in found.items()}, self.original)

    def dumped(self) -> bool:
        """What the same dump, run again, leaves behind."""
        return is_same(whole(dump(self.cache, self.settings)), self.original)

    def repaired(self) -> bool:
        """The same after a repair; one that nothing can repair stays refused."""
        verify_cache(self.cache, repair=True)
        return self.dumped() and verify_cache(self.cache).is_sound


CHECKS = ("opened", "verified", "merged", "dumped", "repaired")


@dataclass
class Row:
    """Mixtures of dumps that differ in one thing, and what became of them."""

    mixtures: int = 0
    outcomes: dict[str, Counter[str]] = field(
        default_factory=lambda: {check: Counter() for check in CHECKS}
    )


def outcome_of(check: Callable[[], bool]) -> str:
    """What a check comes to; anything but a KdcacheError is reported by its name."""
    try:
        return SAME if check() else OTHER
    except KdcacheError:
        return REFUSED
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def mix(folder: Path, number: int, rng: np.random.Generator) -> dict[str, Row]:
    """Make and look at some mixtures; what two dumps differ in -> what became of them."""
    dumps: dict[tuple[Settings, bool], View] = {}

    def dumped(settings: Settings, *, is_more: bool = False) -> View:
        found = dumps.get((settings, is_more))
        if found is None:
            path = folder / f"{len(dumps)}.zarr"
            found = dumps[settings, is_more] = dump(path, settings, is_more=is_more)
        return found

    rows = {factor: Row() for factor in FACTORS}
    for at in range(number):
        factor = FACTORS[at % len(FACTORS)]
        values = rng.permutation(3)[: rng.integers(2, 4)].tolist()
        chosen = [replace(Settings(), **{factor: value}) for value in values]
        own, *others = map(dumped, chosen)
        mixing = Mixing(folder / "mixture" / "cache", own, rng)
        for other in others:
            mixing.put(other)
        marker = (mixing.folder / "zarr.json").read_bytes()
        named = next(s for s in chosen if (dumped(s).folder / "zarr.json").read_bytes() == marker)
        mixed = Mixed(
            cache=folder / "mixture" / "cache",
            settings=named,
            original=whole(dumped(named)),
            more=dumped(named, is_more=True).cache,
        )
        rows[factor].mixtures += 1
        for check in CHECKS:
            outcome = outcome_of(getattr(mixed, check))
            rows[factor].outcomes[check][outcome] += 1
            if outcome not in (REFUSED, SAME):
                print(f"MISSED: {factor} {values}, {', '.join(mixing.done)}: {check} {outcome}")
        shutil.rmtree(folder / "mixture")
    return rows


def show(rows: Mapping[str, Row]) -> int:
    """Print a table; how many were missed."""
    table = Table("dumps differ in", "mixtures", *(f"{c}: refused/same" for c in CHECKS), "MISSED")
    total = 0
    for factor, row in rows.items():
        counts = [row.outcomes[check] for check in CHECKS]
        missed = sum(each.total() - each[REFUSED] - each[SAME] for each in counts)
        cells = [f"{each[REFUSED]}/{each[SAME]}" for each in counts]
        table.add_row(factor, str(row.mixtures), *cells, str(missed))
        total += missed
    Console(width=120).print(table)
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--mixtures", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.fsync = lambda _: None  # nothing here loses power
    logging.getLogger("kdcache").setLevel(logging.ERROR)  # these teachers only guess
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        rows = mix(Path(name), options.mixtures, np.random.default_rng(options.seed))
    missed = show(rows)
    print(f"{missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
