"""A commit is on disk only after everything that it names: what is synced, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdcache.store import ViewWriter
from kdcache.store.format import files as store_files
from tests.store.synthetic import make_shards, manifest


@pytest.fixture
def events(monkeypatch):
    """Names that were synced or linked, in order; a temporary name stands for its target."""
    found: list[str] = []

    def name(descriptor: int) -> str:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        return path.name.lstrip(".").rsplit(".", 1)[0] if path.name.startswith(".") else str(path)

    link = os.link
    monkeypatch.setattr(os, "fsync", lambda descriptor: found.append(name(descriptor)))

    def note_link(source: Path, target: Path) -> None:
        found.append(f"link {target.name}")
        link(source, target)

    monkeypatch.setattr(store_files.os, "link", note_link)
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")
def test_commit_comes_last(tmp_path, events):
    writer = ViewWriter.create(tmp_path / "cache.zarr", manifest(), {})
    events.clear()
    commit = writer.write_shard(0, make_shards(manifest())[0])
    link = events.index("link shard-000000.json")
    attempt = writer.folder / f"shard-000000.{commit.attempt}"
    needed = [str(path) for path in attempt.rglob("*")] + [str(attempt), str(writer.folder)]
    assert set(needed) <= set(events[:link])
    assert events[link - 1] == "shard-000000.json"
    assert events[link + 1] == str(writer.folder / "commits")
    # A folder is synced (again) after the names in it exist.
    last = {event: number for number, event in enumerate(events)}
    assert last[str(attempt)] > last[str(attempt / "values" / "zarr.json")]
