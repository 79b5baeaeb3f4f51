"""One student run: checks first, then Lightning's Trainer, then a plain file of weights."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from kdcache import values
from kdcache.data.batch.mapping import Mapped
from kdcache.data.batch.output_kind import warn_of_constants
from kdcache.data.batch.section import parse_mapping
from kdcache.data.samples import sources
from kdcache.data.samples.vocabulary import find_tokenizer
from kdcache.errors import UsageError
from kdcache.losses import Objective
from kdcache.losses.evaluation import Reduction
from kdcache.paths import local_path
from kdcache.store import open_cache
from kdcache.tables import is_watched
from kdcache.tracking import Tracking
from kdcache.tracking.code_version import code_version
from kdcache.tracking.source_code import EXPERIMENT_FILE
from kdcache.train.fit import fit
from kdcache.train.interruption.resume import Resumption
from kdcache.train.joined_data import Joining, join_data
from kdcache.train.module import DEFAULT_LOSSES, Head, StudentModule
from kdcache.train.optimization.optimizers import MakeOptimizer
from kdcache.train.optimization.schedules import MakeScheduler, Schedule
from kdcache.train.results.output import (
    PRETRAINED_FOLDER,
    STUDENT_FILE,
    claim_output,
    released_on_failure,
)
from kdcache.train.results.pretrained import save_pretrained
from kdcache.train.results.record import describe_data, describe_student, plain, write_record
from kdcache.train.results.student_run import StudentRun
from kdcache.train.step.finite import check_weights
from kdcache.train.trainer_options import check_options
from kdcache.version import __version__
from kdcache.weights import save_weights

MAX_SEED = 2**32 - 1
"""The largest that all of Python, NumPy and torch take."""


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
    local_copy: str | Path | None = None,
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
    verbose: bool = True,
) -> StudentRun:
    """Train one student from a teacher cache.

    Everything that can be refused is refused before the first optimiser step: the cache's
    completeness, the temperature, class names, fingerprints of about a thousand samples, the
    collate function. Every sample is checked again as it is joined.

    Args:
        student: returns raw logits; may return losses of its own.
        data: a DataLoader, or an object with training and validation loaders (a Lightning
            DataModule, or see :func:`kdcache.data.samples.sources.loaders`).
        cache: the teacher cache; split ``train`` is needed, validation splits are used where
            they were dumped.
        losses: loss name -> coefficient, ``{"kd_loss": 1.0}`` if None.
        temperature: T > 0.
        batch: which entries of a batch are inputs, labels and mask; inferred if None.
        reduction: ``position_mean``: divergences are means over valid positions; or
            ``per_sample_sum``: sums over them, means over samples.
        optimizer: from parameters to an optimiser; or a name, such as ``adam_wav2vec2.0``; Adam if
            None.
        scheduler: from the optimiser to a schedule, stepped once an epoch; a name, such as
            ``cosine_anneal``; or a :class:`~kdcache.train.optimization.schedules.Schedule`.
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
            in its folder, where that run did not end, and ``output`` is None or that folder. It
            ends with the weights of an uninterrupted training on a CPU, where the loader shuffles
            all samples or none; other samplers, and streams, begin the current epoch again. Not
            quite, and said so: from a checkpoint within an accumulated step, and with
            ReduceLROnPlateau.
        experiment: text of an experiment file that says all this, kept as ``experiment.yaml``.
        verbose: print the run's summary at its end, where standard output is a terminal or a
            notebook.

    Returns:
        The run: folder, metrics, seconds. ``run.json`` in its folder says what it was. A student
        with ``save_pretrained`` (Hugging Face, PEFT) is also in its ``pretrained``.

    Raises:
        DataError: the objective or the student is no longer finite; no student is saved.
        TerminatedError: SIGTERM came; checkpoints stay.
        TrainingInterrupt: Ctrl-C came, a KeyboardInterrupt; checkpoints stay.
        ProcessLostError: another process of the training ended; checkpoints stay.
        WorkerLostError: a worker of a DataLoader ended, most often for want of memory; the same.
        KdcacheError: see ``kdcache.errors``; nothing is overwritten.
    """
    _check_student(student, fingerprint)
    seed = None if seed is None else _seed(seed)
    allow_mismatch = values.flag(allow_mismatch, "allow_mismatch")
    progress, verbose = values.flag(progress, "progress"), values.flag(verbose, "verbose")
    class_names = values.texts(class_names, "class_names")
    tracked = Tracking.of(tracking)
    options = _plain_numbers({} if trainer is None else trainer)
    check_options(options, tracked)
    resumption = None if resume is None else Resumption.of(local_path(resume, "resume"))
    chosen = None if output is None else local_path(output, "output")
    objective = Objective(
        losses=DEFAULT_LOSSES if losses is None else losses,
        temperature=temperature,
        reduction=reduction,
    )
    if seed is not None:
        pl.seed_everything(seed, workers=True, verbose=False)
    opened = open_cache(cache)
    mapping = parse_mapping(batch, "student").bound(student)
    joining = Joining(
        batch=mapping,
        local_copy=None if local_copy is None else local_path(local_copy, "local_copy"),
        codecs=[codecs] if isinstance(codecs, str) else codecs,
        fingerprint=fingerprint,
        check_fingerprints=not allow_mismatch,
    )
    joined = join_data(data, opened, joining, class_names)
    objective.check_codec(joined.train.codec)
    warn_of_constants(objective.losses, joined.train.view.manifest.created)
    is_validated = options.get("limit_val_batches") != 0
    module = StudentModule(
        student,
        losses=losses,
        temperature=temperature,
        batch=mapping,
        reduction=reduction,
        optimizer=optimizer,
        scheduler=scheduler,
        learning_rate=learning_rate,
        head=head,
        monitor=monitor,
        grad_norm=tracked.grad_norm,
        validation=joined.validation if is_validated else {},
        pipelines=pipelines if is_validated else {},
    )
    digest = joined.train.view.digest
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
            **describe_data(data, joined.loader),
        }
    )
    if resumption is not None:
        resumption.check(module.record)
    training = functools.partial(
        _run,
        module,
        module.windowed(joined.train.loader_like(joined.loader)),
        options,
        digest,
        progress=progress,
        tracking=tracked,
        resume=resumption,
    )
    if rank_zero_only.rank:  # this process helps the first one, which claims the folder
        return training(Path())
    folder = None if resumption is None else resumption.own_folder(chosen)
    folder = folder or claim_output(chosen, opened.path)
    with released_on_failure(folder):
        if experiment is not None:
            (folder / EXPERIMENT_FILE).write_text(experiment, encoding="utf-8")
        run = training(folder)
    save_weights(student, run.student, {"cache_digest": digest})
    save_pretrained(student, find_tokenizer(data, joined.loader), folder / PRETRAINED_FOLDER)
    write_record(folder, {**module.record, **run.results()})
    if verbose and is_watched():
        print(run.summary())
    return run


def _check_student(student: object, fingerprint: object) -> None:
    if not isinstance(student, nn.Module):
        raise UsageError(
            f"student is an nn.Module that is made, such as Student(), not {student!r:.100}."
        )
    if fingerprint is not None and not callable(fingerprint):
        raise UsageError(
            f"fingerprint is your own function of a sample, where the dump used one, not "
            f"{fingerprint!r:.100}. Leave it out: any other fingerprint is read from the cache."
        )


def _seed(given: Any) -> int:
    is_whole = isinstance(given, int | np.integer) and not isinstance(given, bool)
    if not is_whole or not 0 <= given <= MAX_SEED:
        raise UsageError(f"the seed is a number from 0 to {MAX_SEED}, not {given!r}.")
    return int(given)


def _plain_numbers(options: Any) -> Any:
    """The Trainer's arguments with Python's numbers for NumPy's, which Lightning does not take."""
    if not isinstance(options, Mapping):
        return options
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in options.items()}


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
        parts=module.validation.parts,
        epochs=fitted.epochs,
        steps=fitted.steps,
        seconds=seconds,
        digest=digest,
    )
