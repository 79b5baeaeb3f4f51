"""What the benchmarks print of a ratio: as many digits as the next run would repeat."""

from __future__ import annotations

import math
import random

import pytest

from scripts.measuring.timing import Spread, Turn, ratios, take_turns


def runs(center: float, sd: float, num: int, seed: int) -> Spread:
    draw = random.Random(seed)
    return Spread.of([draw.gauss(center, sd) for _ in range(num)])


@pytest.mark.parametrize(("center", "sd"), [(1.04, 0.05), (1.04, 0.005), (3.2, 0.4), (2100, 300)])
def test_two_runs_agree_in_the_printed_digits(center, sd):
    disagree = 0
    for seed in range(400):
        one, other = (runs(center, sd, 25, 2 * seed + k) for k in range(2))
        unit = 10.0 ** -min(one.digits, other.digits)
        disagree += abs(one.median - other.median) > 1.5 * unit
    assert disagree < 0.05 * 400


def test_a_wider_spread_has_fewer_digits():
    narrow, wide = runs(1.04, 0.001, 25, 0), runs(1.04, 0.1, 25, 0)
    assert narrow.digits > wide.digits >= 0


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.5, 1.5, 1.5], "1.500 (1.5000 to 1.5000)"),
        ([1.0, 1.1, 1.2, 1.3, 1.4], "1.2 (1.1 to 1.3)"),
        ([1000.0, 1600.0, 2000.0], "1,600 (1,300 to 1,800)"),
    ],
)
def test_text(values, text):
    assert str(Spread.of(values)) == text


def test_ratios_are_of_turns_side_by_side():
    base = [Turn(wall_s=1, cpu_s=2), Turn(wall_s=10, cpu_s=20)]
    turns = [Turn(wall_s=2, cpu_s=2), Turn(wall_s=20, cpu_s=20)]
    wall, cpu = ratios(turns, base)
    assert (wall.low, wall.median, wall.high) == (2, 2, 2)
    assert (cpu.low, cpu.median, cpu.high) == (1, 1, 1)


def test_ways_take_turns_and_the_first_turn_does_not_count():
    order: list[str] = []
    taken = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3
    assert [len(turns) for turns in taken.values()] == [2, 2]


def test_a_median_is_never_printed_beyond_its_quartiles():
    assert str(Spread(median=2.44, low=2.3, high=2.6, num=25)) == "2.4 (2.3 to 2.6)"
    assert str(Spread(median=2.44, low=1.6, high=2.6, num=25)) == "2 (1.6 to 2.6)"


def test_no_turn_is_begun_that_would_end_too_late():
    taken = take_turns({"a": lambda: None, "b": lambda: None}, 5, until=0.0)
    assert [len(turns) for turns in taken.values()] == [2, 2]
    assert len(take_turns({"a": lambda: None}, 5, until=math.inf)["a"]) == 5
