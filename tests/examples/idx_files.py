"""MNIST's file format with a few random images."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np


def idx_bytes(values: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_split(root: Path, prefix: str, num_samples: int, *, packed: bool) -> None:
    rng = np.random.default_rng(num_samples)
    images = rng.integers(0, 256, (num_samples, 28, 28))
    labels = np.arange(num_samples) % 10
    for name, values in ((f"{prefix}-images-idx3", images), (f"{prefix}-labels-idx1", labels)):
        content = idx_bytes(values)
        if packed:
            (root / f"{name}-ubyte.gz").write_bytes(gzip.compress(content))
        else:
            (root / f"{name}-ubyte").write_bytes(content)
