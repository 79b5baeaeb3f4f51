"""Presence and content are proved: whatever is damaged or missing is found, and named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from kdcache.columns import Column
from kdcache.errors import CacheCorruptedError
from kdcache.store import open_cache, open_local_copy
from tests.store.synthetic import (
    COUNTS,
    manifest,
    replace_object,
    stored_object,
    write_view,
)

NAMES = [column.name for column in manifest().columns]


@pytest.fixture
def view(tmp_path, stored):
    return stored(tmp_path / "cache.zarr", manifest())


def reads(view):
    """Read every shard, as the local copy does."""
    view = open_cache(view.cache)["train"]
    return [view.read_shard(commit) for commit in view.commits]


@pytest.mark.parametrize("name", NAMES)
def test_every_flipped_byte_of_an_object(view, name):
    file = stored_object(view, 1, name)
    content = file.read_bytes()
    commit = view.commits[1]
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        file.write_bytes(damaged)
        with pytest.raises(CacheCorruptedError, match=f"{name}.*is damaged: checksum"):
            view.read_shard(commit)


@pytest.mark.parametrize("name", NAMES)
def test_every_truncation_of_an_object(view, name):
    file = stored_object(view, 1, name)
    content = file.read_bytes()
    commit = view.commits[1]
    for size in [*range(len(content)), len(content) + 1]:
        file.write_bytes((content + b"\0")[:size])
        with pytest.raises(CacheCorruptedError, match=f"has {size:,} bytes, its commit says"):
            view.read_shard(commit)


@pytest.mark.parametrize("name", NAMES)
def test_flips_that_the_commit_agrees_with(view, name):
    """Also without the object's checksum, the chunks' and the digest of the rows find it."""
    content = stored_object(view, 1, name).read_bytes()
    for position in range(0, len(content), 5):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        damaged_view = replace_object(view, 1, name, bytes(damaged))
        with pytest.raises(CacheCorruptedError):
            damaged_view.read_shard(damaged_view.commits[1])


@pytest.mark.parametrize("name", NAMES)
def test_missing_object_is_never_zeros(view, name):
    stored_object(view, 1, name).unlink()
    with pytest.raises(CacheCorruptedError, match="cannot be read"):
        reads(view)


def test_missing_zeros_are_missing_too(tmp_path):
    """Where the fill value would be the right answer, presence still has to be proved."""
    column = Column(name="v", per="sample", dtype="float32")
    wanted = manifest(columns=(COUNTS, column), num_samples=4)
    zeros = {"num_positions": np.zeros(4, np.int32), "v": np.zeros(4, np.float32)}
    view = write_view(tmp_path / "cache.zarr", wanted, {0: zeros})
    stored_object(view, 0, "v").unlink()
    with pytest.raises(CacheCorruptedError, match="cannot be read"):
        reads(view)
    with pytest.raises(CacheCorruptedError, match="cannot be read"):
        open_local_copy(view)


def test_missing_attempt(view):
    shutil.rmtree(view.folder / f"shard-000001.{view.commits[1].attempt}")
    with pytest.raises(CacheCorruptedError, match="cannot be read"):
        reads(view)


def test_folder_in_place_of_an_object(view):
    file = stored_object(view, 1, "values")
    file.unlink()
    file.mkdir()
    with pytest.raises(CacheCorruptedError):
        reads(view)


def test_object_of_another_shard_of_equal_size(view):
    """Whole, with good checksums inside; a crc32c of the object would be the same for both."""
    source, target = (stored_object(view, shard, "fingerprint") for shard in (0, 1))
    content = source.read_bytes()
    assert len(content) == target.stat().st_size
    target.write_bytes(content)
    with pytest.raises(CacheCorruptedError, match="is damaged"):
        reads(view)
    swapped = replace_object(view, 1, "fingerprint", content)
    with pytest.raises(CacheCorruptedError, match="decoded rows differ"):
        reads(swapped)


@pytest.mark.parametrize("where", ["zarr.json", "index.json", "commits/shard-000001.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"a": NaN}', None])
def test_metadata_that_is_no_json_object(view, where, content):
    if where != "index.json":
        (view.folder / "index.json").unlink()
    file = view.folder / where
    file.unlink()
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    if where == "zarr.json" and content is None:
        assert "train" not in open_cache(view.cache)
        return
    with pytest.raises(CacheCorruptedError, match=Path(where).name):
        reads(view)


@pytest.mark.parametrize("depth", [50, 900, 5_000, 100_000])
def test_deeply_nested_metadata(view, depth):
    (view.folder / "index.json").unlink()
    deep = '{"a":' * depth + "1" + "}" * depth
    for where in ("zarr.json", "commits/shard-000001.json"):
        file = view.folder / where
        good = file.read_text()
        file.write_text(good.replace("{", f'{{"more":{deep},', 1))
        with pytest.raises(CacheCorruptedError):
            reads(view)
        file.write_text(good)
    reads(view)


def test_truncated_metadata(view):
    (view.folder / "index.json").unlink()
    for where in ("zarr.json", "commits/shard-000001.json"):
        file = view.folder / where
        good = file.read_bytes()
        for size in range(0, len(good.rstrip()), 13):
            file.write_bytes(good[:size])
            with pytest.raises(CacheCorruptedError):
                reads(view)
        file.write_bytes(good)
