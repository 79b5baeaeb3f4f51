"""A codec's tables (means, bases, vocab ranks): stored once per cache, named by their content.

``<cache>/tables/<digest>`` is a plain Zarr array of one chunk with a checksum; a manifest refers
to it by name and digest, so several splits share one, and a wrong table cannot be read as a right
one.
"""

from __future__ import annotations

import math
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xxhash

from kdcache.columns import DTYPES, Array
from kdcache.errors import CacheCorruptedError, UsageError
from kdcache.store.arrays import COMPRESSION_LEVEL, decode_chunk
from kdcache.store.fields import Fields
from kdcache.store.files import fsync_folder, fsync_tree, read_json, write_group
from kdcache.store.layout import GROUP_FILE, TABLES_FOLDER

MAX_TABLE_BYTES = 1 << 30
_DIGEST_LETTERS = frozenset("0123456789abcdef")


def table_digest(table: Array) -> str:
    """xxh3-128 of dtype, shape and content."""
    state = xxhash.xxh3_128(f"{table.dtype.name}{table.shape}".encode())
    state.update(np.ascontiguousarray(table).data)
    return state.hexdigest()


def check_tables(tables: Mapping[str, Array], digests: Mapping[str, str]) -> None:
    """Raise UsageError unless ``tables`` can be stored and are what the manifest says of them."""
    for name, table in tables.items():
        if table.dtype.name not in DTYPES or not 0 < table.nbytes <= MAX_TABLE_BYTES:
            raise UsageError(
                f"the codec's table {name!r} cannot be stored: {table.nbytes:,} bytes of "
                f"{table.dtype.name}."
            )
    if {name: table_digest(table) for name, table in tables.items()} != dict(digests):
        raise UsageError("the codec's tables are not those that the manifest names.")


def write_tables(cache: Path, tables: Mapping[str, Array]) -> None:
    """Write the tables that are not there yet; :func:`check_tables` has passed them."""
    if not tables:
        return
    folder = cache / TABLES_FOLDER
    folder.mkdir(exist_ok=True)
    write_group(folder, {})
    for table in tables.values():
        _write_table(folder, table)
    fsync_folder(folder)


def _write_table(folder: Path, table: Array) -> None:
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec
    from zarr.storage import LocalStore

    target = folder / table_digest(table)
    if target.exists():
        return
    temporary = folder / f".{target.name}.{secrets.token_hex(6)}"
    array = zarr.create_array(
        store=LocalStore(temporary),
        shape=table.shape,
        dtype=table.dtype,
        chunks=table.shape,
        compressors=[ZstdCodec(level=COMPRESSION_LEVEL), Crc32cCodec()],
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    array[...] = table
    fsync_tree(temporary)
    try:
        temporary.rename(target)
    except OSError:  # another writer of the same content was first
        shutil.rmtree(temporary, ignore_errors=True)
        if not target.exists():
            raise


def read_table(cache: Path, digest: str) -> Array:
    """Read and verify a table.

    Raises:
        CacheCorruptedError: it is missing, too large, or not what its name says.
    """
    folder = cache / TABLES_FOLDER / digest
    if len(digest) != 32 or not set(digest) <= _DIGEST_LETTERS:
        raise CacheCorruptedError(f"{cache}: {digest[:40]!r} is no table's digest.")
    try:
        at = Fields(read_json(folder / GROUP_FILE), str(folder))
        dtype, shape = at.text("data_type", at_most=16), at.items("shape")
        if dtype not in DTYPES or not all(type(n) is int and n > 0 for n in shape):
            raise CacheCorruptedError(f"{folder} is no table of ours.")
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        stored = folder.joinpath("c", *["0"] * len(shape))
        if num_bytes > MAX_TABLE_BYTES or stored.stat().st_size > 2 * num_bytes + 1024:
            raise CacheCorruptedError(f"{folder} claims {num_bytes:,} bytes: no table of ours.")
        content = memoryview(stored.read_bytes())
    except OSError as error:
        raise CacheCorruptedError(f"{folder} cannot be read ({error.strerror}).") from error
    table = np.empty(shape, dtype)
    decode_chunk(content, table, shuffled=False, where=str(stored))
    if table_digest(table) != digest:
        raise CacheCorruptedError(f"{folder} is damaged: its content is not what its name says.")
    return table
