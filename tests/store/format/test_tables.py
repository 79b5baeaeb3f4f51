"""A codec's tables: stored once, named by content, never read as another."""

from __future__ import annotations

import shutil

import google_crc32c
import numcodecs.zstd
import numpy as np
import pytest
import zarr

from kdcache.errors import CacheCorruptedError, UsageError
from kdcache.store import ViewWriter, open_cache, table_digest
from tests.store.synthetic import edit_json, files_below, manifest

TABLES = {
    "mean": np.linspace(0, 1, 7, dtype=np.float32),
    "basis": np.arange(24, dtype=np.float16).reshape(4, 6),
    "scale": np.asarray(2.5),
    "zeros": np.zeros((3, 2), np.uint8),
}
DIGESTS = {name: table_digest(table) for name, table in TABLES.items()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "cache.zarr"
    ViewWriter.create(path, manifest(tables=DIGESTS), TABLES)
    return path


@pytest.fixture
def cache(tmp_path, written):
    return shutil.copytree(written, tmp_path / "cache.zarr")


def table_folder(cache, name):
    return cache / "tables" / DIGESTS[name]


def test_come_back_and_are_shared_by_splits(cache):
    before = files_below(cache / "tables")
    ViewWriter.create(cache, manifest(split="val", tables=DIGESTS), TABLES)
    assert files_below(cache / "tables") == before
    for split in ("train", "val"):
        found = open_cache(cache)[split].read_tables()
        assert found.keys() == TABLES.keys()
        for name, table in TABLES.items():
            assert found[name].dtype == table.dtype
            assert np.array_equal(found[name], table)
    assert list(open_cache(cache)) == ["train", "val"]


def test_zarr_reads_them(cache):
    group = zarr.open_group(cache / "tables", mode="r")
    for name, table in TABLES.items():
        assert np.array_equal(group[DIGESTS[name]][...], table)


def test_others_than_the_manifest_names(tmp_path):
    with pytest.raises(UsageError, match="not those that the manifest names"):
        ViewWriter.create(tmp_path / "cache.zarr", manifest(tables=DIGESTS), {})
    assert not (tmp_path / "cache.zarr").exists()


@pytest.mark.parametrize("table", [np.zeros((0, 3)), np.asarray([True]), np.asarray(["a"])])
def test_what_cannot_be_stored(tmp_path, table):
    wanted = manifest(tables={"t": "0" * 32})
    with pytest.raises(UsageError, match="'t' cannot be stored"):
        ViewWriter.create(tmp_path / "cache.zarr", wanted, {"t": table})


def test_manifest_before_its_tables_is_impossible(tmp_path, monkeypatch):
    """A writer killed between the two leaves a table without a manifest, not the reverse."""

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("kdcache.store.writer.write_tables", die)
    with pytest.raises(KeyboardInterrupt):
        ViewWriter.create(tmp_path / "cache.zarr", manifest(tables=DIGESTS), TABLES)
    assert list(open_cache(tmp_path / "cache.zarr")) == []


class TestDamaged:
    def refused(self, cache):
        with pytest.raises(CacheCorruptedError):
            open_cache(cache)["train"].read_tables()

    @pytest.mark.parametrize("name", TABLES)
    def test_flips_and_truncations(self, cache, name):
        folder = table_folder(cache, name)
        file = next(path for path in folder.rglob("*") if path.is_file() and path.suffix == "")
        good = file.read_bytes()
        for position in range(0, len(good), 3):
            damaged = bytearray(good)
            damaged[position] ^= 16
            file.write_bytes(damaged)
            self.refused(cache)
            file.write_bytes(good[:position])
            self.refused(cache)
        file.unlink()
        self.refused(cache)

    def test_one_in_place_of_another(self, cache):
        shutil.rmtree(table_folder(cache, "mean"))
        shutil.copytree(table_folder(cache, "zeros"), table_folder(cache, "mean"))
        with pytest.raises(CacheCorruptedError, match="not what its name says"):
            open_cache(cache)["train"].read_tables()

    @pytest.mark.parametrize("shape", [[1 << 40], [-7], [7.0], "7", [], [7, 1], None, [0]])
    def test_other_shape(self, cache, shape):
        marker = table_folder(cache, "mean") / "zarr.json"
        edit_json(marker, lambda value: {**value, "shape": shape})
        self.refused(cache)

    @pytest.mark.parametrize("dtype", ["object", "float64", "<f4", 5, None])
    def test_other_dtype(self, cache, dtype):
        marker = table_folder(cache, "mean") / "zarr.json"
        edit_json(marker, lambda value: {**value, "data_type": dtype})
        self.refused(cache)

    @pytest.mark.parametrize("digest", ["../../x", "0" * 32, "", "A" * 32])
    def test_other_digest(self, cache, digest):
        marker = cache / "train" / "view-000" / "zarr.json"
        marker.write_text(marker.read_text().replace(DIGESTS["mean"], digest))
        self.refused(cache)

    def test_frame_that_claims_more(self, cache, monkeypatch):
        frame = numcodecs.zstd.compress(bytes(1 << 20), 5)
        content = frame + google_crc32c.value(frame).to_bytes(4, "little")
        file = next((table_folder(cache, "basis") / "c").rglob("0/0"))
        file.write_bytes(content)
        monkeypatch.setattr(numcodecs.zstd, "decompress", lambda *_: pytest.fail("decompressed"))
        with pytest.raises(CacheCorruptedError, match="refused before decompressing"):
            open_cache(cache)["train"].read_tables()
