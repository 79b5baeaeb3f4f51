"""Building a local copy: under a temporary name of its own, renamed when whole.

The lock that callers hold is an optimisation. Two processes that both believe they hold it build
twice; the second rename finds the folder there, and its builder uses the first one's. Memory is
bounded by one shard, however large the copy: what was written is let go of, shard by shard.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import xxhash

from kdcache.columns import Array, Per
from kdcache.errors import CacheError
from kdcache.store.format.files import fsync_tree, write_json
from kdcache.store.local.locks import FileLock
from kdcache.store.local.records import RecordTypes, RecordWriter, Tables
from kdcache.store.view import View

META_FILE = "copy.json"
_LOCK_FILE = "lock"
_ABANDONED_AFTER_S = 3600.0
_BUILDING = re.compile(r"\.[0-9a-f]{32}\.\d+\.([0-9a-f]{8})\.\w+")
_CRC_STEP_BYTES = 1 << 20
_BOOT = Path("/proc/sys/kernel/random/boot_id")
Progress = Callable[[int, int], None]


def fill(view: View, types: RecordTypes, tables: Tables, progress: Progress | None) -> None:
    """Decode shard after shard into the tables; memory is bounded by one shard."""
    writer = RecordWriter(view.manifest.columns, types, tables)
    for number, commit in enumerate(view.commits):
        writer.append(view.read_shard(commit))
        if progress is not None:
            progress(number + 1, len(view.commits))


def build(
    view: View,
    types: RecordTypes,
    rows: Mapping[Per, int],
    target: Path,
    progress: Progress | None,
) -> None:
    """Make the folder ``target`` hold a view's records, whole, whoever else does the same.

    Raises:
        CacheError: there is too little room.
        OSError: it cannot be written.
    """
    prefix = f".{target.name}.{_machine()}."
    # Beside the target: a rename is atomic within one file system only.
    building = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    lock = FileLock(building / _LOCK_FILE)
    lock.acquire()

    mapped: list[mmap.mmap] = []

    def make(per: Per, dtype: np.dtype[Any], length: int) -> Array:
        _reserve(building / per, length * dtype.itemsize)
        mapped.append(_map(building / per))
        return np.frombuffer(mapped[-1], dtype)

    def alive(done: int, total: int) -> None:
        for pages in mapped:
            _let_go(pages)
        # The sign of life that abandoned_builds() looks for where locks tell nothing.
        os.utime(building)
        if progress is not None:
            progress(done, total)

    try:
        # By the clock that stamps these files, which may be a server's.
        for folder in abandoned_builds(target.parent, now_s=building.stat().st_mtime):
            if folder.name.startswith(f".{target.name}."):
                shutil.rmtree(folder, ignore_errors=True)
        _check_room(view, types.num_bytes(rows), target.parent)
        tables = types.allocate(rows, make)
        fill(view, types, tables, alive)
        for pages in mapped:
            pages.flush()
        meta = {
            "crc32c": {per: file_crc(building / per) for per in tables},
            "rows": dict(rows),
            "num_positions": types.num_positions,
        }
        write_json(building / META_FILE, meta, replace=True)
        fsync_tree(building)
        # mkdtemp makes folders for their owner alone; the copy is for whoever shares the machine.
        building.chmod(0o755)
        building.rename(target)
        (target / _LOCK_FILE).unlink(missing_ok=True)
    except OSError:
        # Somebody else was first; or, over NFS, the answer to our own rename was lost.
        if not (target / META_FILE).is_file():
            raise
    finally:
        lock.release()
        shutil.rmtree(building, ignore_errors=True)


def abandoned_builds(
    base: Path, older_than_s: float = _ABANDONED_AFTER_S, now_s: float | None = None
) -> Iterator[Path]:
    """Folders of builds that ended without an end, where that is beyond doubt.

    A build holds a lock in its folder. Where locks work, and the build ran on this machine, a
    free lock means that it is dead; otherwise only time tells: a build that goes on touches its
    folder with every shard.

    Args:
        base: folder of the local copies.
        older_than_s: seconds without a sign of life.
        now_s: the time, in seconds since 1970; this machine's if None.
    """
    now_s = time.time() if now_s is None else now_s
    try:
        found = [(path, _BUILDING.fullmatch(path.name)) for path in base.iterdir()]
    except OSError:
        return
    for folder, name in found:
        if name is not None and not folder.is_symlink():
            is_here = name[1] == _machine()
            with contextlib.suppress(OSError):  # its builder has just finished with it
                if _is_abandoned(folder, is_here, now_s - older_than_s):
                    yield folder


def _is_abandoned(folder: Path, is_here: bool, since_s: float) -> bool:
    lock, probe = FileLock(folder / _LOCK_FILE), FileLock(folder / _LOCK_FILE)
    try:
        is_free = lock.acquire() if lock.path.is_file() else None
        if is_free is False:
            return False
        # A lock that can be taken twice is none.
        if is_free and is_here and probe.acquire() is False:
            return True
    finally:
        lock.release()
        probe.release()
    newest_s = max(path.lstat().st_mtime for path in (folder, *folder.iterdir()))
    return newest_s < since_s


def _machine() -> str:
    """Eight letters for this machine since it was started; locks are kept by its kernel."""
    try:
        text = _BOOT.read_text()
    except OSError:
        text = "unknown"
    return xxhash.xxh3_64_hexdigest(text.encode())[:8]


def _check_room(view: View, size: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size > 0.95 * free:
        raise CacheError(
            f"the local copy of {view.folder} needs {size / 2**30:.1f} GiB, {folder} has "
            f"{free / 2**30:.1f} GiB free. Make room there, or point KDCACHE_LOCAL (or "
            "local_copy:) at a larger disk."
        )


def _reserve(file: Path, size: int) -> None:
    """Make a file whose blocks are there: a mapped write to a full disk would kill the process."""
    with file.open("xb") as stream:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
        else:
            stream.truncate(size)


def _map(file: Path) -> mmap.mmap:
    with file.open("r+b") as stream:
        return mmap.mmap(stream.fileno(), 0)


def _let_go(pages: mmap.mmap) -> None:
    """Take written pages out of this process; they stay in the file, and in the kernel's cache."""
    if hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)


def file_crc(file: Path) -> int:
    """crc32c over a table's records; 0 without a file, as that of a table without any."""
    crc = 0
    with contextlib.suppress(FileNotFoundError), file.open("rb") as stream:
        while content := stream.read(_CRC_STEP_BYTES):
            crc = google_crc32c.extend(crc, content)
    return crc
