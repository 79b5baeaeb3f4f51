"""Files that appear whole or not at all, and survive a power cut: the store's only writes.

What is assumed of the file system: rename and hard link within a folder are atomic, and fsync
reaches the disk. Locks are not needed here.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from kdcache.errors import CacheCorruptedError, UsageError
from kdcache.store.layout import GROUP_FILE

_MAX_JSON_BYTES = 64 << 20
_MAX_JSON_DEPTH = 32
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


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


def json_text(value: object, what: str) -> str:
    """A value as compact JSON with sorted keys; UsageError where JSON cannot say it."""
    try:
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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
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


def _refuse_constant(name: str) -> NoReturn:
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


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, bounded in size and depth.

    Raises:
        FileNotFoundError: there is no such file.
        CacheCorruptedError: it cannot be read, is too large or too deep, or no JSON object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CacheCorruptedError(f"{path} is larger than {_MAX_JSON_BYTES:,} bytes: not ours.")
        text = path.read_text(encoding="utf-8")
        value = json.loads(text, parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CacheCorruptedError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise CacheCorruptedError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(value, dict) or not _is_shallow(value):
        raise CacheCorruptedError(f"{path} holds no JSON object of ours.")
    return value
