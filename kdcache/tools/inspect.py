"""What a cache holds, from its metadata alone: nothing is decoded and nothing heavy imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdcache.columns import FINGERPRINT, NUM_POSITIONS
from kdcache.store import View, open_cache


def inspect_cache(path: str | Path) -> dict[str, Any]:
    """A report on every split of a cache, as plain values.

    Args:
        path: folder of the teacher cache.

    Returns:
        ``path`` and ``splits``: name -> samples, positions, classes, codec, shards, bytes (all
        files that a reader needs, metadata and fingerprints included), bytes per sample and per
        position, digest, the teacher's accuracy, cross-entropy and entropy in nats, identity.

    Raises:
        CacheMissingError, CacheCorruptedError: it is no cache, or its metadata are damaged.
    """
    cache = open_cache(path)
    return {"path": str(cache.path), "splits": {name: _split(cache[name]) for name in cache}}


def _split(view: View) -> dict[str, Any]:
    manifest = view.manifest
    samples = sum(commit.stop - commit.start for commit in view.commits)
    sums: dict[str, float] = {}
    columns: dict[str, int] = {}
    for commit in view.commits:
        for name, value in commit.statistics.items():
            sums[name] = sums.get(name, 0.0) + value
        for name, array in commit.arrays.items():
            columns[name] = columns.get(name, 0) + array.stored_bytes
    positions = int(sums.get("positions", 0))
    return {
        "complete": not view.pending,
        "digest": None if view.pending else view.digest,
        "samples": manifest.num_samples,
        "samples_dumped": samples,
        "positions": positions,
        "classes": manifest.num_classes,
        "class_names": list(manifest.class_names),
        "codec": dict(manifest.codec),
        "key": manifest.key,
        "fingerprint": dict(manifest.fingerprint),
        "shards": manifest.num_shards,
        "shards_pending": len(view.pending),
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
    means: dict[str, float] = {}
    if sums.get("positions"):
        means["entropy"] = sums["entropy"] / sums["positions"]
    if sums.get("labelled"):
        means["accuracy"] = sums["correct"] / sums["labelled"]
        means["cross_entropy"] = sums["cross_entropy"] / sums["labelled"]
    return means
