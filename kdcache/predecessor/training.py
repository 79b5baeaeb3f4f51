"""The teacher runs first, into a cache; every reference to it is dropped; then the student trains.

Nothing of the teacher is in the student's process from there on.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from kdcache.data.batch.mapping import BatchMapping
from kdcache.data.samples import sources
from kdcache.dump import dump_teacher
from kdcache.dump.loop import is_complete
from kdcache.errors import CacheIncompleteError, UsageError
from kdcache.losses import Objective
from kdcache.paths import local_path
from kdcache.predecessor.arguments import check_arguments
from kdcache.predecessor.calls import (
    call_mapping,
    called_alike,
    first_batch,
    left_as_it_was,
    takes_alike,
)
from kdcache.predecessor.devices import Devices, off_the_device, wait_for
from kdcache.tracking import Tracking
from kdcache.train import StudentRun, train_student
from kdcache.train.interruption.resume import Resumption
from kdcache.train.optimization.optimizers import optimizer_maker
from kdcache.train.optimization.schedules import Schedule, linear_decay_with_warm_up
from kdcache.train.pipelines import pipeline_of
from kdcache.train.trainer_options import check_options

log = logging.getLogger(__name__)

DEFAULT_CACHE = "teacher_cache.zarr"
_WARMED_UP = "linear_decay_with_warm_up"

Teacher = nn.Module | Callable[[], nn.Module]


class KnowledgeDistillationTraining:
    """Distils a teacher into a student; arguments and meaning are the predecessor's.

    Models are called as ``model(*batch)``, at temperature 1 where they take a ``temperature``, and
    return what :func:`kdcache.outputs.read_output` reads: a dict with "logits" (raw at temperature
    1) and perhaps "loss" (name -> scalar), or a plain tensor. Divergences are summed over a
    sample's positions and averaged over samples, as the predecessor's were; positions that a mask
    leaves out no longer count.

    Args:
        num_gpu_used: 0 means the CPU; more than one means DDP.
        max_epoch: epochs of training.
        optimize_method: one of :data:`kdcache.train.optimization.optimizers.OPTIMIZERS`.
        scheduler_method: one of :data:`kdcache.train.optimization.schedules.SCHEDULES`, or "".
        learning_rate: of the optimiser.
        num_lr_warm_up_epoch: of ``linear_decay_with_warm_up``.
        final_loss_coeff_dict: loss name -> coefficient: ``kd_loss``, ``cos_embed_loss``, any other
            loss of :mod:`kdcache.losses`, and those that the student returns; an unknown name is
            an error.
        log_to_comet: beside ``metrics.csv`` in the run's folder.
        comet_info_path: file of three lines: API key, project, workspace.
        comet_exp_name: name of the experiment.
        temperature: of the losses on soft targets.
        seed: of everything random from here on.
        track_grad_norm: p of the norm of the gradient that is logged, or "inf"; -1: none.
        accumulate_grad_batches: batches of one optimiser step.
        accelerator: None: GPUs if any are used, the CPU otherwise; or a name of Lightning's. With
            "cpu", ``num_gpu_used`` counts processes.
        num_nodes: machines.
        precision: 16 or 32, or a name of Lightning's; where float16 is not possible bfloat16 is
            used, and that is logged.
        deterministic: refuse operations that are not.
        resume_from_checkpoint: of an earlier run; "" for none.
        train_data_loader: its samples are what the teacher sees, once.
        val_data_loaders: validation set -> loader. A set whose batches the teacher can take is
            dumped as well, and then scored against the teacher.
        inference_pipeline: scores each set; accuracy on labels if None.
        student_model: trained in place.
        teacher_model: or a function that makes it, called only where something is missing in the
            cache; None where the cache is complete.
        logging_param: hyper-parameters to save with the experiment.
        cache: folder of the teacher cache.
        verbose: print at the end of each stage what came out, on a terminal or in a notebook.

    Raises:
        UsageError: an argument is missing or wrong.
    """

    def __init__(  # noqa: PLR0917 (in the predecessor's order)
        self,
        num_gpu_used: int = 0,
        max_epoch: int = 10,
        optimize_method: str = "adam",
        scheduler_method: str = "",
        learning_rate: float = 1e-4,
        num_lr_warm_up_epoch: int = 0,
        final_loss_coeff_dict: Mapping[str, float] | None = None,
        log_to_comet: bool = False,
        comet_info_path: str = "",
        comet_exp_name: str = "",
        temperature: float = 1,
        seed: int = 32,
        track_grad_norm: float | str = 2,
        accumulate_grad_batches: int = 1,
        accelerator: str | None = None,
        num_nodes: int = 1,
        precision: int | str = 16,
        deterministic: bool = True,
        resume_from_checkpoint: str | None = "",
        train_data_loader: DataLoader[Any] | None = None,
        val_data_loaders: Mapping[str, DataLoader[Any]] | None = None,
        inference_pipeline: Any = None,
        student_model: nn.Module | None = None,
        teacher_model: Teacher | None = None,
        logging_param: Mapping[str, Any] | Namespace | None = None,
        cache: str | Path = DEFAULT_CACHE,
        verbose: bool = True,
    ) -> None:
        check_arguments({**locals()}, KnowledgeDistillationTraining.__init__)
        if student_model is None or train_data_loader is None:
            raise UsageError("student_model and train_data_loader are needed for any training.")
        self._verbose = verbose
        self._student: nn.Module = student_model
        self._teacher = teacher_model
        self._data = _Loaders(train_data_loader, sources.validation_loaders(val_data_loaders))
        self._cache = local_path(cache, "cache")
        self._devices = Devices.of(num_gpu_used, accelerator, num_nodes)
        self._options: dict[str, Any] = {
            "losses": final_loss_coeff_dict or {"kd_loss": 1},
            "temperature": temperature,
            "reduction": "per_sample_sum",
            "optimizer": optimize_method,
            "scheduler": _scheduler(scheduler_method, num_lr_warm_up_epoch),
            "learning_rate": learning_rate,
            "monitor": "train_final_loss",
            "seed": seed,
            "resume": resume_from_checkpoint or None,
            "tracking": {
                "loggers": ["csv", "comet"] if log_to_comet else ["csv"],
                "name": comet_exp_name or None,
                "grad_norm": None if track_grad_norm == -1 else float(track_grad_norm),
                "parameters": _parameters(logging_param),
                **({"comet": {"info": comet_info_path or None}} if log_to_comet else {}),
            },
            "trainer": {
                **self._devices.trainer(),
                "max_epochs": max_epoch,
                "accumulate_grad_batches": accumulate_grad_batches,
                "precision": precision,
                "deterministic": deterministic,
            },
        }
        if inference_pipeline is not None:
            self._options["pipelines"] = dict.fromkeys(self._data.validation, inference_pipeline)
        check_settings(self._options)

    def start_kd_training(self) -> StudentRun:
        """Dump the teacher where the cache is not complete, let go of it, and train the student.

        A launcher may run this on every rank.
        """
        with left_as_it_was(self._student):
            self._dump(self._teacher)
        teacher, self._teacher = self._teacher, None
        if isinstance(teacher, nn.Module):
            off_the_device(teacher)
        del teacher
        return train_student(
            self._student,
            self._data,
            self._cache,
            batch=call_mapping(self._student, first_batch(self._data.train)),
            verbose=self._verbose,
            **self._options,
        )

    def get_student_model(self) -> nn.Module:
        """The student, trained in place."""
        return self._student

    def _dump(self, teacher: Teacher | None) -> None:
        splits = {sources.TRAIN: self._data.train}
        if teacher is None:
            if not is_complete(self._cache, tuple(splits)):
                raise CacheIncompleteError(
                    f"{self._cache} is not complete, and there is no teacher_model to dump. Give "
                    "one, or the path of a complete cache."
                )
            return
        batch = first_batch(self._data.train)
        if isinstance(teacher, nn.Module):
            mapping = call_mapping(teacher, batch)
        else:
            mapping = call_mapping(self._student, batch)
            teacher = called_alike(teacher, mapping, batch)
        for name, loader in self._data.validation.items():
            if takes_alike(mapping, batch, loader):
                splits[name] = loader
            else:
                log.info("validation set %r is not dumped: the teacher cannot take it", name)
        if not self._devices.is_second_stage():
            dump_teacher(
                teacher,
                splits,
                self._cache,
                batch=mapping,
                key="content" if sources.is_stream(self._data.train.dataset) else "index",
                part=self._devices.part(),
                accelerator=self._devices.accelerator,
                verbose=self._verbose,
            )
        wait_for(self._cache, tuple(splits))


@dataclass(frozen=True)
class _Loaders:
    """What :func:`kdcache.train_student` asks of data."""

    train: DataLoader[Any]
    validation: dict[str, DataLoader[Any]]

    def train_dataloader(self) -> DataLoader[Any]:
        return self.train

    def val_dataloader(self) -> dict[str, DataLoader[Any]]:
        return self.validation


def _scheduler(name: str, num_warm_up: int) -> Any:
    if num_warm_up and name != _WARMED_UP:
        raise UsageError(
            f"num_lr_warm_up_epoch={num_warm_up} is of scheduler_method {_WARMED_UP!r}, not of "
            f"{name!r}."
        )
    if name != _WARMED_UP:
        return name or None
    return Schedule(
        make=lambda optimizer, total: linear_decay_with_warm_up(optimizer, total, num_warm_up)
    )


def _parameters(given: Mapping[str, Any] | Namespace | None) -> dict[str, Any]:
    if isinstance(given, Namespace):
        return vars(given)
    return dict(given or {})


def check_settings(options: Mapping[str, Any]) -> None:
    """Refuse, before the teacher is asked anything, what no student could train with.

    Args:
        options: of :func:`kdcache.train_student`.

    Raises:
        UsageError: see the things that are made here, and thrown away.
    """
    Objective(losses=options["losses"], temperature=options["temperature"])
    optimizer_maker(options["optimizer"], options["learning_rate"])
    Schedule.of(options["scheduler"])
    check_options(options["trainer"], Tracking.of(options["tracking"]))
    for name, pipeline in options.get("pipelines", {}).items():
        pipeline_of(pipeline, name, BatchMapping(), 1.0)
    if options["resume"] is not None:
        Resumption.of(local_path(options["resume"], "resume_from_checkpoint"))
