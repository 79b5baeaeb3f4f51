"""Which of several teacher replicas this process is, and which shards are its own.

Pure functions: a replica needs only its number and their count. There is no collective between
replicas, so one that dies never hangs the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kdcache.errors import UsageError
from kdcache.values import text, whole_number

_PART = re.compile(r"([0-9]+)/([0-9]+)")


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One teacher replica, as one of its processes sees it.

    Attributes:
        number: 0 to count - 1.
        count: replicas that share the dump.
        device: number of the device on this machine, among equals.
        rank: of this process within the replica, 0 to num_ranks - 1; rank 0 encodes and writes.
        num_ranks: processes that hold the replica's teacher together.
    """

    number: int = 0
    count: int = 1
    device: int = 0
    rank: int = 0
    num_ranks: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise UsageError(f"replica {self.number} of {self.count} does not exist.")
        if not 0 <= self.rank < self.num_ranks:
            raise UsageError(f"rank {self.rank} of {self.num_ranks} does not exist.")

    def owned(self, pending: Iterable[int]) -> tuple[int, ...]:
        """The pending shards that this replica dumps: those with number % count == its own.

        It depends on nothing that changes while others work, so replicas that start at different
        moments still never choose the same shard.
        """
        return tuple(shard for shard in pending if shard % self.count == self.number)


@dataclass(frozen=True, kw_only=True)
class LaunchedRank:
    """What a launcher says of a process.

    Attributes:
        rank: 0 to world_size - 1.
        world_size: processes that were launched together.
        device: rank on this machine.
    """

    rank: int = 0
    world_size: int = 1
    device: int = 0


def launched_rank(environment: Mapping[str, str]) -> LaunchedRank:
    """What torchrun or SLURM says of a process; the only one of its world without them."""
    for names in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        # Of the job step: in a batch script SLURM_NTASKS is set, too, though only one task runs.
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ):
        rank, size, device = (environment.get(name, "") for name in names)
        # A world of one is as good as no launcher: the next one's names are looked at.
        if rank.isdecimal() and size.isdecimal() and int(size) > 1:
            local = int(device) if device.isdecimal() else 0
            return LaunchedRank(rank=int(rank), world_size=int(size), device=local)
    return LaunchedRank()


def replica_from(
    environment: Mapping[str, str], part: str | None = None, *, ranks_per_replica: int = 1
) -> Replica:
    """The replica that a part (``3/16``, counted from 0), torchrun or SLURM makes of a process.

    Args:
        environment: of the process.
        part: given by the user; wins over the environment.
        ranks_per_replica: R; rank r belongs to replica r // R. With a part, the job's R ranks are
            the one replica.

    Raises:
        UsageError: no such part; the ranks cannot be divided into replicas.
    """
    launched = launched_rank(environment)
    ranks_per_replica = whole_number(ranks_per_replica, "ranks_per_replica")
    if ranks_per_replica > 1:
        _check_division(launched.world_size, ranks_per_replica, part)
    if part is not None:
        found = _PART.fullmatch(text(part, "part", "3/16"))
        if found is None or int(found[1]) >= int(found[2]):
            raise UsageError(f"part {part!r} is not like 3/16: number (from 0) / count.")
        number, count = int(found[1]), int(found[2])
        if ranks_per_replica == 1:
            return Replica(number=number, count=count)
    else:
        number, rank_count = launched.rank // ranks_per_replica, launched.world_size
        count = rank_count // ranks_per_replica
    return Replica(
        number=number,
        count=count,
        device=launched.device,
        rank=launched.rank % ranks_per_replica,
        num_ranks=ranks_per_replica,
    )


def _check_division(world_size: int, ranks_per_replica: int, part: str | None) -> None:
    if part is not None and world_size != ranks_per_replica:
        raise UsageError(
            f"part {part} is one replica of ranks_per_replica={ranks_per_replica} processes, but "
            f"{world_size} run here. Start every part with exactly {ranks_per_replica} "
            f"(torchrun --nproc-per-node {ranks_per_replica})."
        )
    if world_size % ranks_per_replica:
        raise UsageError(
            f"{world_size} {'process' if world_size == 1 else 'processes'} cannot be divided into "
            f"replicas of ranks_per_replica={ranks_per_replica}. Start a multiple of it with "
            f"torchrun (--nproc-per-node {ranks_per_replica}) or srun."
        )
