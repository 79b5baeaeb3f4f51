"""Which process of a training was lost, and how: killed, most often, for want of memory.

The others learn of it by a collective that fails, or do not learn of it. Lightning's launcher then
ends its own process by SIGKILL, without a word; here it is said first.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pytorch_lightning as pl

from kdcache.errors import ProcessLostError

log = logging.getLogger(__name__)

_OBSERVER = "child-process-observer"
"""Name of the thread in which Lightning looks after the processes that it has started."""

_PERIOD_S = 0.5
_GRACE_S = 10.0
"""How long a process whose collectives fail has to end by its own error."""

_NOTICE_S = 3.0
"""How long after its connections the end of a process may be seen."""

_LIBRARY = re.compile(r"gloo|nccl|c10d|ProcessGroup|TCPStore|DistNetworkError", re.IGNORECASE)
_CONNECTION = re.compile(
    r"closed|reset|refused|remote process exited|broken pipe|timed? ?out|(?:read|write) error"
    r"|aborted|recvValue failed|sendBytes failed",
    re.IGNORECASE,
)
"""What collectives say, of a library and of a connection, where another process is lost."""


class Lost(NamedTuple):
    """Another process, or the way to it, that was lost.

    Attributes:
        text: sentences that say who, and how.
        cause: the library's error, where it is all there is to know.
    """

    text: str
    cause: Exception | None


class RankWatch:
    """A context in which the end of any process that was started here is noticed and said.

    Args:
        end: called when this process did not end by itself after another one was lost.
    """

    def __init__(self, end: Callable[[], None] | None = None) -> None:
        self._end = end or _end_at_once
        self._is_over = threading.Event()
        # An orphan gets another parent: that is how the end of process 0 is seen.
        self._parent = os.getppid()

    def __enter__(self) -> RankWatch:
        threading.Thread(target=self._run, name="rank-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for observer in _observers():
            vars(observer).pop("_run", None)

    def _run(self) -> None:
        while not self._is_over.wait(_PERIOD_S):
            for observer in _observers():
                # Its own look would end this process by SIGKILL, before anybody is named.
                observer._run = lambda: False
            if not any(_ended().values()):
                continue
            # Its own collective may fail within that time, and its error says more.
            if not self._is_over.wait(_GRACE_S):
                log.error("%s This process still waited for it, and is ended.", _told(_ended()))
                self._end()
            return

    def who_was_lost(self, trainer: pl.Trainer, error: Exception) -> Lost | None:
        """What an error tells of other processes; None where it is another error.

        Waits a little where that is how it looks: the end of a process is seen a moment later.
        """
        text = " ".join(str(error).split())
        is_lost = isinstance(error, ProcessLostError)
        is_lost |= bool(_LIBRARY.search(text) and _CONNECTION.search(text))
        if trainer.world_size == 1 or not is_lost:
            return None
        lost = self._lost()
        if lost:
            return Lost(text=lost, cause=None)
        return Lost(text=f"{_unknown()} It says: {text:.200}", cause=error)

    def _lost(self) -> str:
        until = time.monotonic() + _NOTICE_S
        while time.monotonic() < until:
            ended = _ended()
            if ended:
                return f"{_told(ended)} What it wrote last stands in this output."
            if _is_started_by_rank_0() and os.getppid() != self._parent:
                return "Process 0, which started this one, is gone."
            time.sleep(0.05)
        return ""


def _observers() -> list[Any]:
    return [thread for thread in threading.enumerate() if thread.name == _OBSERVER]


def processes_started() -> Iterator[tuple[int, subprocess.Popen[Any]]]:
    """(rank on this machine, process) of what Lightning's launchers have started here."""
    for observer in _observers():
        yield from enumerate(observer._child_processes, start=1)


def _ended() -> dict[int, int]:
    """Local rank -> exit code, of those that are no longer there."""
    codes = {rank: process.poll() for rank, process in processes_started()}
    return {rank: code for rank, code in codes.items() if code is not None}


def _told(ended: Mapping[int, int]) -> str:
    # Killed ones first, then those with an error: what ended with 0 explains nothing.
    worst = sorted(ended, key=lambda rank: (ended[rank] >= 0, ended[rank] == 0))
    return " ".join(f"Process {rank} {how_it_ended(ended[rank])}." for rank in worst[:3])


def how_it_ended(code: int) -> str:
    """An exit code of ``subprocess`` in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if -code == signal.SIGKILL:
        name += " (by the kernel where memory was short, most often: dmesg says so)"
    return f"was killed by {name}"


def _is_started_by_rank_0() -> bool:
    is_alone = "TORCHELASTIC_RUN_ID" not in os.environ and "SLURM_PROCID" not in os.environ
    return is_alone and os.environ.get("LOCAL_RANK", "0") != "0"


def _unknown() -> str:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun's summary says who ended, and how; --log-dir keeps what each one wrote."
    if "SLURM_PROCID" in os.environ:
        return "srun's output says who ended, and how; so does sacct."
    if _observers():
        return "All processes that were started here are there: one hangs, or is too slow."
    return "Another process ended, or cannot be reached; its own output says why."


def _end_at_once() -> None:
    for _, process in processes_started():
        process.kill()
    for handler in logging.getLogger().handlers:
        handler.flush()
    # Not sys.exit, which would end this thread alone: the main one hangs in a collective.
    os._exit(1)
