"""How a student is scored: perplexity on the labels, distance to the teacher.

Every student, whatever it learned from, is held against the same dense targets of the validation
text: a top-k cache knows less of the teacher, and its KL is only a lower bound.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

import kdcache
from kdcache.train.pipelines import PerplexityPipeline

BATCH = kdcache.BatchMapping(causal=True)
"""Logits at position t predict token t + 1; inputs, mask and labels have Hugging Face's names."""

_DENSE = {name: f"dense_{name}" for name in ("teacher_kl", "teacher_agreement")}
"""Without ``dense_`` they are logged too, from the cache that the student learns from."""


class AgainstDenseTargets:
    """A pipeline for validation text whose dense targets are cached.

    Args:
        cache: dense, of the teacher.
        split: the validation text's in it.
        local_copy: folder of its local copy; the machine's default if null.
    """

    mode: Literal["max", "min"] = "min"

    def __init__(self, cache: str, split: str = "val", local_copy: str | None = None) -> None:
        self.cache = cache
        self.split = split
        self.local_copy = local_copy

    def run_inference_pipeline(self, model: nn.Module, data_loader: Any) -> dict[str, float]:
        """``perplexity``, ``cross_entropy`` (nats per predicted token), ``dense_teacher_kl``
        (nats), ``dense_teacher_agreement``, and the teacher's own ``teacher_perplexity`` and
        ``teacher_cross_entropy``.
        """  # noqa: D205
        joined = kdcache.CachedDataset(
            data_loader.dataset,
            self.cache,
            split=self.split,
            batch=BATCH,
            collate_fn=data_loader.collate_fn,
            local_copy=self.local_copy,
        )
        built_in = PerplexityPipeline(BATCH)
        results = built_in.run_inference_pipeline(model, joined.loader_like(data_loader))
        return {_DENSE.get(name, name): value for name, value in results.items()}
