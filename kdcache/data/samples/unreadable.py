"""What is said where a user's dataset or collate function raises: whose sample it was, and why.

The errors are made where the samples are read, in a worker too, since only there their numbers
are known.
"""

from __future__ import annotations

import os
import re
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import get_worker_info

from kdcache.errors import SampleError, origin

_LOST = re.compile(
    r"DataLoader worker \(pid(\(s\))? [\d, ]+\) (exited unexpectedly|is killed by sig)"
)
# Where the memory of a batch is asked of the worker that made it: it ended, if that fails.
_HANDED_OVER = "torch/multiprocessing/reductions.py"
_NOTICE_S = 0.5
"""How long after its connections the end of a worker may be told by a signal."""

LOST_WORKER = (RuntimeError, OSError, EOFError)
"""What :func:`lost_worker` may be true of."""


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


def lost_worker(error: BaseException, num_workers: int | None, whose: str) -> str | None:
    """What is said of a DataLoader's worker process that ended; None for any other error.

    PyTorch raises it where it waits for the worker's batch, and from a signal anywhere else.
    Batches of the worker that are here already may be lost too: their memory is the worker's, and
    asking it for them is an error of the connection.

    Args:
        error: that was caught.
        num_workers: of the loader; None where it is not known.
        whose: the loader is, such as "of split 'train'".
    """
    says = " ".join(str(error).split())
    is_told = isinstance(error, RuntimeError) and _LOST.match(says)
    try:
        is_late = not is_told and _is_late(error)
        if is_late:
            time.sleep(_NOTICE_S)
    except RuntimeError as told:  # raised by PyTorch's handler of SIGCHLD, here as anywhere
        return lost_worker(told, num_workers, whose)
    if not is_told and not is_late:
        return None
    says = says if is_told else f"{type(error).__name__}: {says}"
    count = "" if num_workers is None else f" (num_workers={num_workers})"
    return (
        f"a worker process of the DataLoader {whose}{count} ended before it "
        f"gave its samples. PyTorch says: {says}\n"
        "Most often memory was short: this machine's or this job's (dmesg says whom the kernel "
        "killed), or /dev/shm, through which workers hand over their batches (in a container, "
        "--shm-size). Use fewer workers, a smaller prefetch_factor or smaller batches; with "
        "num_workers=0 an error of the dataset itself shows."
    )


def _is_late(error: BaseException) -> bool:
    return isinstance(error, OSError | EOFError) and any(
        frame.f_code.co_filename.replace(os.sep, "/").endswith(_HANDED_OVER)
        for frame, _ in traceback.walk_tb(error.__traceback__)
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
