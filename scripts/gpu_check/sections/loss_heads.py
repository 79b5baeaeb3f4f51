"""Time and memory of the losses over a vocabulary: scripts/benchmarks/loss_heads.py on a GPU."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator

import torch

from scripts.benchmarks.loss_heads import WAYS, Problem
from scripts.gpu_check.section import Clock, Figure, Setting, per_turn

_PLAIN, *_ = WAYS
# (positions, classes); the larger one first, since it is the one that matters.
_FULL = ((32_768, 131_072), (8_192, 131_072))
_TINY = ((128, 512),)
_REPEATS = 7


def measure(setting: Setting, clock: Clock) -> Iterator[Figure]:
    """Peak memory of each way that fits, then their times in turns."""
    device = torch.device(setting.device)
    for positions, classes in _TINY if setting.is_tiny else _FULL:
        if clock.is_over:
            clock.cut.append(f"{positions:,} positions")
            continue
        problem = Problem.of(classes, positions, device)
        fits = []
        for way in WAYS:
            name = f"{way}, {positions:,} positions x {classes:,} classes"
            peak = _peak_mib(problem, way)
            if peak is None:
                yield Figure(what=name, unit="peak MiB", median=None, remark="out of memory")
            else:
                fits.append(way)
                yield Figure(what=name, unit="peak MiB", median=peak)
        ways = {way: functools.partial(problem.turn, way) for way in fits}
        taken = clock.take_turns(ways, 2 if setting.is_tiny else _REPEATS)
        for way, turns in taken.items():
            name = f"{way}, {positions:,} positions x {classes:,} classes"
            yield Figure.of(name, "ms", [1e3 * turn.wall_s for turn in turns])
            if way != _PLAIN and _PLAIN in taken:
                yield Figure.of(
                    f"{name}, against plain", "ratio of time", per_turn(turns, taken[_PLAIN])
                )
        del problem, ways


def _peak_mib(problem: Problem, way: str) -> float | None:
    """None where the device's memory is too small."""
    try:
        return problem.peak_bytes(way) / 2**20
    except torch.OutOfMemoryError:
        pass  # what the traceback holds is let go before the next way begins
    problem.forget()
    gc.collect()
    torch.cuda.empty_cache()
    return None
