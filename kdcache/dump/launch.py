"""Starting several replicas on one machine, one process each, and waiting for all of them.

Processes are spawned, never forked, and share nothing but the cache: one that fails or dies
leaves the others to finish their shards.
"""

from __future__ import annotations

import copyreg
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from kdcache.dump.loop import DumpJob, run
from kdcache.dump.replica import Replica
from kdcache.errors import KdcacheError, UsageError, paragraph
from kdcache.store import Cache, open_cache

MakeJob = Callable[[], DumpJob]


def run_on_devices(make_job: MakeJob, num_devices: int) -> Cache:
    """Dump on several devices of this machine.

    Args:
        make_job: picklable; called in every process.
        num_devices: processes to start.

    Raises:
        KdcacheError: a replica failed; says which and why. What others committed stays.
    """
    content = _pickled(make_job)
    context = multiprocessing.get_context("spawn")
    failures: SimpleQueue[Any] = context.SimpleQueue()
    processes = [
        context.Process(
            target=_run_replica,
            args=(content, Replica(number=n, count=num_devices, device=n), failures),
            name=f"kdcache-replica-{n}",
        )
        for n in range(num_devices)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    endings = {n: process.exitcode for n, process in enumerate(processes) if process.exitcode}
    if not endings:
        return open_cache(make_job().cache)
    told: dict[int, tuple[type[KdcacheError], str]] = {}
    while not failures.empty():
        number, kind, text = failures.get()
        told[number] = kind, f"replica {number} of {num_devices}: {text}"
    lines = [told[n][1] if n in told else _ending(n, code) for n, code in endings.items()]
    if not told:
        lines.append(
            f"The other replicas of {num_devices} ran on. What was committed stays; run the same "
            "command again to dump what is missing."
        )
    raise next(iter(told.values()), (KdcacheError, ""))[0]("\n".join(lines))


def _ending(number: int, exit_code: int) -> str:
    if exit_code >= 0:
        return f"replica {number} ended with exit code {exit_code}."
    name = signal.Signals(-exit_code).name
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"replica {number} was killed by {name}{hint}."


class _ByValue(ForkingPickler):
    """Copies tensors: shared ones would cost a file handle each, and tie replicas together."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dispatch_table = copyreg.dispatch_table


def _pickled(make_job: MakeJob) -> bytes:
    try:
        return bytes(_ByValue.dumps(make_job))
    except Exception as error:  # pickling fails in many ways
        raise UsageError(
            f"devices > 1 sends teacher and data to other processes, and they cannot be pickled "
            f"({error}). Define their classes and functions in a module, and give a teacher that "
            "cannot be pickled as a function that makes it."
        ) from error


def _run_replica(content: bytes, replica: Replica, failures: SimpleQueue[Any]) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // replica.count))
    try:
        run(ForkingPickler.loads(content)(), replica)
    except KdcacheError as error:
        failures.put((replica.number, type(error), paragraph(error)))
        raise SystemExit(error.exit_code) from None
