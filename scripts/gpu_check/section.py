"""What a section is given and what it gives: a setting, a clock, figures, and in the end a result.

Nothing here imports torch: the process that runs the sections only passes these values on.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scripts.measuring.timing import Name, Spread, Turn, take_turns

Status = Literal["passed", "cut short", "skipped", "failed", "not run"]

_SHARED_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 8 << 30


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where and how large a section measures.

    Attributes:
        device: ``cuda`` or ``cpu``.
        is_tiny: sizes at which everything runs, and nothing is worth publishing.
        folder: of the section, for caches; removed after it.
    """

    device: str
    is_tiny: bool
    folder: Path

    @property
    def num_workers(self) -> int:
        """Of a loader of photos; none where batches in shared memory could fill it."""
        if self.is_tiny or not _SHARED_MEMORY.is_dir():
            return 0
        has_room = shutil.disk_usage(_SHARED_MEMORY).free >= _ROOM_BYTES
        return min(8, (os.cpu_count() or 1) // 2) if has_room else 0


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number that was measured.

    Attributes:
        what: was measured.
        unit: of the number.
        median: over the turns; None where it could not be had, with a remark.
        low: the first quartile.
        high: the third.
        turns: how many there were; 1 for what is counted, not timed.
        remark: what a reader has to know.
    """

    what: str
    unit: str
    median: float | None
    low: float | None = None
    high: float | None = None
    turns: int = 1
    remark: str = ""

    @classmethod
    def of(cls, what: str, unit: str, values: Sequence[float], remark: str = "") -> Figure:
        """The spread of several turns, or the one value."""
        if len(values) == 1:
            return cls(what=what, unit=unit, median=values[0], remark=remark)
        spread = Spread.of(values)
        return cls(
            what=what,
            unit=unit,
            median=spread.median,
            low=spread.low,
            high=spread.high,
            turns=spread.num,
            remark=remark,
        )

    def __str__(self) -> str:
        """``1.04 (1.021 to 1.093)``; one value with about three digits."""
        if self.median is None:
            return "none"
        if self.low is not None and self.high is not None:
            return str(
                Spread(median=self.median, low=self.low, high=self.high, num=max(2, self.turns))
            )
        if isinstance(self.median, int):  # counted
            return f"{self.median:,}"
        if self.median == 0 or not math.isfinite(self.median):
            return f"{self.median:g}"
        return f"{self.median:,.{max(0, 2 - math.floor(math.log10(abs(self.median))))}f}"


class Clock:
    """A section's time: turns are taken while there is some.

    Args:
        budget_s: seconds from now.

    Attributes:
        cut: what was left out for want of time, in words.
    """

    def __init__(self, budget_s: float) -> None:
        self._until = time.perf_counter() + budget_s
        self.cut: list[str] = []

    @property
    def is_over(self) -> bool:
        """Whether nothing more should be begun."""
        return time.perf_counter() > self._until

    def take_turns(
        self, ways: Mapping[Name, Callable[[], object]], repeats: int, *, warm_up: int = 1
    ) -> dict[Name, list[Turn]]:
        """See :func:`scripts.measuring.timing.take_turns`; at least one turn of each way."""
        taken = take_turns(ways, repeats, warm_up=warm_up, until=self._until, least=1)
        done = min(map(len, taken.values()))
        if done < repeats:
            self.cut.append(f"{done} of {repeats} turns")
        return taken


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a section ended.

    Attributes:
        section: its name.
        status: cut short is one that has fewer turns, or parts, than it would have had.
        budget_s: the seconds that it was to take.
        seconds: that it took, with its imports.
        error: why it failed or was not run; what was cut.
        figures: all that it gave, also where it failed later.
    """

    section: str
    status: Status
    budget_s: float
    seconds: float = 0.0
    error: str = ""
    figures: Sequence[Figure] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "figures": [vars(figure) for figure in self.figures]}


def per_turn(turns: Sequence[Turn], base: Sequence[Turn]) -> list[float]:
    """Ratios of wall time, turn by turn."""
    return [turn.wall_s / other.wall_s for turn, other in zip(turns, base, strict=True)]
