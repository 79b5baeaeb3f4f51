"""How models of the predecessor's kind are called: with all of a batch, at temperature 1."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from kdcache.data.batch.mapping import BatchMapping, Mapped
from kdcache.data.batch.selection import CallableMapping, Selected
from kdcache.data.samples import sources
from kdcache.errors import KdcacheError, UsageError

_TEMPERATURE = "temperature"


def call_mapping(model: nn.Module, batch: Any) -> Mapped:
    """How a model is called on a batch: with all of it, or where it takes less, as usual.

    Args:
        model: whose ``forward`` may take a ``temperature``, which is then 1.
        batch: of a loader.
    """
    parameters = inspect.signature(model.forward).parameters
    kinds = [p.kind for p in parameters.values()]
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    places = [n for n, p in parameters.items() if p.kind in by_place and n != _TEMPERATURE]
    num_leaves = len(batch) if isinstance(batch, tuple | list) else 1
    takes_all = inspect.Parameter.VAR_POSITIONAL in kinds or len(places) >= num_leaves
    mapping = BatchMapping(inputs="all") if num_leaves > 1 and takes_all else BatchMapping()
    temperature = parameters.get(_TEMPERATURE)
    if temperature is None or temperature.default == 1:
        return mapping
    return CallableMapping(AtTemperatureOne(mapping))


def called_alike(
    make: Callable[[], nn.Module], mapping: Mapped, batch: Any
) -> Callable[[], nn.Module]:
    """A function that makes a model, which is refused where it would be called otherwise.

    Args:
        make: the user's function.
        mapping: what its model is called with, found before there was one.
        batch: of a loader.
    """

    def made() -> nn.Module:
        model = make()
        if call_mapping(model, batch) != mapping:
            raise UsageError(
                f"teacher_model made a {type(model).__name__}, whose forward takes other inputs, "
                "or another default temperature, than the student's; a function is taken to make "
                "a model that is called like the student. Nothing was dumped. Give the teacher "
                "itself, or a forward with the student's parameters (temperature=1)."
            )
        return model

    return made


@contextmanager
def left_as_it_was(student: nn.Module) -> Iterator[None]:
    """Put a student's modes back: a dump freezes the teacher, which may share modules with it."""
    modules = [(module, module.training) for module in student.modules()]
    parameters = [(parameter, parameter.requires_grad) for parameter in student.parameters()]
    try:
        yield
    finally:
        for module, mode in modules:
            module.training = mode
        for parameter, is_trained in parameters:
            parameter.requires_grad_(is_trained)


@dataclass(frozen=True)
class AtTemperatureOne:
    """What a mapping selects, and ``temperature=1`` for a model that has another default."""

    mapping: BatchMapping

    def __call__(self, batch: Any) -> Selected:
        """Inputs, labels and mask of a batch."""
        selected = self.mapping.resolve(batch).select(batch)
        return Selected(
            args=selected.args,
            kwargs={**selected.kwargs, _TEMPERATURE: 1},
            labels=selected.labels,
            mask=selected.mask,
        )


def first_batch(loader: DataLoader[Any]) -> Any:
    """A batch of the first samples, or of a stream's own."""
    if sources.is_stream(loader.dataset):
        return next(iter(loader))
    dataset: Any = loader.dataset
    return loader.collate_fn(sources.fetch(dataset, range(min(2, len(dataset)))))


def takes_alike(mapping: Mapped, batch: Any, loader: DataLoader[Any]) -> bool:
    """Whether a set's batches give a model inputs like those of another batch."""
    if sources.is_stream(loader.dataset) or loader.batch_size is None:
        return False
    try:
        other = first_batch(loader)
        pair = [mapping.resolve(one).select(one) for one in (batch, other)]
    except KdcacheError:
        return False
    wanted, found = ([*one.args, *one.kwargs.items()] for one in pair)
    return len(wanted) == len(found) and all(map(_is_alike, wanted, found))


def _is_alike(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.dim() == other.dim()
    return type(one) is type(other)
