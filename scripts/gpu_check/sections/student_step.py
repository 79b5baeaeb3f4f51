"""A language model's step on cached targets beside one on plain cross entropy.

scripts/benchmarks/token_steps.py on a GPU: GPT-2 of distilgpt2's sizes, 50,257 tokens, under
bfloat16 autocast. A step takes its batch, and targets from the local copy, in this process: no
worker prepares them while another way has its turn.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import kdcache
from scripts.benchmarks.token_steps import (
    BASE,
    BATCH,
    BOTH,
    CODECS,
    VOCABULARY,
    Tokens,
    Way,
    WithLogits,
    gpt2,
    steps,
    train,
)
from scripts.gpu_check.section import Clock, Figure, Setting, per_turn

KD = {"kd_loss": 1.0}
WAYS = (
    Way(targets="top-32", losses=KD),
    Way(targets="top-32", losses=BOTH, temperature=2.0),
    Way(targets="top-32", losses=KD, on_hidden=True),
    Way(targets="dense", losses=KD),
)


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    vocabulary: int
    length: int
    batch: int
    student: Mapping[str, int]
    steps: int  # of a turn
    repeats: int


_FULL = _Sizes(
    vocabulary=VOCABULARY,
    length=256,
    batch=16,
    student={"layers": 6, "width": 768, "heads": 12},
    steps=5,
    repeats=7,
)
_TINY = _Sizes(
    vocabulary=128,
    length=8,
    batch=2,
    student={"layers": 1, "width": 16, "heads": 2},
    steps=1,
    repeats=2,
)


def measure(setting: Setting, clock: Clock) -> Iterator[Figure]:
    """Milliseconds of a step, and its ratio to the plain one."""
    sizes = _TINY if setting.is_tiny else _FULL
    device = torch.device(setting.device)
    plain = DataLoader(
        Tokens(2 * sizes.batch, sizes.length, sizes.vocabulary), batch_size=sizes.batch
    )
    net = gpt2(sizes.length, vocabulary=sizes.vocabulary, **sizes.student).to(device)
    named = steps(net, plain, _joined(setting, sizes, plain), WAYS)
    whole = train(net, {name: under_autocast(total, device) for name, total in named.items()})
    ways = {name: functools.partial(several, step, sizes.steps) for name, step in whole.items()}
    taken = clock.take_turns(ways, sizes.repeats)
    tokens = f"{sizes.batch} x {sizes.length} tokens"
    for name, turns in taken.items():
        each = [1e3 * turn.wall_s / sizes.steps for turn in turns]
        yield Figure.of(f"{name}, {tokens}" if name == BASE else name, "ms", each)
        if name != BASE:
            yield Figure.of(
                f"{name}, against {BASE}", "ratio of time", per_turn(turns, taken[BASE])
            )


def under_autocast(total: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """The same total, its forward pass in bfloat16 where autocast has it so."""

    def run() -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return total()

    return run


def several(step: Callable[[], None], times: int) -> None:
    """A turn of several steps."""
    for _ in range(times):
        step()


def _joined(setting: Setting, sizes: _Sizes, plain: DataLoader[Any]) -> dict[str, DataLoader[Any]]:
    """Loaders with cached targets; the teacher is small, since what it says costs no step time."""
    teacher = WithLogits(
        gpt2(sizes.length, vocabulary=sizes.vocabulary, layers=1, width=64, heads=2)
    )
    found = {}
    for targets in {way.targets for way in WAYS}:
        cache = kdcache.dump_teacher(
            teacher,
            plain,
            setting.folder / f"student_step-{targets}.zarr",
            codec=CODECS[targets],
            batch=BATCH,
            accelerator=setting.device,
            progress=False,
        )
        joined = kdcache.CachedDataset(plain.dataset, cache["train"], batch=BATCH)
        found[targets] = joined.loader_like(plain)
    return found
