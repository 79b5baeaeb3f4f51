"""What these tests share to stay fast."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _quick():
    """One thread, no fsync (these tests lose no power), no waiting for dead workers."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        # How long PyTorch waits for a worker that has raised to end by itself, in seconds.
        patch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
        yield


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "teacher.zarr"
