"""What only a GPU can show. Here, and nowhere else, is what skips it where there is none."""

from __future__ import annotations

import os

import pytest
import torch

import kdcache
from tests.train import small

# cuBLAS reads it once; without it no product is deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


DEVICE = "cuda"


@pytest.fixture(autouse=True, scope="session")
def device():
    """What every test here runs on, or is skipped without."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return DEVICE


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Logits of a small teacher over ``train`` and ``test``, dumped on the CPU."""
    return kdcache.dump_teacher(
        small.Teacher(),
        {"train": small.loader(), "test": small.loader(small.NUM_TEST, seed=1)},
        tmp_path_factory.mktemp("teacher") / "teacher.zarr",
        codec=kdcache.DenseCodec(dtype="float32"),
        samples_per_shard=32,
        accelerator="cpu",
        progress=False,
    )


@pytest.fixture
def deterministic():
    """An operation that has no deterministic form raises."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def no_waits():
    """A context in which to wait for the device is an error."""

    class NoWaits:
        def __enter__(self):
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_):
            torch.cuda.set_sync_debug_mode("default")

    return NoWaits()
