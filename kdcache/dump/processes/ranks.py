"""The ranks of one replica: how they meet, and how they stay together.

A teacher that is sharded over several processes (FSDP, tensor parallel) has collectives in its
forward pass: its ranks run the same batches in the same order, and stop at the same one. Whatever
is read off a disk, a clock or a signal is therefore decided once for all of them, in a group of
their own. There is nothing between replicas: the world of ``torch.distributed`` that is made
here is one replica, so ``fully_shard(model)`` and ``init_device_mesh`` in a teacher's factory
need no group.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments import SLURMEnvironment
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from kdcache.dump.processes.replica import Replica, launched_rank, replica_from
from kdcache.errors import KdcacheError, UsageError

# For a machine that vanishes without a word; a process that ends is noticed at once. One rank
# may load its part of the teacher much later than another.
_TIMEOUT = timedelta(minutes=30)
_FIRST_PORT, _NUM_PORTS = 15_000, 10_000
_TRANSPORTS = ("gloo", "nccl")


class Ranks:
    """The processes that hold a replica's teacher together; here, and most often, only this one.

    Args:
        replica: which one, and which of its ranks this process is.
        group: all ranks of the replica; CPU tensors. None where there is one.
    """

    def __init__(self, replica: Replica, group: dist.ProcessGroup | None = None) -> None:
        self.replica = replica
        self._group = group

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that encodes, writes and speaks for the replica."""
        return self.replica.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether a flag is set on any rank."""
        if self._group is None:
            return flag
        highest = torch.tensor(int(flag))
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=self._group)
        return bool(highest)

    def from_first(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """The first rank's numbers; what other ranks give is not looked at."""
        if self._group is None:
            return tuple(numbers)
        first = dist.get_global_rank(self._group, 0)
        # The length first: the other ranks may have found another number of pending shards.
        length = torch.tensor(len(numbers))
        dist.broadcast(length, first, group=self._group)
        values = torch.tensor(numbers) if self.is_first else torch.zeros(int(length))
        # torch.tensor([]) is float32, and both sides of a broadcast need one dtype.
        values = values.to(torch.int64)
        dist.broadcast(values, first, group=self._group)
        return tuple(values.tolist())

    def if_first(self, flag: bool) -> bool:
        """The first rank's flag."""
        return bool(self.from_first([int(flag)])[0])


def this_replica(part: str | None = None, *, ranks_per_replica: int = 1) -> Replica:
    """Which replica this process is, and which of its ranks; see :func:`replica_from`.

    Where several ranks hold a teacher and the program has initialised ``torch.distributed``, that
    knows their numbers; otherwise torchrun's or SLURM's environment does.
    """
    environment: Mapping[str, str] = os.environ
    if ranks_per_replica > 1 and dist.is_initialized():
        numbers = {"RANK": str(dist.get_rank()), "WORLD_SIZE": str(dist.get_world_size())}
        environment = {**os.environ, **numbers}
    return replica_from(environment, part, ranks_per_replica=ranks_per_replica)


@contextmanager
def joined(replica: Replica) -> Iterator[Ranks]:
    """Meet the other ranks of this process's replica; nothing to do where there are none.

    ``torch.distributed`` is initialised where it is not yet, with the replica as its world, and
    ended again. Where a program has initialised it over all replicas, it has placed its teachers
    itself: consecutive ranks are one replica.

    Raises:
        UsageError: no launcher says where the ranks meet.
        KdcacheError: another rank has ended, or does not answer.
    """
    if replica.num_ranks == 1:
        yield Ranks(replica)
        return
    is_ours = not dist.is_initialized()
    with _losses_told(replica):
        if is_ours:
            _initialise(replica)
        first = replica.number * replica.num_ranks
        is_larger = dist.get_world_size() > replica.num_ranks
        # gloo: flags and shard numbers are on the host, and take no GPU's memory or stream.
        group = dist.new_group(
            list(range(first, first + replica.num_ranks)) if is_larger else None,
            backend="gloo",
            timeout=_TIMEOUT,
            # Only this replica's ranks meet: no replica waits for another.
            use_local_synchronization=is_larger,
        )
        try:
            yield Ranks(replica, group)
        finally:  # an error here is heard by the other ranks as a closed connection
            dist.destroy_process_group(group)
        if is_ours:
            dist.destroy_process_group()


@contextmanager
def _losses_told(replica: Replica) -> Iterator[None]:
    """A lost connection, wherever it is noticed, as one paragraph."""
    try:
        yield
    except RuntimeError as error:
        if not any(name in str(error).lower() for name in _TRANSPORTS):
            raise
        raise KdcacheError(
            f"rank {replica.rank} of the {replica.num_ranks} that are replica {replica.number}: "
            f"another one has ended, or does not answer ({str(error).splitlines()[0]}). Its own "
            "message says why. What was committed stays; start all ranks again with the same "
            "command to dump what is missing."
        ) from error


def _initialise(replica: Replica) -> None:
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(replica.device % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        backend,
        # All replicas leave their words in one store: the prefix keeps their worlds apart.
        store=PrefixStore(f"kdcache-replica-{replica.number}", _store()),
        rank=replica.rank,
        world_size=replica.num_ranks,
        timeout=_TIMEOUT,
    )


def meeting_point(environment: Mapping[str, str]) -> str:
    """Where launched processes meet: as torchrun says, or on the first of SLURM's nodes."""
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_NODELIST"))
    if nodes is None or "MASTER_ADDR" in environment:
        return "env://"  # MASTER_ADDR and MASTER_PORT
    host = SLURMEnvironment.resolve_root_node_address(nodes)
    # A port that all tasks of a job come to by themselves, and another job to another one.
    job = int(environment.get("SLURM_JOB_ID", "0"))
    return f"tcp://{host}:{environment.get('MASTER_PORT', _FIRST_PORT + job % _NUM_PORTS)}"


def _store() -> Store:
    """Where all launched processes can leave each other a word."""
    launched = launched_rank(os.environ)
    address = meeting_point(os.environ)
    try:
        meeting = rendezvous(address, launched.rank, launched.world_size, timeout=_TIMEOUT)
        store: Store = next(iter(meeting))[0]
    except ValueError as error:
        raise UsageError(
            f"the ranks of a replica cannot meet: {error}. Start them with torchrun or srun, or "
            "set MASTER_ADDR and MASTER_PORT as torchrun does."
        ) from error
    return store
