"""The sections of an experiment file, one value type for each stage. Data only.

``cache``, ``data``, ``batch`` and ``progress`` serve both stages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from kdcache.tracking import Tracking

COMPONENTS = frozenset({"data", "teacher", "student", "optimizer", "scheduler"})
"""Sections of the form ``{class_path: ..., init_args: {...}}``."""

SCHEDULER = "scheduler"
"""The component that may have an ``interval`` beside these."""

MODELS = frozenset({"teacher", "student"})
"""Components that may have ``weights`` beside these: a file that is loaded into what was built."""


@dataclass(frozen=True, kw_only=True)
class DumpSection:
    """How stage one runs.

    Attributes:
        devices: processes to start on this machine, one teacher each.
        part: this job's share, such as 3/16 (counted from 0), if independent jobs fill one cache.
        ranks_per_replica: ranks of torchrun or SLURM that share one sharded teacher (FSDP).
        accelerator: auto, cpu, cuda or another of Lightning's.
        precision: 32-true, bf16-mixed, 16-mixed or another of Lightning's; 32 and 16 for short.
        key: what connects a sample with its targets: index (its number), content (a hash of it),
            or field:<path> (an identifier in the sample).
        fingerprint: what of a sample is compared between dump and training: inputs of the model,
            sample (all of it), field:<path>, tokens:<path> (token ids; list, array and tensor of
            any integer type are the same), or the class path of a function of a sample.
        samples_per_shard: samples that are written, or lost in a crash, together; chosen from
            size and number of samples if null.
        pilot: measure a few samples before the first shard: how exact the stored targets are, and
            how far a sample's targets depend on the others in its batch.
        extend: also dump samples that were added at the dataset's end since the cache was made.
        grace_s: seconds after SIGTERM in which the current shard may still be finished.
    """

    devices: int = 1
    part: str | None = None
    ranks_per_replica: int = 1
    accelerator: str = "auto"
    precision: str | int = "32-true"
    key: str = "index"
    fingerprint: str = "inputs"
    samples_per_shard: int | None = None
    pilot: bool = True
    extend: bool = False
    grace_s: float = 30.0


@dataclass(frozen=True, kw_only=True)
class DistillSection:
    """What a student learns from.

    Attributes:
        temperature: T > 0 of the losses on soft targets.
        losses: loss name -> coefficient.
        reduction: how divergences are averaged: position_mean, over the positions that count; or
            per_sample_sum, summed over the positions of each sample, then averaged over samples.
        head: logits; or hidden: losses are computed from the student's last hidden states and its
            output layer, so that the logits of a whole batch never exist at once.
    """

    temperature: float = 1.0
    losses: dict[str, float] = field(default_factory=lambda: {"kd_loss": 1.0})
    reduction: Literal["position_mean", "per_sample_sum"] = "position_mean"
    head: Literal["logits", "hidden"] = "logits"


@dataclass(frozen=True, kw_only=True)
class DumpExperiment:
    """What ``kdcache dump-teacher`` reads.

    Attributes:
        cache: folder of the teacher cache.
        data: class_path and init_args of an object with training and validation loaders.
        teacher: class_path and init_args of the teacher, and weights if they are in a file:
            safetensors, or a PyTorch file that holds nothing but weights.
        batch: which entries of a batch are inputs, labels and mask; found by their names, places
            and types if null.
        targets: codec and its settings.
        progress: show a bar on a terminal.

    ``dump`` says how the teacher is run.
    """

    cache: str
    data: dict[str, Any]
    teacher: dict[str, Any]
    batch: Any = None
    targets: dict[str, Any] = field(default_factory=lambda: {"codec": "dense"})
    dump: DumpSection = field(default_factory=DumpSection)
    progress: bool = True


@dataclass(frozen=True, kw_only=True)
class StudentExperiment:
    """What ``kdcache train-student`` reads.

    Attributes:
        cache: folder of the teacher cache.
        data: class_path and init_args of an object with training and validation loaders.
        student: class_path and init_args of the student, and weights if it begins with those of a
            file.
        batch: which entries of a batch are inputs, labels and mask; found by their names, places
            and types if null.
        targets: of the dump. Only a class path in ``codec`` is read here: code is imported because
            you name it, never because a cache does.
        dump: of the dump. Only a class path in ``fingerprint`` is read here, for the same reason.
        optimizer: class_path and init_args; the class path may be one of the names adam, sgd,
            adam_wav2vec2.0, adam_distilBert, adamW_distilBert; Adam with lr 1e-3 if null.
        scheduler: class_path and init_args, and interval: how often the learning rate changes,
            epoch (if left out) or step; the class path may be one of the names
            linear_decay_with_warm_up, cosine_anneal.
        pipelines: validation set -> class_path and init_args of its inference pipeline, or one of
            the names accuracy (if left out), top_5, perplexity, word_error_rate,
            character_error_rate.
        monitor: the number that decides about the best checkpoints, train_<loss> or
            <set>_inference_result; the score of the first validation set if null.
        trainer: arguments of Lightning's Trainer, such as max_epochs, devices, precision.
        output: a new or empty folder; a numbered one beside the cache if null.
        resume: the folder of an earlier run, or one of its checkpoints, to go on from. A run that
            did not end goes on in its own folder, unless output names another one.
        local_copy: folder of the local copy of the cache; the machine's default if null.
        allow_mismatch: train even though samples differ from what the teacher saw.
        seed: of everything random, including the student's first weights.
        progress: show a bar on a terminal.

    ``distill`` says what the student learns from, ``tracking`` where the run is logged.
    """

    cache: str
    data: dict[str, Any]
    student: dict[str, Any]
    batch: Any = None
    targets: dict[str, Any] = field(default_factory=dict)
    dump: DumpSection = field(default_factory=DumpSection)
    distill: DistillSection = field(default_factory=DistillSection)
    optimizer: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None
    pipelines: dict[str, dict[str, Any]] = field(default_factory=dict)
    monitor: str | None = None
    trainer: dict[str, Any] = field(default_factory=dict)
    tracking: Tracking = field(default_factory=Tracking)
    output: str | None = None
    resume: str | None = None
    local_copy: str | None = None
    allow_mismatch: bool = False
    seed: int = 0
    progress: bool = True
