"""All that stage one is told, held against what it takes before anything is written."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from kdcache import values
from kdcache.codecs import Codec, DenseCodec
from kdcache.data.batch.mapping import BatchMapping, Mapped
from kdcache.data.samples import sources
from kdcache.data.samples.keys import INDEX, check_key_source
from kdcache.errors import UsageError
from kdcache.store.format.layout import check_split_name

_FLAGS = ("pilot", "extend", "progress")


@dataclass(frozen=True, kw_only=True, eq=False)
class DumpJob:
    """All that stage one is told; see :func:`kdcache.dump_teacher` for the fields."""

    teacher: nn.Module | Callable[[], nn.Module]
    loaders: Mapping[str, sources.Loader]
    cache: Path
    codec: Codec = field(default_factory=DenseCodec)
    mapping: Mapped = field(default_factory=BatchMapping)
    class_names: Sequence[str] = ()
    vocabulary: str = ""
    key: str = INDEX
    fingerprint: str | Callable[[Any], Any] = "inputs"
    samples_per_shard: int | None = None
    pilot: bool = True
    extend: bool = False
    accelerator: str = "auto"
    precision: str = "32-true"
    grace_s: float = 30.0
    progress: bool = True

    def __post_init__(self) -> None:
        check_key_source(values.text(self.key, "key", INDEX))
        if not callable(self.fingerprint):
            values.text(self.fingerprint, "fingerprint, if no function,", "inputs")
        values.text(self.accelerator, "accelerator", "auto")
        plain = {
            "class_names": values.texts(self.class_names, "class_names"),
            "precision": values.precision(self.precision, "precision"),
            "grace_s": values.number(self.grace_s, "grace_s"),
            **{name: values.flag(getattr(self, name), name) for name in _FLAGS},
        }
        if self.samples_per_shard is not None:
            shard = values.whole_number(self.samples_per_shard, "samples_per_shard")
            plain["samples_per_shard"] = shard
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        teacher: object = self.teacher
        is_module_class = isinstance(teacher, type) and not _needs_nothing(teacher)
        if not callable(teacher) or is_module_class:
            raise UsageError(
                f"teacher is an nn.Module that is made, or a function that makes one, not "
                f"{teacher!r:.100}."
            )
        codec: object = self.codec
        if not hasattr(codec, "num_pilot_samples"):
            raise UsageError(
                f"codec is one that is made, such as kdcache.TopKCodec(k=32), not {codec!r:.100}."
            )
        if not self.loaders:
            raise UsageError("there is no split to dump: give at least a training loader.")
        for split in self.loaders:
            check_split_name(values.text(split, "a split's name", sources.TRAIN))
        other = next((k for k, v in self.loaders.items() if not isinstance(v, DataLoader)), None)
        if other is not None:
            raise UsageError(
                f"split {other!r} is a {type(self.loaders[other]).__name__}, not a DataLoader."
            )
        if not self.grace_s >= 0:
            raise UsageError(f"grace_s is a time in seconds, 0 or more, not {self.grace_s}.")


def _needs_nothing(made: type) -> bool:
    """Whether a class can be called without arguments, as a function that makes a teacher."""
    try:
        inspect.signature(made).bind()
    except (TypeError, ValueError):
        return False
    return True
