"""What a collate function does to the order of its samples, which no fingerprint sees.

Fingerprints are taken before collation, and targets are paired with rows by order within a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from kdcache.data.batch.mapping import Mapped
from kdcache.data.batch.selection import Selected
from kdcache.data.samples.fingerprint import fingerprint
from kdcache.errors import AlignmentError

# A coin that is tossed once a batch falls 8 times alike in 1 of 128 starts; one for each sample,
# hardly ever.
_REPEATED, _REPEATS = 4, 8


def check_collate(
    numbers: Sequence[int],
    samples: Sequence[Any],
    collate_fn: Callable[[list[Any]], Any],
    mapping: Mapped,
) -> None:
    """Raise AlignmentError where a collate function is random, reorders, drops or crops.

    A few samples are collated several times over, all of them once in another order: rows must
    follow their samples.

    Args:
        numbers: of the samples.
        samples: some samples of the dataset.
        collate_fn: the user's.
        mapping: the resolved batch mapping.
    """

    def collated(order: Iterable[int]) -> list[Tensor]:
        return _leaves(mapping.select(collate_fn([samples[number] for number in order])))

    few = range(min(len(samples), _REPEATED))
    if len({fingerprint(collated(few)) for _ in range(_REPEATS)}) > 1:
        raise AlignmentError(
            f"collate_fn is random: the same samples ({', '.join(str(numbers[n]) for n in few)}), "
            "collated twice, differ. The check of what the teacher saw is made before collation "
            "and cannot see this; make collation deterministic and move randomness into the "
            "dataset."
        )
    # The same every time, and no generator of the user's is drawn from.
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    first, permuted = collated(range(len(samples))), collated(order)
    rows = {len(leaf) for leaf in (*first, *permuted)}
    if rows - {len(samples)} or len(first) != len(permuted):
        raise AlignmentError(
            f"collate_fn made {sorted(rows)} rows of {len(samples)} samples (the first is sample "
            f"{numbers[0]}). Targets cannot be paired with them; return one row for each sample, "
            "in their order."
        )
    for leaf, other in zip(first, permuted, strict=True):
        expected = leaf[order]
        if not _same(expected, other):
            at = next((n for n in range(len(order)) if not _same(expected[n], other[n])), 0)
            raise AlignmentError(
                "collate_fn reorders its samples: the same samples in another order gave rows that "
                f"do not follow them, that of sample {numbers[order[at]]} for one (sorting by "
                "length does this). Targets are paired by order within a batch; sort in the "
                "sampler, or not at all."
            )


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal in shape and content, where NaN equals NaN."""
    return a.shape == b.shape and fingerprint(a) == fingerprint(b)


def _leaves(selected: Selected) -> list[Tensor]:
    found: list[Tensor] = []

    def visit(value: Any) -> None:
        if isinstance(value, Tensor) and value.dim():
            found.append(value)
        elif isinstance(value, Mapping):
            for key in sorted(value, key=str):
                visit(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                visit(item)

    for value in (selected.args, selected.kwargs, selected.labels, selected.mask):
        visit(value)
    return found
