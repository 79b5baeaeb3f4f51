"""Damage at random places of small caches: what a student reads is what was dumped, or nothing.

    python -m scripts.checks.flip_bytes [--places 1000] [--seed 0]

Bytes are flipped, and files cut, in three caches: synthetic columns of all kinds, and real dumps
with the dense and the topk codec. After each, a student's reading must raise a KdcacheError or give
every number as before; what differs, or ends in any other exception, is a miss (exit code 1).
Damage that changes nothing for a student is counted apart, by the file that it is in, with how
much of it ``verify`` sees. So is damage to a local copy, which ``verify --local-copy`` must see.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import kdcache
from kdcache.codecs import stored_codec
from kdcache.errors import KdcacheError
from kdcache.store import LocalCopy, open_cache, open_local_copy
from kdcache.tools.verify import verify_cache
from scripts.checks.small_caches import dumped, synthetic

REFUSED, SAME, OTHER = "refused", "as before", "otherwise"
NOT_READ = ("created", "references", "pilot")
"""Fields of a manifest that tell people something; no student computes with them."""

Reading = Callable[[Path], Any]


def what_a_student_reads(path: Path) -> dict[str, Any]:
    """Every number and name that training takes from a cache."""
    cache = open_cache(path)
    found: dict[str, Any] = {}
    for split in cache:
        view = cache[split]
        manifest = view.manifest.to_json()
        found[split] = (
            {name: value for name, value in manifest.items() if name not in NOT_READ},
            view.digest,
            [commit.statistics for commit in view.commits],
            {name: table.tobytes() for name, table in view.read_tables().items()},
            _rows(open_local_copy(view, path.parent / "never made")),
        )
    return found


def what_a_local_copy_gives(path: Path) -> dict[str, Any]:
    """The rows that a student takes from the copies beside a cache."""
    cache, base = open_cache(path), path.parent / "local"
    return {split: _rows(open_local_copy(cache[split], base, in_memory_bytes=0)) for split in cache}


def _rows(copy: LocalCopy) -> tuple[dict[str, bytes], list[bytes]]:
    """All columns, and the targets that the codec makes of them."""
    rows = copy.take(range(len(copy)))
    codec, num_classes = stored_codec(copy.manifest.codec), copy.manifest.num_classes
    tensors = {c.name: torch.from_numpy(rows[c.name]) for c in codec.columns(num_classes)}
    targets = codec.decode(tensors, torch.from_numpy(rows["num_positions"]), num_classes)
    values = vars(targets) if dataclasses.is_dataclass(targets) else {}
    decoded = [v.numpy().tobytes() for v in values.values() if isinstance(v, torch.Tensor)]
    return {name: array.tobytes() for name, array in rows.items()}, decoded


def kind_of(file: Path) -> str:
    """What a file, relative to the folder of a cache and its copies, is for the table."""
    parts = file.parts
    if parts[0] == "local":
        return f"local copy: {file.name}"
    is_of_table = parts[1] == "tables"
    if "c" in parts:
        return "object of a table" if is_of_table else "object of a shard"
    if parts[-2:] == ("view-000", "zarr.json"):
        return "manifest"
    if file.name == "zarr.json":
        is_array = len(parts) == (4 if is_of_table else 6)
        return f"zarr.json of {'a table' if is_of_table else 'an array'}" * is_array or (
            "zarr.json of a group"
        )
    return "commit record" if parts[-2] == "commits" else file.name


@dataclasses.dataclass
class Damaged:
    """One kind of file, and what became of damage to it."""

    flips: int = 0
    cuts: int = 0
    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    seen: int = 0
    unseen: list[str] = dataclasses.field(default_factory=list)


def damage(content: bytes, rng: np.random.Generator) -> tuple[bytes, bool, int]:
    """The content with one bit or one byte changed, or cut; whether cut, and where."""
    at = int(rng.integers(len(content)))
    if rng.random() < 0.2:
        return content[:at], True, at
    byte = content[at]
    while byte == content[at]:
        is_bit = rng.random() < 0.5
        byte = content[at] ^ (1 << int(rng.integers(8))) if is_bit else int(rng.integers(256))
    return content[:at] + bytes([byte]) + content[at + 1 :], False, at


def outcome_of(read: Reading, path: Path, expected: Any) -> str:
    """What reading comes to; anything but a KdcacheError is reported by its name."""
    try:
        return SAME if read(path) == expected else OTHER
    except KdcacheError:
        return REFUSED
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def is_seen(path: Path) -> bool:
    """Whether ``verify --local-copy`` finds something."""
    try:
        return not verify_cache(path, local_copies=True).is_sound
    except KdcacheError:
        return True


def flip(
    folders: Mapping[Path, Reading],
    places: int,
    rng: np.random.Generator,
    found: dict[str, Damaged],
) -> dict[str, Damaged]:
    """Damage files below some folders, one at a time; kind of file -> what became of it, added."""
    expected = {folder: read(cache_of(folder)) for folder, read in folders.items()}
    files = [
        (folder, file)
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.stat().st_size and file.suffix != ".lock"
    ]
    for number in rng.integers(len(files), size=places):
        folder, file = files[number]
        good = file.read_bytes()
        bad, is_cut, at = damage(good, rng)
        file.write_bytes(bad)
        outcome = outcome_of(folders[folder], cache_of(folder), expected[folder])
        seen = (outcome == REFUSED and folder.name != "local") or is_seen(cache_of(folder))
        file.write_bytes(good)
        row = found.setdefault(kind_of(file.relative_to(folder.parent)), Damaged())
        row.cuts += is_cut
        row.flips += not is_cut
        row.outcomes[outcome] += 1
        row.seen += seen
        if not seen:
            row.unseen.append(f"{file.relative_to(folder.parent)}, byte {at}, cut: {is_cut}")
    return found


def cache_of(folder: Path) -> Path:
    """The cache: the folder itself, or the one beside the local copies."""
    return folder if folder.name != "local" else folder.parent / "cache"


def show(title: str, found: Mapping[str, Damaged], missed: Callable[[Damaged], int]) -> int:
    """Print a table; how many were missed."""
    columns = ("", "flips", "cuts", REFUSED, SAME, OTHER, "seen by verify", "MISSED")
    table = Table(*columns, title=title, title_justify="left")
    total = 0
    for kind, row in sorted(found.items()):
        total += missed(row)
        counts = [row.outcomes[name] for name in (REFUSED, SAME, OTHER)]
        seen = f"{row.seen} of {sum(row.outcomes.values())}"
        table.add_row(kind, *map(str, (row.flips, row.cuts, *counts, seen, missed(row))))
    Console(width=110).print(table)
    for kind, row in found.items():
        for outcome, times in row.outcomes.items():
            if outcome not in (REFUSED, SAME, OTHER):
                print(f"MISSED: {kind}: {times} times {outcome}", file=sys.stderr)
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--places", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.fsync = lambda _: None  # nothing here loses power
    rng = np.random.default_rng(options.seed)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        make: dict[str, Callable[[Path], None]] = {
            "synthetic": synthetic,
            "dense": lambda path: dumped(path, kdcache.DenseCodec()),
            "topk": lambda path: dumped(path, kdcache.TopKCodec(k=2)),
        }
        caches: dict[Path, Reading] = {}
        copies: dict[Path, Reading] = {}
        for kind, build in make.items():
            cache = Path(name) / kind / "cache"
            build(cache)
            caches[cache] = what_a_student_reads
            what_a_local_copy_gives(cache)
            copies[cache.parent / "local"] = what_a_local_copy_gives
        os.environ["KDCACHE_LOCAL"] = str(Path(name) / "none")
        missed = show(
            f"{options.places} places in caches",
            flip(caches, options.places, rng, {}),
            lambda row: sum(row.outcomes.values()) - row.outcomes[REFUSED] - row.outcomes[SAME],
        )
        found: dict[str, Damaged] = {}
        for folder, read in copies.items():
            os.environ["KDCACHE_LOCAL"] = str(folder)
            flip({folder: read}, options.places // 10, rng, found)
        title = f"{options.places // 10 * len(copies)} places in local copies, checked on request"
        missed += show(title, found, lambda row: len(row.unseen))
    print(f"{missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
