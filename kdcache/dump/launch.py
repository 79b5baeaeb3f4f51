"""Starting several replicas on one machine, one process each, and waiting for all of them.

Processes are spawned, never forked, and share nothing but the cache: one that fails or dies
leaves the others to finish their shards.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch

from kdcache.dump.loop import DumpJob, run
from kdcache.dump.replica import Replica
from kdcache.errors import KdcacheError, paragraph
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
    context = multiprocessing.get_context("spawn")
    failures: SimpleQueue[Any] = context.SimpleQueue()
    threads = max(1, (os.cpu_count() or 1) // num_devices)
    processes = [
        context.Process(
            target=_run_replica,
            args=(make_job, Replica(number=n, count=num_devices, device=n), threads, failures),
            name=f"kdcache-replica-{n}",
        )
        for n in range(num_devices)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if not failures.empty():
        number, kind, text = failures.get()
        raise kind(f"replica {number} of {num_devices}: {text}")
    died = [n for n, process in enumerate(processes) if process.exitcode]
    if died:
        code = processes[died[0]].exitcode
        raise KdcacheError(
            f"replica {died[0]} of {num_devices} ended with exit code {code}. What was committed "
            "stays; run the same command again to dump what is missing."
        )
    return open_cache(make_job().cache)


def _run_replica(
    make_job: MakeJob, replica: Replica, threads: int, failures: SimpleQueue[Any]
) -> None:
    torch.set_num_threads(threads)
    try:
        run(make_job(), replica)
    except KdcacheError as error:
        failures.put((replica.number, type(error), paragraph(error)))
        raise SystemExit(error.exit_code) from None
