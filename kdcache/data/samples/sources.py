"""What the user brings: loaders of any kind of data object, and copies of a DataLoader.

Duck-typed on purpose: DataModules of either Lightning package, or any object with loaders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Subset

from kdcache.data.samples.unreadable import broken_off, raises, uncollated, unreadable
from kdcache.errors import AlignmentError, DataError, KdcacheError, UsageError

TRAIN = "train"
VALIDATION = "val"
Loader = DataLoader[Any]

_TRAIN_NAMES = ("train_dataloader", "train_data_loader")
_VALIDATION_NAMES = ("val_dataloader", "val_data_loaders")
_LIGHTNING = frozenset({"pytorch_lightning", "lightning"})


def prepare(data: Any) -> None:
    """Run a DataModule's own preparation, where it has one."""
    for name, arguments in (("prepare_data", ()), ("setup", ("fit",))):
        hook = getattr(data, name, None)
        if callable(hook):
            hook(*arguments)


def loaders(data: Any) -> tuple[Loader, dict[str, Loader]]:
    """The training loader and the validation loaders by name.

    Args:
        data: an object with ``train_dataloader()`` and perhaps ``val_dataloader()`` (a Lightning
            DataModule or any other), or attributes ``train_data_loader``, ``val_data_loaders``.

    Returns:
        The training loader; validation loaders by split name: the user's names for a mapping,
        ``val`` for one loader, ``val_0``, ``val_1``, ... for several.

    Raises:
        UsageError: there is no training loader.
    """
    train = _from(data, _TRAIN_NAMES)
    if not isinstance(train, DataLoader):
        raise UsageError(
            f"{type(data).__name__} has no training DataLoader (found {type(train).__name__}). "
            f"Give it one of {', '.join(_TRAIN_NAMES)}."
        )
    return train, validation_loaders(_from(data, _VALIDATION_NAMES))


def validation_loaders(found: Any) -> dict[str, Loader]:
    """Validation loaders by name, from whatever form they were given in."""
    if found is None:
        return {}
    if isinstance(found, DataLoader):
        return {VALIDATION: found}
    if isinstance(found, Mapping):
        named = dict(found)
    elif isinstance(found, Sequence):
        named = {f"{VALIDATION}_{number}": loader for number, loader in enumerate(found)}
        if len(named) == 1:
            named = {VALIDATION: found[0]}
    else:
        raise UsageError(f"validation loaders cannot be a {type(found).__name__}.")
    if TRAIN in named or not all(isinstance(value, DataLoader) for value in named.values()):
        raise UsageError(
            f"validation loaders are DataLoaders by name, none of them called {TRAIN!r}; found "
            f"{ {name: type(value).__name__ for name, value in named.items()} }."
        )
    return named


def _from(data: Any, names: Sequence[str]) -> Any:
    for name in names:
        member = getattr(data, name, None)
        # A DataModule's base class has the hook too, where it only raises.
        inherited = getattr(member, "__module__", None) or ""
        if member is None or (callable(member) and inherited.split(".")[0] in _LIGHTNING):
            continue
        is_hook = callable(member) and not isinstance(member, DataLoader)
        return member() if is_hook else member
    return None


def innermost(dataset: Any) -> Any:
    """The dataset that a Subset, perhaps of a Subset, is of."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def class_names(data: Any, dataset: Any) -> tuple[str, ...]:
    """Names of the classes in order: ``class_names`` or ``classes`` of the data or its dataset."""
    for holder in (data, innermost(dataset)):
        for name in ("class_names", "classes"):
            found = getattr(holder, name, None)
            if not isinstance(found, Sequence) or isinstance(found, str) or not len(found):
                continue
            names = tuple(str(item) for item in found)
            if len(names) == _length(dataset) > len(set(names)):  # the class of each sample
                continue
            return names
    return ()


def _length(dataset: Any) -> int:
    return 0 if is_stream(dataset) else len(innermost(dataset))


def check_batched(loader: Loader) -> None:
    """Raise DataError for a loader whose dataset makes the batches."""
    if loader.batch_size is None and loader.batch_sampler is None:
        raise DataError(
            "a DataLoader with batch_size=None gives batches that the dataset made; kdcache joins "
            "targets sample by sample. Let the DataLoader form the batches."
        )


def is_stream(dataset: Any) -> bool:
    """Whether samples come one after another, and cannot be asked for by number."""
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__")


def spread(length: int, count: int) -> list[int]:
    """At most ``count`` numbers spread evenly over 0 to length - 1, both ends included."""
    if length <= count:
        return list(range(length))
    return [int(n) for n in np.unique(np.linspace(0, length - 1, count).astype(np.int64))]


def worker_options(loader: Loader) -> dict[str, Any]:
    """A DataLoader's settings that do not concern which samples it draws."""
    options: dict[str, Any] = {
        "num_workers": loader.num_workers,
        "pin_memory": loader.pin_memory,
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
        "generator": loader.generator,
    }
    if loader.num_workers > 0:
        options |= {
            "multiprocessing_context": loader.multiprocessing_context,
            "prefetch_factor": loader.prefetch_factor,
            "persistent_workers": loader.persistent_workers,
        }
    return options


def loader_options(loader: Loader, *, is_stream: bool) -> dict[str, Any]:
    """Arguments for a DataLoader like the user's: batch size, sampler, workers and all others.

    Args:
        loader: the user's.
        is_stream: whether the arguments are for a stream, which no sampler asks for samples.
    """
    options = {**worker_options(loader), "in_order": loader.in_order}
    if is_stream:
        return options | {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
    batches = loader.batch_sampler
    if loader.batch_size is None and type(batches) is BatchSampler:  # as if its parts were given
        return options | {
            "batch_size": batches.batch_size,
            "sampler": batches.sampler,
            "drop_last": batches.drop_last,
        }
    if loader.batch_size is None:
        return options | {"batch_sampler": batches}
    return options | {
        "batch_size": loader.batch_size,
        "sampler": loader.sampler,
        "drop_last": loader.drop_last,
    }


def with_dataset(
    loader: Loader, dataset: Dataset[Any], collate_fn: Callable[[Any], Any]
) -> DataLoader[Any]:
    """A DataLoader like the user's, over another dataset with the same sample numbers, or stream.

    Batch size, sampler or batch sampler, workers and all other settings are kept.
    """
    options = loader_options(loader, is_stream=isinstance(dataset, IterableDataset))
    return DataLoader(dataset, collate_fn=collate_fn, **options)


def fetch(dataset: Any, indices: Sequence[int], split: str = "") -> list[Any]:
    """Samples of a map-style dataset, by its own batched fetch where it has one.

    Args:
        dataset: the user's.
        indices: which samples.
        split: that they are of, for errors.

    Raises:
        SampleError: the dataset raised; names the sample.
        AlignmentError: it returned another number of samples.
    """
    samples: list[Any] = []
    if not hasattr(dataset, "__getitems__"):
        try:
            for index in indices:
                samples.append(dataset[index])
        except KdcacheError:
            raise
        except Exception as error:
            raise unreadable(error, dataset, [indices[len(samples)]], split) from error
        return samples
    try:
        samples = list(dataset.__getitems__(list(indices)))
    except KdcacheError:
        raise
    except Exception as error:
        # A batched fetch does not say which sample it was: each is asked for again, alone.
        wrong = (n for n in indices if raises(dataset.__getitems__, [n]))
        found = next(([n] for n in wrong), indices)
        raise unreadable(error, dataset, found, split) from error
    if len(samples) != len(indices):
        raise AlignmentError(
            f"{type(dataset).__name__}.__getitems__ returned {len(samples)} samples when asked for "
            f"{len(indices)}. Targets cannot be paired with them."
        )
    return samples


def in_turn(stream: Any, split: str = "") -> Iterator[Any]:
    """The samples of a stream; SampleError with the number of the one at which it raises."""
    number, samples = 0, None
    while True:
        try:
            samples = iter(stream) if samples is None else samples
            sample = next(samples)
        except StopIteration:
            return
        except KdcacheError:
            raise
        except Exception as error:
            raise broken_off(error, stream, number, split) from error
        yield sample
        number += 1


def collated(
    collate_fn: Callable[[list[Any]], Any],
    samples: list[Any],
    numbers: Sequence[Any],
    split: str = "",
) -> Any:
    """A batch of samples; SampleError with the number of the one that makes none.

    Args:
        collate_fn: the user's.
        samples: as the dataset gave them.
        numbers: of the samples.
        split: that they are of.
    """
    try:
        return collate_fn(samples)
    except KdcacheError:
        raise
    except Exception as error:
        raise uncollated(error, collate_fn, samples, numbers, split) from error
