"""A lock between processes that saves work, and that no result may depend on.

Over network file systems locks may be missing, kept on one host only, or never released: whoever
takes one here must do the right thing also when somebody else holds it at the same time.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HELD = frozenset({errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK})
_FIRST_WAIT_S, _LONGEST_WAIT_S, _SAY_AFTER_S = 0.05, 1.0, 10.0

log = logging.getLogger(__name__)


class FileLock:
    """An advisory lock on a file, held until :meth:`release` or the process's end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool | None:
        """Take the lock without waiting.

        Returns:
            True where it was free, False where somebody holds it, None where there is no telling:
            the file system has no locks, or the file cannot be made.
        """
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        try:
            descriptor = os.open(self.path, flags, 0o666)
        except OSError:
            return None
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no locks here")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            # Not every refusal means that somebody holds it: file systems without locks refuse too.
            return False if error.errno in _HELD else None
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give the lock back; the file stays, because others may be waiting for it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def taking_turns(path: Path, is_done: Callable[[], bool]) -> Iterator[None]:
    """Wait until nobody holds the lock, until there is nothing left to do, or not at all.

    Args:
        path: the lock's file. It is opened anew each time, so that removing it ends all waiting.
        is_done: whether somebody else has done what the lock is for.
    """
    lock = FileLock(path)
    wait_s, started, was_said = _FIRST_WAIT_S, time.monotonic(), False
    while lock.acquire() is False and not is_done():
        if not was_said and time.monotonic() - started > _SAY_AFTER_S:
            was_said = True
            log.info("waiting for the process that holds %s; if there is none, remove it", path)
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
    try:
        yield
    finally:
        lock.release()
