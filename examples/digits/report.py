"""What the demo found, as a table for people and as JSON for programs. Nothing is trained here."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


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
class Row:
    """Students that differ in their seed alone."""

    width: int
    targets: str
    temperature: float | None
    losses: Mapping[str, float]
    parameters: int
    scores: tuple[Score, ...]

    def mean(self, of: Callable[[Score], float]) -> float:
        return statistics.mean(map(of, self.scores))

    def deviation(self, of: Callable[[Score], float]) -> float | None:
        """Sample standard deviation over seeds; None for a single one."""
        return statistics.stdev(map(of, self.scores)) if len(self.scores) > 1 else None


def print_students(console: Console, teacher: Mapping[str, Any], rows: Sequence[Row]) -> None:
    table = Table(
        title="Students from one teacher cache, on the test split",
        title_justify="left",
        caption="accuracy: mean ± standard deviation over seeds "
        f"({len(rows[0].scores)}), which draw weights,\n"
        "order and known labels; then means. KL(teacher || student) is at T = 1.\n"
        "Targets 'teacher': the objective is "
        + " + ".join(f"{c:g} {name}" for name, c in rows[-1].losses.items())
        + ".",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
    )
    table.add_column("student", no_wrap=True)
    table.add_column("targets", no_wrap=True)
    for name in ("T", "accuracy %", "KL, nats", "agreement %", "parameters", "s each"):
        table.add_column(name, justify="right", no_wrap=True)
    accuracy = f"{100 * teacher['accuracy']:.1f}      "  # where the students' means stand
    table.add_row("teacher", "labels", "", accuracy, "", "", f"{teacher['parameters']:,}", "")
    for before, row in zip([None, *rows], rows, strict=False):
        first = before is None or before.width != row.width
        if first:
            table.add_section()
        deviation = row.deviation(lambda score: score.accuracy)
        spread = "      " if deviation is None else f" ± {100 * deviation:>3.1f}"
        table.add_row(
            f"width {row.width}" if first else "",
            "labels" if row.temperature is None else "teacher",
            "" if row.temperature is None else f"{row.temperature:g}",
            f"{100 * row.mean(lambda score: score.accuracy):.1f}{spread}",
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
    rows: Sequence[Row],
    report: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> None:
    students = [
        {
            **dataclasses.asdict(row),
            "accuracy_mean": row.mean(lambda score: score.accuracy),
            "accuracy_standard_deviation": row.deviation(lambda score: score.accuracy),
            "teacher_kl_mean": row.mean(lambda score: score.teacher_kl),
            "teacher_agreement_mean": row.mean(lambda score: score.teacher_agreement),
            "seconds_mean": row.mean(lambda score: score.seconds),
        }
        for row in rows
    ]
    wanted = ("samples", "bytes", "bytes_per_sample", "column_bytes", "digest", "codec", "teacher")
    splits = {name: {key: split[key] for key in wanted} for name, split in report["splits"].items()}
    results = {
        "teacher": dict(teacher),
        "students": students,
        "cache": {"path": report["path"], "splits": splits},
        "settings": dict(settings),
    }
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
