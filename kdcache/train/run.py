"""One student run: checks first, then Lightning's Trainer, then a plain file of weights."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from safetensors.torch import save_model
from torch import nn
from torch.utils.data import DataLoader

import kdcache
from kdcache.data import sources
from kdcache.data.batch import Mapped
from kdcache.data.join import CachedDataset
from kdcache.data.probes import check_join
from kdcache.losses import Objective
from kdcache.store import Cache, open_cache
from kdcache.train.module import MakeOptimizer, MakeScheduler, StudentModule
from kdcache.train.output import (
    CHECKPOINTS_FOLDER,
    STUDENT_FILE,
    claim_output,
    released_on_failure,
    write_record,
)

log = logging.getLogger(__name__)
_BEST = 3


@dataclass(frozen=True, kw_only=True)
class StudentRun:
    """What came out of a run.

    Attributes:
        output: its folder.
        student: the plain weights of the last epoch, ``student.safetensors``.
        metrics: the last value of everything that was logged.
        seconds: wall-clock time of training, validation included.
        digest: of the cache's training split.
    """

    output: Path
    student: Path
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float
    digest: str


def train_student(
    student: nn.Module,
    data: Any,
    cache: str | Path,
    *,
    losses: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    batch: Mapped | Mapping[str, Any] | str | None = None,
    optimizer: MakeOptimizer | None = None,
    scheduler: MakeScheduler | None = None,
    learning_rate: float = 1e-3,
    pipelines: Mapping[str, Any] | None = None,
    class_names: Sequence[str] = (),
    output: str | Path | None = None,
    local_copy: Path | None = None,
    codecs: Collection[str] = (),
    fingerprint: Callable[[Any], Any] | None = None,
    allow_mismatch: bool = False,
    seed: int | None = None,
    progress: bool = True,
    trainer: Mapping[str, Any] | None = None,
) -> StudentRun:
    """Train one student from a teacher cache.

    Everything that can be refused is refused before the first optimiser step: the cache's
    completeness, the temperature, class names, fingerprints of about a thousand samples, the
    collate function. Every sample is checked again as it is joined.

    Args:
        student: returns raw logits; may return losses of its own.
        data: a DataLoader, or an object with training and validation loaders (a Lightning
            DataModule, or see :func:`kdcache.data.sources.loaders`).
        cache: the teacher cache; split ``train`` is needed, validation splits are used where
            they were dumped.
        losses: loss name -> coefficient, ``{"kd_loss": 1.0}`` if None.
        temperature: T > 0.
        batch: which leaves are inputs, labels and mask; inferred if None.
        optimizer: from parameters to an optimiser; Adam if None.
        scheduler: from the optimiser to a schedule, stepped once an epoch.
        learning_rate: of the default Adam.
        pipelines: validation set -> inference pipeline; accuracy where none is given.
        class_names: in class order; the data's own if empty.
        output: an empty or new folder; the next number beside the cache if None.
        local_copy: folder of the local copy of the cache.
        codecs: class paths of codecs of your own that the cache may name.
        fingerprint: your own fingerprint function, where the dump used one.
        allow_mismatch: train although samples differ from what the teacher saw. Loud, and
            recorded in ``run.json``.
        seed: of everything random; nothing is seeded if None.
        progress: show Lightning's bar where standard error is a terminal.
        trainer: arguments for Lightning's Trainer.

    Returns:
        The run: folder, metrics, seconds.

    Raises:
        KdcacheError: see ``kdcache.errors``; nothing is overwritten.
    """
    if seed is not None:
        pl.seed_everything(seed, workers=True, verbose=False)
    train_loader, validation = _loaders(data)
    opened = open_cache(cache)
    names = tuple(class_names) or sources.class_names(data, train_loader.dataset)
    options: dict[str, Any] = {
        "batch": batch,
        "local_copy": local_copy,
        "codecs": codecs,
        "fingerprint": fingerprint,
        "check_fingerprints": not allow_mismatch,
    }
    joined = _join(opened, sources.TRAIN, train_loader, options)
    Objective(losses=losses or {"kd_loss": 1.0}, temperature=temperature).check_codec(joined.codec)
    if allow_mismatch:
        log.warning("allow_mismatch: samples are not checked against what the teacher saw")
    else:
        check_join(joined, names)
    module = StudentModule(
        student,
        losses=losses,
        temperature=temperature,
        batch=batch,
        optimizer=optimizer,
        scheduler=scheduler,
        learning_rate=learning_rate,
        validation=_joined_validation(opened, validation, pipelines or {}, options),
        pipelines=pipelines,
    )
    folder = claim_output(None if output is None else Path(output), opened.path)
    module.record = {
        "kdcache": kdcache.__version__,
        "cache": str(opened.path),
        "digest": joined.view.digest,
        "allow_mismatch": allow_mismatch,
        "losses": dict(module.objective.losses),
        "temperature": temperature,
        "seed": seed,
        "trainer": dict(trainer or {}),
        "student": f"{type(student).__module__}.{type(student).__qualname__}",
    }
    started = time.monotonic()
    with released_on_failure(folder):
        metrics = _fit(module, joined.loader_like(train_loader), folder, trainer or {}, progress)
    seconds = time.monotonic() - started
    run = StudentRun(
        output=folder,
        student=folder / STUDENT_FILE,
        metrics=metrics,
        seconds=seconds,
        digest=joined.view.digest,
    )
    save_model(student, str(run.student), metadata={"cache_digest": run.digest})
    write_record(folder, {**module.record, "metrics": metrics, "seconds": round(seconds, 3)})
    return run


def _loaders(data: Any) -> tuple[sources.Loader, dict[str, sources.Loader]]:
    if isinstance(data, DataLoader):
        return data, {}
    sources.prepare(data)
    return sources.loaders(data)


def _join(
    cache: Cache, split: str, loader: sources.Loader, options: Mapping[str, Any]
) -> CachedDataset:
    sources.check_map_style(loader)
    return CachedDataset(loader.dataset, cache[split], collate_fn=loader.collate_fn, **options)


def _joined_validation(
    cache: Cache,
    validation: Mapping[str, sources.Loader],
    pipelines: Mapping[str, Any],
    options: Mapping[str, Any],
) -> dict[str, sources.Loader]:
    """Validation loaders; joined where the split was dumped and the built-in pipeline scores it."""
    loaders = dict(validation)
    for name, loader in validation.items():
        if name in cache and name not in pipelines:
            joined = _join(cache, name, loader, options)
            if options["check_fingerprints"]:
                check_join(joined)
            loaders[name] = joined.loader_like(loader)
    return loaders


def _fit(
    module: StudentModule,
    loader: sources.Loader,
    folder: Path,
    options: Mapping[str, Any],
    progress: bool,
) -> dict[str, float]:
    """Run the Trainer; returns the last value of everything that was logged."""
    monitored, mode = module.monitor
    best = ModelCheckpoint(
        dirpath=folder / CHECKPOINTS_FOLDER,
        filename="best-{epoch:03d}-{step}",
        monitor=monitored,
        mode=mode,
        save_top_k=_BEST,
        save_last=True,
        save_on_train_epoch_end=monitored == "train_final_loss",
    )
    settings: dict[str, Any] = {
        "max_epochs": 10,
        "logger": CSVLogger(folder, name="", version=""),
        "enable_model_summary": False,
        "enable_progress_bar": progress and sys.stderr.isatty(),
        "num_sanity_val_steps": 0,
        **options,
    }
    settings["callbacks"] = [*settings.get("callbacks", []), best]
    with warnings.catch_warnings():
        _ignore_advice()
        trainer = pl.Trainer(default_root_dir=folder, **settings)
        trainer.fit(module, train_dataloaders=loader)
    return {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if isinstance(value, torch.Tensor)
        and value.numel() == 1
        and not name.endswith(("_step", "_epoch"))
    }


def _ignore_advice() -> None:
    """Lightning's advice on settings that the user chose, or that our loaders make on purpose."""
    for text in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*GPU available but not used.*",
        ".*isinstance.*LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message=text)
