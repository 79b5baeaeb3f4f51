"""NCCL with one rank, in a process of its own: python -m tests.cuda.one_rank CACHE FOLDER."""

import os
import socket
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import kdcache
from kdcache.dump.processes.ranks import _initialise
from kdcache.dump.processes.replica import Replica
from tests.train import small


def group_of_a_dump() -> None:
    """In which ranks of a replica meet: tensors of the device over NCCL, others over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "1"}
    _initialise(Replica())
    for device in ("cuda", "cpu"):
        values = torch.arange(4.0, device=device)
        dist.all_reduce(values)
        assert values.tolist() == [0, 1, 2, 3]
    dist.destroy_process_group()
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"):
        del os.environ[name]


def weights(cache: str, folder: Path, **trainer: object) -> torch.Tensor:
    """Of a student after two epochs."""
    student = small.net(1)
    kdcache.train_student(
        student,
        small.data(),
        cache,
        losses={"kd_loss": 0.8, "student_loss": 0.2},
        output=folder,
        seed=3,
        progress=False,
        trainer={"max_epochs": 2, "accelerator": "gpu", "devices": 1, **trainer},
    )
    return small.weights(student).cpu()


def main() -> None:
    cache, folder = sys.argv[1], Path(sys.argv[2])
    group_of_a_dump()
    alone = weights(cache, folder / "alone")
    ranks = weights(cache, folder / "ddp", strategy="ddp")
    assert dist.is_initialized()
    assert dist.get_backend() == "nccl"
    torch.testing.assert_close(ranks, alone, rtol=1e-5, atol=1e-6)
    print("all is well")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
