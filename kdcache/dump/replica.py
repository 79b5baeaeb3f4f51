"""Which of several teacher replicas this process is, and which shards are its own.

Pure functions: a replica needs only its number and their count. There is no collective between
replicas, so one that dies never hangs the others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kdcache.errors import UsageError

_PART = re.compile(r"([0-9]+)/([0-9]+)")


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One teacher replica.

    Attributes:
        number: 0 to count - 1.
        count: replicas that share the dump.
        device: number of the device on this machine, among equals.
    """

    number: int = 0
    count: int = 1
    device: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise UsageError(f"replica {self.number} of {self.count} does not exist.")

    def owned(self, pending: Iterable[int]) -> tuple[int, ...]:
        """The pending shards that this replica dumps: those with number % count == its own.

        It depends on nothing that changes while others work, so replicas that start at different
        moments still never choose the same shard.
        """
        return tuple(shard for shard in pending if shard % self.count == self.number)


def replica_from(environment: Mapping[str, str], part: str | None = None) -> Replica:
    """The replica that a part (``3/16``, counted from 0), torchrun or SLURM makes of a process.

    Args:
        environment: of the process.
        part: given by the user; wins over the environment.
    """
    if part is not None:
        found = _PART.fullmatch(part)
        if found is None or int(found[1]) >= int(found[2]):
            raise UsageError(f"part {part!r} is not like 3/16: number (from 0) / count.")
        return Replica(number=int(found[1]), count=int(found[2]))
    for names in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        # Of the job step: in a batch script SLURM_NTASKS is set, too, though only one task runs.
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ):
        number, count, device = (environment.get(name, "") for name in names)
        if number.isdecimal() and count.isdecimal() and int(count) > 1:
            local = int(device) if device.isdecimal() else 0
            return Replica(number=int(number), count=int(count), device=local)
    return Replica()


def this_replica(part: str | None = None) -> Replica:
    """:func:`replica_from` this process's environment."""
    return replica_from(os.environ, part)
