"""What the store's tests share to stay fast.

They lose no power, so fsync is skipped (not in child processes); ``test_durability.py`` looks at
what is synced, and in which order. A view that many tests need is written once and copied.
"""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from kdcache.store import ViewWriter, open_cache, table_digest
from tests.store.synthetic import make_shards, manifest, write_view


@pytest.fixture(autouse=True, scope="session")
def no_fsync():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def stored(tmp_path_factory):
    """``stored(path, manifest, counts)``: a finished view of ``make_shards`` at a path."""
    folder = tmp_path_factory.mktemp("stored")
    made = {}

    def copy(path, wanted, counts=(2, 0, 3, 1)):
        key = (repr(wanted), tuple(counts))
        if key not in made:
            made[key] = folder / f"{len(made)}.zarr"
            write_view(made[key], wanted, make_shards(wanted, counts=counts))
        shutil.copytree(made[key], path)
        return open_cache(path)[wanted.split]

    return copy


@pytest.fixture(scope="session")
def original_with_table(tmp_path_factory):
    path = tmp_path_factory.mktemp("with_table") / "cache.zarr"
    table = np.arange(6, dtype=np.float32)
    wanted = manifest(tables={"mean": table_digest(table)})
    writer = ViewWriter.create(path, wanted, {"mean": table})
    for shard, columns in make_shards(wanted).items():
        writer.write_shard(shard, columns)
    writer.finish()
    return path


@pytest.fixture
def view_with_table(original_with_table, tmp_path):
    """A finished view of columns of all kinds, and a table; a copy for each test."""
    return open_cache(shutil.copytree(original_with_table, tmp_path / "cache.zarr"))["train"]
