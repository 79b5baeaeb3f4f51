"""Folders of runs: claimed once, never overwritten, given back where nothing came of it."""

from __future__ import annotations

import errno
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kdcache.errors import UsageError
from kdcache.train.results.output import claim_output, released_on_failure


def test_numbers_are_next_and_independent_of_other_folders(tmp_path):
    cache = tmp_path / "teacher.zarr"
    students = tmp_path / "students"
    assert claim_output(None, cache) == students / "run-0001"
    (students / "notes").mkdir()
    (students / "run-0007").mkdir()
    assert claim_output(None, cache) == students / "run-0008"
    (students / "run-10000").mkdir()
    assert claim_output(None, cache) == students / "run-10001"


def test_many_at_once_get_a_folder_each(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: claim_output(None, tmp_path / "t.zarr"), range(64)))
    assert sorted(path.name for path in found) == [f"run-{n:04d}" for n in range(1, 65)]


def test_the_users_folder_is_new_or_empty(tmp_path):
    cache = tmp_path / "teacher.zarr"
    assert claim_output(tmp_path / "a" / "b", cache).is_dir()
    assert claim_output(tmp_path / "a" / "b", cache) == tmp_path / "a" / "b"
    with pytest.raises(UsageError, match="not empty"):
        claim_output(tmp_path / "a", cache)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="not empty"):
        claim_output(tmp_path / "file", cache)


def test_a_folder_that_cannot_be_made_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "run"
    with pytest.raises(UsageError, match=f"the output folder {output} cannot be written: Not a d"):
        claim_output(output, tmp_path / "teacher.zarr")


def test_without_an_output_the_folder_beside_the_cache_is_named(tmp_path):
    (tmp_path / "students").write_text("")
    with pytest.raises(UsageError, match=r"/students cannot be written: .*Choose one with --out"):
        claim_output(None, tmp_path / "teacher.zarr")


def test_a_folder_that_nobody_may_write_into_is_refused_at_once(tmp_path, monkeypatch):
    """The tests may run as root, who may write everywhere."""

    def refuse(**_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(UsageError, match=r"/run cannot be written: Permission denied. Choose ano"):
        claim_output(tmp_path / "run", tmp_path / "teacher.zarr")


def fail(folder, error, before):
    """A run that does something in its folder and fails."""
    with released_on_failure(folder):
        before(folder)
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failed_run_leaves_no_folder(tmp_path, error):
    folder = claim_output(tmp_path / "run", tmp_path)
    with pytest.raises(error):
        fail(folder, error, lambda folder: (folder / "metrics.csv").write_text("epoch"))
    assert not folder.exists()


def test_a_failed_run_keeps_its_checkpoints(tmp_path):
    folder = claim_output(tmp_path / "run", tmp_path)
    (folder / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="later"):
        fail(folder, ValueError("later"), lambda f: (f / "checkpoints/last.ckpt").write_text(""))
    assert (folder / "checkpoints/last.ckpt").exists()


def test_an_error_is_not_hidden_by_a_folder_that_is_gone(tmp_path):
    folder = claim_output(tmp_path / "run", tmp_path)
    with pytest.raises(ValueError, match="first"):
        fail(folder, ValueError("first"), Path.rmdir)
