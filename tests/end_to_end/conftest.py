"""One teacher cache of each kind, dumped once for all tests of a process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import digits

import kdcache


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def lossless_cache(tmp_path_factory):
    """float32 logits of the trained teacher over both splits."""
    return kdcache.dump_teacher(
        digits.trained_teacher(),
        {"train": digits.loader(digits.train_set()), "test": digits.loader(digits.test_set())},
        tmp_path_factory.mktemp("lossless") / "teacher.zarr",
        codec=kdcache.DenseCodec(dtype="float32"),
        class_names=[str(number) for number in range(digits.NUM_CLASSES)],
        accelerator="cpu",  # where tests ask the teacher itself: its logits are compared to the bit
        progress=False,
    )
