"""Which dump a shard belongs to: a few short texts in its commit record, and in the manifest.

They cover everything that decides the rows, teacher and data included. Two processes of one job
come to the same texts, so parts of it that are brought together by hand fit; a shard of another
job has other ones, and is told apart however well its shapes fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import xxhash

from kdcache.store.format.files import json_text
from kdcache.store.format.layout import view_name

if TYPE_CHECKING:
    from kdcache.store.format.manifest import Manifest

MAX_TEXT = 200
_TEACHER = ("teacher.class", "teacher.weights", "precision")

DATA = "data"
_OF_DATA = ("dataset.", "collate", "class_names", "vocabulary")


def origin_of(manifest: Manifest) -> dict[str, str]:
    """What decides a manifest's rows, by part.

    Not among it: how many samples there are (what a shard's are, its range and the probe of the
    dataset say), and what is only for people or is measured anew by every process (created, pilot,
    references).

    Returns:
        Part -> a text of at most ``MAX_TEXT`` characters, as it is or as a digest.
    """
    rest = dict(manifest.identity)
    shown = {name: _bounded(rest.pop(name, "")) for name in _TEACHER}
    batch = rest.pop("batch", "")
    data = {name: rest.pop(name) for name in list(rest) if name.startswith(_OF_DATA)}
    columns = {column.name: column.to_json() for column in manifest.columns}
    codec = [manifest.num_classes, manifest.codec, columns, manifest.tables]
    return {
        **shown,
        "batch": f"{manifest.batch_size} {_digest(batch)}",
        "codec": _bounded(f"{manifest.codec.get('name')} {_digest(codec)}"),
        DATA: _digest([data, manifest.key, manifest.fingerprint]),
        "view": f"{manifest.split}/{view_name(manifest.view)}",
        "other settings": _digest(rest),
    }


def teacher_of(manifest: Manifest) -> str:
    """Which teacher made a split's targets: its class, its weights, and how exactly it ran."""
    return " ".join(part for name in _TEACHER if (part := manifest.origin[name]))


def foreign_parts(
    manifest: Manifest, origin: Mapping[str, str], stop: int
) -> dict[str, tuple[str, str]]:
    """Part -> (the shard's, the manifest's) where a shard is of another dump; empty if it belongs.

    Args:
        manifest: of the view.
        origin: of the shard.
        stop: one past its last sample. Before the dataset grew from there or beyond, the manifest
            named other data.
    """
    ours = manifest.origin
    pairs = {
        part: (origin.get(part, "(none)"), ours.get(part, "(none)")) for part in {**ours, **origin}
    }
    found = {part: pair for part, pair in pairs.items() if pair[0] != pair[1]}
    earlier = [data for length, data in manifest.earlier_data.items() if stop <= int(length)]
    if found.keys() == {DATA} and origin.get(DATA) in earlier:
        return {}
    return found


def _bounded(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT // 2]}... {_digest(text)}"


def _digest(value: object) -> str:
    return xxhash.xxh3_64_hexdigest(json_text(value, "the manifest").encode())
