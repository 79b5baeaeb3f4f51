"""One student run: checks first, then Lightning's Trainer, then a plain file of weights."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from safetensors.torch import save_model
from torch import nn
from torch.utils.data import DataLoader

from kdcache.data import sources
from kdcache.data.batch import Mapped
from kdcache.data.join import CachedDataset
from kdcache.data.probes import check_join
from kdcache.data.stream import CachedStream
from kdcache.data.vocabulary import IDENTITY, check_vocabulary, find_vocabulary
from kdcache.losses import Objective
from kdcache.losses.evaluation import Reduction
from kdcache.store import Cache, open_cache
from kdcache.tracking import Tracking
from kdcache.tracking.code_version import code_version
from kdcache.train.diagnostics import DIFFERENCES
from kdcache.train.finite import check_weights
from kdcache.train.fit import check_options, fit
from kdcache.train.module import (
    DEFAULT_LOSSES,
    Head,
    StudentModule,
)
from kdcache.train.optimizers import MakeOptimizer
from kdcache.train.output import (
    EXPERIMENT_FILE,
    STUDENT_FILE,
    claim_output,
    released_on_failure,
)
from kdcache.train.record import describe_data, describe_student, plain, write_record
from kdcache.train.resume import Resumption
from kdcache.train.schedules import MakeScheduler, Schedule
from kdcache.train.validation import ValidationSet
from kdcache.version import __version__

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StudentRun:
    """What came out of a run.

    Attributes:
        output: its folder.
        student: the plain weights of the last epoch, ``student.safetensors``.
        metrics: the last value of everything that was logged.
        scores: validation set -> numbers of these weights, whenever else it was validated; they
            stand among the metrics as ``<set>_<number>``.
        lower_bounds: names of the metrics that are lower bounds: ``<set>_teacher_kl``,
            ``<set>_kd_loss`` and ``<set>_teacher_cross_entropy`` where the cache holds the top k
            only.
        epochs: that were trained.
        steps: of the optimiser, in all of them.
        seconds: wall-clock time of training, validation included.
        digest: of the cache's training split.
    """

    output: Path
    student: Path
    metrics: Mapping[str, float]
    scores: Mapping[str, Mapping[str, float]]
    lower_bounds: tuple[str, ...]
    epochs: int
    steps: int
    seconds: float
    digest: str

    @property
    def losses(self) -> dict[str, float]:
        """Training losses, mean over the last epoch: name -> value, ``final_loss`` the total."""
        others = {f"{split}_{name}" for split, found in self.scores.items() for name in found}
        others |= {f"train_{name}" for name in DIFFERENCES}
        return {
            name.removeprefix("train_"): value
            for name, value in self.metrics.items()
            if name.startswith("train_") and name not in others
        }


def train_student(
    student: nn.Module,
    data: Any,
    cache: str | Path,
    *,
    losses: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    batch: Mapped | Mapping[str, Any] | str | None = None,
    reduction: Reduction = "position_mean",
    optimizer: str | MakeOptimizer | None = None,
    scheduler: str | MakeScheduler | Schedule | None = None,
    learning_rate: float = 1e-3,
    head: Head = "logits",
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
    monitor: str | None = None,
    tracking: Tracking | Mapping[str, Any] | None = None,
    resume: str | Path | None = None,
    experiment: str | None = None,
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
        reduction: ``position_mean``: divergences are means over valid positions; or
            ``per_sample_sum``: sums over them, means over samples.
        optimizer: from parameters to an optimiser; or a name, such as ``adam_wav2vec2.0``; Adam if
            None.
        scheduler: from the optimiser to a schedule, stepped once an epoch; a name, such as
            ``cosine_anneal``; or a :class:`~kdcache.train.schedules.Schedule`.
        learning_rate: of an optimiser that is named, or None.
        head: ``logits``, or ``hidden``: losses begin with the student's last hidden states and its
            output layer, and all logits of a batch never exist at once (large vocabularies).
        pipelines: validation set -> inference pipeline, or the name of a built-in one, see
            :data:`kdcache.train.pipelines.PIPELINES`; accuracy where none is given. A set that
            was dumped also gets its distance to the teacher.
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
        tracking: what is logged and where to, such as ``{"loggers": ["csv", "comet"]}``; see
            :class:`kdcache.tracking.Tracking`.
        monitor: what tells the best checkpoints: ``train_<loss>``, or
            ``<set>_inference_result``; the first set's if None.
        resume: a checkpoint of an earlier run, or that run's folder: training goes on from there;
            in its folder, where that run did not end, and ``output`` is None. It ends with the
            weights of an uninterrupted training, where the loader shuffles all samples or none;
            other samplers, and streams, begin the epoch in hand again.
        experiment: text of an experiment file that says all this, kept as ``experiment.yaml``.

    Returns:
        The run: folder, metrics, seconds. ``run.json`` in its folder says what it was.

    Raises:
        DataError: the objective or the student is no longer finite; no student is saved.
        TerminatedError: SIGTERM came; checkpoints stay.
        KdcacheError: see ``kdcache.errors``; nothing is overwritten.
    """
    options = dict(trainer or {})
    tracked = Tracking.of(tracking)
    check_options(options, tracked)
    resumption = None if resume is None else Resumption.of(Path(resume))
    objective = Objective(
        losses=DEFAULT_LOSSES if losses is None else losses,
        temperature=temperature,
        reduction=reduction,
    )
    if seed is not None:
        pl.seed_everything(seed, workers=True, verbose=False)
    opened = open_cache(cache)
    train_loader, validation = _loaders(data)
    names = tuple(class_names) or sources.class_names(data, train_loader.dataset)
    joining: dict[str, Any] = {
        "batch": batch,
        "local_copy": local_copy,
        "codecs": codecs,
        "fingerprint": fingerprint,
        "check_fingerprints": not allow_mismatch,
    }
    joined = _join(opened, sources.TRAIN, train_loader, joining)
    objective.check_codec(joined.codec)
    if allow_mismatch:
        log.warning("allow_mismatch: samples are not checked against what the teacher saw")
    else:
        check_join(joined, names)
        check_vocabulary(
            joined.view.manifest.identity.get(IDENTITY, ""), find_vocabulary(data, train_loader)
        )
    module = StudentModule(
        student,
        losses=losses,
        temperature=temperature,
        batch=batch,
        reduction=reduction,
        optimizer=optimizer,
        scheduler=scheduler,
        learning_rate=learning_rate,
        head=head,
        monitor=monitor,
        grad_norm=tracked.grad_norm,
        validation=_joined_validation(opened, validation, joining),
        pipelines=pipelines,
    )
    digest = joined.view.digest
    module.record = plain(
        {
            "kdcache": __version__,
            "torch": torch.__version__,
            "pytorch_lightning": version("pytorch_lightning"),
            "cache": opened.path,
            "digest": digest,
            "allow_mismatch": allow_mismatch,
            "losses": objective.losses,
            "temperature": temperature,
            "reduction": reduction,
            "head": head,
            "seed": seed,
            "trainer": options,
            "name": tracked.name,
            "parameters": tracked.parameters,
            "code": code_version(Path.cwd()),
            "pipelines": {
                name: pipeline if isinstance(pipeline, str) else type(pipeline)
                for name, pipeline in (pipelines or {}).items()
            },
            **describe_student(student),
            **describe_data(data, train_loader),
        }
    )
    if resumption is not None:
        resumption.check(module.record)
    training = functools.partial(
        _run,
        module,
        module.windowed(joined.loader_like(train_loader)),
        options,
        digest,
        progress=progress,
        tracking=tracked,
        resume=resumption,
    )
    if rank_zero_only.rank:  # this process helps the first one, which claims the folder
        return training(Path())
    folder = None if output is not None or resumption is None else resumption.folder
    folder = folder or claim_output(None if output is None else Path(output), opened.path)
    with released_on_failure(folder):
        if experiment is not None:
            (folder / EXPERIMENT_FILE).write_text(experiment, encoding="utf-8")
        run = training(folder)
    save_model(student, str(run.student), metadata={"cache_digest": digest})
    results = {
        "metrics": run.metrics,
        "scores": run.scores,
        "lower_bounds": run.lower_bounds,
        "epochs": run.epochs,
        "steps": run.steps,
        "seconds": round(run.seconds, 3),
    }
    write_record(folder, {**module.record, **results})
    return run


def _run(
    module: StudentModule,
    loader: sources.Loader,
    options: Mapping[str, Any],
    digest: str,
    folder: Path,
    *,
    progress: bool,
    tracking: Tracking,
    resume: Resumption | None,
) -> StudentRun:
    started = time.monotonic()
    fitted = fit(
        module, loader, folder, options, progress=progress, tracking=tracking, resume=resume
    )
    seconds = time.monotonic() - started
    check_weights(module.student)
    trainer = fitted.trainer
    module.record |= {
        "batch": module.mapping.describe(),
        "accelerator": type(trainer.accelerator).__name__,
        "precision": trainer.precision,
        "world_size": trainer.world_size,
    }
    folder = Path(trainer.strategy.broadcast(str(folder)))
    return StudentRun(
        output=folder,
        student=folder / STUDENT_FILE,
        metrics=fitted.metrics,
        scores=module.scores,
        lower_bounds=module.lower_bounds,
        epochs=fitted.epochs,
        steps=fitted.steps,
        seconds=seconds,
        digest=digest,
    )


def _loaders(data: Any) -> tuple[sources.Loader, dict[str, sources.Loader]]:
    if isinstance(data, DataLoader):
        return data, {}
    sources.prepare(data)
    return sources.loaders(data)


def _join(
    cache: Cache, split: str, loader: sources.Loader, options: Mapping[str, Any]
) -> CachedDataset | CachedStream:
    sources.check_batched(loader)
    kind = CachedStream if sources.is_stream(loader.dataset) else CachedDataset
    return kind(loader.dataset, cache[split], collate_fn=loader.collate_fn, **options)


def _joined_validation(
    cache: Cache, validation: Mapping[str, sources.Loader], options: Mapping[str, Any]
) -> dict[str, ValidationSet]:
    """Validation sets, with their targets where the split was dumped."""
    found = {}
    for name, loader in validation.items():
        joined = None
        if name in cache:
            dataset = _join(cache, name, loader, options)
            if options["check_fingerprints"]:
                check_join(dataset)
            joined = dataset.loader_like(loader)
        found[name] = ValidationSet(loader=loader, joined=joined)
    return found
