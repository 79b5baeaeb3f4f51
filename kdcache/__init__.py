"""kdcache: run the teacher once, keep its soft targets, train as many students as you like.

Public names are loaded on first use, so that ``import kdcache`` costs nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kdcache.version import __version__

if TYPE_CHECKING:
    from kdcache.codecs import DenseCodec as DenseCodec
    from kdcache.codecs import TopKCodec as TopKCodec
    from kdcache.data.batch.forward import forward as forward
    from kdcache.data.batch.mapping import BatchMapping as BatchMapping
    from kdcache.data.join.counts import step_counts as step_counts
    from kdcache.data.join.dataset import CachedDataset as CachedDataset
    from kdcache.data.join.dataset import JoinedBatch as JoinedBatch
    from kdcache.data.join.stream import CachedStream as CachedStream
    from kdcache.dump import dump_teacher as dump_teacher
    from kdcache.errors import KdcacheError as KdcacheError
    from kdcache.importers.logprobs import import_logprobs as import_logprobs
    from kdcache.outputs import DeferredLogits as DeferredLogits
    from kdcache.predecessor import KnowledgeDistillationTraining as KnowledgeDistillationTraining
    from kdcache.store import open_cache as open_cache
    from kdcache.targets import SoftTargets as SoftTargets
    from kdcache.train import StudentModule as StudentModule
    from kdcache.train import train_student as train_student

_PUBLIC = {
    "BatchMapping": "kdcache.data.batch.mapping",
    "CachedDataset": "kdcache.data.join.dataset",
    "CachedStream": "kdcache.data.join.stream",
    "DeferredLogits": "kdcache.outputs",
    "DenseCodec": "kdcache.codecs",
    "JoinedBatch": "kdcache.data.join.dataset",
    "KdcacheError": "kdcache.errors",
    "KnowledgeDistillationTraining": "kdcache.predecessor",
    "SoftTargets": "kdcache.targets",
    "StudentModule": "kdcache.train",
    "TopKCodec": "kdcache.codecs",
    "dump_teacher": "kdcache.dump",
    "forward": "kdcache.data.batch.forward",
    "import_logprobs": "kdcache.importers.logprobs",
    "open_cache": "kdcache.store",
    "step_counts": "kdcache.data.join.counts",
    "train_student": "kdcache.train",
}

__all__ = ["__version__", *sorted(_PUBLIC)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Import the room that defines a public name when the name is first used (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'kdcache' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
