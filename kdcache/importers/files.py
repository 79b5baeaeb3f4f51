"""Files of records that hold a teacher's log-probabilities: JSON lines, or Parquet.

Here a file becomes records, each a mapping of plain Python values; what is in them is read by
``records``. A file is read as a stream, and a record only where it is wanted.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from kdcache.errors import DataError, UsageError, suggest

JSON_LINES = "JSON lines"
PARQUET = "Parquet"
_KINDS = {
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".json": JSON_LINES,
    ".parquet": PARQUET,
    ".pq": PARQUET,
}
_GZIP = ".gz"
_BLOCK_BYTES = 1 << 20
MAX_LINE_BYTES = 128 << 20
"""Longest line that is read: about 20,000 positions of 128 log-probabilities each."""

_ROWS = 64  # of a Parquet file, decoded together


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file, looked through once.

    Attributes:
        path: where it is.
        kind: ``JSON lines`` or ``Parquet``.
        digest: xxh3-64 of its bytes, 16 hex digits.
        num_records: in it.
    """

    path: Path
    kind: str
    digest: str
    num_records: int


@dataclass(frozen=True, kw_only=True, eq=False)
class RawRecord:
    """One record, not looked at yet.

    Attributes:
        where: file and line or row, for errors; both from 1.
        load: decodes it.
    """

    where: str
    load: Callable[[], Mapping[str, Any]]


class _Hashed(io.RawIOBase):
    """A file that hashes what is read of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._state = xxhash.xxh3_64()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        self._state.update(content)
        return len(content)

    def rest(self) -> str:
        """The digest of the whole file, of which perhaps not all was read."""
        while content := self._file.read(_BLOCK_BYTES):
            self._state.update(content)
        return self._state.hexdigest()


def look_at(path: Path) -> SourceFile:
    """Read a file once from end to end: how many records, and which bytes.

    Raises:
        UsageError: it is not there, or of a kind that is not read here.
        DataError: it is damaged.
    """
    kind = _kind(path)
    with _reading(path), path.open("rb") as file:
        hashed = _Hashed(file)
        if kind == PARQUET:
            with _parquet(path) as parquet:
                number = int(parquet.metadata.num_rows)
        else:
            number = sum(1 for _ in _lines(path, io.BufferedReader(hashed, _BLOCK_BYTES)))
        return SourceFile(path=path, kind=kind, digest=hashed.rest(), num_records=number)


def raw_records(file: SourceFile, fields: Sequence[str]) -> Iterator[RawRecord]:
    """The records of a file in its order, without decoding any.

    Args:
        file: looked at before.
        fields: that are wanted; of a Parquet file nothing else is read.

    Raises:
        DataError: the file is damaged, has no such column, or is another than it was.
    """
    found = 0
    make = _rows(file.path, fields) if file.kind == PARQUET else _json_records(file.path)
    for record in make:
        found += 1
        yield record
    if found != file.num_records:
        raise DataError(
            f"{file.path} had {file.num_records:,} records when it was looked through, and now has "
            f"{found:,}: somebody is writing it. Import it when it is finished."
        )


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != _GZIP]
    kind = _KINDS.get(suffixes[-1] if suffixes else "")
    if kind is None or (kind == PARQUET and path.suffix.lower() == _GZIP):
        raise UsageError(
            f"{path}: what kind of file it is, its name has to say: .jsonl, .ndjson or .json (one "
            "JSON object a line), each also with .gz; .parquet or .pq."
        )
    return kind


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or cut short ({error}). Make it again.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror or error}).") from error


def _lines(path: Path, file: Any) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of the lines that are not blank."""
    if path.suffix.lower() == _GZIP:
        file = gzip.GzipFile(fileobj=file)
    # Never more than the bound: a few kilobytes of .gz can hold a line of gigabytes.
    lines = iter(lambda: file.readline(MAX_LINE_BYTES + 1), b"")
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_LINE_BYTES:
            raise DataError(
                f"{path}, line {number} is longer than {MAX_LINE_BYTES >> 20} MiB, the most that "
                "is read at once: wanted is one record a line. Write shorter sequences, or Parquet."
            )
        if line.strip():
            yield number, line


def _json_records(path: Path) -> Iterator[RawRecord]:
    with _reading(path), path.open("rb") as file:
        for number, line in _lines(path, file):
            where = f"{path}, line {number}"
            yield RawRecord(where=where, load=functools.partial(_json_object, line, where))


def _json_object(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:  # bytes that are no text are a ValueError, too
        raise DataError(f"{where} is no JSON ({error}): wanted is one object a line.") from error
    if not isinstance(found, dict):
        raise DataError(f"{where} is a JSON {type(found).__name__}: wanted is one object a line.")
    return found


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """An opened Parquet file."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(
            f"{path}: reading Parquet needs pyarrow, which is not installed. Install it "
            "(pip install 'kdcache[parquet]'), or give JSON lines."
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is no Parquet file, or damaged ({error}).") from error


def _rows(path: Path, fields: Sequence[str]) -> Iterator[RawRecord]:
    columns = sorted({field.partition(".")[0] for field in fields})
    with _reading(path), _parquet(path) as file:
        names = file.schema_arrow.names
        for column in columns:
            if column not in names:
                raise DataError(f"{path} has no column {column!r}. {suggest(column, names)}")
        done = 0
        for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
            for row in range(batch.num_rows):
                yield RawRecord(
                    where=f"{path}, row {done + row + 1}",
                    load=functools.partial(_row, batch, row),
                )
            done += batch.num_rows


def _row(batch: Any, row: int) -> Mapping[str, Any]:
    found: Mapping[str, Any] = batch.slice(row, 1).to_pylist()[0]
    return found
