"""Peak memory of a function, run in a process of its own that this one watches.

RssAnon of /proc/PID/status is the memory that nobody can take back from a process; RssFile are
pages of mapped files, which the kernel drops when it needs room. VmHWM is the kernel's own peak of
both together, which misses nothing between two looks. Linux only.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # some of the processes that are measured need no torch
    import torch

MIB, WATCH_S = 1 << 20, 0.005


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a phase took.

    Attributes:
        seconds: without start and imports.
        remark: its own.
        before_mib: RssAnon at its start.
        anon_mib: peak of RssAnon.
        file_mib: peak of RssFile.
        all_mib: VmHWM.
    """

    seconds: float
    remark: str
    before_mib: float
    anon_mib: float
    file_mib: float
    all_mib: float


def measure(
    phase: Callable[[Any], str], job: Any, *, imports: Sequence[str], title: str = ""
) -> Measured:
    """Run a phase in a process of its own, and look at its memory every 5 ms.

    Args:
        phase: a module's function, called with ``job``; what it returns is its remark.
        job: goes through a pickle.
        imports: what the phase begins with, imported once in the process that all are forked from.
        title: of the measurement, for the error where its process dies.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(imports))
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(phase, job, theirs))
    process.start()
    theirs.close()
    try:
        ours.recv()  # everything is imported
        before = memory_of(process.pid or 0)
        peak = dict(before)
        ours.send("begin")
        while not ours.poll(WATCH_S):
            for name, size in memory_of(process.pid or 0).items():
                peak[name] = max(size, peak[name])
        seconds, remark, highest = ours.recv()
    except EOFError:
        process.join()
        raise SystemExit(f"{phase.__name__}, {title}: it ended with {process.exitcode}.") from None
    process.join()
    return Measured(
        seconds=seconds,
        remark=remark,
        before_mib=before["RssAnon"] / MIB,
        anon_mib=peak["RssAnon"] / MIB,
        file_mib=peak["RssFile"] / MIB,
        all_mib=highest / MIB,
    )


def _run(phase: Callable[[Any], str], job: Any, watcher: Connection) -> None:
    watcher.send("ready")
    watcher.recv()
    forget_peak()
    started = time.perf_counter()
    remark = phase(job)
    seconds = time.perf_counter() - started
    watcher.send((seconds, remark, memory_of(os.getpid())["VmHWM"]))


def peak_here(run: Callable[[], object], device: torch.device) -> int:
    """Peak bytes of a function in this process above what was held before it.

    On a GPU of what torch's allocator has handed out; else of the whole process, by the kernel.
    """
    if device.type == "cuda":
        import torch

        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    forget_peak()
    before = memory_of(os.getpid())["VmRSS"]
    run()
    return memory_of(os.getpid())["VmHWM"] - before


def available_bytes() -> int:
    """Memory that new processes can have: free, or held by files that can be dropped."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    found = next(line for line in lines if line.startswith("MemAvailable:"))
    return int(found.split()[1]) << 10


def forget_peak() -> None:
    """Let VmHWM of this process begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def memory_of(pid: int) -> dict[str, int]:
    """Bytes of a running process by the kernel's names; none of one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    found = dict(line.split(":", 1) for line in lines if line.endswith(" kB"))
    return {name: int(size.removesuffix("kB")) << 10 for name, size in found.items()}
