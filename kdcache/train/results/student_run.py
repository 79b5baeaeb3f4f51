"""What comes out of a student run, and the file that says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcache.tables import columns_of_terminal
from kdcache.train.pipelines.protocol import RESULT
from kdcache.train.results.output import PRETRAINED_FOLDER
from kdcache.train.results.report import loss_table, score_table
from kdcache.train.step.diagnostics import DIFFERENCES


@dataclass(frozen=True, kw_only=True, repr=False)
class StudentRun:
    """What came out of a run.

    Attributes:
        output: its folder.
        student: the plain weights of the last epoch, ``student.safetensors``.
        metrics: the last value of everything that was logged.
        scores: validation set -> numbers of these weights, whenever else it was validated; they
            stand among the metrics as ``<set>_<number>``.
        lower_bounds: names of the metrics that are lower bounds: ``<set>_teacher_kl``,
            ``<set>_kd_loss`` and ``<set>_teacher_cross_entropy`` where the cache holds the top k
            only.
        parts: validation set -> how much of it was scored, in words, where that is not all
            (``limit_val_batches``).
        epochs: that were trained.
        steps: of the optimiser, in all of them.
        seconds: wall-clock time of training, validation included.
        digest: of the cache's training split.
    """

    output: Path
    student: Path
    metrics: Mapping[str, float]
    scores: Mapping[str, Mapping[str, float]]
    lower_bounds: tuple[str, ...]
    epochs: int
    steps: int
    seconds: float
    digest: str
    parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def pretrained(self) -> Path | None:
        """What ``from_pretrained`` reads, of a student with ``save_pretrained``; None of others.

        With the tokenizer, where the data, its dataset or its collate function has one.
        """
        folder = self.output / PRETRAINED_FOLDER
        return folder if folder.is_dir() else None

    def __repr__(self) -> str:
        """One line: where it is, how long it was trained, the first score."""
        first = next(iter(self.scores), None)
        score = "" if first is None else f", {first}_{RESULT}={self.scores[first][RESULT]:.4g}"
        return f"StudentRun({str(self.output)!r}, epochs={self.epochs}, steps={self.steps}{score})"

    def summary(self, width: int | None = None) -> str:
        """The tables that ``kdcache train-student`` prints.

        Args:
            width: characters of a line; the terminal's if None.
        """
        columns = columns_of_terminal() if width is None else width
        parts: list[str] = []
        if self.scores:
            parts += [score_table(self.scores, self.lower_bounds, self.parts, columns), ""]
        if self.losses:
            parts += [loss_table(self.losses, columns), ""]
        parts += [
            f"student       {self.student}",
            *([f"pretrained    {self.pretrained}"] if self.pretrained else []),
            f"trained       {_counted(self.epochs, 'epoch')}, {_counted(self.steps, 'step')}",
            f"cache digest  {self.digest}",
            f"time          {self.seconds:.1f} s",
        ]
        return "\n".join(parts)

    @property
    def losses(self) -> dict[str, float]:
        """Training losses, mean over the last epoch: name -> value, ``final_loss`` the total."""
        others = {f"{split}_{name}" for split, found in self.scores.items() for name in found}
        others |= {f"train_{name}" for name in DIFFERENCES}
        return {
            name.removeprefix("train_"): value
            for name, value in self.metrics.items()
            if name.startswith("train_") and name not in others
        }

    def results(self) -> dict[str, Any]:
        """What ``run.json`` says beside what the run was."""
        return {
            "metrics": self.metrics,
            "scores": self.scores,
            "lower_bounds": self.lower_bounds,
            "parts": self.parts,
            "epochs": self.epochs,
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
        }


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
