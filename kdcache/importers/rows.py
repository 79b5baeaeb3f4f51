"""From a record's entries to the k most probable tokens of every position, checked.

A causal model's logits at position t are of token t + 1, so L tokens have L - 1 positions of which
anything can be said. An element of a file is either of its own token (what vLLM gives: element t
is what the logits at t - 1 say, and the first is null) or of the next one (what ``topk`` of a
model's logits gives: element t is what the logits at t say, and the last, where there is one, is
of a token that is not there). That is the ``shift``: 1 or 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kdcache.columns import Array
from kdcache.errors import DataError
from kdcache.importers.records import NO_RANK, Record

LEAST_TAIL = float(np.finfo(np.float32).eps)
"""What probabilities in float32 can be said to leave to other classes, at the least."""

MOST_MASS = 1e-3
"""By how much probabilities may sum up to more than 1: rounding of 16-bit logits is less."""

_ABSENT = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class TopRows:
    """The most probable tokens of P = max(0, L - 1) positions.

    Attributes:
        ids: (P, K) int64, of descending probability.
        log_p: (P, K) float64, at most 0.
        tail_log_sum: (P, 1) float64, log of the probability of all other classes.
        labels: (P,) int64, the token that came next.
        label_log_p: (P,) float64, its log-probability; NaN where the record does not have it.
    """

    ids: Array
    log_p: Array
    tail_log_sum: Array
    labels: Array
    label_log_p: Array


def num_top(record: Record) -> int | None:
    """How many of the most probable tokens every element has; None where there is no element.

    vLLM adds the actual token where it is not among them, with its rank. What has a rank beyond
    the number of entries is not counted; without ranks the elements that need no such addition
    tell, because the fewest entries are taken.
    """
    filled = np.flatnonzero(record.counts > 0)
    if not filled.size:
        return None
    element = np.repeat(np.arange(len(record.counts)), np.maximum(record.counts, 0))
    is_top = record.ranks <= record.counts[element]
    return int(np.bincount(element[is_top], minlength=len(record.counts))[filled].min())


def top_rows(record: Record, *, shift: int, k: int, num_classes: int) -> TopRows:
    """The k most probable tokens of each position.

    Args:
        record: as it was read.
        shift: 1 where element t is of token t, 0 where it is of token t + 1.
        k: entries kept (all classes where there are fewer).
        num_classes: C.

    Raises:
        DataError: names file, line and element: another number of elements than tokens; nulls;
            fewer than k of the most probable; ids that are no class or stand there twice; numbers
            that are no distribution.
    """
    first, num_positions = _positions(record, shift)
    kept = min(k, num_classes)
    _check_tokens(record, num_classes)
    table = _table(record, first, num_positions, kept)
    _check(record, first, table, num_classes)
    # Of the most probable first; what is not there last, also behind a log-probability of -inf.
    is_out = (table.ids == _ABSENT) | (table.ranks > kept)
    _refuse(
        record,
        first,
        (~is_out).sum(axis=1) < kept,
        lambda row: (
            f"has {int((~is_out)[row].sum())} of the {kept} most probable tokens. Keep fewer (k), "
            "or ask the teacher for more."
        ),
    )
    order = np.lexsort((table.ranks, -table.log_p, is_out), axis=-1)[:, :kept]
    ids = np.take_along_axis(table.ids, order, axis=1)
    log_p = np.minimum(np.take_along_axis(table.log_p, order, axis=1), 0.0)
    left = 1.0 - np.exp(log_p).sum(axis=1, keepdims=True)
    if kept == num_classes:
        _refuse(record, first, left[:, 0] > MOST_MASS, lambda row: _mass(1 - left[row, 0]))
        tail = np.full_like(left, -np.inf)
    else:
        tail = np.log(np.maximum(left, LEAST_TAIL))
    labels = record.tokens[1:]
    is_label = table.ids == labels[:, None]
    return TopRows(
        ids=ids,
        log_p=log_p,
        tail_log_sum=tail,
        labels=labels,
        label_log_p=np.where(
            is_label.any(axis=1),
            np.where(is_label, table.log_p, -np.inf).max(axis=1, initial=-np.inf),
            np.nan,
        ),
    )


def _positions(record: Record, shift: int) -> tuple[int, int]:
    """The element that the first position is described by, and the number of positions."""
    num_tokens, num_elements = len(record.tokens), len(record.counts)
    num_positions = max(0, num_tokens - 1)
    fits = (num_tokens,) if shift else (num_tokens, num_positions)
    if num_elements not in fits:
        hint = ""
        if shift and num_elements == num_positions:
            hint = " If the first, which is null, was left out, give shift 0."
        raise DataError(
            f"{record.where}: {num_tokens} tokens have {num_elements} elements in {record.field}; "
            f"wanted are {' or '.join(map(str, fits))}.{hint}"
        )
    if shift and num_elements and record.counts[0] > 0:
        raise record.refusal(
            0,
            "is not null, so it seems to be of the next token, and every element after it. Where "
            "element t is what the model said after token t, give shift 0.",
        )
    nulls = np.flatnonzero(record.counts[shift : shift + num_positions] < 0)
    if nulls.size:
        raise record.refusal(
            shift + int(nulls[0]),
            "is null: of this token nothing is known. Ask the teacher for the log-probabilities of "
            "all tokens (vLLM: prompt_logprobs over prompt and completion together), or leave the "
            "record out.",
        )
    return shift, num_positions


def _check_tokens(record: Record, num_classes: int) -> None:
    wrong = np.flatnonzero((record.tokens < 0) | (record.tokens >= num_classes))
    if wrong.size:
        at = int(wrong[0])
        raise DataError(
            f"{record.where}: token {at} is {record.tokens[at]}, and there are {num_classes:,} "
            "classes (num_classes). Give the number of classes that the student's logits have."
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Table:
    """Entries of P positions side by side, (P, M); ids of what is not there are -1."""

    ids: Array
    log_p: Array
    ranks: Array


def _table(record: Record, first: int, num_positions: int, least: int) -> _Table:
    counts = record.counts[first : first + num_positions]
    start = int(np.maximum(record.counts[:first], 0).sum())
    rows = np.repeat(np.arange(num_positions), counts)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = num_positions, max(least, int(counts.max(initial=0)))

    def filled(values: Array, otherwise: float) -> Array:
        table = np.full(shape, otherwise, values.dtype)
        table[rows, places] = values[start : start + len(rows)]
        return table

    return _Table(
        ids=filled(record.ids, _ABSENT),
        log_p=filled(record.log_p, -np.inf),
        ranks=filled(record.ranks, NO_RANK),
    )


def _check(record: Record, first: int, table: _Table, num_classes: int) -> None:
    """Refuse entries that are no part of a distribution over the classes."""
    is_there = np.arange(table.ids.shape[1]) < record.counts[first:][: len(table.ids), None]
    is_class = (table.ids >= 0) & (table.ids < num_classes)
    wrong = is_there & ~is_class
    _refuse(
        record,
        first,
        np.any(wrong, axis=1),
        lambda row: (
            f"names the token {table.ids[row][wrong[row]][0]}, and there are {num_classes:,} "
            "classes (num_classes)."
        ),
    )
    by_id = np.sort(np.where(is_there, table.ids, _ABSENT), axis=1)
    twice = (by_id[:, 1:] == by_id[:, :-1]) & (by_id[:, 1:] != _ABSENT)
    _refuse(
        record,
        first,
        np.any(twice, axis=1),
        lambda row: f"has the token {by_id[row, 1:][twice[row]][0]} twice.",
    )
    _refuse(
        record,
        first,
        np.any(np.isnan(table.log_p), axis=1),
        lambda _: "has a log-probability of NaN.",
    )
    with np.errstate(over="ignore"):
        mass = np.exp(table.log_p).sum(axis=1)
    _refuse(record, first, mass > 1 + MOST_MASS, lambda row: _mass(mass[row]))


def _mass(mass: float) -> str:
    return (
        f"has probabilities that sum up to {mass:.6g}: these are no log-probabilities at "
        "temperature 1 over all classes."
    )


def _refuse(record: Record, first: int, wrong: Array, problem: Callable[[int], str]) -> None:
    """Raise the error of the first position that is wrong, if there is one."""
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise record.refusal(first + row, problem(row))
