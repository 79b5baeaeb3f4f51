"""What a person sees while a teacher is dumped: samples per second, time left, size, accuracy."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class DumpProgress:
    """A progress bar on standard error; silent where that is no terminal or not wanted.

    Args:
        title: shown before the bar.
        total: samples to dump.
        position_bytes: decoded bytes of one position.
        shown: False: count, but show nothing.
    """

    def __init__(self, title: str, total: int, position_bytes: int, *, shown: bool) -> None:
        console = Console(file=sys.stderr)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("samples"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[speed]} {task.fields[teacher]}"),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self._about = f"{position_bytes} B/position before compression"
        self._sums = {"labelled": 0.0, "correct": 0.0}
        self._task = self._bar.add_task(title, total=total, speed="", teacher=self._about)

    def __enter__(self) -> DumpProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, samples: int) -> None:
        """Samples went through the teacher."""
        speed = self._bar.tasks[0].speed
        self._bar.update(
            self._task, advance=samples, speed=f"{speed:.0f} samples/s" if speed else ""
        )

    def committed(self, _shard: int, statistics: Mapping[str, float]) -> None:
        """A shard was committed; called in the writer's thread."""
        for name in self._sums:
            self._sums[name] += statistics[name]
        if self._sums["labelled"]:
            accuracy = self._sums["correct"] / self._sums["labelled"]
            self._bar.update(self._task, teacher=f"{self._about}, teacher accuracy {accuracy:.2%}")
