"""Files that appear whole or not at all, and survive a power cut: the store's only writes.

What is assumed of the file system: rename and hard link within a folder are atomic, and fsync
reaches the disk. Locks are not needed here.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from kdcache.errors import CacheCorruptedError

_MAX_JSON_BYTES = 64 << 20


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable (a rename alone is not)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Make every file below a folder, and every name, durable."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            with (Path(root) / name).open("rb") as file:
                os.fsync(file.fileno())
        fsync_folder(Path(root))


def write_json(path: Path, value: object, *, replace: bool) -> bool:
    """Write JSON durably under a temporary name, then give it its own.

    Args:
        path: the file; its folder exists.
        value: anything JSON can say; keys are sorted, NaN is refused.
        replace: True replaces an existing file; False leaves it and returns False, so that of
            several racing writers exactly one is told that it was the first.

    Returns:
        Whether the file now holds ``value``.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    fsync_folder(path.parent)
    return True


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, bounded in size.

    Raises:
        FileNotFoundError: there is no such file.
        CacheCorruptedError: it is too large, or no JSON object.
    """
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise CacheCorruptedError(f"{path} is larger than {_MAX_JSON_BYTES:,} bytes: not ours.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CacheCorruptedError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise CacheCorruptedError(f"{path} holds {type(value).__name__}, not a JSON object.")
    return value
