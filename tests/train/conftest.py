"""One teacher cache, dumped once for all tests of stage two."""

from __future__ import annotations

import pytest
import torch

import kdcache
from tests.train import small


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """float32 logits over ``train`` and ``test``."""
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
def train(cache, tmp_path):
    """``train_student`` with little to say: quiet, on the CPU, into a folder of its own."""

    def run(student=None, data=None, *, trainer=None, **options):
        return kdcache.train_student(
            small.net(1) if student is None else student,
            data or small.data(),
            cache.path,
            trainer={"max_epochs": 1, "accelerator": "cpu", **(trainer or {})},
            **{"output": tmp_path / "run", "progress": False, **options},
        )

    return run
