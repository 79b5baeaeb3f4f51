"""What the sums say that commits record: of a whole split, as means and deviations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

TEACHER = (
    ("entropy", "entropy", "positions"),
    ("accuracy", "correct", "labelled"),
    ("cross_entropy", "cross_entropy", "labelled"),
)
FIDELITY = (
    ("divergence", "divergence", "compared"),
    ("kept_mass", "kept_mass", "compared"),
)


def totals(statistics_of_shards: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Sums over shards of the sums that their commits record."""
    found: dict[str, float] = {}
    for sums in statistics_of_shards:
        for name, value in sums.items():
            found[name] = found.get(name, 0.0) + value
    return found


def means(sums: Mapping[str, float], wanted: Iterable[tuple[str, str, str]]) -> dict[str, float]:
    """(name, sum, count) -> name: sum / count, where both are there and something was counted.

    A sum of which a part is not known, as ``<sum>_unknown`` says, has no mean.
    """
    return {
        name: sums[total] / sums[count]
        for name, total, count in wanted
        if total in sums and sums.get(count) and not sums.get(f"{total}_unknown")
    }


def deviation(sums: Mapping[str, float], name: str, count: str) -> float:
    """Standard deviation over positions, from a sum and a sum of squares."""
    if not sums.get(count) or f"{name}_squared" not in sums:
        return 0.0
    mean = sums.get(name, 0.0) / sums[count]
    return math.sqrt(max(0.0, sums[f"{name}_squared"] / sums[count] - mean**2))
