"""``kdcache verify CACHE --recompute N -c EXPERIMENT.yaml``: the teacher, asked again.

Imported only for that: a plain ``verify`` needs neither torch nor the user's code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from kdcache.commands.dump_teacher import make_job
from kdcache.commands.terminal.arguments import experiment_from
from kdcache.commands.terminal.console import quiet_lightning
from kdcache.dump.recompute import TOLERANCE_NATS, Distance, Recomputed, recompute
from kdcache.errors import UsageError
from kdcache.experiment import DumpExperiment
from kdcache.paths import local_path
from kdcache.store import difference_table
from kdcache.tables import aligned


def run_again(cache: str, words: Sequence[str], num_samples: int, seed: int) -> list[Recomputed]:
    """Recompute samples of a cache with the teacher that an experiment names.

    Args:
        cache: its folder; the experiment's own ``cache`` is not looked at.
        words: ``-c EXPERIMENT.yaml`` and overrides.
        num_samples: to draw in each split.
        seed: of the choice.
    """
    experiment = experiment_from(words, DumpExperiment, "verify")
    if experiment is None:
        raise UsageError("--recompute prints no configuration.")
    job = make_job(dataclasses.replace(experiment, cache=str(local_path(cache, "cache"))))
    quiet_lightning()
    return recompute(job, num_samples, seed=seed)


def recomputed_json(found: Sequence[Recomputed]) -> dict[str, Any]:
    """Plain values: split -> numbers, and the differing fields."""
    return {
        "tolerance_nats": TOLERANCE_NATS,
        "splits": {
            one.split: {
                **dataclasses.asdict(one),
                "changed": {
                    name: {"cache": cache, "run": run} for name, (cache, run) in one.changed.items()
                },
                "drifted": one.drifted,
            }
            for one in found
        },
    }


def _changes(found: Sequence[Recomputed]) -> Iterator[str]:
    by_table: dict[str, list[str]] = {}
    for one in found:
        if one.changed:
            by_table.setdefault(difference_table(one.changed), []).append(one.split)
    for table, splits in by_table.items():
        yield f"{', '.join(splits)}: dumped with other settings than this run's\n{table}"


def _drift(one: Recomputed) -> str:
    if one.drift is None:
        return (
            f"{one.split}: {one.batches - one.identical_batches} of {one.batches} batches would be "
            "stored otherwise now; how far from the cache, targets of your own kind do not tell"
        )
    return (
        f"{one.split}: the teacher no longer says what is stored: mean drift "
        f"{one.drift.mean_kl:.3g} nats, at most {TOLERANCE_NATS:g} is the same teacher"
    )


def recomputed_text(found: Sequence[Recomputed], width: int) -> str:
    """A table, one column a split; below it, what is not as it was at the dump."""
    rows = [["teacher run again", *(one.split for one in found)]]
    counts = (
        ("samples drawn", "drawn"),
        ("batches run, as dumped", "batches"),
        ("samples in them, compared", "samples"),
        ("positions", "positions"),
        ("batches bit for bit the same", "identical_batches"),
    )
    rows += [[label, *(f"{getattr(one, name):,}" for one in found)] for label, name in counts]
    for title, name in (("drift", "drift"), ("stored against logits", "codec")):
        distances: list[Distance | None] = [getattr(one, name) for one in found]
        for label, number, unit in (
            ("mean KL", "mean_kl", " nats"),
            ("largest KL", "max_kl", " nats"),
            ("largest probability", "max_difference", ""),
        ):
            cells = [
                "-" if one is None else f"{getattr(one, number):.3g}{unit}" for one in distances
            ]
            rows.append([f"{title}, {label}", *cells])
    problems = [*_changes(found), *(_drift(one) for one in found if one.drifted)]
    return "\n".join([aligned(rows, width), *(f"- {problem}" for problem in problems)])
