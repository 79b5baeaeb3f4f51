"""What a person sees while a teacher is dumped: samples per second, time left, size, accuracy."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)


class DumpProgress:
    """A progress bar on standard error, or a line now and then where that is no terminal.

    Args:
        title: shown before the bar.
        total: samples to dump; None where nobody knows yet.
        position_bytes: decoded bytes of one position.
        shown: False: count, but show nothing.
        line_s: seconds between lines.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        position_bytes: int,
        *,
        shown: bool,
        line_s: float = 30.0,
    ) -> None:
        console = Console(file=sys.stderr)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[speed]} {task.fields[teacher]}"),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self._title, self._total = title, total
        self._line_s = line_s if shown and not console.is_terminal else math.inf
        self._last_line = time.monotonic()
        self._about = f"{position_bytes} B/position"
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
        self._bar.update(self._task, advance=samples, speed=f"{speed:,.0f}/s" if speed else "")
        if time.monotonic() - self._last_line >= self._line_s:
            self._last_line = time.monotonic()
            done = self._bar.tasks[0].completed
            total = "" if self._total is None else f" of {self._total:,}"
            log.info("%s: %s%s samples, %.0f/s", self._title, f"{done:,.0f}", total, speed or 0)

    def committed(self, _shard: int, statistics: Mapping[str, float]) -> None:
        """A shard was committed; called in the writer's thread."""
        for name in self._sums:
            self._sums[name] += statistics[name]
        if self._sums["labelled"]:
            accuracy = self._sums["correct"] / self._sums["labelled"]
            self._bar.update(self._task, teacher=f"{self._about}, {accuracy:.2%} right")
