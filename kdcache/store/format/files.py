"""Files that appear whole or not at all, and survive a power cut: the store's only writes.

What is assumed of the file system: rename and hard link within a folder are atomic, and fsync
reaches the disk. Locks are not needed here. Reading trusts nothing: only regular files, and never
more bytes than the caller allows.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from kdcache.errors import CacheCorruptedError, CacheError, UsageError
from kdcache.store.format.layout import GROUP_FILE, aside_name, temporary_name

MAX_JSON_BYTES = 64 << 20
"""Largest JSON file that is read, unless the caller allows less or more."""

_MAX_JSON_DEPTH = 32
_BYTES_PER_VALUE = 16
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What an OSError says where the disk, or the user's share of it, is full."""


@contextlib.contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Turn an OSError into a CacheError that says which path, why, and how to go on."""
    try:
        yield
    except OSError as error:
        path = error.filename2 or error.filename or folder
        reason = error.strerror or type(error).__name__
        remedy = "Mend that" if error.errno not in FULL else "Make room there"
        raise CacheError(
            f"{path} cannot be written ({reason}), in {folder}. What was committed before is "
            f"whole. {remedy} and run the same command again; it goes on from there."
        ) from error


def set_aside(path: Path) -> Path:
    """Give a file or folder a dot name, under which it means nothing to readers; return that.

    Nothing is deleted: ``kdcache clean`` does that on request.
    """
    aside = path.with_name(aside_name(path.name))
    path.rename(aside)
    fsync_folder(path.parent)
    return aside


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable (a rename alone is not)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Make every file below a folder, and every name, durable."""
    # From the bottom up: what a name leads to is durable before the name is.
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            with (Path(root) / name).open("rb") as file:
                os.fsync(file.fileno())
        fsync_folder(Path(root))


def json_text(value: object, what: str) -> str:
    """A value as compact JSON with sorted keys; UsageError where JSON cannot say it."""
    try:
        # One form for one value: checksums, digests and is_as_written() are over these very bytes.
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{what} cannot be written as JSON: {error}.") from error


def write_json(path: Path, value: Any, *, replace: bool) -> bool:
    """Write JSON durably under a temporary name, then give it its own.

    Args:
        path: the file; its folder exists.
        value: anything JSON can say; keys are sorted, NaN is refused.
        replace: True replaces an existing file; False leaves it and returns False, so that of
            several racing writers exactly one is told that it was the first.

    Returns:
        Whether the file now holds ``value``.

    Raises:
        UsageError: ``value`` is nothing that JSON can say; nothing was written.
    """
    text = json_text(value, str(path))
    temporary = path.with_name(temporary_name(path.name))
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        # Synced before it is named: after a power cut a name must not lead to an empty file.
        if replace:
            temporary.replace(path)
        else:
            try:
                _name_first(temporary, path)
            except FileExistsError:
                return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    fsync_folder(path.parent)
    return True


def _name_first(temporary: Path, path: Path) -> None:
    """Give a file its name unless something has it; FileExistsError then."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        # Over NFS the answer to the first try may be lost, and the second finds our own link.
        if not path.exists() or not path.samefile(temporary):
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # No hard links here (some network mounts): between two writers that pass the check at
        # the same instant the last one stands, whole, instead of the first.
        if path.exists():
            raise FileExistsError(path) from error
        temporary.replace(path)


def group_content(attributes: Mapping[str, object]) -> dict[str, object]:
    """What stands in the ``zarr.json`` of a Zarr v3 group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def write_group(folder: Path, attributes: Mapping[str, object]) -> None:
    """Make a folder a Zarr v3 group; a group that is already there stays as it is."""
    write_json(folder / GROUP_FILE, group_content(attributes), replace=False)


def is_as_written(path: Path) -> bool:
    """Whether a JSON file has the very bytes that :func:`write_json` gives its content."""
    return read_file(path, MAX_JSON_BYTES) == f"{json_text(read_json(path), str(path))}\n".encode()


def check_group(marker: Path, *, is_bare: bool) -> None:
    """Raise CacheCorruptedError where a ``zarr.json`` is not that of a Zarr v3 group of ours.

    Args:
        marker: the file.
        is_bare: whether the group has no attributes.
    """
    try:
        found = read_json(marker)
    except FileNotFoundError as error:
        raise CacheCorruptedError(f"{marker} is missing: other Zarr readers need it.") from error
    attributes = found.get("attributes")
    is_ours = isinstance(attributes, dict) and not (is_bare and attributes)
    if not is_ours or found != group_content(attributes or {}):
        raise CacheCorruptedError(f"{marker} is damaged: other Zarr readers cannot open it.")


def _refuse_constant(name: str) -> NoReturn:
    # Python's json takes NaN and Infinity, which are no JSON; no file of ours has them.
    raise ValueError(f"it holds {name}")


def _is_shallow(value: object) -> bool:
    """Whether a mapping or list nests no deeper than ours do, found without recursion."""
    level: list[Any] = [value]
    for _ in range(_MAX_JSON_DEPTH):
        inner = [v.values() if isinstance(v, dict) else v for v in level]
        level = [v for values in inner for v in values if isinstance(v, dict | list)]
        if not level:
            return True
    return False


def size_of(path: Path) -> int | None:
    """Bytes of a file; None where there is none, or it cannot be looked at."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def read_file(path: Path, at_most: int) -> bytes:
    """The content of a regular file, or of a symbolic link to one.

    A named pipe would block for ever, a device has no end: neither is opened.

    Args:
        path: the file.
        at_most: bytes; a larger file is not read.

    Raises:
        FileNotFoundError: there is no such file.
        CacheCorruptedError: it is no regular file, too large, or cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CacheCorruptedError(f"{path} is no regular file; it was not opened.")
        if status.st_size > at_most:
            raise CacheCorruptedError(
                f"{path} has {status.st_size:,} bytes, at most {at_most:,} were expected."
            )
        # The file may be another one by now: O_NONBLOCK keeps a pipe from blocking the open.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(path, flags), "rb") as file:
            return file.read(status.st_size + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CacheCorruptedError(f"{path} cannot be read ({error.strerror}).") from error


def read_json(path: Path, at_most: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object, bounded in size, depth and number of values.

    Args:
        path: the file.
        at_most: bytes; and a sixteenth as many values, because an empty list takes 3 bytes in the
            file and 64 in memory.

    Raises:
        FileNotFoundError: there is no such file.
        CacheCorruptedError: it cannot be read, is too large or too deep, or no JSON object.
    """
    content = read_file(path, at_most)
    if sum(content.count(mark) for mark in (b",", b"[", b"{")) > at_most // _BYTES_PER_VALUE:
        raise CacheCorruptedError(f"{path} holds more values than any file of ours.")
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CacheCorruptedError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(value, dict) or not _is_shallow(value):
        raise CacheCorruptedError(f"{path} holds no JSON object of ours.")
    return value
