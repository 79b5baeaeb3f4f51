"""What is said where a user's dataset or collate function raises: whose sample it was, and why.

The errors are made where the samples are read, in a worker too, since only there their numbers
are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import get_worker_info

from kdcache.errors import SampleError, origin


def unreadable(error: Exception, dataset: Any, numbers: Sequence[Any], split: str) -> SampleError:
    """The error for samples that a dataset could not give.

    Args:
        error: what it raised.
        dataset: the user's.
        numbers: of the samples: the one that it was, or all that were asked for together.
        split: of the samples; empty where it is not known.
    """
    length = ""
    if isinstance(error, IndexError) and hasattr(dataset, "__len__"):
        length = (
            f" Its __len__ says that there are {len(dataset):,} samples; correct the one that is "
            "wrong."
        )
    return SampleError(
        f"{_named(numbers, split)} cannot be read: {type(dataset).__name__} raised "
        f"{_told(error)}\n{length or 'Mend what is asked for, or leave it out of the dataset.'}"
    )


def broken_off(error: Exception, stream: Any, number: int, split: str) -> SampleError:
    """The error for a stream that raised instead of giving its next sample."""
    worker = get_worker_info()
    is_part = worker is not None and worker.num_workers > 1
    counted = f" (as worker {worker.id} counts them)" if is_part and worker is not None else ""
    return SampleError(
        f"{_named([number], split)}{counted} cannot be read: the stream {type(stream).__name__} "
        f"raised {_told(error)}\nMend what it reads, or have it leave the sample out."
    )


def uncollated(
    error: Exception,
    collate_fn: Callable[[list[Any]], Any],
    samples: Sequence[Any],
    numbers: Sequence[Any],
    split: str,
) -> SampleError:
    """The error for samples of which a collate function made no batch.

    Each is given to it alone, and beside another, to find the one that it is.
    """
    why, named = "", numbers
    alone = [n for n, one in zip(numbers, samples, strict=True) if raises(collate_fn, [one])]
    if alone:
        named = alone[:1] if len(alone) < len(numbers) else numbers
    else:
        others = zip(numbers[1:], samples[1:], strict=True)
        beside = [n for n, one in others if raises(collate_fn, [samples[0], one])]
        odd = beside if len(beside) == 1 else numbers[:1]
        is_told = len(numbers) > 2 and len(beside) in (1, len(numbers) - 1)
        why = " beside the others of its batch" if is_told else " together"
        named = odd if is_told else numbers
    name = getattr(collate_fn, "__qualname__", type(collate_fn).__qualname__)
    return SampleError(
        f"{_named(named, split)}{why} cannot be collated: collate_fn ({name}) raised "
        f"{_told(error)}\nMend the samples, or what makes a batch of them."
    )


def raises(function: Callable[[Any], Any], value: Any) -> bool:
    """Whether a function raises on a value."""
    try:
        function(value)
    except Exception:
        return True
    return False


def _told(error: Exception) -> str:
    """Where an error came from, and below it what it says."""
    return f"at {origin(error, skip=1)}:\n  {type(error).__name__}: {error}"


def _named(numbers: Sequence[Any], split: str) -> str:
    whose = f" of split {split!r}" if split else ""
    if len(numbers) == 1:
        return f"sample {numbers[0]}{whose}"
    return f"samples {numbers[0]} to {numbers[-1]}{whose}"
