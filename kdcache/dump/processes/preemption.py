"""SIGTERM as a request: finish the current shard, commit what is queued, and say how to go on.

Ctrl-C ends a dump at once, and says how to go on as well.

Schedulers send it some time before they kill. Nothing is installed outside the main thread, where
Python runs no handlers, nor in a process that was started with SIGTERM ignored; whatever handler
was there before is put back.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from kdcache.dump.processes.ranks import Ranks
from kdcache.errors import KdcacheError, PreemptedError, WorkerLostError
from kdcache.store import View, open_cache

log = logging.getLogger(__name__)

# Launchers signal a whole process group and forward the signal as well: that is one request.
_ONE_REQUEST_S = 1.0
# Of the grace time, what the loop leaves to the writer's thread.
_FOR_WRITING = 0.2
_WORKER_FAILED = "DataLoader worker"


class Stopped(BaseException):
    """On its way up to :class:`Preemption`, past every ``except Exception`` of user code."""


class Preemption:
    """Turns SIGTERM into PreemptedError; a context manager around everything a process dumps.

    Where no shard is under way (the teacher is being built, data looked at) the first SIGTERM ends
    the block at once. Within :meth:`in_hand` it is only noted, for the loop to ask
    :meth:`stops`. A second one ends the process at once, as if nothing were installed here;
    that can cost the current shard and nothing else.

    Args:
        cache: folder of the cache, for the message.

    Raises:
        PreemptedError: on leaving the block, where SIGTERM ended it.
        KeyboardInterrupt: where Ctrl-C did; it says the same.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._at_once = True
        self._on_signal: Callable[[], object] | None = None
        self._previous: Any = None
        self._process = os.getpid()
        self._noted_at: float | None = None
        self._last_at = 0.0
        self._num_batches = 0
        self._first_batch_at = 0.0
        self._is_told = False

    @property
    def requested(self) -> bool:
        """Whether SIGTERM has come."""
        return self._noted_at is not None

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGTERM)
            # Neither ignored, nor a handler that Python does not know and could not put back.
            if previous is signal.SIG_DFL or callable(previous):
                self._previous = previous
                signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None
        # A scheduler may signal the loader's workers, too: that they died is no news then.
        lost_worker = isinstance(error, WorkerLostError) or (
            isinstance(error, RuntimeError) and _WORKER_FAILED in str(error)
        )
        if isinstance(error, Stopped) or (self.requested and lost_worker):
            raise PreemptedError(stopped_text(self._cache, "SIGTERM")) from None
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(stopped_text(self._cache, "Ctrl-C")) from error

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if os.getpid() != self._process:  # a fork of this process, which means nothing to it
            _die()
        now = time.monotonic()
        is_first = self._noted_at is None
        if not is_first and now - self._last_at < _ONE_REQUEST_S:
            return
        self._last_at = now
        if is_first:
            self._noted_at = now
        if self._on_signal is not None:
            self._on_signal()
        elif not is_first:
            _die()
        elif self._at_once:
            raise Stopped

    @contextmanager
    def in_hand(self, on_signal: Callable[[], object] | None = None) -> Iterator[None]:
        """While a signal must not end the block at once.

        Args:
            on_signal: called at every request, in place of ending the process at the second one.
        """
        self._num_batches = 0
        # The pace is measured anew: batches of another split say nothing of these.
        at_once, self._at_once, self._on_signal = self._at_once, False, on_signal
        try:
            yield
        finally:
            self._at_once, self._on_signal = at_once, None

    def stops(self, *, begins_shard: bool, batches_left: int, grace_s: float) -> bool:
        """Whether the loop ends before its next batch. To be asked before each.

        Between two shards it does as soon as SIGTERM has come; within a shard, where the rest of
        it would take longer than the grace time, at the pace of the batches so far.

        Args:
            begins_shard: the next batch is the first of its shard.
            batches_left: batches of the shard that are still to come, the next one included.
            grace_s: seconds from SIGTERM to the end, writing included.
        """
        now = time.monotonic()
        if not self._num_batches:
            self._first_batch_at = now
        batch_s = (now - self._first_batch_at) / max(1, self._num_batches)
        self._num_batches += 1
        if self._noted_at is None:
            return False
        left_s = batches_left * batch_s
        # A shard that cannot be finished in time is given up now: its rest would be thrown away,
        # and the grace time is needed to write what is queued.
        if begins_shard or now + left_s > self._noted_at + grace_s * (1 - _FOR_WRITING):
            return True
        if not self._is_told:
            log.info("SIGTERM: the current shard is finished first, in about %.1f s", left_s)
        self._is_told = True
        return False

    def check(self, ranks: Ranks) -> None:
        """Raise Stopped where SIGTERM was only noted, here or on another rank of the replica."""
        if ranks.any(self.requested):
            raise Stopped


def _die() -> None:
    """End this process by SIGTERM, as one that never heard of us."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def stopped_text(cache: Path, by: str) -> str:
    """What a person wants to know after SIGTERM or Ctrl-C: what is there, and how to go on."""
    try:
        opened = open_cache(cache)
        parts = [_shards_text(split, opened[split]) for split in opened]
    except KdcacheError:  # none yet, or not readable: the next run says so where it matters
        parts = []
    held = f"{cache} holds {', '.join(parts)}" if parts else f"{cache} holds nothing yet"
    return (
        f"{by} stopped the dump before its end. {held}; every shard that was finished is "
        "committed. Run the same command again: it dumps only what is missing."
    )


def _shards_text(split: str, view: View) -> str:
    done, manifest = len(view.commits), view.manifest
    total = "" if manifest.is_open else f" of {manifest.num_shards}"
    return f"{done}{total} shards of split {split!r}"


def out_of_reach(init: Callable[[int], object] | None) -> Callable[[int], None]:
    """A ``worker_init_fn`` for a DataLoader whose workers a signal to our group does not end.

    ``timeout``, a shell and some schedulers signal the whole process group; the workers must live
    on until the current shard is finished. They end with their loader, as ever, and a few seconds
    after this process where that is killed.

    Args:
        init: the user's own, called afterwards.
    """
    return functools.partial(_leave_group, init)


def _leave_group(init: Callable[[int], object] | None, worker: int) -> None:
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    if init is not None:
        init(worker)
