"""What the commits' sums say of teacher and targets: means, and shards that are unlike the pilot.

A note is no problem: data may be sorted by class, and a shard be hard. It tells a person where to
look when a codec was fitted to other samples than it meets.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from kdcache.store import Manifest
from kdcache.store.format.commits import Commit
from kdcache.store.sums import deviation

# Enough standard errors that chance explains no shard of thousands, skewed as the numbers are.
_SIGMAS = 5.0
_NAMED = 3
_FEW_SHARDS = 5
# From a median absolute deviation to a standard deviation, of a normal distribution.
_MAD_TO_DEVIATION = 1.4826


@dataclass(frozen=True, kw_only=True)
class _Quantity:
    """What is held against the pilot.

    Attributes:
        name: of the sum, and of the pilot's mean.
        count: name of the number of positions that were summed up.
        about: in words.
        least: nats by which a shard may always differ.
        relative: share of the pilot's mean by which it may always differ.
        either_way: whether less is worth a note, too.
    """

    name: str
    count: str
    about: str
    least: float
    relative: float
    either_way: bool


_QUANTITIES = (
    _Quantity(
        name="divergence",
        count="compared",
        about="mean KL(teacher || stored)",
        least=1e-6,
        relative=1.0,
        either_way=False,
    ),
    _Quantity(
        name="entropy",
        count="positions",
        about="mean entropy of the teacher",
        least=0.01,
        relative=0.05,
        either_way=True,
    ),
)


def fidelity_notes(manifest: Manifest, commits: Sequence[Commit]) -> list[str]:
    """One line for each quantity in which shards of a view are far from the pilot's samples.

    A shard may differ by five standard errors, its own and the pilot's together with the spread
    that shards have among themselves. Standard errors count samples, not positions, because the
    positions of one sample are alike. Empty where nothing was measured.
    """
    return [line for quantity in _QUANTITIES for line in _far_off(manifest, commits, quantity)]


def _far_off(manifest: Manifest, commits: Sequence[Commit], quantity: _Quantity) -> list[str]:
    pilot, name = manifest.pilot, quantity.name
    num_pilot = pilot.get("samples", 0.0)
    commits = [commit for commit in commits if commit.statistics.get(quantity.count)]
    if name not in pilot or num_pilot < 1 or not commits:
        return []
    shards = [
        (
            commit,
            commit.statistics.get(name, 0.0) / commit.statistics[quantity.count],
            deviation(commit.statistics, name, quantity.count),
        )
        for commit in commits
    ]
    found = [mean for _, mean, _ in shards]
    # A pilot of few samples may have met none of the rare ones: the shards know better how far
    # samples lie apart.
    typical = statistics.median(spread for _, _, spread in shards)
    pilot_error = max(pilot.get(f"{name}_deviation", 0.0), typical) / math.sqrt(num_pilot)
    among = 0.0
    if len(shards) >= _FEW_SHARDS:
        middle = statistics.median(found)
        among = _MAD_TO_DEVIATION * statistics.median(abs(mean - middle) for mean in found)
    expected = pilot[name]
    always = quantity.least + quantity.relative * expected
    far = []
    for commit, mean, spread in shards:
        error = math.hypot(pilot_error, spread / math.sqrt(commit.stop - commit.start), among)
        away = abs(mean - expected) if quantity.either_way else mean - expected
        if away > _SIGMAS * error + always:
            where = f"shard {commit.shard} (samples {commit.start} to {commit.stop - 1})"
            far.append((away, f"{where} {mean:.3g}"))
    if not far:
        return []
    far.sort(key=lambda pair: -pair[0])
    listed = ", ".join(text for _, text in far[:_NAMED])
    more = f", and {len(far) - _NAMED} more shards" if len(far) > _NAMED else ""
    line = (
        f"{manifest.split}: far from the pilot in {quantity.about}, nats: pilot "
        f"{expected:.3g} ({num_pilot:.0f} samples); {listed}{more}"
    )
    return [line]
