"""Optimisers by name, and what any other is given as: a function of the parameters.

The names are those of Knowledge-Distillation-Toolkit, with its settings.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from kdcache.errors import UsageError, suggest

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "adam_wav2vec2.0": functools.partial(torch.optim.Adam, betas=(0.9, 0.98), eps=1e-6),
    "adam_distilBert": functools.partial(torch.optim.Adam, eps=1e-6),
    "adamW_distilBert": functools.partial(torch.optim.AdamW, betas=(0.9, 0.98), eps=1e-6),
}
"""Name -> optimiser class, perhaps with settings; all take ``lr``."""


def optimizer_maker(spec: str | MakeOptimizer | None, learning_rate: float) -> MakeOptimizer:
    """From parameters to an optimiser.

    Args:
        spec: one of ``OPTIMIZERS``, or a function that says everything itself; Adam if None.
        learning_rate: of a named one.

    Raises:
        UsageError: the name is not known.
    """
    if spec is not None and not isinstance(spec, str):
        return spec
    name = "adam" if spec is None else spec
    if name not in OPTIMIZERS:
        raise UsageError(f"there is no optimizer {name!r}. {suggest(name, OPTIMIZERS)}")
    return functools.partial(OPTIMIZERS[name], lr=learning_rate)


def trainable(student: nn.Module) -> list[nn.Parameter]:
    """What of a student an optimiser is given.

    Raises:
        UsageError: nothing.
    """
    parameters = [p for p in student.parameters() if p.requires_grad]
    if not parameters:
        raise UsageError(
            f"the student, {type(student).__name__}, has no parameter that requires a "
            "gradient: there is nothing to train."
        )
    return parameters
