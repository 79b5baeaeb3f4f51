"""A language model's step beside a live teacher, or its cache, and the memory of both.

The teacher has a billion parameters, the student is a GPT-2 of distilgpt2's sizes (but for the
vocabulary). Steps are those of scripts/benchmarks/token_steps.py under bfloat16 autocast.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import GPT2LMHeadModel

import kdcache
from kdcache.losses import Objective
from kdcache.targets import DenseTargets
from scripts.benchmarks.token_steps import (
    BASE,
    BATCH,
    BOTH,
    Way,
    WithLogits,
    on_device,
    over_and_over,
    steps,
    train,
)
from scripts.gpu_check.section import Clock, Figure, Setting, per_turn
from scripts.gpu_check.sections import language
from scripts.gpu_check.sections.student_step import several, under_autocast
from scripts.measuring.peak_memory import peak_here

CACHED, LIVE = "cached targets, top-32", "live teacher"
_BATCHES, _STEPS = 2, 4


def measure(setting: Setting, clock: Clock) -> Iterator[Figure]:
    """Peak memory of a step, without the teacher where it is not needed; then times in turns."""
    texts = language.TINY if setting.is_tiny else language.FULL
    device = torch.device(setting.device)
    batches = texts.loader(_BATCHES * texts.batch)
    teacher = texts.teacher(device)
    cache = kdcache.dump_teacher(
        teacher,
        batches,
        setting.folder / "live_tokens.zarr",
        codec=kdcache.TopKCodec(k=32),
        batch=BATCH,
        accelerator=setting.device,
        precision="bf16-true",
        progress=False,
    )
    teacher.to("cpu")
    joined = kdcache.CachedDataset(batches.dataset, cache["train"], batch=BATCH)
    student = texts.student(device)
    way = Way(targets="top-32", losses=BOTH)
    plain, cached = steps(student, batches, {"top-32": joined.loader_like(batches)}, [way]).values()
    totals = {BASE: plain, CACHED: cached, LIVE: _beside(teacher, student, batches, device)}
    whole = train(student, {name: under_autocast(total, device) for name, total in totals.items()})
    whole[BASE]()  # from here on the optimiser's state is there, as in any later step

    def with_teacher() -> None:
        teacher.to(device)
        whole[LIVE]()

    for name, step in whole.items():
        student.zero_grad()
        gc.collect()
        peak = peak_here(with_teacher if name == LIVE else step, device)
        what = f"a step, {name}, above student and optimiser"
        yield Figure(what=what, unit="peak MiB", median=peak / 2**20)
    ways = {name: functools.partial(several, step, _STEPS) for name, step in whole.items()}
    taken = clock.take_turns(ways, 2 if setting.is_tiny else 7)
    size = f"{texts.batch} x {texts.length} tokens"
    for name, turns in taken.items():
        what = f"a step of {size}, {name}" if name == BASE else f"a step, {name}"
        yield Figure.of(what, "ms", [1e3 * turn.wall_s / _STEPS for turn in turns])
        if name != BASE:
            yield Figure.of(
                f"{name}, against {BASE}", "ratio of time", per_turn(turns, taken[BASE])
            )


def _beside(
    teacher: nn.Module,
    student: GPT2LMHeadModel,
    loader: DataLoader[Any],
    device: torch.device,
) -> Callable[[], Tensor]:
    """The total of a step that asks the teacher, which is on the device by then."""
    batches, with_logits = over_and_over(loader), WithLogits(student)
    mapping = kdcache.BatchMapping(**BATCH)
    objective = Objective(losses=BOTH)

    def total() -> Tensor:
        batch = on_device(next(batches), device)
        with torch.no_grad():
            told = kdcache.forward(teacher, mapping, batch)
        targets = DenseTargets(
            values=told.logits, num_positions=told.num_positions, num_classes=told.num_classes
        )
        output = kdcache.forward(with_logits, mapping, batch)
        return objective.evaluate(output.all_logits, targets, output.labels, rows=output.rows).total

    return total
