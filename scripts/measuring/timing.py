"""Timings that can be published: ways take turns, and a ratio is printed as far as it is known.

A machine's speed drifts, so two ways are compared within a turn, never run after run. A figure is
the median over turns with its quartiles behind it; wall seconds and CPU seconds stand side by
side, since threads that wait for others cost the first and not always the second. A ratio has only
the digits in which the next run would agree.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.table import Table

Name = TypeVar("Name")

_MAX_DIGITS = 3


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one turn took.

    Attributes:
        wall_s: seconds on the clock.
        cpu_s: seconds of CPU, of all threads of this process.
    """

    wall_s: float
    cpu_s: float

    def __add__(self, other: Turn) -> Turn:
        return Turn(wall_s=self.wall_s + other.wall_s, cpu_s=self.cpu_s + other.cpu_s)

    def __sub__(self, other: Turn) -> Turn:
        return Turn(wall_s=self.wall_s - other.wall_s, cpu_s=self.cpu_s - other.cpu_s)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A median and its quartiles.

    Attributes:
        median: of all turns.
        low: the first quartile.
        high: the third.
        num: turns.
    """

    median: float
    low: float
    high: float
    num: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least two turns."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median=median, low=low, high=high, num=len(values))

    @property
    def digits(self) -> int:
        """Decimals in which two runs agree within one, 19 times of 20; -1: only the tens are known.

        The leading digit is always among them.
        A median of n values has a standard error of about 1.25 sd / sqrt(n), and sd is about the
        distance of the quartiles / 1.35; the difference of two medians has sqrt(2) of that.
        """
        error = 1.25 * (self.high - self.low) / 1.35 / math.sqrt(self.num)
        apart = 2 * math.sqrt(2) * error
        known = _MAX_DIGITS if apart == 0 else math.floor(-math.log10(apart))
        leading = -math.floor(math.log10(abs(self.median))) if self.median else 0
        return min(_MAX_DIGITS, max(leading, known))

    def __str__(self) -> str:
        """``1.04 (1.021 to 1.093)``: the quartiles have a digit more, to be a spread at all.

        So has a median that would be rounded to beyond them.
        """
        finer = self.digits + 1
        low, high = (_rounded(value, finer) for value in (self.low, self.high))
        is_between = self.low <= round(self.median, self.digits) <= self.high
        median = _rounded(self.median, self.digits if is_between else finer)
        return f"{median} ({low} to {high})"


def _rounded(value: float, digits: int) -> str:
    """With so many decimals; below none, to tens, hundreds, ..."""
    return f"{round(value, digits):,.{max(0, digits)}f}"


def settle() -> None:
    """Wait for what a GPU was told to do; nothing where none is in use."""
    torch = sys.modules.get("torch")  # who only reads figures needs none
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def clocked(way: Callable[[], object]) -> Turn:
    """Run something once, with what it tells a GPU to do, and nothing that was told before."""
    settle()
    wall, cpu = time.perf_counter(), time.process_time()
    way()
    settle()
    return Turn(wall_s=time.perf_counter() - wall, cpu_s=time.process_time() - cpu)


def take_turns(
    ways: Mapping[Name, Callable[[], object]],
    repeats: int,
    *,
    warm_up: int = 1,
    until: float = math.inf,
    least: int = 2,
) -> dict[Name, list[Turn]]:
    """Run all ways in turn, again and again.

    Args:
        ways: name -> what is run.
        repeats: counted turns of each.
        warm_up: turns before them that do not count.
        until: by ``time.perf_counter()``: a round that would end later, if it took as long as the
            one before, is not begun.
        least: turns that are run in any case; a spread needs two.
    """
    taken: dict[Name, list[Turn]] = {name: [] for name in ways}
    round_s = 0.0
    for repeat in range(warm_up + repeats):
        started = time.perf_counter()
        if repeat >= warm_up + least and started + round_s > until:
            break
        for name, way in ways.items():
            turn = clocked(way)
            if repeat >= warm_up:
                taken[name].append(turn)
        round_s = time.perf_counter() - started
    return taken


def ratios(turns: Sequence[Turn], base: Sequence[Turn]) -> tuple[Spread, Spread]:
    """Wall and CPU time, each against the yardstick's turn beside it."""
    pairs = list(zip(turns, base, strict=True))
    wall = Spread.of([turn.wall_s / other.wall_s for turn, other in pairs])
    return wall, Spread.of([turn.cpu_s / other.cpu_s for turn, other in pairs])


def show(title: str, taken: Mapping[str, Sequence[Turn]], unit: str = "ms") -> None:
    """A table of medians, and of ratios to the first row, turn by turn."""
    scale, decimals = {"us": (1e6, 1), "ms": (1e3, 1), "s": (1.0, 2)}[unit]
    first, *_ = taken.values()
    table = Table(
        *("", f"wall {unit}", "ratio (quartiles)", f"CPU {unit}", "ratio (quartiles)"),
        title=f"{title}; {len(first)} turns, load {os.getloadavg()[0]:.1f}",
        title_justify="left",
    )
    for name, turns in taken.items():
        wall, cpu = ratios(turns, first)
        is_first = turns is first
        wall_s = statistics.median(turn.wall_s for turn in turns)
        cpu_s = statistics.median(turn.cpu_s for turn in turns)
        table.add_row(
            name,
            f"{wall_s * scale:,.{decimals}f}",
            "" if is_first else str(wall),
            f"{cpu_s * scale:,.{decimals}f}",
            "" if is_first else str(cpu),
        )
    Console(width=120).print(table)
