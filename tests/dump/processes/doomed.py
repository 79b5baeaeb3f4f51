"""Dumps for processes of their own: cut short at a named point, signalled, or in several ranks.

Every function returns an exit code; see ``tests/dump/forked.py`` for who calls them.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from kdcache.dump.processes import preemption
from kdcache.errors import KdcacheError
from tests.data import toys

NUM_SAMPLES = 43  # 6 shards of 8 samples, 2 batches each
SAMPLES = toys.labelled(NUM_SAMPLES)


class Teacher(nn.Module):
    """The default teacher in pieces that can be sharded; ``at_batch`` is told their numbers.

    Args:
        at_batch: called before each batch with its number, the first one after the probe being 0.
    """

    def __init__(self, at_batch: Callable[[int], object] = bool) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Linear(toys.WIDTH, 7)
            self.norm = nn.BatchNorm1d(7)
            self.last = nn.Linear(7, toys.NUM_CLASSES)
            self.norm(torch.randn(64, 7))  # running statistics that are not 0 and 1
        self._at_batch, self._seen = at_batch, -1

    def forward(self, x: Tensor) -> Tensor:
        self._seen += 1
        if self._seen:
            self._at_batch(self._seen - 1)
        return self.last(self.norm(self.first(x)).relu())


def sharded(at_batch: Callable[[int], object] = bool, mesh: DeviceMesh | None = None) -> nn.Module:
    """The same teacher, its weights shared out over the ranks of its replica."""
    teacher = Teacher(at_batch)
    for part in (teacher.first, teacher.last, teacher):
        fully_shard(part, mesh=mesh)
    return teacher


def told(call: Callable[[], object]) -> int:
    """The exit code that the command line would end with, and its paragraph."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    try:
        call()
    except KdcacheError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def dump(cache: str, **options: Any) -> Any:
    return toys.dump(Path(cache), SAMPLES, accelerator="cpu", **options)


def whole(cache: str) -> None:
    """Nothing happens to this one."""
    dump(cache, teacher=Teacher)


def at_point(cache: str, when: str, where: str, number: int, rank: int | None = None) -> None:
    """Killed at the n-th call of a function: before anything of it happens, or right after.

    With a rank, only the process with that rank is.
    """
    if rank is None or os.environ["RANK"] == str(rank):
        _arm(when, where, number)
    whole(cache)


def _arm(when: str, where: str, number: int) -> None:
    module, _, name = where.rpartition(".")
    holder: Any = importlib.import_module(module)
    function, calls = getattr(holder, name), []

    def dying(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        if when == "before" and len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **keywords)
        if when == "after" and len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(holder, name, dying)


def at_batch(cache: str, number: int) -> None:
    """Killed in the teacher's forward pass."""
    dump(cache, teacher=Teacher(lambda n: n == number and os.kill(os.getpid(), signal.SIGKILL)))


def signalled(
    cache: str, number: int, batch_s: float, grace_s: float, workers: int, whole_group: bool
) -> int:
    """SIGTERM while batch ``number`` goes through a teacher that takes its time."""

    def at_batch(n: int) -> None:
        time.sleep(batch_s)
        if n == number:
            (os.killpg if whole_group else os.kill)(os.getpid(), signal.SIGTERM)

    loader = toys.loader(SAMPLES, num_workers=workers)
    call = {"samples": loader, "teacher": Teacher(at_batch), "accelerator": "cpu"}
    return told(lambda: toys.dump(Path(cache), **call, grace_s=grace_s))


def signalled_twice(cache: str, pause_s: float, one_request_s: float) -> int:
    """A second SIGTERM some time after the first, in the same shard."""
    preemption._ONE_REQUEST_S = one_request_s  # in this process, which is made for it

    def at_batch(n: int) -> None:
        if n == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(pause_s)
            os.kill(os.getpid(), signal.SIGTERM)

    return told(lambda: dump(cache, teacher=Teacher(at_batch)))


def in_ranks(cache: str, ranks_per_replica: int) -> int:
    """One rank of a replica that is sharded."""
    return told(lambda: dump(cache, teacher=sharded, ranks_per_replica=ranks_per_replica))


def in_own_ranks(cache: str) -> int:
    """Two replicas of two ranks, in a world of four that is not ours."""
    dist.init_process_group("gloo")
    meshes = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "rank"))
    teacher = sharded(mesh=meshes["rank"])
    code = told(lambda: dump(cache, teacher=teacher, ranks_per_replica=2))
    dist.barrier()  # the world is as it was
    dist.destroy_process_group()
    return code


def in_tensor_parallel_ranks(cache: str) -> int:
    """Two ranks with half of the classes each; the logits are a DTensor."""

    def teacher() -> nn.Module:
        made = Teacher()
        style = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
        parallelize_module(made.last, init_device_mesh("cpu", (2,)), style)
        return made

    return told(lambda: dump(cache, teacher=teacher, ranks_per_replica=2))


def in_ranks_signalled(cache: str, signal_name: str, rank: int, number: int) -> int:
    """The same with two ranks; one of them gets a signal before a batch."""

    def at_batch(n: int) -> None:
        if n == number and os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), signal.Signals[signal_name])

    call = {"teacher": lambda: sharded(at_batch), "ranks_per_replica": 2}
    return told(lambda: dump(cache, **call))
