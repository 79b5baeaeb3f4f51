"""What the demo found, as a table for people and as JSON for programs. Nothing is trained here."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from examples.reports.results import of_splits, write_json
from examples.reports.rows import Row
from examples.reports.tables import mean_and_deviation, print_remarks, students_table


@dataclass(frozen=True, kw_only=True)
class Score:
    """One student, on all test utterances.

    Attributes:
        seed: of everything random: dropout, order of batches.
        word_error_rate: errors for each word of the references.
        teacher_kl: KL(teacher || student) at temperature 1, nats a frame.
        teacher_agreement: share of frames where both have the same top class.
        steps: of the optimiser.
        seconds: of training.
        weights: file of its weights.
    """

    seed: int
    word_error_rate: float
    teacher_kl: float
    teacher_agreement: float
    steps: int
    seconds: float
    weights: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that the demo found.

    Attributes:
        teacher_word_error_rate: from its cached logits.
        teacher_parameters: how many.
        student_parameters: of every student.
        num_labelled: utterances whose transcript students know.
        num_train: utterances in all.
        rows: one for each way to learn.
        cache: report of ``kdcache inspect``.
        settings: plain values.
    """

    teacher_word_error_rate: float
    teacher_parameters: int
    student_parameters: int
    num_labelled: int
    num_train: int
    rows: tuple[Row[Score], ...]
    cache: Mapping[str, Any]
    settings: Mapping[str, Any]


def print_students(console: Console, results: Results) -> None:
    table = students_table(
        title="One teacher, run once: students on the test recordings",
        caption=f"{results.num_train:,} utterances, {results.num_labelled:,} of them with a "
        "transcript for students.\nErrors for 100 words; mean ± standard deviation over "
        f"{len(results.rows[0].scores)} seeds, the same in each row.\n"
        "KL(teacher || student) at T = 1, nats a frame.",
        names=("learns from",),
        numbers=("errors %", "KL", "agree %", "weights", "s each"),
    )
    table.add_row(
        "(teacher)",
        f"{100 * results.teacher_word_error_rate:.1f}",
        *("", ""),
        f"{results.teacher_parameters:,}",
    )
    table.add_section()
    for row in results.rows:
        table.add_row(
            row.name,
            _spread(row, lambda score: 100 * score.word_error_rate, digits=1),
            _spread(row, lambda score: score.teacher_kl, digits=3),
            _spread(row, lambda score: 100 * score.teacher_agreement, digits=1),
            f"{results.student_parameters:,}",
            f"{row.mean(lambda score: score.seconds):.0f}",
        )
    console.print(table)


def _spread(row: Row[Score], of: Callable[[Score], float], *, digits: int) -> str:
    return mean_and_deviation(row.mean(of), row.deviation(of), digits=digits)


def print_cache(console: Console, results: Results) -> None:
    for split, found in results.cache["splits"].items():
        drift = found["pilot"].get("drift_mean_kl")
        alone = "" if drift is None else f"; alone and in a batch {drift:.1g} nats apart"
        console.print(
            f"cache {split:<6} {found['bytes_per_position']:.1f} bytes a frame; "
            f"{found['positions']:,} frames of {found['samples']:,} utterances{alone}",
            soft_wrap=True,
        )
    print_remarks(console, results.cache["remarks"])


def write_results(path: Path, results: Results) -> None:
    """Everything that was measured, as JSON."""
    students = []
    for row in results.rows:
        found: dict[str, Any] = dataclasses.asdict(row)
        for name in ("word_error_rate", "teacher_kl", "teacher_agreement", "seconds"):
            of = operator.attrgetter(name)
            found |= {f"{name}_mean": row.mean(of), f"{name}_deviation": row.deviation(of)}
        students.append(found)
    wanted = ("samples", "positions", "bytes", "bytes_per_position", "digest", "codec", "pilot")
    report = {
        **dataclasses.asdict(results),
        "rows": students,
        "cache": of_splits(results.cache, wanted),
    }
    write_json(path, report)
