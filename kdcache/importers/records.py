"""One record of somebody else's log-probabilities as flat numbers: token ids, and entries.

Understood are, under the names that :class:`Fields` has:

- token ids: a list of whole numbers.
- log-probabilities: a list with one element for each token. An element is null, or
    - a mapping from a token id (a number, or a text of digits) to its log-probability, or to a
      mapping with ``logprob`` and perhaps ``rank``: what vLLM gives, in Python or as JSON;
    - a list of pairs (token id, either of these): what a Parquet map is;
    - a list of structs ``{token_id, logprob, rank}``, where ``rank`` may be missing;
    - a list of log-probabilities, where a second field has the ids in lists just alike.
- either as a text that is JSON of these, as some writers of Parquet have it.

Anything else is refused, by file, line and element. Nothing here knows which position an element
speaks of, or how many entries are kept.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdcache.columns import Array
from kdcache.data.batch.leaves import leaf
from kdcache.errors import DataError
from kdcache.importers.files import RawRecord

NO_RANK = 0
_LEAST, _MOST = int(np.iinfo(np.int64).min), int(np.iinfo(np.int64).max)
_UNDERSTOOD = (
    "an element is null, a mapping from token ids to log-probabilities or to "
    '{"logprob": ..., "rank": ...}, a list of (token id, log-probability) pairs, or a list of '
    '{"token_id": ..., "logprob": ...}; bare log-probabilities need a field of ids (top_ids_field)'
)


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Where in a record what is; dotted paths lead into nested objects and lists.

    Attributes:
        ids: the token ids.
        logprobs: the log-probabilities.
        top_ids: the ids that lists of bare log-probabilities are of; None: they stand beside
            each log-probability.
    """

    ids: str = "prompt_token_ids"
    logprobs: str = "prompt_logprobs"
    top_ids: str | None = None

    def names(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(name for name in (self.ids, self.logprobs, self.top_ids) if name is not None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """One record.

    Attributes:
        where: file and line or row.
        field: of the log-probabilities, for errors.
        tokens: (L,) int64.
        counts: (E,) int64, entries of each element; -1 for null.
        ids: (entries,) int64, of all elements one after another.
        log_p: (entries,) float64.
        ranks: (entries,) int64, 1 for the most probable token; 0 where none is given.
    """

    where: str
    field: str
    tokens: Array
    counts: Array
    ids: Array
    log_p: Array
    ranks: Array

    def refusal(self, element: int, problem: str) -> DataError:
        """The error that names an element."""
        return DataError(f"{self.where}: {self.field}[{element}] {problem}")


def read_record(raw: RawRecord, fields: Fields) -> Record:
    """Decode a record.

    Raises:
        DataError: a field is missing, or is not what is understood.
    """
    content = raw.load()
    tokens = _list(content, fields.ids, raw.where)
    if not all(map(_is_id, tokens)):
        wrong = next(number for number, token in enumerate(tokens) if not _is_id(token))
        raise DataError(
            f"{raw.where}: {fields.ids}[{wrong}] is {_shown(tokens[wrong])}, not a token id."
        )
    elements = _list(content, fields.logprobs, raw.where)
    top_ids = None if fields.top_ids is None else _list(content, fields.top_ids, raw.where)
    if top_ids is not None and len(top_ids) != len(elements):
        raise DataError(
            f"{raw.where}: {fields.top_ids} has {len(top_ids)} elements, {fields.logprobs} has "
            f"{len(elements)}. Each list of log-probabilities needs the ids that it is of."
        )
    counts: list[int] = []
    keys: list[Any] = []
    values: list[Any] = []
    for number, element in enumerate(elements):
        try:
            entries = _entries(element) if top_ids is None else _parallel(element, top_ids[number])
        except ValueError as error:
            raise DataError(f"{raw.where}: {fields.logprobs}[{number}] {error}.") from error
        counts.append(-1 if entries is None else len(entries[0]))
        if entries is not None:
            keys.extend(entries[0])
            values.extend(entries[1])
    try:
        ids, log_p, ranks = _at_once(keys, values) or _one_by_one(keys, values)
    except _WrongEntryError as error:
        ends = np.cumsum(np.maximum(counts, 0))
        number = int(np.searchsorted(ends, error.entry, side="right"))
        raise DataError(f"{raw.where}: {fields.logprobs}[{number}] {error}.") from error
    return Record(
        where=raw.where,
        field=fields.logprobs,
        tokens=np.asarray(tokens, np.int64),
        counts=np.asarray(counts, np.int64),
        ids=ids,
        log_p=log_p,
        ranks=ranks,
    )


def _list(content: Mapping[str, Any], path: str, where: str) -> list[Any]:
    try:
        found = leaf(content, path, "field")
        if isinstance(found, str):
            found = json.loads(found)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {path} is a text that is no JSON ({error}).") from error
    if not isinstance(found, list):
        raise DataError(
            f"{where}: {path} is {_shown(found)}; wanted is a list with one element for each token."
        )
    return found


def _entries(element: Any) -> tuple[Collection[Any], Collection[Any]] | None:
    """Token ids, and what is said of each; None for null."""
    if element is None:
        return None
    if isinstance(element, Mapping):
        return element.keys(), element.values()
    if isinstance(element, list):
        if all(isinstance(entry, tuple | list) and len(entry) == 2 for entry in element):
            return [key for key, _ in element], [value for _, value in element]
        if all(isinstance(entry, Mapping) and "token_id" in entry for entry in element):
            return [entry["token_id"] for entry in element], element
    raise ValueError(f"is {_shown(element)}: {_UNDERSTOOD}")


def _parallel(log_p: Any, ids: Any) -> tuple[Collection[Any], Collection[Any]] | None:
    """The same of a list of log-probabilities and the list of its ids."""
    if log_p is None and ids is None:
        return None
    if not isinstance(log_p, list) or not isinstance(ids, list) or len(log_p) != len(ids):
        raise ValueError(
            f"is {_shown(log_p)} beside ids that are {_shown(ids)}: wanted are two lists of the "
            "same length"
        )
    return ids, log_p


class _WrongEntryError(Exception):
    """An entry that is none; ``entry`` is its number among all of the record."""

    def __init__(self, entry: int, problem: str) -> None:
        super().__init__(problem)
        self.entry = entry


def _at_once(keys: list[Any], values: list[Any]) -> tuple[Array, Array, Array] | None:
    """Ids, log-probabilities and ranks where all entries are of the usual types; else None."""
    kinds = set(map(type, keys))
    if kinds == {str}:
        digits = "".join(keys)
        if not (digits.isascii() and digits.isdigit() and all(keys)):
            return None
    elif kinds - {int}:
        return None
    ranks: list[Any] = [NO_RANK] * len(values)
    if set(map(type, values)) == {dict}:
        found = [value.get("rank") for value in values]
        values = [value.get("logprob") for value in values]
        rank_kinds = set(map(type, found))
        ranks = ranks if rank_kinds == {type(None)} else found
        if rank_kinds - {type(None)} and rank_kinds != {int}:
            return None
    if set(map(type, values)) - {float, int}:
        return None
    try:
        ids = np.asarray(list(map(int, keys)), np.int64)
        return ids, np.asarray(values, np.float64), np.asarray(ranks, np.int64)
    except (OverflowError, ValueError):
        return None


def _one_by_one(keys: list[Any], values: list[Any]) -> tuple[Array, Array, Array]:
    """The same for entries of any type; finds the first that is wrong."""
    ids, log_p, ranks = [], [], []
    for entry, (key, value) in enumerate(zip(keys, values, strict=True)):
        try:
            ids.append(_id(key))
            logprob, rank = _value(value)
        except (ValueError, OverflowError) as error:
            raise _WrongEntryError(entry, str(error)) from error
        log_p.append(logprob)
        ranks.append(rank)
    return (
        np.asarray(ids, np.int64),
        np.asarray(log_p, np.float64),
        np.asarray(ranks, np.int64),
    )


def _is_id(value: Any) -> bool:
    return type(value) is int and _LEAST <= value <= _MOST


def _id(key: Any) -> int:
    if isinstance(key, str) and key.isascii() and key.isdigit():
        key = int(key)
    if not _is_id(key):
        raise ValueError(f"names {_shown(key)}, which is no token id")
    return key  # type: ignore[no-any-return]


def _value(value: Any) -> tuple[float, int]:
    """Log-probability and rank of one entry."""
    rank: Any = None
    if isinstance(value, Mapping):
        rank, value = value.get("rank"), value.get("logprob")
    rank = NO_RANK if rank is None else rank
    if not isinstance(value, float | int | np.floating) or isinstance(value, bool):
        raise ValueError(f"has the log-probability {_shown(value)}, which is no number")
    if not _is_id(rank):
        raise ValueError(f"has the rank {_shown(rank)}, which is no whole number")
    return float(value), rank


def _shown(value: Any) -> str:
    """A value in few words."""
    if isinstance(value, list | tuple | Mapping) and len(value) > 3:
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
