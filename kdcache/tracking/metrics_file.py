"""``metrics.csv`` in a run's folder: Lightning's CSV logger, made to go on with a file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger

METRICS_FILE = "metrics.csv"


class MetricsFile(CSVLogger):
    """Writes ``metrics.csv``, and the hyper-parameters beside it as ``hparams.yaml``.

    Args:
        folder: of the run.
        before_step: earlier rows of steps below this one stay; 0 in a new run, the checkpoint's
            step in one that goes on.
    """

    def __init__(self, folder: Path, *, before_step: int = 0) -> None:
        super().__init__(folder, name="", version="")
        self._file = folder / METRICS_FILE
        self._before_step = before_step

    @property
    @rank_zero_experiment  # type: ignore[untyped-decorator]
    def experiment(self) -> Any:
        """Lightning's writer, made on first use."""
        is_new = self._experiment is None
        kept = earlier_rows(self._file, self._before_step) if is_new else []
        writer: Any = super().experiment
        if is_new:
            writer.metrics = kept  # it has removed the file
            writer.save()
        return writer


def earlier_rows(file: Path, before_step: int) -> list[dict[str, str]]:
    """The rows of a metrics file below a step, without empty cells.

    A row that a killed process left half written is dropped.
    """
    if not before_step or not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, restkey="", restval=""))
    return [
        {name: value for name, value in row.items() if value}
        for row in rows
        if row.get("step", "").isdecimal() and int(row["step"]) < before_step
    ]
