"""What came out of a student run, as tables for a person.

A row for each validation set, and one below it for its teacher.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kdcache.tables import aligned

if TYPE_CHECKING:
    from kdcache.train.results.student_run import StudentRun

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


def run_text(finished: StudentRun, width: int) -> str:
    """What a person wants to know of a run: scores by validation set, losses, and where it is."""
    parts = [score_table(finished, width), ""] if finished.scores else []
    rows = [[name.removeprefix("train_"), f"{v:.4f}"] for name, v in finished.losses.items()]
    parts += [aligned([["training loss", "last epoch"], *rows], width), ""] if rows else []
    parts += [
        f"student       {finished.student}",
        *([f"pretrained    {finished.pretrained}"] if finished.pretrained else []),
        f"trained       {_counted(finished.epochs, 'epoch')}, {_counted(finished.steps, 'step')}",
        f"cache digest  {finished.digest}",
        f"time          {finished.seconds:.1f} s",
    ]
    return "\n".join(parts)


def score_table(finished: StudentRun, width: int) -> str:
    """Scores of all sets as text, and what is said of them below.

    What the cache knows of the teacher itself (``teacher_accuracy`` beside ``accuracy``) stands
    in a row of its own.
    """
    scores = finished.scores
    found = {name for numbers in scores.values() for name in numbers}
    found -= {name for name in found if name.removeprefix(_TEACHER) in found - {name}}
    kinds = [name for name in _LABELS if name in found]
    kinds += [name for name in sorted(found) if name not in _LABELS and _is_new(name, scores)]
    rows = [["set", *(_LABELS.get(name, name) for name in kinds)]]
    for split, numbers in scores.items():
        rows.append([split, *(_cell(finished, split, name) for name in kinds)])
        if any(_TEACHER + name in numbers for name in kinds):
            cells = (_cell(finished, split, _TEACHER + name) for name in kinds)
            rows.append(["  its teacher", *cells])
    notes = [_BOUND] if finished.lower_bounds else []
    notes += [f"{split}: scores of a part, {part}" for split, part in finished.parts.items()]
    return "\n".join([aligned(rows, width), *notes])


def _cell(finished: StudentRun, split: str, name: str) -> str:
    value = finished.scores[split].get(name)
    if value is None:
        return "-"
    four = name.endswith(("cross_entropy", "teacher_kl", "kd_loss"))
    pattern = "{:.2%}" if _SHARE.fullmatch(name) else "{:.4f}" if four else "{:.4g}"
    text = pattern.format(value)
    return f">= {text}" if f"{split}_{name}" in finished.lower_bounds else text


def _is_new(name: str, scores: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether a column says more than others: a result, or a KL at temperature 1, may not."""
    if name not in ("inference_result", "kd_loss"):
        return True
    return not all(
        any(other != name and value == numbers[name] for other, value in numbers.items())
        for numbers in scores.values()
        if name in numbers
    )


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
