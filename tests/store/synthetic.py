"""Synthetic views for the store's tests: columns of all three kinds, random bits in them.

No codec and no torch here: the store must hold any numbers, so rows are random bits (NaNs, -0.0
and all), compared bit for bit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.columns import NUM_ENTRIES, NUM_POSITIONS, Array, Column
from kdcache.store import Manifest, View, ViewWriter, open_cache
from kdcache.store.format.arrays import object_checksum
from kdcache.store.format.commits import signed
from tests.hang import HANG_S

ROOT = Path(__file__).resolve().parents[2]

COUNTS = Column(name=NUM_POSITIONS, per="sample", dtype="int32")
ENTRY_COUNTS = Column(name=NUM_ENTRIES, per="position", dtype="int32")
COLUMNS = (
    Column(name="fingerprint", per="sample", dtype="uint64"),
    COUNTS,
    Column(name="values", per="position", dtype="float16", shape=(3,)),
    ENTRY_COUNTS,
    Column(name="ids", per="entry", dtype="uint8", shape=(2,)),
)

Shards = dict[int, dict[str, Array]]


def manifest(**changes: Any) -> Manifest:
    """A manifest of 10 samples in shards of 4, with columns of all three kinds."""
    values: dict[str, Any] = {
        "split": "train",
        "num_samples": 10,
        "samples_per_shard": 4,
        "batch_size": 2,
        "num_classes": 3,
        "codec": {"name": "synthetic", "levels": [1, 2]},
        "columns": COLUMNS,
        "identity": {"teacher.weights": "blake2b:91c4", "data": "xxh3:07ee"},
        "created": {"kdcache": "0"},
    }
    return Manifest(**{**values, **changes})


def random_rows(column: Column, num_rows: int, rng: np.random.Generator) -> Array:
    """Rows of random bits."""
    dtype = np.dtype(column.dtype)
    bits = rng.integers(0, 256, (num_rows, *column.shape, dtype.itemsize), np.uint8)
    return bits.view(dtype)[..., 0]


def random_columns(
    columns: Sequence[Column], num_samples: int, seed: int, counts: Sequence[int] = (2, 0, 3, 1)
) -> dict[str, Array]:
    """All columns of a shard; counts per sample and per position are taken in turn."""
    rng = np.random.default_rng(seed)
    num_positions = np.resize(np.asarray(counts, np.int32), num_samples)
    num_entries = np.resize(np.asarray([*counts, 1], np.int32), num_positions.sum())
    rows = {"sample": num_samples, "position": len(num_entries), "entry": num_entries.sum()}
    made = {column.name: random_rows(column, int(rows[column.per]), rng) for column in columns}
    made[NUM_POSITIONS] = num_positions
    if NUM_ENTRIES in made:
        made[NUM_ENTRIES] = num_entries
    return made


def make_shards(wanted: Manifest, seed: int = 0, counts: Sequence[int] = (2, 0, 3, 1)) -> Shards:
    """Random columns for every shard of a manifest."""
    ranges = [wanted.shard_range(shard) for shard in range(wanted.num_shards)]
    return {
        shard: random_columns(wanted.columns, stop - start, seed + shard, counts)
        for shard, (start, stop) in enumerate(ranges)
    }


def write_view(cache: Path, wanted: Manifest, shards: Mapping[int, Mapping[str, Array]]) -> View:
    """Write and finish a view, and open it."""
    writer = ViewWriter.create(cache, wanted, {})
    for shard, columns in shards.items():
        assert writer.write_shard(shard, columns, {"positions": 1.0}) is not None
    writer.finish()
    return open_cache(cache)[wanted.split]


def equal_bits(found: Mapping[str, Array], expected: Mapping[str, Array]) -> bool:
    """Whether two sets of columns are the same, to the bit."""
    return found.keys() == expected.keys() and all(
        found[name].dtype == rows.dtype
        and found[name].shape == rows.shape
        and found[name].tobytes() == rows.tobytes()
        for name, rows in expected.items()
    )


def concatenated(shards: Shards) -> dict[str, Array]:
    """All shards' columns, one after the other."""
    return {
        name: np.concatenate([shards[shard][name] for shard in sorted(shards)])
        for name in shards[0]
    }


def expected_take(
    columns: Sequence[Column], whole: Mapping[str, Array], samples: Sequence[int]
) -> dict[str, Array]:
    """What ``LocalCopy.take`` should give, row by row from the concatenated columns."""
    positions_of = _ranges(whole[NUM_POSITIONS])
    positions = [p for sample in samples for p in positions_of[sample]]
    entries_of = _ranges(whole[NUM_ENTRIES]) if NUM_ENTRIES in whole else []
    entries = [e for position in positions for e in entries_of[position]] if entries_of else []
    chosen = {"sample": list(samples), "position": positions, "entry": entries}
    return {c.name: whole[c.name][np.asarray(chosen[c.per], np.int64)] for c in columns}


def _ranges(counts: Array) -> list[range]:
    stops = np.cumsum(counts).tolist()
    return [range(stop - count, stop) for stop, count in zip(stops, counts.tolist(), strict=True)]


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file's content, by its path below the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def edit_json(path: Path, change: Any) -> None:
    """Rewrite a JSON file as ``change(value)``."""
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def edit_record(path: Path, change: Any) -> None:
    """Rewrite a commit record or index so that its checksum agrees, as an attacker would."""

    def changed(value: dict[str, Any]) -> Any:
        del value["checksum"]
        found = change(value)
        return signed(found) if isinstance(found, dict) else found

    edit_json(path, changed)


def relabel(view: View) -> None:
    """Make every commit record say that it is of the manifest's dump, as an attacker would."""
    wanted = open_cache(view.cache)[view.folder.parent.name].manifest.origin
    for record in (view.folder / "commits").iterdir():
        edit_record(record, lambda value: {**value, "origin": wanted})


def stored_object(view: View, shard: int, column: str) -> Path:
    """The one stored object of a column."""
    commit = view.commits[shard]
    folder = view.folder / f"shard-{shard:06d}.{commit.attempt}" / column / "c"
    return next(path for path in folder.rglob("0") if path.is_file())


def replace_object(view: View, shard: int, column: str, content: bytes) -> View:
    """Replace a stored object and make its commit record agree, as an attacker would."""
    stored_object(view, shard, column).write_bytes(content)

    def agree(record: dict[str, Any]) -> dict[str, Any]:
        record["arrays"][column]["stored_bytes"] = len(content)
        record["arrays"][column]["checksum"] = object_checksum(content)
        return record

    edit_record(view.folder / "commits" / f"shard-{shard:06d}.json", agree)
    (view.folder / "index.json").unlink(missing_ok=True)
    return open_cache(view.cache)[view.manifest.split]


def start_python(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Run a script in another process, with the package and these helpers importable."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output_of(process: subprocess.Popen[str]) -> str:
    """Wait for a process that must succeed; what it printed."""
    out, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, err
    return out
