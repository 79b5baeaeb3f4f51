"""One column of one shard as one Zarr v3 array: written by zarr-python, read by a bounded reader.

Rows lie on the last axis (component-major): planes of like numbers compress best. The reader parses the shard's chunk index itself and decodes into preallocated buffers. It trusts
nothing in the file: offsets are checked against the object, checksums against the chunk, and the
size that a compressed frame claims against the chunk's, before anything is decompressed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs.blosc
import numcodecs.zstd
import numpy as np
import xxhash

from kdcache.columns import Array, Column
from kdcache.errors import CacheCorruptedError

CHUNK_BYTES = 128 << 10
"""Decoded size of a chunk that reads fast: 4 KiB is 10x slower, 256 KiB no faster."""

COMPRESSION_LEVEL = 5
MAX_DECODED_BYTES = 1 << 30
"""Largest decoded column of one shard: writers refuse more, readers allocate no more."""
_CRC_BYTES = 4
_INDEX_ENTRY_BYTES = 16
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_BLOSC_HEADER_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class StoredArray:
    """What a commit records of one written column.

    Attributes:
        rows: rows in the array.
        stored_bytes: size of its one stored object.
        crc32c: checksum of that object.
        digest: xxh3-128 of the decoded rows (row-major, little-endian), hexadecimal.
    """

    rows: int
    stored_bytes: int
    crc32c: int
    digest: str


def rows_digest(rows: Array) -> str:
    """xxh3-128 of rows in row-major order: equal for equal decoded content, whatever the file."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(rows).data)


def object_file(group: Path, column: Column) -> Path:
    """The one stored object of a column's array: its only Zarr shard, ``c/0[/0...]``."""
    return group.joinpath(column.name, "c", *["0"] * (1 + len(column.shape)))


def chunk_rows(column: Column) -> int:
    """Rows of one chunk: the power of two nearest below CHUNK_BYTES, at least 1.

    The chunk grid follows from the column alone, so writers and readers always agree on it.
    """
    return 1 << max(0, (CHUNK_BYTES // column.row_bytes).bit_length() - 1)


def _num_chunks(column: Column, num_rows: int) -> int:
    return -(-num_rows // chunk_rows(column))


def _is_shuffled(column: Column) -> bool:
    """Numbers wider than a byte compress better with their bytes in planes (Blosc's shuffle)."""
    return np.dtype(column.dtype).itemsize > 1


def array_options(column: Column, num_rows: int) -> dict[str, Any]:
    """Everything that ``zarr.create_array`` is told about a column, exactly sized."""
    from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

    level = COMPRESSION_LEVEL
    compressor = (
        BloscCodec(cname="zstd", clevel=level, shuffle="shuffle")
        if _is_shuffled(column)
        else ZstdCodec(level=level)
    )
    components = [f"component_{axis}" for axis in range(len(column.shape))]
    return {
        "name": column.name,
        "shape": (*column.shape, num_rows),
        "dtype": column.dtype,
        "chunks": (*column.shape, chunk_rows(column)),
        "shards": (*column.shape, max(1, _num_chunks(column, num_rows)) * chunk_rows(column)),
        "compressors": [compressor, Crc32cCodec()],
        "fill_value": 0,
        "dimension_names": [*components, column.per],
        "config": {"write_empty_chunks": True},
    }


def write_array(group: Path, column: Column, rows: Array) -> StoredArray:
    """Write one column of a shard as one array, in one piece.

    Args:
        group: folder of the attempt's Zarr group.
        column: what the rows are.
        rows: (rows, *column.shape), little-endian.
    """
    import zarr
    from zarr.storage import LocalStore

    column.check_rows(rows, len(rows))
    array = zarr.create_array(store=LocalStore(group), **array_options(column, len(rows)))
    if len(rows) == 0:
        return StoredArray(rows=0, stored_bytes=0, crc32c=0, digest=rows_digest(rows))
    array[...] = np.moveaxis(rows, 0, -1)
    stored = object_file(group, column).read_bytes()
    return StoredArray(
        rows=len(rows),
        stored_bytes=len(stored),
        crc32c=google_crc32c.value(stored),
        digest=rows_digest(rows),
    )


def read_array(group: Path, column: Column, stored: StoredArray) -> Array:
    """Read and verify one column of a shard.

    Returns:
        (rows, *column.shape), equal to what was written.

    Raises:
        CacheCorruptedError: the object is missing, of another size, or any checksum, offset or
            claimed size in it is wrong.
    """
    where = object_file(group, column)
    if stored.rows * column.row_bytes > MAX_DECODED_BYTES:
        raise CacheCorruptedError(f"{where} claims {stored.rows:,} rows: more than a shard holds.")
    if stored.rows and _num_chunks(column, stored.rows) * _INDEX_ENTRY_BYTES > stored.stored_bytes:
        raise CacheCorruptedError(f"{where} is too small for {stored.rows:,} rows.")
    rows = np.empty((stored.rows, *column.shape), column.dtype)
    if stored.rows:
        _decode(_checked_object(where, stored), column, rows, where)
    if rows_digest(rows) != stored.digest:
        raise CacheCorruptedError(
            f"{where}: the decoded rows differ from what was dumped. Restore the file, or remove "
            "this shard's commit record and run dump-teacher again."
        )
    return rows


def _checked_object(where: Path, stored: StoredArray) -> memoryview:
    remedy = "Restore the file, or remove this shard's commit record and run dump-teacher again."
    try:
        size = where.stat().st_size
        if size != stored.stored_bytes:
            raise CacheCorruptedError(
                f"{where} has {size:,} bytes, its commit says {stored.stored_bytes:,}. {remedy}"
            )
        content = where.read_bytes()
    except OSError as error:
        raise CacheCorruptedError(f"{where} cannot be read ({error.strerror}). {remedy}") from error
    crc = google_crc32c.value(content)
    if crc != stored.crc32c:
        raise CacheCorruptedError(
            f"{where} is damaged: crc32c {crc:08x}, its commit says {stored.crc32c:08x}. {remedy}"
        )
    return memoryview(content)


def _decode(content: memoryview, column: Column, rows: Array, where: Path) -> None:
    """Decode every chunk of a Zarr shard into ``rows``."""
    num_chunks = _num_chunks(column, len(rows))
    index_bytes = num_chunks * _INDEX_ENTRY_BYTES
    body_bytes = len(content) - index_bytes - _CRC_BYTES
    if body_bytes < 0:
        raise CacheCorruptedError(f"{where} is too short for the index of {num_chunks} chunks.")
    index_content = _without_crc(content[body_bytes:], where, "chunk index")
    index = np.frombuffer(index_content, "<u8").reshape(-1, 2)
    chunk = np.empty((*column.shape, chunk_rows(column)), column.dtype)
    for number, (offset, size) in enumerate(index.tolist()):
        if offset + size > body_bytes:
            raise CacheCorruptedError(f"{where}: chunk {number} lies outside the file.")
        frame = _without_crc(content[offset : offset + size], where, f"chunk {number}")
        _decompress(frame, column, chunk, f"{where}: chunk {number}")
        start = number * chunk_rows(column)
        part = rows[start : start + chunk_rows(column)]
        part[...] = np.moveaxis(chunk[..., : len(part)], -1, 0)


def _without_crc(content: memoryview, where: Path, what: str) -> memoryview:
    if len(content) < _CRC_BYTES:
        raise CacheCorruptedError(f"{where}: {what} is too short for its checksum.")
    body, crc = content[:-_CRC_BYTES], content[-_CRC_BYTES:]
    if google_crc32c.value(bytes(body)) != int.from_bytes(crc, "little"):
        raise CacheCorruptedError(f"{where}: the checksum of {what} is wrong.")
    return body


def _decompress(frame: memoryview, column: Column, chunk: Array, where: str) -> None:
    shuffled = _is_shuffled(column)
    claimed = _blosc_size(frame) if shuffled else _zstd_size(frame)
    if claimed != chunk.nbytes:
        raise CacheCorruptedError(
            f"{where} claims {'an unknown size' if claimed is None else f'{claimed:,} bytes'}, "
            f"a chunk has {chunk.nbytes:,}; refused before decompressing."
        )
    decompress = numcodecs.blosc.decompress if shuffled else numcodecs.zstd.decompress
    try:
        decompress(bytes(frame), chunk.reshape(-1).view(np.uint8))
    except (RuntimeError, ValueError) as error:
        raise CacheCorruptedError(f"{where} cannot be decompressed ({error}).") from error


def _blosc_size(frame: memoryview) -> int | None:
    """Decoded size in a Blosc 1 header (None: not a whole Blosc frame)."""
    if len(frame) < _BLOSC_HEADER_BYTES:
        return None
    decoded, _, encoded = struct.unpack_from("<III", frame, 4)
    return int(decoded) if encoded == len(frame) else None


def _zstd_size(frame: memoryview) -> int | None:
    """Content size in a Zstandard frame header (RFC 8878, section 3.1.1.1); None: not stated."""
    if len(frame) < 6 or frame[:4] != _ZSTD_MAGIC:
        return None
    descriptor = frame[4]
    single_segment = bool(descriptor & 0x20)
    start = 5 + (not single_segment) + (0, 1, 2, 4)[descriptor & 3]
    width = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    if width == 0 or len(frame) < start + width:
        return None
    size = int.from_bytes(frame[start : start + width], "little")
    return size + 256 if width == 2 else size
