"""Using a cache that somebody else made in every way there is, and where its files lie."""

from __future__ import annotations

import threading
import tracemalloc

from kdcache.errors import KdcacheError
from kdcache.store import open_cache, open_local_copy
from kdcache.tools.verify import verify_cache
from tests.hang import HANG_S
from tests.store.synthetic import stored_object

MEMORY_BYTES = 96 << 20


def everything(cache):
    """All that is done with a cache that somebody else made."""
    opened = open_cache(cache)
    for split in {"train", *opened}:
        found = opened[split]
        _ = (found.manifest, found.pending, found.is_complete, found.stored_bytes)
        for commit in found.commits:
            found.read_shard(commit)
        found.read_tables()
        open_local_copy(found, cache.parent / "local").take([0, 0])


def survives(cache):
    """Whether it can be used; another error, or much memory, fails the test."""
    uses = (everything, lambda path: open_cache(path).inspect(), verify_cache)
    outcomes = []
    tracemalloc.start()
    try:
        for use in uses:
            try:
                use(cache)
                outcomes.append(True)
            except KdcacheError:
                outcomes.append(False)
    finally:
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < MEMORY_BYTES
    return outcomes[0]


def in_time(function, *arguments):
    """The result of a call that must not block; 30 seconds are for a busy machine."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function(*arguments)), daemon=True)
    thread.start()
    thread.join(HANG_S)
    assert not thread.is_alive(), "blocked"
    assert found, "raised"
    return found[0]


PLACES = {
    "the cache's marker": lambda view: view.cache / "zarr.json",
    "manifest": lambda view: view.folder / "zarr.json",
    "index": lambda view: view.folder / "index.json",
    "record": lambda view: view.folder / "commits" / "shard-000001.json",
    "object": lambda view: stored_object(view, 1, "values"),
    "array metadata": lambda view: stored_object(view, 1, "values").parents[2] / "zarr.json",
    "table": lambda view: next((view.cache / "tables").rglob("c/0")),
    "table metadata": lambda view: next((view.cache / "tables").glob("*/zarr.json")),
}
