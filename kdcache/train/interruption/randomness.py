"""The state of all global random generators, so that a training can go on as if never interrupted.

Plain values and tensors only: a checkpoint that holds them loads without running anyone's code.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


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


def random_states() -> list[dict[str, Any]]:
    """Of every rank, by rank; all ranks call this together.

    They draw alike only until their batches differ in size.
    """
    mine = random_state()
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def of_this_rank(states: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """This rank's part of what :func:`random_states` gave; a rank that was not there has another's.

    Args:
        states: one or more.
    """
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return states[rank % len(states)]


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
