"""Links, pipes and devices in a cache: nothing blocks, has no end, or is written through them."""

from __future__ import annotations

import os
import shutil

import pytest

from kdcache.tools.verify import verify_cache
from tests.store.hostile import PLACES, everything, in_time, survives
from tests.store.synthetic import files_below


@pytest.fixture
def view(view_with_table):
    return view_with_table


@pytest.mark.parametrize("place", PLACES)
class TestNoRegularFile:
    def put(self, view, place, make):
        """Replace a file; records are only read where there is no index."""
        path = PLACES[place](view)
        if place == "record":
            (view.folder / "index.json").unlink()
        path.unlink()
        make(path)
        return in_time(survives, view.cache)

    def test_a_pipe_does_not_block(self, view, place):
        usable = self.put(view, place, os.mkfifo)
        assert usable == (place == "array metadata")  # no student reads that

    @pytest.mark.parametrize("device", ["/dev/zero", "/dev/random", "/dev/stdin", "/proc/self/mem"])
    def test_a_device_is_not_read(self, view, place, device):
        usable = self.put(view, place, lambda path: path.symlink_to(device))
        assert usable == (place == "array metadata")

    @pytest.mark.parametrize("is_loop", [True, False])
    def test_links_that_lead_nowhere_or_to_themselves(self, view, place, is_loop):
        target = PLACES[place](view) if is_loop else view.cache / "nothing"
        usable = self.put(view, place, lambda path: path.symlink_to(target))
        # An index that leads nowhere is none: the records are there.
        is_no_index = place == "index" and not is_loop
        assert usable == (place == "array metadata" or is_no_index)

    def test_a_link_to_the_same_content_is_as_good(self, view, place, tmp_path):
        """Caches from a hub, or a data manager, are folders of links into a store of blobs."""
        path = PLACES[place](view)
        path.symlink_to(shutil.move(path, tmp_path / "blob"))
        assert verify_cache(view.cache).is_sound
        everything(view.cache)


def test_a_folder_that_leads_in_a_circle(view):
    (view.folder / "shard-000000.0123456789ab").symlink_to(view.folder)
    (view.cache / "again").symlink_to(view.cache)
    (view.cache / "tables" / "deeper").symlink_to(view.cache / "tables")
    assert in_time(survives, view.cache)


def test_a_split_that_leads_out_of_the_cache(view, tmp_path):
    """It is read as what it is; nothing is written to it."""
    other = shutil.copytree(view.cache, tmp_path / "other")
    shutil.rmtree(view.cache / "train")
    (view.cache / "train").symlink_to(other / "train")
    before = files_below(other)
    assert survives(view.cache)
    assert files_below(other) == before
