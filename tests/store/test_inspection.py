"""Cache.inspect: true numbers, from metadata alone."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from kdcache.columns import NUM_POSITIONS
from kdcache.errors import CacheCorruptedError, CacheMissingError
from kdcache.store import ViewWriter, open_cache
from kdcache.store.format.tables import table_digest
from tests.store.synthetic import make_shards, manifest, write_view

COUNTS = (2, 0, 3, 1)


@pytest.fixture
def cache(tmp_path):
    """Two complete splits of variable length."""
    path = tmp_path / "cache.zarr"
    for split, num_samples in (("train", 10), ("test", 5)):
        wanted = manifest(split=split, num_samples=num_samples)
        write_view(path, wanted, make_shards(wanted, counts=COUNTS))
    return path


def size_of(folder):
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_bytes_are_every_file(cache):
    report = open_cache(cache).inspect()
    assert report["bytes"] == size_of(cache)
    for split in ("train", "test"):
        found = report["splits"][split]
        assert found["bytes"] == size_of(cache / split / "view-000")
        assert sum(found["column_bytes"].values()) == sum(
            path.stat().st_size for path in (cache / split).rglob("c/**/0") if path.is_file()
        )


def test_tables_are_counted_once(tmp_path):
    path = tmp_path / "cache.zarr"
    table = np.arange(100, dtype="<f4")
    for split in ("train", "test"):
        wanted = manifest(split=split, tables={"basis": table_digest(table)})
        writer = ViewWriter.create(path, wanted, {"basis": table})
        for shard, columns in make_shards(wanted).items():
            writer.write_shard(shard, columns, {})
        writer.finish()
    assert open_cache(path).inspect()["bytes"] == size_of(path)


def test_without_an_index_the_commit_records_are_counted(cache):
    (cache / "train" / "view-000" / "index.json").unlink()
    found = open_cache(cache).inspect()["splits"]["train"]
    assert found["bytes"] == size_of(cache / "train" / "view-000")


def test_abandoned_attempts_are_not_counted(cache):
    before = open_cache(cache).inspect()
    view = cache / "train" / "view-000"
    attempt = next(view.glob("shard-000000.*"))
    shutil.copytree(attempt, view / "shard-000000.0123456789ab")
    assert open_cache(cache).inspect() == before


def test_positions_of_variable_length(cache):
    """Counted by the rows that are there, not by what a statistic says."""
    found = open_cache(cache).inspect()["splits"]["train"]
    view = open_cache(cache)["train"]
    positions = int(view.read_num_positions().sum())
    assert found["positions"] == positions != found["samples"] == 10
    assert found["bytes_per_position"] == pytest.approx(found["bytes"] / positions)
    assert found["bytes_per_sample"] == pytest.approx(found["bytes"] / 10)
    assert found["count_bytes"] == found["column_bytes"][NUM_POSITIONS]


def test_an_incomplete_split(cache):
    view = cache / "train" / "view-000"
    (view / "index.json").unlink()
    (view / "commits" / "shard-000000.json").unlink()
    found = open_cache(cache).inspect()["splits"]["train"]
    assert (found["complete"], found["digest"]) == (False, None)
    assert (found["samples"], found["samples_dumped"]) == (10, 6)
    assert (found["shards"], found["shards_there"]) == (3, 2)
    assert open_cache(cache).inspect()["splits"]["test"]["complete"]


def test_a_split_without_any_shard(tmp_path):
    ViewWriter.create(tmp_path / "cache.zarr", manifest(), {})
    found = open_cache(tmp_path / "cache.zarr").inspect()["splits"]["train"]
    assert (found["samples_dumped"], found["positions"]) == (0, 0)
    assert found["bytes_per_sample"] is found["bytes_per_position"] is None
    assert found["teacher"] == {}


@pytest.mark.parametrize(
    ("statistics", "teacher"),
    [
        ({}, {}),
        ({"positions": 10.0}, {}),
        ({"positions": 4.0, "entropy": 2.0}, {"entropy": 0.5}),
        ({"labelled": 0.0, "correct": 0.0, "cross_entropy": 0.0}, {}),
        (
            {"labelled": 4.0, "correct": 3.0, "cross_entropy": 8.0},
            {"accuracy": 0.75, "cross_entropy": 2.0},
        ),
    ],
)
def test_means_of_the_teacher(tmp_path, statistics, teacher):
    wanted = manifest()
    writer = ViewWriter.create(tmp_path / "cache.zarr", wanted, {})
    for shard, columns in make_shards(wanted).items():
        writer.write_shard(shard, columns, statistics)
    writer.finish()
    assert open_cache(tmp_path / "cache.zarr").inspect()["splits"]["train"]["teacher"] == teacher


def with_statistics(path, **splits):
    """A cache whose commits have these sums, the same in each of three shards of 4, 4 and 2."""
    for split, statistics in splits.items():
        wanted = manifest(split=split, pilot={"samples": 2.0})
        writer = ViewWriter.create(path, wanted, {})
        for shard, columns in make_shards(wanted).items():
            writer.write_shard(shard, columns, statistics)
        writer.finish()
    return open_cache(path).inspect()


def test_fidelity_and_the_pilots_numbers(tmp_path):
    sums = {"compared": 4.0, "divergence": 2e-6, "divergence_squared": 1e-12, "kept_mass": 3.0}
    found = with_statistics(tmp_path / "c", train=sums)["splits"]["train"]
    assert found["fidelity"] == {"divergence": pytest.approx(5e-7), "kept_mass": 0.75}
    assert found["pilot"] == {"samples": 2.0}


def entropy_of(mean, deviation=0.0, correct=None, positions=1e6):
    sums = {
        "positions": positions,
        "entropy": mean * positions,
        "entropy_squared": (mean**2 + deviation**2) * positions,
    }
    labelled = {} if correct is None else {"labelled": positions, "correct": correct * positions}
    return sums | labelled


class TestRemark:
    def test_a_teacher_that_memorised_its_training_set(self, tmp_path):
        report = with_statistics(
            tmp_path / "c",
            train=entropy_of(0.002, correct=1.0),
            near=entropy_of(0.0035, correct=0.99),
            test=entropy_of(0.3, 0.1, correct=0.93),
        )
        (remark,) = report["remarks"]
        assert (
            "surer of 'train' than of 'test' (0.002 nats of entropy there, 0.3 on 'test'" in remark
        )
        assert "100.00% and 93.00% right" in remark

    def test_without_labels(self, tmp_path):
        (remark,) = with_statistics(tmp_path / "c", train=entropy_of(0.1), val=entropy_of(0.5))[
            "remarks"
        ]
        assert "right" not in remark

    @pytest.mark.parametrize(
        ("train", "test"),
        [
            (entropy_of(0.3), entropy_of(0.5)),  # not by half
            (entropy_of(0.001), entropy_of(0.01)),  # both sure, by a hair
            (entropy_of(0.5), entropy_of(0.1)),  # the other way round
            (entropy_of(0.1), entropy_of(0.3, deviation=0.5)),  # ten samples, by chance
            (entropy_of(0.1), {}),
            ({}, entropy_of(0.3)),
        ],
    )
    def test_nothing_to_remark(self, tmp_path, train, test):
        assert with_statistics(tmp_path / "c", train=train, test=test)["remarks"] == []

    def test_of_validation_alone(self, tmp_path):
        assert with_statistics(tmp_path / "c", test=entropy_of(0.3))["remarks"] == []


def test_the_report_is_json(cache):
    report = open_cache(cache).inspect()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["path"] == str(cache)
    assert list(report["splits"]) == ["test", "train"]


def test_what_is_no_cache(tmp_path, cache):
    with pytest.raises(CacheMissingError, match="does not exist"):
        open_cache(tmp_path / "nowhere").inspect()
    (cache / "train" / "view-000" / "zarr.json").write_text("{")
    with pytest.raises(CacheCorruptedError):
        open_cache(cache).inspect()


def test_splits_of_different_teachers(tmp_path):
    """Also of one that ran in another precision; the same one in two splits needs no remark."""
    path = tmp_path / "cache.zarr"
    teachers = {"train": ("91c4", "32-true"), "val": ("91c4", "32-true"), "test": ("07ee", "")}

    def write(split, weights, precision):
        identity = {"teacher.weights": weights, "precision": precision, "dataset.probe": split}
        wanted = manifest(split=split, identity=identity)
        write_view(path, wanted, make_shards(wanted))

    for split in ("train", "val"):
        write(split, *teachers[split])
    assert open_cache(path).inspect()["remarks"] == []
    write("test", *teachers["test"])
    (remark,) = open_cache(path).inspect()["remarks"]
    assert "of different teachers (test: 07ee; train, val: 91c4 32-true)" in remark
