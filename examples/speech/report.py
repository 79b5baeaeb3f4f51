"""What the demo found, as a table for people and as JSON for programs. Nothing is trained here."""

from __future__ import annotations

import dataclasses
import json
import operator
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


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
class Row:
    """Students that differ in their seed alone.

    Attributes:
        name: what they learned from.
        losses: loss name -> coefficient.
        scores: one a seed, in the seeds' order.
    """

    name: str
    losses: Mapping[str, float]
    scores: tuple[Score, ...]

    def mean(self, of: Callable[[Score], float]) -> float:
        return statistics.mean(map(of, self.scores))

    def deviation(self, of: Callable[[Score], float]) -> float | None:
        """Sample standard deviation over seeds; None for a single one."""
        return statistics.stdev(map(of, self.scores)) if len(self.scores) > 1 else None


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
    rows: tuple[Row, ...]
    cache: Mapping[str, Any]
    settings: Mapping[str, Any]


def print_students(console: Console, results: Results) -> None:
    table = Table(
        title="One teacher, run once: students on the test recordings",
        title_justify="left",
        caption=f"{results.num_train:,} utterances, {results.num_labelled:,} of them with a "
        "transcript for students.\nErrors for 100 words; mean ± standard deviation over "
        f"{len(results.rows[0].scores)} seeds, the same in each row.\n"
        "KL(teacher || student) at T = 1, nats a frame.",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
    )
    table.add_column("learns from", no_wrap=True)
    for name in ("errors %", "KL", "agree %", "weights", "s each"):
        table.add_column(name, justify="right", no_wrap=True)
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


def _spread(row: Row, of: Callable[[Score], float], *, digits: int) -> str:
    deviation = row.deviation(of)
    mean = f"{row.mean(of):.{digits}f}"
    return mean if deviation is None else f"{mean} ± {deviation:.{digits}f}"


def print_cache(console: Console, results: Results) -> None:
    for split, found in results.cache["splits"].items():
        drift = found["pilot"].get("drift_mean_kl")
        alone = "" if drift is None else f"; alone and in a batch {drift:.1g} nats apart"
        console.print(
            f"cache {split:<6} {found['bytes_per_position']:.1f} bytes a frame; "
            f"{found['positions']:,} frames of {found['samples']:,} utterances{alone}",
            soft_wrap=True,
        )
    for remark in results.cache["remarks"]:
        console.print(f"remark: {remark}", soft_wrap=True)


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
    splits = results.cache["splits"].items()
    report = {
        **dataclasses.asdict(results),
        "rows": students,
        "cache": {name: {key: found[key] for key in wanted} for name, found in splits},
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
