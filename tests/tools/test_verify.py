"""verify_cache: whatever is damaged or missing is said, and the rest is still looked at."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from kdcache.columns import KEY, Column
from kdcache.errors import CacheError, CacheMissingError
from kdcache.store import ViewWriter, open_cache
from kdcache.store.format.tables import table_digest
from kdcache.tools.verify import verify_cache
from tests.store.synthetic import (
    COLUMNS,
    edit_json,
    edit_record,
    make_shards,
    manifest,
    stored_object,
    write_view,
)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Two splits, train in 3 shards and test in 2; both share a table."""
    path = tmp_path_factory.mktemp("verify") / "cache.zarr"
    table = np.arange(100, dtype="<f4")
    for split, num_samples in (("train", 10), ("test", 5)):
        wanted = manifest(
            split=split, num_samples=num_samples, tables={"basis": table_digest(table)}
        )
        writer = ViewWriter.create(path, wanted, {"basis": table})
        for shard, columns in make_shards(wanted).items():
            writer.write_shard(shard, columns, {})
        writer.finish()
    return path


@pytest.fixture
def cache(original, tmp_path):
    return shutil.copytree(original, tmp_path / "cache.zarr")


def test_a_whole_cache_is_sound(cache):
    found = verify_cache(cache)
    assert found.is_sound
    assert (found.shards, found.samples, found.problems) == (5, 15, ())
    assert found.path == str(cache)
    assert json.loads(json.dumps(dataclasses.asdict(found)))["problems"] == []


def remove(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def is_found(path, damage):
    """Whether verify promises to find the damage.

    Commit records or the index may be absent where the other is there. Of a table's metadata it
    looks at shape and data type only, so not every flipped bit is seen.
    """
    if damage is remove:
        return "commits" not in path.parts and path.name != "index.json"
    is_of_a_table = path.name == "zarr.json" and path.parts[0] == "tables" and len(path.parts) > 2
    return damage is not flip or not is_of_a_table


@pytest.mark.parametrize("damage", [remove, cut, empty, flip])
def test_damage_to_any_file_is_found(original, tmp_path, damage):
    files = sorted(path.relative_to(original) for path in original.rglob("*") if path.is_file())
    missed = []
    for number, relative in enumerate(path for path in files if is_found(path, damage)):
        cache = shutil.copytree(original, tmp_path / str(number))
        damage(cache / relative)
        try:
            if verify_cache(cache).is_sound:
                missed.append(str(relative))
        except CacheError:  # what makes it a cache at all is gone
            pass
        shutil.rmtree(cache)
    assert missed == []


@pytest.mark.parametrize("name", ["commits", "index.json"])
def test_the_index_and_the_records_stand_in_for_each_other(cache, name):
    path = cache / "train" / "view-000" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert verify_cache(cache).is_sound


def test_a_damaged_shard_is_named_and_the_others_are_read(cache):
    flip(stored_object(open_cache(cache)["train"], 1, "values"))
    found = verify_cache(cache)
    (problem,) = found.problems
    assert re.match(r"train: shard 1 \(samples 4 to 7\): .*values.*damaged", problem)
    assert (found.shards, found.samples) == (5, 11)


def test_every_problem_is_said(cache):
    for split, shard in (("train", 0), ("train", 2), ("test", 1)):
        flip(stored_object(open_cache(cache)[split], shard, "fingerprint"))
    assert [problem.split(" (")[0] for problem in verify_cache(cache).problems] == [
        "test: shard 1", "train: shard 0", "train: shard 2"
    ]  # fmt: skip


def test_a_missing_shard_is_named(cache):
    view = cache / "train" / "view-000"
    (view / "index.json").unlink()
    (view / "commits" / "shard-000001.json").unlink()
    found = verify_cache(cache)
    (problem,) = found.problems
    assert problem == ("train: 1 of 3 shards are not there; the first is shard 1 (samples 4 to 7)")
    assert found.samples == 11


def test_a_missing_object_is_named(cache):
    stored_object(open_cache(cache)["train"], 0, "ids").unlink()
    (problem,) = verify_cache(cache).problems
    assert problem.startswith("train: shard 0 (samples 0 to 3): ")
    assert "ids" in problem


def test_a_damaged_table_does_not_hide_the_shards(cache):
    (stored,) = [path for path in (cache / "tables").rglob("c/0*") if path.is_file()]
    flip(stored)
    found = verify_cache(cache)
    assert [problem.split(":")[0] for problem in found.problems] == ["test", "train"]
    assert all("tables" in problem for problem in found.problems)
    assert (found.shards, found.samples) == (5, 15)


def test_a_damaged_manifest_does_not_hide_the_other_split(cache):
    empty(cache / "train" / "view-000" / "zarr.json")
    found = verify_cache(cache)
    (problem,) = found.problems
    assert problem.startswith("train: ")
    assert found.samples == 5


def test_an_index_of_another_manifest(cache):
    index = cache / "train" / "view-000" / "index.json"
    edit_json(index, lambda value: {**value, "digest": "0" * 32})
    (problem,) = verify_cache(cache).problems
    assert "index.json is damaged: its checksum is wrong" in problem
    edit_record(index, lambda value: value)
    (problem,) = verify_cache(cache).problems
    assert "does not belong to the manifest beside it" in problem


def test_a_split_without_its_manifest_does_not_vanish(cache):
    remove(cache / "test" / "view-000" / "zarr.json")
    (problem,) = verify_cache(cache).problems
    assert problem.startswith("test: ")
    assert "has no manifest" in problem


def test_a_commit_record_that_contradicts_the_index(cache):
    """A valid record of other content; readers go by the index, until it is rebuilt."""
    record = cache / "train" / "view-000" / "commits" / "shard-000001.json"
    edit_record(record, lambda value: {**value, "statistics": {"entropy": 5.0}})
    (problem,) = verify_cache(cache).problems
    shard = "train: shard 1 (samples 4 to 7)"
    assert problem == f"{shard}: its commit record is not what the index says"


def test_metadata_of_other_readers(cache):
    commit = open_cache(cache)["train"].commits[0]
    array = cache / "train" / "view-000" / f"shard-000000.{commit.attempt}" / "values"
    edit_json(array / "zarr.json", lambda value: {**value, "shape": [3, 5]})
    (problem,) = verify_cache(cache).problems
    assert problem.startswith("train: shard 0 (samples 0 to 3): ")
    assert "values/zarr.json, which other Zarr readers need, is damaged" in problem


def test_repeated_keys(tmp_path):
    key = Column(name=KEY, per="sample", dtype="uint64")
    wanted = manifest(columns=(*COLUMNS, key), key="field:id")
    shards = make_shards(wanted)
    shards[2][KEY][:] = shards[0][KEY][:2]
    write_view(tmp_path / "cache.zarr", wanted, shards)
    (problem,) = verify_cache(tmp_path / "cache.zarr").problems
    assert problem == "train: 2 keys stand there more than once"


def test_a_cache_without_a_split_is_not_sound(cache):
    shutil.rmtree(cache / "train")
    shutil.rmtree(cache / "test")
    (problem,) = verify_cache(cache).problems
    assert "has no split" in problem


def test_a_split_without_a_shard_is_not_sound(tmp_path):
    ViewWriter.create(tmp_path / "cache.zarr", manifest(), {})
    found = verify_cache(tmp_path / "cache.zarr")
    assert "3 of 3 shards are not there" in found.problems[0]
    assert found.samples == 0


def test_abandoned_attempts_are_no_problem(cache):
    view = cache / "train" / "view-000"
    attempt = next(view.glob("shard-000000.*"))
    other = shutil.copytree(attempt, view / "shard-000000.0123456789ab")
    for path in other.rglob("*"):
        if path.is_file():
            empty(path)
    assert verify_cache(cache).is_sound


def test_progress_is_told_of_every_shard_sound_or_not(cache):
    flip(stored_object(open_cache(cache)["train"], 1, "values"))
    calls = []
    verify_cache(cache, progress=lambda *told: calls.append(told))
    assert calls == [
        ("test", 1, 2), ("test", 2, 2), ("train", 1, 3), ("train", 2, 3), ("train", 3, 3)
    ]  # fmt: skip


def test_what_is_no_cache(tmp_path):
    with pytest.raises(CacheMissingError):
        verify_cache(tmp_path)
