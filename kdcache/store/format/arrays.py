"""One column of one shard as one Zarr v3 array: written by zarr-python, read by a bounded reader.

Rows lie on the last axis (component-major): planes of like numbers compress best. The reader
parses the shard's chunk index itself and decodes into preallocated buffers. It trusts nothing in
the file: offsets are checked against the object, checksums against the chunk, and the size that a
compressed frame claims against the chunk's, before anything is decompressed.
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
from kdcache.store.format.files import read_file
from kdcache.store.format.layout import GROUP_FILE

CHUNK_BYTES = 128 << 10
"""Decoded size of a chunk that reads fast: 4 KiB is 10x slower, 256 KiB no faster."""

COMPRESSION_LEVEL = 5
MAX_DECODED_BYTES = 1 << 30
"""Largest decoded column of one shard: writers refuse more, readers allocate no more."""
_CRC_BYTES = 4
_INDEX_ENTRY_BYTES = 16
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_BLOSC_HEADER_BYTES = 16
_MAX_METADATA_BYTES = 1 << 20
_MAX_PLANES = 64
_REMEDY = (
    "Restore the file; or run kdcache verify CACHE --repair and the same kdcache dump-teacher "
    "command again, which redoes this shard only."
)


@dataclass(frozen=True, kw_only=True)
class StoredArray:
    """What a commit records of one written column.

    Attributes:
        rows: rows in the array.
        stored_bytes: size of its one stored object.
        checksum: xxh3-64 of that object, hexadecimal. Not a crc32c: the object's parts end with
            their own, and a CRC over data followed by its CRC is the same for all data.
        digest: xxh3-128 of the decoded rows (row-major, little-endian), hexadecimal.
        metadata: xxh3-64 of the array's ``zarr.json``, hexadecimal; other Zarr readers need it.
    """

    rows: int
    stored_bytes: int
    checksum: str
    digest: str
    metadata: str


def rows_digest(rows: Array) -> str:
    """xxh3-128 of rows in row-major order: equal for equal decoded content, whatever the file."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(rows).data)


def object_checksum(content: bytes) -> str:
    """xxh3-64 of a stored object."""
    return xxhash.xxh3_64_hexdigest(content)


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
        "shape": (*column.shape, num_rows),
        "dtype": column.dtype,
        "chunks": (*column.shape, chunk_rows(column)),
        # One Zarr shard as large as the array: one stored object, with one checksum in the commit.
        "shards": (*column.shape, max(1, _num_chunks(column, num_rows)) * chunk_rows(column)),
        # Zarr gives inner chunks no checksum by itself: flipped bytes in one were read as numbers.
        "compressors": [compressor, Crc32cCodec()],
        "fill_value": 0,
        "dimension_names": [*components, column.per],
        # A chunk of zeros would be left out as equal to fill_value; the reader expects every chunk.
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
    # A store of its own: below a name, zarr-python would first hard-link metadata of the parents.
    store = LocalStore(group / column.name)
    with zarr.config.set(json_indent=None):  # metadata is half of a small shard
        array = zarr.create_array(store=store, **array_options(column, len(rows)))
    stored = b""
    if len(rows):
        # In one piece: written in parts, a Zarr shard is read and written again for each of them.
        array[...] = np.moveaxis(rows, 0, -1)
        stored = object_file(group, column).read_bytes()
    return StoredArray(
        rows=len(rows),
        stored_bytes=len(stored),
        checksum=object_checksum(stored) if stored else "",
        digest=rows_digest(rows),
        metadata=object_checksum((group / column.name / GROUP_FILE).read_bytes()),
    )


def check_metadata(group: Path, column: Column, stored: StoredArray) -> None:
    """Raise CacheCorruptedError unless an array's ``zarr.json`` is as it was written.

    Nothing here reads it: what kdcache needs to know stands in the manifest and the commits.
    """
    where = group / column.name / GROUP_FILE
    try:
        found = object_checksum(read_file(where, _MAX_METADATA_BYTES))
    except FileNotFoundError as error:
        raise CacheCorruptedError(f"{where} is missing: other Zarr readers need it.") from error
    if found != stored.metadata:
        raise CacheCorruptedError(
            f"{where}, which other Zarr readers need, is damaged: checksum {found}, its commit "
            f"says {stored.metadata}."
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
    check_stored(column, stored, str(where))
    if stored.rows == 0:
        rows = np.empty((0, *column.shape), column.dtype)
    else:
        content = _checked_object(where, stored)
        rows = np.empty((stored.rows, *column.shape), column.dtype)
        _decode(content, column, rows, str(where))
    if rows_digest(rows) != stored.digest:
        raise CacheCorruptedError(
            f"{where}: the decoded rows differ from what was dumped. {_REMEDY}"
        )
    return rows


def check_stored(column: Column, stored: StoredArray, where: str) -> None:
    """Raise CacheCorruptedError where a record claims what no writer of ours can have written."""
    num_chunks = _num_chunks(column, stored.rows)
    chunk_bytes = chunk_rows(column) * column.row_bytes
    if stored.rows * column.row_bytes > MAX_DECODED_BYTES:
        raise CacheCorruptedError(f"{where} claims {stored.rows:,} rows: more than a shard holds.")
    # Frames that do not compress grow by less than a percent and a few bytes.
    most = num_chunks * (chunk_bytes + chunk_bytes // 64 + 1024)
    if not num_chunks * _INDEX_ENTRY_BYTES <= stored.stored_bytes <= most:
        raise CacheCorruptedError(
            f"{where} claims {stored.stored_bytes:,} stored bytes for {stored.rows:,} rows."
        )


def _checked_object(where: Path, stored: StoredArray) -> memoryview:
    try:
        size = where.stat().st_size
        if size != stored.stored_bytes:
            raise CacheCorruptedError(
                f"{where} has {size:,} bytes, its commit says {stored.stored_bytes:,}. {_REMEDY}"
            )
        content = read_file(where, size)
    except OSError as error:
        raise CacheCorruptedError(
            f"{where} cannot be read ({error.strerror}). {_REMEDY}"
        ) from error
    checksum = object_checksum(content)
    if checksum != stored.checksum:
        raise CacheCorruptedError(
            f"{where} is damaged: checksum {checksum}, its commit says {stored.checksum}. {_REMEDY}"
        )
    return memoryview(content)


def _decode(content: memoryview, column: Column, rows: Array, where: str) -> None:
    """Decode every chunk of a Zarr shard into ``rows``."""
    # Zarr v3 sharding: (offset, bytes) of each chunk, uint64, stand at the object's end, with the
    # crc32c of these numbers.
    num_chunks, step = _num_chunks(column, len(rows)), chunk_rows(column)
    body_bytes = len(content) - num_chunks * _INDEX_ENTRY_BYTES - _CRC_BYTES
    if body_bytes < 0:
        raise CacheCorruptedError(f"{where} is too short for the index of {num_chunks} chunks.")
    index_content = _without_crc(content[body_bytes:], f"{where}: the chunk index")
    index = np.frombuffer(index_content, "<u8").reshape(-1, 2)
    # One buffer for all chunks; its size is what each frame must claim.
    chunk = np.empty((*column.shape, step), column.dtype)
    for number, (offset, size) in enumerate(index.tolist()):
        name = f"{where}: chunk {number}"
        if offset + size > body_bytes:
            raise CacheCorruptedError(f"{name} lies outside the file. {_REMEDY}")
        frame = content[offset : offset + size]
        decode_chunk(frame, chunk, shuffled=_is_shuffled(column), where=name)
        _transpose(chunk, rows[number * step : (number + 1) * step])


def _transpose(chunk: Array, rows: Array) -> None:
    """Copy the first rows of a chunk (*shape, R) into rows (at most R, *shape)."""
    planes = chunk.reshape(-1, chunk.shape[-1])
    if len(planes) > _MAX_PLANES:
        rows[...] = np.moveaxis(chunk[..., : len(rows)], -1, 0)
        return
    # For few components, plane by plane is up to 3.6x faster than NumPy's transposing copy
    # (uint8, 32 components: 1,520 against 417 MB/s).
    flat = rows.reshape(len(rows), len(planes))
    for component, plane in enumerate(planes):
        flat[:, component] = plane[: len(rows)]


def decode_chunk(content: memoryview, chunk: Array, *, shuffled: bool, where: str) -> None:
    """Decode one stored chunk (compressed frame, then its crc32c) into a buffer of its size.

    Raises:
        CacheCorruptedError: the checksum is wrong, or the frame is not one of ``chunk``'s size.
    """
    frame = _without_crc(content, where)
    claimed = _blosc_size(frame) if shuffled else _zstd_size(frame)
    if claimed != chunk.nbytes:
        raise CacheCorruptedError(
            f"{where} claims {'an unknown size' if claimed is None else f'{claimed:,} bytes'}, "
            f"a chunk has {chunk.nbytes:,}; refused before decompressing."
        )
    decompress = numcodecs.blosc.decompress if shuffled else numcodecs.zstd.decompress
    try:
        decompress(frame, chunk.reshape(-1).view(np.uint8))
    except (RuntimeError, ValueError) as error:
        raise CacheCorruptedError(f"{where} cannot be decompressed ({error}).") from error


def _without_crc(content: memoryview, where: str) -> bytes:
    body, crc = bytes(content[:-_CRC_BYTES]), content[-_CRC_BYTES:]
    if len(crc) < _CRC_BYTES or google_crc32c.value(body) != int.from_bytes(crc, "little"):
        raise CacheCorruptedError(f"{where} has a wrong checksum. {_REMEDY}")
    return body


def _blosc_size(frame: bytes) -> int | None:
    """Decoded size in a Blosc 1 header (None: not a whole Blosc frame)."""
    if len(frame) < _BLOSC_HEADER_BYTES:
        return None
    # After 4 bytes of versions, flags and item size: decoded, block and encoded bytes.
    decoded, _, encoded = struct.unpack_from("<III", frame, 4)
    return int(decoded) if encoded == len(frame) else None


def _zstd_size(frame: bytes) -> int | None:
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
    # A field of two bytes begins at 256, which one of a byte cannot say (RFC 8878, 3.1.1.1.4).
    return size + 256 if width == 2 else size
