"""What came out of a student run, as tables for a person.

A row for each validation set, and one below it for its teacher.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from kdcache.tables import aligned

Scores = Mapping[str, Mapping[str, float]]
"""Validation set -> number -> value."""

_LABELS = {
    "accuracy": "accuracy",
    "top_5_accuracy": "top-5",
    "word_error_rate": "word errors",
    "character_error_rate": "character errors",
    "cross_entropy": "cross-entropy",
    "perplexity": "perplexity",
    "teacher_kl": "KL to teacher",
    "teacher_agreement": "agreement",
}
"""In the order of the columns; every other number is called by its name."""

_SHARE = re.compile(
    r"(top_\d+_|teacher_)*accuracy|teacher_agreement|(teacher_)?(word|character)_error_rate"
)
_TEACHER = "teacher_"
_BOUND = ">=  a lower bound: the cache holds the top k classes and the sum of the others"


def score_table(
    scores: Scores, lower_bounds: Collection[str], parts: Mapping[str, str], width: int
) -> str:
    """Scores of all sets as text, and what is said of them below.

    What the cache knows of the teacher itself (``teacher_accuracy`` beside ``accuracy``) stands
    in a row of its own.

    Args:
        scores: of every set.
        lower_bounds: which of them are lower bounds, as ``<set>_<number>``.
        parts: set -> how much of it was scored, where that is not all.
        width: characters of a line.
    """
    found = {name for numbers in scores.values() for name in numbers}
    found -= {name for name in found if name.removeprefix(_TEACHER) in found - {name}}
    kinds = [name for name in _LABELS if name in found]
    kinds += [name for name in sorted(found) if name not in _LABELS and _is_new(name, scores)]

    def cell(split: str, name: str) -> str:
        text = _cell(name, scores[split].get(name))
        return f">= {text}" if f"{split}_{name}" in lower_bounds else text

    rows = [["set", *(_LABELS.get(name, name) for name in kinds)]]
    for split, numbers in scores.items():
        rows.append([split, *(cell(split, name) for name in kinds)])
        if any(_TEACHER + name in numbers for name in kinds):
            rows.append(["  its teacher", *(cell(split, _TEACHER + name) for name in kinds)])
    notes = [_BOUND] if lower_bounds else []
    notes += [f"{split}: scores of a part, {part}" for split, part in parts.items()]
    return "\n".join([aligned(rows, width), *notes])


def loss_table(losses: Mapping[str, float], width: int) -> str:
    """Training losses of the last epoch, one a line."""
    rows = [[name.removeprefix("train_"), f"{value:.4f}"] for name, value in losses.items()]
    return aligned([["training loss", "last epoch"], *rows], width)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    four = name.endswith(("cross_entropy", "teacher_kl", "kd_loss"))
    pattern = "{:.2%}" if _SHARE.fullmatch(name) else "{:.4f}" if four else "{:.4g}"
    return pattern.format(value)


def _is_new(name: str, scores: Scores) -> bool:
    """Whether a column says more than others: a result, or a KL at temperature 1, may not."""
    if name not in ("inference_result", "kd_loss"):
        return True
    return not all(
        any(other != name and value == numbers[name] for other, value in numbers.items())
        for numbers in scores.values()
        if name in numbers
    )
