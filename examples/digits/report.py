"""What the demo found, as a table for people and as JSON for programs. Nothing is trained here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from examples.reports.results import means, of_splits, write_json
from examples.reports.rows import Row
from examples.reports.tables import NO_DEVIATION, mean_and_deviation, students_table


@dataclass(frozen=True, kw_only=True)
class Score:
    """One student, on the test split.

    Attributes:
        seed: of weights, order and known labels.
        accuracy: share of images whose digit is right.
        teacher_kl: KL(teacher || student) at temperature 1, nats per image.
        teacher_agreement: share of images where both have the same top class.
        seconds: of training.
        weights: file of its weights.
    """

    seed: int
    accuracy: float
    teacher_kl: float
    teacher_agreement: float
    seconds: float
    weights: str


@dataclass(frozen=True, kw_only=True)
class SizedRow(Row[Score]):
    """Students of one width that differ in their seed alone.

    Attributes:
        width: of the student.
        temperature: of the losses on the teacher's targets; None where there is none.
        parameters: of the student.
    """

    width: int
    temperature: float | None
    parameters: int


def print_students(console: Console, teacher: Mapping[str, Any], rows: Sequence[SizedRow]) -> None:
    table = students_table(
        title="Students from one teacher cache, on the test split",
        caption="accuracy: mean ± standard deviation over seeds "
        f"({len(rows[0].scores)}), which draw weights,\n"
        "order and known labels; then means. KL(teacher || student) is at T = 1.\n"
        "Targets 'teacher': the objective is "
        + " + ".join(f"{c:g} {name}" for name, c in rows[-1].losses.items())
        + ".",
        names=("student", "targets"),
        numbers=("T", "accuracy %", "KL, nats", "agreement %", "parameters", "s each"),
    )
    taught = f"{100 * teacher['accuracy']:.1f}{NO_DEVIATION}"
    table.add_row("teacher", "labels", "", taught, "", "", f"{teacher['parameters']:,}", "")
    for before, row in zip([None, *rows], rows, strict=False):
        first = before is None or before.width != row.width
        if first:
            table.add_section()
        mean = 100 * row.mean(lambda score: score.accuracy)
        deviation = row.deviation(lambda score: score.accuracy)
        accuracy = (
            f"{mean:.1f}{NO_DEVIATION}"
            if deviation is None
            else mean_and_deviation(mean, 100 * deviation, digits=1)
        )
        table.add_row(
            f"width {row.width}" if first else "",
            "labels" if row.temperature is None else "teacher",
            "" if row.temperature is None else f"{row.temperature:g}",
            accuracy,
            f"{row.mean(lambda score: score.teacher_kl):.3f}",
            f"{100 * row.mean(lambda score: score.teacher_agreement):.1f}",
            f"{row.parameters:,}",
            f"{row.mean(lambda score: score.seconds):.1f}",
        )
    console.print(table)


def print_cache(console: Console, report: Mapping[str, Any]) -> None:
    console.print(f"\nCache {report['path']}, bytes per sample:", soft_wrap=True)
    for name, split in report["splits"].items():
        columns = sum(split["column_bytes"].values()) / split["samples"]
        console.print(
            f"  {name:<6} {split['bytes_per_sample']:.1f}, of which columns with fingerprints "
            f"{columns:.1f}; {split['samples']:,} samples, {split['bytes']:,} bytes",
            soft_wrap=True,
        )


def write_results(
    path: Path,
    teacher: Mapping[str, Any],
    rows: Sequence[SizedRow],
    report: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> None:
    students = [
        {
            "width": row.width,
            "targets": row.name,
            "temperature": row.temperature,
            "losses": row.losses,
            "parameters": row.parameters,
            "scores": [dataclasses.asdict(score) for score in row.scores],
            **means(row, "accuracy"),
            "accuracy_standard_deviation": row.deviation(lambda score: score.accuracy),
            **means(row, "teacher_kl", "teacher_agreement", "seconds"),
        }
        for row in rows
    ]
    wanted = ("samples", "bytes", "bytes_per_sample", "column_bytes", "digest", "codec", "teacher")
    results = {
        "teacher": dict(teacher),
        "students": students,
        "cache": {"path": report["path"], "splits": of_splits(report, wanted)},
        "settings": dict(settings),
    }
    write_json(path, results)
