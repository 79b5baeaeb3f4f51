"""Which dump a shard belongs to: a few short texts in its commit record, and in the manifest.

They cover everything that decides the rows, teacher and data included. Two processes of one job
come to the same texts, so parts of it that are brought together by hand fit; a shard of another
job has other ones, and is told apart however well its shapes fit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import xxhash

from kdcache.store.format.files import json_text

MAX_TEXT = 200
_TEACHER = ("teacher.class", "teacher.weights", "precision")

DATA = "data"
_OF_DATA = ("dataset.", "collate", "class_names", "vocabulary")


def origin_of(
    identity: Mapping[str, str],
    *,
    batch_size: int,
    codec: Mapping[str, Any],
    layout: object,
    keys: Sequence[object],
    view: str,
) -> dict[str, str]:
    """What decides a manifest's rows, by part.

    Not among it: how many samples there are (what a shard's are, its range and the probe of the
    dataset say), and what is only for people or is measured anew by every process (created, pilot,
    references).

    Args:
        identity: of the manifest: teacher, precision, data, and other settings, as texts.
        batch_size: samples that the teacher sees at once.
        codec: its name and settings.
        layout: classes, columns and tables; any plain values.
        keys: how samples are keyed and fingerprinted; any plain values.
        view: split and view, as a path.

    Returns:
        Part -> a text of at most ``MAX_TEXT`` characters, as it is or as a digest.
    """
    rest = dict(identity)
    shown = {name: _bounded(rest.pop(name, "")) for name in _TEACHER}
    batch = rest.pop("batch", "")
    data = {name: rest.pop(name) for name in list(rest) if name.startswith(_OF_DATA)}
    return {
        **shown,
        "batch": f"{batch_size} {_digest(batch)}",
        "codec": _bounded(f"{codec.get('name')} {_digest(layout)}"),
        DATA: _digest([data, *keys]),
        "view": view,
        "other settings": _digest(rest),
    }


def teacher_of(origin: Mapping[str, str]) -> str:
    """Which teacher made a split's targets: its class, its weights, and how exactly it ran."""
    return " ".join(part for name in _TEACHER if (part := origin[name]))


def foreign_parts(
    ours: Mapping[str, str], theirs: Mapping[str, str], earlier_data: Collection[str]
) -> dict[str, tuple[str, str]]:
    """Part -> (the shard's, the manifest's) where a shard is of another dump; empty if it belongs.

    Args:
        ours: the origin of the manifest.
        theirs: the origin of the shard.
        earlier_data: what the manifest named as its data before the dataset grew beyond the shard.
    """
    pairs = {
        part: (theirs.get(part, "(none)"), ours.get(part, "(none)")) for part in {**ours, **theirs}
    }
    found = {part: pair for part, pair in pairs.items() if pair[0] != pair[1]}
    if found.keys() == {DATA} and theirs.get(DATA) in earlier_data:
        return {}
    return found


def _bounded(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT // 2]}... {_digest(text)}"


def _digest(value: object) -> str:
    return xxhash.xxh3_64_hexdigest(json_text(value, "the manifest").encode())
