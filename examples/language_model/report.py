"""What the demo found, as a table for people and as JSON for programs. Nothing is trained here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from examples.reports.results import means, of_splits, write_json
from examples.reports.rows import Row
from examples.reports.tables import (
    NO_DEVIATION,
    mean_and_deviation,
    print_remarks,
    students_table,
)


@dataclass(frozen=True, kw_only=True)
class Score:
    """One student, on the whole validation text.

    Attributes:
        seed: of weights and order.
        cross_entropy: nats per predicted token.
        teacher_kl: KL(teacher || student) at temperature 1 over the whole vocabulary, nats.
        teacher_agreement: share of positions where both have the same top token.
        seconds: of training.
        weights: file of its weights.
    """

    seed: int
    cross_entropy: float
    teacher_kl: float
    teacher_agreement: float
    seconds: float
    weights: str

    @property
    def perplexity(self) -> float:
        """Exp of the nats per token."""
        return math.exp(self.cross_entropy)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The teacher on the validation text, from the dense cache's own statistics."""

    cross_entropy: float
    parameters: int
    remarks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that the demo found.

    Attributes:
        source: of the text.
        tokens_per_word: turns nats per token into nats per word.
        teacher: its score.
        student_parameters: of every student.
        rows: one for each way to learn: the first from labels, the last from dense targets.
        caches: name -> report of ``kdcache inspect``.
        settings: plain values.
    """

    source: str
    tokens_per_word: float
    teacher: Teacher
    student_parameters: int
    rows: tuple[Row[Score], ...]
    caches: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]

    def word_perplexity(self, cross_entropy: float) -> float:
        """Perplexity a word, from nats per token."""
        return math.exp(cross_entropy * self.tokens_per_word)

    def gain_kept(self, row: Row[Score]) -> float | None:
        """Share of what dense targets gain over labels in KL, over paired seeds.

        1 for the dense row itself; None where dense targets gain nothing.
        """
        labels, dense = self.rows[0], self.rows[-1]
        pairs = list(zip(labels.scores, row.scores, dense.scores, strict=True))
        whole = sum(low.teacher_kl - high.teacher_kl for low, _, high in pairs)
        return (
            sum(low.teacher_kl - mine.teacher_kl for low, mine, _ in pairs) / whole
            if whole > 0
            else None
        )


def short(number: float) -> str:
    """Whole, or where it is large (a word of many tokens), to three digits."""
    return f"{number:.0f}" if number < 1e6 else f"{number:.2e}"


def print_students(console: Console, results: Results) -> None:
    rows = results.rows
    table = students_table(
        title="One teacher, run once: students on the validation text",
        caption="Perplexity a token: mean ± standard deviation over seeds "
        f"({len(rows[0].scores)}) of\nweights and order, the same for each row; then means.\n"
        "KL(teacher || student) at T = 1 over the whole vocabulary, nats a token;\n"
        "gain: in KL, where text is 0 and dense targets are 100.",
        names=("learns from",),
        numbers=("perplexity", "a word", "KL", "agree %", "gain %", "weights", "s each"),
    )
    taught = results.teacher.cross_entropy
    pad = "" if len(rows[0].scores) == 1 else NO_DEVIATION
    table.add_row(
        "(teacher) text",
        f"{math.exp(taught):.1f}{pad}",
        short(results.word_perplexity(taught)),
        *("", "", ""),
        f"{results.teacher.parameters:,}",
    )
    table.add_section()
    for row in rows:
        kept = results.gain_kept(row)
        table.add_row(
            row.name,
            mean_and_deviation(
                row.mean(lambda score: score.perplexity),
                row.deviation(lambda score: score.perplexity),
                digits=1,
            ),
            short(row.mean(lambda score: results.word_perplexity(score.cross_entropy))),
            f"{row.mean(lambda score: score.teacher_kl):.4f}",
            f"{100 * row.mean(lambda score: score.teacher_agreement):.1f}",
            "" if kept is None else f"{100 * kept:.0f}",
            f"{results.student_parameters:,}",
            f"{row.mean(lambda score: score.seconds):.0f}",
        )
    console.print(table)


def print_caches(console: Console, results: Results) -> None:
    for name, report in results.caches.items():
        for split, found in report["splits"].items():
            console.print(
                f"cache {name:<6} {split:<6} {found['bytes_per_position']:>8.1f} bytes a token; "
                f"{found['positions']:,} tokens in {found['samples']:,} sequences",
                soft_wrap=True,
            )
    print_remarks(console, results.teacher.remarks)


def write_results(path: Path, results: Results) -> None:
    """Everything that was measured, as JSON."""
    students = [
        {
            **dataclasses.asdict(row),
            **means(row, "perplexity"),
            "perplexity_standard_deviation": row.deviation(lambda score: score.perplexity),
            "word_perplexity_mean": row.mean(
                lambda score: results.word_perplexity(score.cross_entropy)
            ),
            **means(row, "teacher_kl", "teacher_agreement"),
            "gain_kept": results.gain_kept(row),
            **means(row, "seconds"),
        }
        for row in results.rows
    ]
    wanted = ("samples", "positions", "bytes", "bytes_per_position", "digest", "codec", "teacher")
    caches = {name: of_splits(report, wanted) for name, report in results.caches.items()}
    found = {
        "text": results.source,
        "tokens_per_word": results.tokens_per_word,
        "teacher": dataclasses.asdict(results.teacher),
        "students": students,
        "caches": caches,
        "settings": dict(results.settings),
    }
    write_json(path, found)
