"""A dump of a transformer with a billion parameters (bfloat16) beside its bare forward loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import kdcache
from scripts.benchmarks.token_steps import BATCH
from scripts.gpu_check.section import Clock, Figure, Setting
from scripts.gpu_check.sections import language
from scripts.gpu_check.sections.dumping import Job, Way, rates

# Sequences. A dense target has 2 bytes a class and token: 64 KiB, and 16 MiB a sequence.
_FEW, _MANY, _MANY_DENSE = 32, 544, 64


def measure(setting: Setting, clock: Clock) -> Iterator[Figure]:
    """Bare loop, top-32 and dense caches; the last over fewer sequences."""
    texts = language.TINY if setting.is_tiny else language.FULL
    device = torch.device(setting.device)
    teacher = texts.teacher(device)
    job = Job(
        teacher=teacher,
        loader=texts.loader,
        bare=lambda batches: _bare(teacher, batches, device),
        options={"accelerator": setting.device, "precision": "bf16-true", "batch": BATCH},
        unit="tokens",
        per_sample=texts.length,
        folder=setting.folder / "token_dump",
    )
    bare = Way(
        name=f"bare forward loop, V = {texts.vocabulary:,}", codec=None, few=_FEW, many=_MANY
    )
    topk = Way(
        name="dump, top-32",
        codec=kdcache.TopKCodec(k=32),
        few=_FEW,
        many=_MANY,
        samples_per_shard=256,
    )
    dense = Way(name="dump, dense float16", codec=kdcache.DenseCodec(), few=_FEW, many=_MANY_DENSE)
    if setting.is_tiny:
        bare, topk = (dataclasses.replace(way, many=_MANY_DENSE) for way in (bare, topk))
    repeats, warm_up = (2, 0) if setting.is_tiny else (4, 1)
    yield from rates(job, [bare, topk, dense], clock, repeats=repeats, warm_up=warm_up)


@torch.inference_mode()
def _bare(teacher: nn.Module, batches: DataLoader[Any], device: torch.device) -> None:
    for batch in batches:
        teacher(batch["input_ids"].to(device, non_blocking=True))
