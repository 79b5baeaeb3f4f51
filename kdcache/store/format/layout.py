"""Where things lie in a cache: names and paths, and nothing that opens them.

``<cache>/<split>/view-000/`` holds the manifest (the group's attributes), one write-once group
per attempt at a shard, the commit records, and a gathered index of them.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from kdcache.columns import Per, is_name
from kdcache.errors import CacheCorruptedError, UsageError

FORMAT_VERSION = 0
"""Version of what lies on disk; may change freely until version 1 (see FORMAT.md)."""

ATTRIBUTE = "kdcache"
"""The one attribute key under which everything of ours stands in a Zarr group."""

GROUP_FILE = "zarr.json"
COMMITS_FOLDER = "commits"
COMMIT_NAME = re.compile(r"shard-([0-9]{6}|[1-9][0-9]{6,11})\.json")
INDEX_FILE = "index.json"
END_FILE = "end.json"
TABLES_FOLDER = "tables"

ORDER: tuple[Per, ...] = ("sample", "position", "entry")
"""Columns are checked and read in this order: the counts of one tell the rows of the next."""

_ATTEMPT = re.compile(r"[0-9a-f]{12}")
_TOKEN_BYTES = 6


def check_split_name(split: str) -> str:
    """Return ``split``, or raise UsageError when it cannot be a folder of a cache."""
    if not is_name(split) or split.casefold() == TABLES_FOLDER:
        raise UsageError(
            f"a split cannot be called {split!r}: a name has letters, digits, '_', '-' and '.', "
            f"at most 64, and is not {TABLES_FOLDER!r}. Rename the validation set."
        )
    return split


def view_name(view: int) -> str:
    """``view-000``."""
    return f"view-{view:03d}"


def view_folder(cache: Path, split: str, view: int) -> Path:
    """``<cache>/<split>/view-000``."""
    return cache / check_split_name(split) / view_name(view)


def new_attempt() -> str:
    """A name that no other attempt at a shard has: 48 random bits."""
    # Not random.random(): processes that were seeded alike would take the same name.
    return secrets.token_hex(_TOKEN_BYTES)


def temporary_name(name: str) -> str:
    """``.zarr.json.0123456789ab``: what a file or folder is called until it is whole."""
    return f".{name}.{secrets.token_hex(_TOKEN_BYTES)}"


def aside_name(name: str) -> str:
    """``.shard-000001.json.0123456789ab.aside``: what was damaged, or is about to be removed."""
    return f"{temporary_name(name)}.aside"


def attempt_folder(view: Path, shard: int, attempt: str) -> Path:
    """``shard-000042.<attempt>``: the group that one attempt at one shard writes."""
    if _ATTEMPT.fullmatch(attempt) is None:
        raise CacheCorruptedError(
            f"{view}: the commit of shard {shard} names the attempt {attempt!r}, which is no "
            "attempt's name. Nothing was read; dump this shard again."
        )
    return view / f"shard-{shard:06d}.{attempt}"


def commit_file(view: Path, shard: int) -> Path:
    """``commits/shard-000042.json``."""
    return view / COMMITS_FOLDER / f"shard-{shard:06d}.json"
