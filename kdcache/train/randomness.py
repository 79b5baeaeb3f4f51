"""The state of all global random generators, so that a training can go on as if never interrupted.

Plain values and tensors only: a checkpoint that holds them loads without running anyone's code.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Of Python, NumPy, torch, and every CUDA device of this process."""
    version, numbers, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=False)
    inner = numpy["state"]
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(numbers), gauss],
        "numpy": {
            **{name: numpy[name] for name in ("bit_generator", "has_gauss", "gauss")},
            "key": torch.from_numpy(inner["key"].astype(np.int64)),
            "pos": int(inner["pos"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put back what :func:`random_state` gave; another number of CUDA devices is left as it is."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    numpy = state["numpy"]
    np.random.set_state(
        {
            **{name: numpy[name] for name in ("bit_generator", "has_gauss", "gauss")},
            "state": {"key": numpy["key"].numpy().astype(np.uint32), "pos": numpy["pos"]},
        }
    )
    torch.set_rng_state(state["torch"].cpu())
    cuda = state["cuda"]
    if cuda and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in cuda])
