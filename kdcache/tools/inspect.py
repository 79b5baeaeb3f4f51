"""What a cache holds, from its metadata alone: nothing is decoded and nothing heavy imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdcache.columns import FINGERPRINT, NUM_POSITIONS
from kdcache.store import Cache, View, open_cache
from kdcache.store.layout import GROUP_FILE, TABLES_FOLDER


def inspect_cache(path: str | Path) -> dict[str, Any]:
    """A report on every split of a cache, as plain values.

    Args:
        path: folder of the teacher cache.

    Returns:
        ``path``; ``bytes`` of all files that a reader needs, metadata, fingerprints and tables
        included (not the commit records of a complete split, which its index gathers, nor
        abandoned attempts); ``splits``: name -> samples, positions, classes, codec, shards, bytes
        of the split's own files, bytes per sample and per position, digest (None while
        incomplete), the teacher's accuracy, cross-entropy and entropy in nats, identity.

    Raises:
        CacheMissingError, CacheCorruptedError: it is no cache, or its metadata are damaged.
    """
    cache = open_cache(path)
    splits = {name: _split(cache[name]) for name in cache}
    return {
        "path": str(cache.path),
        "bytes": _shared_bytes(cache) + sum(split["bytes"] for split in splits.values()),
        "splits": splits,
    }


def _shared_bytes(cache: Cache) -> int:
    """Bytes of what belongs to no single split's view: the groups above it, and tables."""
    groups = [cache.path / GROUP_FILE, *(cache.path / split / GROUP_FILE for split in cache)]
    tables = (cache.path / TABLES_FOLDER).rglob("*")
    return sum(path.stat().st_size for path in (*groups, *tables) if path.is_file())


def _split(view: View) -> dict[str, Any]:
    manifest = view.manifest
    samples = sum(commit.stop - commit.start for commit in view.commits)
    counted = next((c.name for c in manifest.columns if c.per == "position"), None)
    positions = sum(c.arrays[counted].rows for c in view.commits) if counted else samples
    sums: dict[str, float] = {}
    columns: dict[str, int] = {}
    for commit in view.commits:
        for name, value in commit.statistics.items():
            sums[name] = sums.get(name, 0.0) + value
        for name, array in commit.arrays.items():
            columns[name] = columns.get(name, 0) + array.stored_bytes
    return {
        "complete": view.is_complete,
        "digest": view.digest if view.is_complete else None,
        "samples": None if manifest.is_open else manifest.num_samples,
        "samples_dumped": samples,
        "positions": positions,
        "classes": manifest.num_classes,
        "class_names": list(manifest.class_names),
        "codec": dict(manifest.codec),
        "key": manifest.key,
        "fingerprint": dict(manifest.fingerprint),
        "shards": None if manifest.is_open else manifest.num_shards,
        "shards_there": len(view.commits),
        "bytes": view.stored_bytes,
        "bytes_per_sample": view.stored_bytes / samples if samples else None,
        "bytes_per_position": view.stored_bytes / positions if positions else None,
        "column_bytes": columns,
        "fingerprint_bytes": columns.get(FINGERPRINT, 0),
        "count_bytes": columns.get(NUM_POSITIONS, 0),
        "teacher": _teacher(sums),
        "identity": dict(manifest.identity),
        "created": dict(manifest.created),
    }


def _teacher(sums: dict[str, float]) -> dict[str, float]:
    """Means over positions of what the commits summed up."""
    sources = {
        "entropy": ("entropy", "positions"),
        "accuracy": ("correct", "labelled"),
        "cross_entropy": ("cross_entropy", "labelled"),
    }
    return {
        name: sums[total] / sums[count]
        for name, (total, count) in sources.items()
        if total in sums and sums.get(count)
    }
