"""A teacher cache of log-probabilities that were made elsewhere, by vLLM for one. No teacher runs.

The files are looked through once (how many records, which bytes), then read again as a stream,
shard by shard; shards that are there are skipped, so the same command goes on where it stopped.
The columns are those of the ``topk`` codec without an offset, at temperature 1 alone: from the
most probable classes the tail at another temperature cannot be told.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from kdcache.codecs import TopKCodec, codec_settings
from kdcache.codecs.topk import DType
from kdcache.data.samples.fingerprint import TOKENS, FingerprintSource
from kdcache.data.samples.keys import CONTENT, INDEX
from kdcache.data.samples.vocabulary import IDENTITY, vocabulary_digest
from kdcache.errors import DataError, UsageError, suggest
from kdcache.importers.files import RawRecord, SourceFile, look_at, raw_records
from kdcache.importers.records import Fields, Record, read_record
from kdcache.importers.rows import num_top
from kdcache.importers.shards import Layout, Sample
from kdcache.paths import local_path
from kdcache.store import Cache, Manifest, ViewWriter, check_cache_path, open_cache
from kdcache.version import __version__

Progress = Callable[[str, int, int], None]

_HEAD = 32
_MAX_SHARDS = 256
_LEAST_SHARD_BYTES = 1 << 20
_MOST_SHARD_BYTES = 32 << 20


def import_logprobs(
    files: str | Path | Sequence[str | Path],
    cache: str | Path,
    *,
    num_classes: int,
    split: str = "train",
    k: int | None = None,
    shift: int = 1,
    ids_field: str = Fields.ids,
    logprobs_field: str = Fields.logprobs,
    top_ids_field: str | None = None,
    key: str = CONTENT,
    fingerprint: str = f"{TOKENS}input_ids",
    dtype: DType = "float16",
    teacher: str = "",
    tokenizer: Any = None,
    samples_per_shard: int | None = None,
    progress: Progress | None = None,
) -> Cache:
    """Make one split of a teacher cache from files of log-probabilities.

    One record (a JSON line, or a row of a Parquet file) is one sample: its L token ids, and for
    every token the log-probabilities of the most probable tokens at its place, as a language
    model gives them for a prompt. It has L - 1 positions, those of a causal student with
    ``batch: {causal: true}``. What forms are understood is said in
    :mod:`kdcache.importers.records`; what vLLM gives needs no setting.

    Students find a sample by the content of its token ids: their dataset gives samples with the
    same ids, without padding, as a list, array or tensor of any integer type.

    The probability of all classes that are not kept is 1 minus the sum of those that are, in
    float64, and at least float32's epsilon, 1.2e-7. Its error is that of the source: with
    log-probabilities that were rounded to float32, as vLLM's are, about 1e-7, so a tail of 1e-5
    is known to a per cent; with 16-bit ones a tail below 1e-3 says little.

    Args:
        files: one, or several in the order that they are to be read in; by their names JSON lines
            (``.jsonl``, ``.ndjson``, ``.json``, also with ``.gz``) or Parquet (``.parquet``,
            ``.pq``).
        cache: folder of the teacher cache; made if it is missing.
        num_classes: C, the size of the vocabulary as the student's logits have it.
        split: to make; others stay as they are.
        k: classes kept per position; what the first records have if None. Entries beyond are
            dropped, also the actual token that vLLM adds.
        shift: 1 where element t is of token t and the first is null (vLLM); 0 where it is of
            token t + 1, as ``topk`` of a model's logits gives it.
        ids_field: name of the token ids; a dotted path leads into nested objects.
        logprobs_field: name of the log-probabilities.
        top_ids_field: name of the ids that lists of bare log-probabilities are of.
        key: ``content``: samples are found in any order, equal ones share their targets; or
            ``index``: the records' numbers, over all files, are those of the student's dataset.
        fingerprint: ``tokens:<path>``: where a sample of the student's dataset has its token ids.
        dtype: of the stored log-probabilities, ``float16`` or ``float32``.
        teacher: which model it was, in your words; stands in the cache.
        tokenizer: with ``get_vocab()``; its digest stands in the cache, and a student with
            another vocabulary is refused.
        samples_per_shard: samples written, or lost in a crash, together; chosen if None.
        progress: called with (split, shards done, shards in all).

    Returns:
        The cache, opened; the split is complete.

    Raises:
        UsageError: a setting that is none, a file that cannot be read, Parquet without pyarrow.
        DataError: a record is not understood, or is no distribution; names file, line, element.
        MismatchError: the split was begun with other files or settings; field by field.
        CacheError: the path holds something that is no cache.
    """
    named = [files] if isinstance(files, str | Path) else files
    paths = [local_path(file, "a file of log-probabilities") for file in named]
    folder = local_path(cache, "cache")
    fields = Fields(ids=ids_field, logprobs=logprobs_field, top_ids=top_ids_field)
    _check_settings(paths, num_classes, shift, key, fingerprint)
    check_cache_path(folder)
    sources = [look_at(path) for path in paths]
    head = _head(sources, fields)
    codec = TopKCodec(
        k=_num_kept(head) if k is None else k, dtype=dtype, temperatures=(1.0,), offset=False
    )
    layout = Layout(codec=codec, num_classes=num_classes, shift=shift)
    # What is wrong in the first records is said before anything is written.
    samples = [layout.sample(record) for record in head]
    num_samples = sum(source.num_records for source in sources)
    manifest = Manifest(
        split=split,
        num_samples=num_samples,
        samples_per_shard=_samples_per_shard(layout, samples, num_samples)
        if samples_per_shard is None
        else samples_per_shard,
        batch_size=1,
        num_classes=num_classes,
        codec=codec_settings(codec),
        columns=layout.columns(),
        key=key,
        fingerprint=FingerprintSource.of_tokens(fingerprint).to_json(),
        identity=_identity(sources, fields, shift, teacher, tokenizer),
        created={
            "kdcache": __version__,
            "numpy": np.__version__,
            "torch": torch.__version__,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )
    writer = ViewWriter.create(folder, manifest)
    _write(writer, layout, sources, fields, progress)
    writer.finish()
    return open_cache(folder)


def _check_settings(
    paths: Sequence[Path], num_classes: int, shift: int, key: str, fingerprint: str
) -> None:
    """Raise UsageError for a setting that cannot be, before a file is opened."""
    if not paths:
        raise UsageError("there is no file to import.")
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("a file is named twice. Name each once.")
    if type(num_classes) is not int or num_classes < 2:
        raise UsageError(f"num_classes is the size of the vocabulary, not {num_classes!r}.")
    if type(shift) is not int or shift not in (0, 1):
        raise UsageError(
            f"shift is 1 (element t is of token t, as in vLLM) or 0 (of token t + 1), not "
            f"{shift!r}."
        )
    if key not in (CONTENT, INDEX):
        raise UsageError(f"key: {key!r} is none here. {suggest(key, [CONTENT, INDEX])}")
    if not fingerprint.startswith(TOKENS):
        raise UsageError(
            f"fingerprint: {fingerprint!r} is none here: of a sample only its token ids are known. "
            f"Give {TOKENS}<path>, where the student's samples have them."
        )


def _records(sources: Sequence[SourceFile], fields: Fields) -> Iterator[RawRecord]:
    """The records of all files, in order."""
    names = fields.names()
    return itertools.chain.from_iterable(raw_records(source, names) for source in sources)


def _head(sources: Sequence[SourceFile], fields: Fields) -> list[Record]:
    """The first records, decoded."""
    found = [read_record(raw, fields) for raw in itertools.islice(_records(sources, fields), _HEAD)]
    if not found:
        raise DataError(f"there is no record in {', '.join(str(s.path) for s in sources)}.")
    return found


def _num_kept(head: Sequence[Record]) -> int:
    """Classes that every position of the first records has."""
    found = [number for record in head if (number := num_top(record)) is not None]
    if not found:
        raise UsageError(
            f"the first {len(head)} records have no log-probabilities, so how many classes to keep "
            "has to be said: give k."
        )
    if not min(found):
        raise DataError(
            f"{head[0].where}: only the actual tokens have log-probabilities. Ask the teacher for "
            "those of the most probable tokens (vLLM: prompt_logprobs=20 or more)."
        )
    return min(found)


def _samples_per_shard(layout: Layout, head: Sequence[Sample], num_samples: int) -> int:
    """About N / 256, of 1 to 32 MiB decoded, as far as the first records tell."""
    positions = sum(len(sample.rows.ids) for sample in head) / len(head)
    sample_bytes = positions * layout.position_bytes() + 12
    wanted = max(num_samples / _MAX_SHARDS, _LEAST_SHARD_BYTES / sample_bytes)
    return max(1, min(round(wanted), int(_MOST_SHARD_BYTES / sample_bytes), num_samples))


def _identity(
    sources: Sequence[SourceFile], fields: Fields, shift: int, teacher: str, tokenizer: Any
) -> dict[str, str]:
    """What must be the same for another run to go on with the split."""
    files = [f"{source.path.name} xxh3:{source.digest}" for source in sources]
    probe = xxhash.xxh3_64_hexdigest("\n".join(files).encode("utf-8", "surrogatepass"))
    return {
        "teacher.class": teacher,
        "teacher.weights": "imported log-probabilities",
        IDENTITY: "" if tokenizer is None else vocabulary_digest(tokenizer),
        "dataset.class": "imported log-probabilities",
        "dataset.probe": f"xxh3:{probe}",
        "dataset.fields": " ".join(fields.names()),
        "dataset.shift": str(shift),
        **{f"dataset.file.{n}": text for n, text in enumerate(files)},
        **{f"dataset.format.{n}": source.kind for n, source in enumerate(sources)},
    }


def _write(
    writer: ViewWriter,
    layout: Layout,
    sources: Sequence[SourceFile],
    fields: Fields,
    progress: Progress | None,
) -> None:
    """Write the shards that are not there yet; no more than one is in memory."""
    manifest = writer.manifest
    pending = set(writer.pending())
    if not pending:
        return
    records = _records(sources, fields)
    for shard in range(manifest.num_shards):
        start, stop = manifest.shard_range(shard)
        part = itertools.islice(records, stop - start)
        if shard in pending:
            try:
                samples = [layout.sample(read_record(raw, fields)) for raw in part]
            except DataError as error:
                raise DataError(
                    f"{error}\nThe {start:,} samples before its shard are imported, of these very "
                    f"files. Once they are corrected, remove {writer.folder.parent} or choose "
                    "another cache, and import again."
                ) from error
            columns = layout.shard(samples)
            writer.write_shard(shard, columns, layout.statistics(samples, columns))
        else:
            for _ in part:
                pass
        if progress is not None:
            progress(manifest.split, shard + 1, manifest.num_shards)
    for _ in records:  # to the files' ends: one that has grown is found there
        pass
