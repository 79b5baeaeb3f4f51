"""What the store's tests share to stay fast.

They lose no power, so fsync is skipped (not in child processes); ``test_durability.py`` looks at
what is synced, and in which order. A view that many tests need is written once and copied.
"""

from __future__ import annotations

import os
import shutil

import pytest

from kdcache.store import open_cache
from tests.store.synthetic import make_shards, write_view


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
