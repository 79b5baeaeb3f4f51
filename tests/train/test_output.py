"""Folders of runs: claimed once, never overwritten, given back where nothing came of it."""

from __future__ import annotations

import enum
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdcache.errors import UsageError
from kdcache.train.output import claim_output, plain, released_on_failure, write_record


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


class Kind(enum.Enum):
    A = 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.float64("nan"), "nan"),
        (torch.tensor(2), 2),
        (torch.zeros(2, 2), "torch.Tensor"),
        (Path("a") / "b", str(Path("a") / "b")),
        ((1, {2}), [1, [2]]),
        ({1: True, "a": None}, {"1": True, "a": None}),
        (nn.ReLU(), "torch.nn.modules.activation.ReLU"),
        (nn.ReLU, "torch.nn.modules.activation.ReLU"),
        (claim_output, "kdcache.train.output.claim_output"),
        (Kind.A, f"{__name__}.Kind"),
    ],
)
def test_a_record_holds_plain_values(tmp_path, value, expected):
    assert plain(value) == expected
    write_record(tmp_path, {"value": value, "other": 1})
    assert json.loads((tmp_path / "run.json").read_text())["value"] == expected
