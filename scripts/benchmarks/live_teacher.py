"""What it costs to have the teacher beside the student: memory and seconds of an epoch.

    python -m scripts.benchmarks.live_teacher [--pair resnet] [--images 3200] [--turns 5]

(scripts/gpu_check does the same on a GPU, in one process, with ``--pair photos``.)

Three trainings of one student, each in processes of its own, that take turns: on cached targets
through kdcache.train_student; the same LightningModule, objective and loader with the live teacher
asked in every step; and plain cross entropy on labels, which needs no teacher at all. Images are
random, since what they show costs nothing. Seconds are those of the last of two epochs, on the
clock and of CPU; memory is the peak of anonymous memory over what the process had with everything
imported. Ratios are taken turn by turn. Linux, on the CPU.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import kdcache
from examples.mnist.resnet import resnet18, resnet34, small_student, small_teacher
from kdcache.targets import DenseTargets
from scripts.measuring.peak_memory import Measured, measure
from scripts.measuring.timing import Spread, Turn, settle, show

Make = Callable[[], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two models and what they are shown.

    Attributes:
        teacher: makes it.
        student: makes it.
        shape: of an image.
        num_classes: of both.
        batch: images of a step.
    """

    teacher: Make
    student: Make
    shape: tuple[int, ...] = (1, 28, 28)
    num_classes: int = 10
    batch: int = 64


def photo_net(name: str) -> nn.Module:
    """One of scripts/benchmarks/image_nets.py, which alone needs transformers."""
    from scripts.benchmarks import image_nets

    return getattr(image_nets, name)()


PAIRS: dict[str, Pair] = {
    "resnet": Pair(teacher=resnet34, student=resnet18),
    "small": Pair(teacher=small_teacher, student=partial(small_student, width=8)),
    "photos": Pair(
        teacher=partial(photo_net, "resnet50"),
        student=partial(photo_net, "resnet18"),
        shape=(3, 224, 224),
        num_classes=1000,
        batch=128,
    ),
    "tiny photos": Pair(
        teacher=partial(photo_net, "tiny_resnet"),
        student=partial(photo_net, "tiny_resnet"),
        shape=(3, 32, 32),
        num_classes=1000,
        batch=8,
    ),
}
EPOCHS = 2
LOSSES = {"kd_loss": 0.9, "student_loss": 0.1}
IMPORTS = ("kdcache.train.run", "kdcache.train.module", "examples.mnist.resnet")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every way of training is told.

    Attributes:
        pair: of models.
        images: of an epoch.
        cache: of the teacher.
        threads: of torch; None: as they are.
        accelerator: of Lightning.
        workers: of the loader; with any it also pins memory.
    """

    pair: str
    images: int
    cache: Path
    threads: int | None
    accelerator: str = "cpu"
    workers: int = 0


class EpochClock(pl.Callback):
    """What the latest epoch took."""

    def on_train_epoch_start(self, *_: object) -> None:
        settle()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def on_train_epoch_end(self, *_: object) -> None:
        settle()
        self._wall, self._cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu

    def __str__(self) -> str:
        """Seconds on the clock, and of CPU: what a process of its own sends back."""
        return f"{self._wall} {self._cpu}"


def turn_of(epoch: str) -> Turn:
    """The epoch that a way of training has sent back."""
    wall, cpu = map(float, epoch.split())
    return Turn(wall_s=wall, cpu_s=cpu)


class BesideTheTeacher(kdcache.StudentModule):
    """Asks a teacher for the targets of every batch; everything else is the same."""

    def __init__(self, student: nn.Module, teacher: nn.Module, **options: Any) -> None:
        super().__init__(student, **options)
        self._teacher = [teacher.eval().requires_grad_(False)]  # no part of the module

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._teacher[0].to(self.device)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        user_batch = batch.batch
        with torch.inference_mode():
            logits = self._teacher[0](user_batch[0])
        targets = DenseTargets(
            num_positions=torch.ones(len(logits), dtype=torch.int64),
            num_classes=logits.shape[-1],
            values=logits,
        )
        joined = batch._replace(batch=kdcache.JoinedBatch(user_batch, targets))
        return super().training_step(joined, batch_idx)


def loader(job: Job) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(
        data(job.pair, job.images),
        batch_size=PAIRS[job.pair].batch,
        shuffle=True,
        num_workers=job.workers,
        pin_memory=job.workers > 0,
        persistent_workers=job.workers > 0,
    )


@functools.lru_cache(maxsize=1)
def data(pair: str, images: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(images, *PAIRS[pair].shape, generator=generator)
    labels = torch.randint(PAIRS[pair].num_classes, (images,), generator=generator)
    return TensorDataset(pixels, labels)


def settings(clock: EpochClock, job: Job) -> dict[str, Any]:
    return {
        "max_epochs": EPOCHS,
        "accelerator": job.accelerator,
        "devices": 1,
        "callbacks": [clock],
        "enable_checkpointing": False,
    }


def models(job: Job) -> tuple[Make, nn.Module]:
    """How the teacher is made, and the student."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    torch.manual_seed(1)
    return PAIRS[job.pair].teacher, PAIRS[job.pair].student()


def cached(job: Job, losses: dict[str, float] | None = None) -> str:
    """Through the front door: fingerprints checked, metrics written, a student saved."""
    clock = EpochClock()
    _, student = models(job)
    with tempfile.TemporaryDirectory() as folder:
        kdcache.train_student(
            student,
            loader(job),
            job.cache,
            losses=losses or LOSSES,
            temperature=4.0,
            output=Path(folder) / "run",
            progress=False,
            trainer=settings(clock, job),
        )
    return str(clock)


def own_trainer(module: kdcache.StudentModule, job: Job) -> str:
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    clock = EpochClock()
    options = settings(clock, job) | {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    pl.Trainer(**options).fit(module, module.windowed(loader(job)))
    return str(clock)


def live(job: Job) -> str:
    make_teacher, student = models(job)
    module = BesideTheTeacher(student, make_teacher(), losses=LOSSES, temperature=4.0)
    return own_trainer(module, job)


def plain(job: Job) -> str:
    _, student = models(job)
    return own_trainer(kdcache.StudentModule(student, losses={"student_loss": 1.0}), job)


WAYS: dict[str, Callable[[Job], str]] = {
    "plain cross entropy": plain,
    "cached targets": cached,
    "live teacher": live,
}


def show_memory(found: dict[str, list[Measured]]) -> None:
    """Peaks over what was there before; ratios turn by turn."""
    table = Table("", "peak MiB", "ratio (quartiles)", title="memory", title_justify="left")
    first, *_ = memory = {
        name: [one.anon_mib - one.before_mib for one in turns] for name, turns in found.items()
    }
    for name, values in memory.items():
        ratio = Spread.of([a / b for a, b in zip(values, memory[first], strict=True)])
        table.add_row(
            name, f"{statistics.median(values):,.0f}", "" if name == first else str(ratio)
        )
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pair", choices=PAIRS, default="resnet")
    parser.add_argument("--images", type=int, default=3200, help="of an epoch")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            pair=arguments.pair,
            images=arguments.images,
            cache=Path(folder) / "teacher.zarr",
            threads=arguments.threads,
        )
        make_teacher, _ = models(job)
        started = time.perf_counter()
        kdcache.dump_teacher(
            make_teacher(), loader(job), job.cache, accelerator="cpu", progress=False
        )
        dump_s = time.perf_counter() - started
        found: dict[str, list[Measured]] = {name: [] for name in WAYS}
        for _ in range(arguments.turns):
            for name, way in WAYS.items():
                found[name].append(measure(way, job, imports=IMPORTS, title=name))
    title = f"{job.pair}: an epoch of {job.images:,} images, batches of {PAIRS[job.pair].batch}"
    epochs = {name: [turn_of(one.remark) for one in turns] for name, turns in found.items()}
    show(f"{title}, {job.threads} threads", epochs, "s")
    show_memory(found)
    print(f"the dump took {dump_s:.1f} s, once")


if __name__ == "__main__":
    main()
