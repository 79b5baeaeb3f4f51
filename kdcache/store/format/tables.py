"""A codec's tables (means, bases, vocab ranks): stored once per cache, named by their content.

``<cache>/tables/<digest>`` is a plain Zarr array of one chunk with a checksum; a manifest refers
to it by name and digest, so several splits share one, and a wrong table cannot be read as a right
one.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import xxhash

from kdcache.columns import DTYPES, Array
from kdcache.errors import CacheCorruptedError, UsageError
from kdcache.store.format.arrays import COMPRESSION_LEVEL, decode_chunk
from kdcache.store.format.fields import Fields
from kdcache.store.format.files import (
    fsync_folder,
    fsync_tree,
    read_file,
    read_json,
    set_aside,
    write_group,
)
from kdcache.store.format.layout import GROUP_FILE, TABLES_FOLDER, temporary_name

MAX_TABLE_BYTES = 1 << 30
_MAX_AXES = 8
_REMEDY = (
    "Restore it; or run kdcache verify CACHE --repair and the same kdcache dump-teacher command "
    "again, which writes it anew where the codec comes to the same table."
)
_DIGEST_LETTERS = frozenset("0123456789abcdef")


def table_digest(table: Array) -> str:
    """xxh3-128 of dtype, shape and content."""
    state = xxhash.xxh3_128(f"{table.dtype.name}{table.shape}".encode())
    state.update(np.ascontiguousarray(table).data)
    return state.hexdigest()


def check_tables(tables: Mapping[str, Array], digests: Mapping[str, str]) -> None:
    """Raise UsageError unless ``tables`` can be stored and are what the manifest says of them."""
    for name, table in tables.items():
        is_small = 0 < table.nbytes <= MAX_TABLE_BYTES and table.ndim <= _MAX_AXES
        if table.dtype.name not in DTYPES or not is_small:
            raise UsageError(
                f"the codec's table {name!r} cannot be stored: {table.nbytes:,} bytes of "
                f"{table.dtype.name}, {table.ndim} axes."
            )
        if _has_nan(table):
            raise UsageError(f"the codec's table {name!r} has NaN in it: its fit went wrong.")
    if {name: table_digest(table) for name, table in tables.items()} != dict(digests):
        raise UsageError("the codec's tables are not those that the manifest names.")


def _has_nan(table: Array) -> bool:
    # The minimum of numbers with a NaN among them is NaN, and takes no memory.
    return table.dtype.kind == "f" and bool(np.isnan(table.min()))


def rewrite_damaged(cache: Path, tables: Mapping[str, Array], digests: Collection[str]) -> None:
    """Write those tables of a cache anew that are damaged or missing and that ``tables`` holds.

    Args:
        cache: its folder.
        tables: what this run's codec has.
        digests: of the tables that the cache needs.
    """
    damaged: dict[str, Array] = {}
    for name, table in tables.items():
        digest = table_digest(table)
        if digest not in digests:
            continue
        try:
            read_table(cache, digest)
        except CacheCorruptedError:
            damaged[name] = table
            with contextlib.suppress(FileNotFoundError):
                set_aside(cache / TABLES_FOLDER / digest)
    write_tables(cache, damaged)


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
    temporary = folder / temporary_name(target.name)
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
    # Before it is opened: the digest comes from a file, and is a part of a path.
    if len(digest) != 32 or not set(digest) <= _DIGEST_LETTERS:
        raise CacheCorruptedError(f"{cache}: {digest[:40]!r} is no table's digest.")
    try:
        at = Fields(read_json(folder / GROUP_FILE), str(folder))
        dtype, shape = at.text("data_type", at_most=16), at.items("shape")
        is_shape = len(shape) <= _MAX_AXES and all(type(n) is int and n > 0 for n in shape)
        if dtype not in DTYPES or not is_shape:
            raise CacheCorruptedError(f"{folder} is no table of ours. {_REMEDY}")
        # Python's integers: a product of NumPy's could overflow to something small.
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if num_bytes > MAX_TABLE_BYTES:
            raise CacheCorruptedError(f"{folder} claims {num_bytes:,} bytes: no table of ours.")
        stored = folder.joinpath("c", *["0"] * len(shape))
        content = memoryview(read_file(stored, num_bytes + num_bytes // 64 + 1024))
    except OSError as error:
        raise CacheCorruptedError(
            f"{folder} cannot be read ({error.strerror}). {_REMEDY}"
        ) from error
    table = np.empty(shape, dtype)
    decode_chunk(content, table, shuffled=False, where=str(stored))
    if table_digest(table) != digest:
        raise CacheCorruptedError(
            f"{folder} is damaged: its content is not what its name says. {_REMEDY}"
        )
    if _has_nan(table):
        raise CacheCorruptedError(f"{folder} has NaN in it: no codec of ours was fitted to that.")
    return table
