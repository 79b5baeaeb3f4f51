"""What a cache holds, from its metadata alone: nothing is decoded and nothing heavy imported."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdcache.columns import FINGERPRINT, NUM_POSITIONS
from kdcache.store.chance import chance_remark
from kdcache.store.format.layout import GROUP_FILE, TABLES_FOLDER
from kdcache.store.format.origins import teacher_of
from kdcache.store.sums import FIDELITY, TEACHER, deviation, means, totals
from kdcache.store.view import View

TRAIN = "train"
_SIGMAS = 4.0
_LEAST_NATS = 0.01


def inspected(path: Path, views: Mapping[str, View]) -> dict[str, Any]:
    """A report on every split of a cache, as plain values.

    Args:
        path: folder of the teacher cache.
        views: split -> its view.

    Returns:
        ``path``; ``bytes`` of all files that count, metadata, fingerprints and tables included
        (not abandoned attempts, which ``kdcache clean`` lists); ``splits``: name -> samples,
        positions, labelled positions, classes, codec, shards, bytes of the split's own files,
        bytes per sample and per position, digest (None while incomplete), the teacher's accuracy,
        cross-entropy and entropy in nats, ``fidelity``: the mean KL(teacher || stored) in nats and
        the mass that the targets keep class by class, the pilot's numbers, identity;
        ``remarks``: one line each.

    Raises:
        CacheCorruptedError: its metadata are damaged.
    """
    splits = {name: _split(view) for name, view in views.items()}
    return {
        "path": str(path),
        "bytes": _shared_bytes(path, views) + sum(split["bytes"] for split in splits.values()),
        "splits": splits,
        "remarks": [
            *(line for view in views.values() for line in _no_better_than_chance(view)),
            *_several_teachers(views),
            *(line for name in views for line in _memorised(views, name)),
        ],
    }


def _shared_bytes(cache: Path, splits: Iterable[str]) -> int:
    """Bytes of what belongs to no single split's view: the groups above it, and tables."""
    groups = [cache / GROUP_FILE, *(cache / split / GROUP_FILE for split in splits)]
    tables = (cache / TABLES_FOLDER).rglob("*")
    return sum(path.stat().st_size for path in (*groups, *tables) if path.is_file())


def _split(view: View) -> dict[str, Any]:
    manifest = view.manifest
    samples = sum(commit.stop - commit.start for commit in view.commits)
    counted = next((c.name for c in manifest.columns if c.per == "position"), None)
    positions = sum(c.arrays[counted].rows for c in view.commits) if counted else samples
    sums = totals(commit.statistics for commit in view.commits)
    columns: dict[str, int] = {}
    for commit in view.commits:
        for name, array in commit.arrays.items():
            columns[name] = columns.get(name, 0) + array.stored_bytes
    return {
        "complete": view.is_complete,
        "digest": view.digest if view.is_complete else None,
        "samples": None if manifest.is_open else manifest.num_samples,
        "samples_dumped": samples,
        "positions": positions,
        "labelled": int(sums.get("labelled", 0)),
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
        "teacher": means(sums, TEACHER),
        "fidelity": means(sums, FIDELITY),
        "pilot": dict(manifest.pilot),
        "identity": dict(manifest.identity),
        "created": dict(manifest.created),
    }


def _no_better_than_chance(view: View) -> list[str]:
    statistics = (commit.statistics for commit in view.commits)
    line = chance_remark(statistics, view.manifest.num_classes, view.manifest.split)
    return [] if line is None else [line]


def _several_teachers(views: Mapping[str, View]) -> list[str]:
    """A remark where splits were dumped by different teachers, or in different precisions."""
    teachers: dict[str, list[str]] = {}
    for name, view in views.items():
        teachers.setdefault(teacher_of(view.manifest.origin), []).append(name)
    if len(teachers) < 2:
        return []
    listed = "; ".join(f"{', '.join(splits)}: {teacher}" for teacher, splits in teachers.items())
    line = (
        f"the splits are of different teachers ({listed}). A student that learns from one is held "
        "against another."
    )
    return [line]


def _memorised(views: Mapping[str, View], split: str) -> list[str]:
    """A remark where the teacher is far surer of its training split than of this one.

    A teacher that has memorised its training set gives targets there that are like labels: less
    entropy by half and more, beyond what chance explains.
    """
    if split == TRAIN or TRAIN not in views:
        return []
    sums = [totals(c.statistics for c in views[name].commits) for name in (TRAIN, split)]
    train, other = (means(each, TEACHER) for each in sums)
    if "entropy" not in train or "entropy" not in other:
        return []
    errors = 0.0
    for name, each in zip((TRAIN, split), sums, strict=True):
        samples = sum(commit.stop - commit.start for commit in views[name].commits)
        errors = math.hypot(errors, deviation(each, "entropy", "positions") / math.sqrt(samples))
    less = other["entropy"] - train["entropy"]
    if train["entropy"] > other["entropy"] / 2 or less < max(_LEAST_NATS, _SIGMAS * errors):
        return []
    pair = f"{train['entropy']:.3g} nats of entropy there, {other['entropy']:.3g} on {split!r}"
    if "accuracy" in train and "accuracy" in other:
        pair += f"; {train['accuracy']:.2%} and {other['accuracy']:.2%} right"
    line = (
        f"the teacher is far surer of {TRAIN!r} than of {split!r} ({pair}). It may have memorised "
        "its training set: targets there are then like labels, and distillation gains little."
    )
    return [line]
