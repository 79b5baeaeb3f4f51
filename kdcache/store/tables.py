"""A codec's tables (means, bases, vocab ranks): stored once per cache, named by their content.

``<cache>/tables/<digest>/table`` is a plain Zarr array with a checksum; a manifest refers to it
by name and digest, so several splits share one, and a wrong table cannot be read as a right one.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xxhash

from kdcache.columns import Array
from kdcache.errors import CacheCorruptedError, UsageError
from kdcache.store.files import fsync_folder, fsync_tree
from kdcache.store.layout import TABLES_FOLDER

_ARRAY = "table"
MAX_TABLE_BYTES = 4 << 30
_DIGEST_LETTERS = frozenset("0123456789abcdef")


def table_digest(table: Array) -> str:
    """xxh3-128 of dtype, shape and content."""
    state = xxhash.xxh3_128(f"{table.dtype.name}{table.shape}".encode())
    state.update(np.ascontiguousarray(table).data)
    return state.hexdigest()


def write_tables(cache: Path, tables: Mapping[str, Array], digests: Mapping[str, str]) -> None:
    """Write the tables that are not there yet; ``digests`` is what the manifest says of them."""
    if {name: table_digest(table) for name, table in tables.items()} != dict(digests):
        raise UsageError("the codec's tables are not those that the manifest names.")
    for table in tables.values():
        _write_table(cache / TABLES_FOLDER, table)


def _write_table(folder: Path, table: Array) -> None:
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec
    from zarr.storage import LocalStore

    target = folder / table_digest(table)
    if target.exists():
        return
    folder.mkdir(exist_ok=True)
    temporary = folder / f".{target.name}.{secrets.token_hex(6)}"
    array = zarr.create_array(
        store=LocalStore(temporary),
        name=_ARRAY,
        shape=table.shape,
        dtype=table.dtype,
        chunks=tuple(max(1, size) for size in table.shape),
        compressors=[ZstdCodec(level=5), Crc32cCodec()],
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    array[...] = table
    fsync_tree(temporary)
    try:
        temporary.rename(target)
    except OSError:  # another writer of the same content was first
        if not target.exists():
            raise
    fsync_folder(folder)


def read_table(cache: Path, digest: str) -> Array:
    """Read and verify a table.

    Raises:
        CacheCorruptedError: it is missing, too large, or not what its name says.
    """
    import zarr
    from zarr.storage import LocalStore

    folder = cache / TABLES_FOLDER / digest
    if len(digest) != 32 or not set(digest) <= _DIGEST_LETTERS:
        raise CacheCorruptedError(f"{cache}: {digest[:40]!r} is no table's digest.")
    try:
        array = zarr.open_array(store=LocalStore(folder, read_only=True), path=_ARRAY, mode="r")
        if array.nbytes > MAX_TABLE_BYTES:
            raise CacheCorruptedError(f"{folder} claims {array.nbytes:,} bytes: no table of ours.")
        table = np.asarray(array[...])
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CacheCorruptedError(f"{folder} cannot be read ({error}).") from error
    if table_digest(table) != digest:
        raise CacheCorruptedError(f"{folder} is damaged: its content is not what its name says.")
    return table
