"""The whole project on a small scale: one teacher, run once, and eighteen students from its cache.

    python examples/digits/demo.py --out runs/digits

The teacher and its cache are made once and reused by later runs. Students of one seed share
their first weights, order of batches and known labels, whatever they learn from.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a script: import as from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import pytorch_lightning as pl
import torch
from rich.console import Console

import kdcache
from examples.demos import new_folder, positive
from examples.digits.data import DigitsData
from examples.digits.models import Student, Teacher
from examples.digits.picture import draw
from examples.digits.report import Score, SizedRow, print_cache, print_students, write_results
from examples.digits.train_teacher import train_teacher
from examples.reports.results import count_parameters, versions

WIDTHS = (8, 32)
LABELS_PER_CLASS = 5
# The best of 3e-3, 5e-3 and 1e-2 for labels alone. With the teacher, 1e-2 does better still.
LEARNING_RATE = 5e-3


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a student learns from.

    Attributes:
        name: for people.
        slug: for folders.
        losses: loss name -> coefficient.
        temperature: of the losses on the teacher's targets; None where there is none.
    """

    name: str
    slug: str
    losses: dict[str, float]
    temperature: float | None = None


OBJECTIVES = (
    Objective(name="labels only", slug="labels", losses={"student_loss": 1.0}),
    *(
        Objective(
            name=f"teacher, T = {temperature:g}",
            slug=f"t{temperature:g}",
            losses={"kd_loss": 0.9, "student_loss": 0.1},
            temperature=temperature,
        )
        for temperature in (2.0, 4.0)
    ),
)


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Distil a teacher for 8x8 digits into students that know 50 labels."
    )
    parser.add_argument("--out", type=Path, default=Path("runs/digits"), help="folder to write")
    parser.add_argument("--seeds", type=positive, default=3, help="students of each kind")
    parser.add_argument("--epochs", type=positive, default=30, help="of each student")
    parser.add_argument("--teacher-epochs", type=positive, default=15)
    return parser.parse_args(words)


def make_cache(folder: Path, *, teacher_epochs: int, console: Console) -> kdcache.store.Cache:
    """Train the teacher and dump it, each only where that was not done before."""
    checkpoint, path = folder / "teacher.safetensors", folder / "teacher.zarr"
    started = time.monotonic()
    if checkpoint.exists():
        console.print(f"teacher   reused, {checkpoint}", soft_wrap=True)
    else:
        with console.status("training the teacher"):
            train_teacher(checkpoint, epochs=teacher_epochs)
        seconds = time.monotonic() - started
        console.print(f"teacher   trained in {seconds:.1f} s, {checkpoint}", soft_wrap=True)

    data = DigitsData()
    splits = {"train": data.train_dataloader(), **data.val_dataloader()}
    existed = is_dumped(path, splits)
    started = time.monotonic()
    # Where the cache is complete nothing runs, but a teacher with other weights is refused.
    cache = kdcache.dump_teacher(
        Teacher(checkpoint),
        splits,
        path,
        codec=kdcache.DenseCodec(dtype="float16"),
        class_names=data.class_names,
        accelerator="cpu",
    )
    done = "reused" if existed else f"dumped in {time.monotonic() - started:.1f} s"
    console.print(f"cache     {done}, {path}", soft_wrap=True)
    return cache


def is_dumped(path: Path, splits: Iterable[str]) -> bool:
    """Whether an earlier run left nothing to do."""
    if not path.exists():
        return False
    cache = kdcache.open_cache(path)
    return all(split in cache and not cache[split].pending for split in splits)


def train_one(
    cache: Path, output: Path, *, width: int, objective: Objective, seed: int, epochs: int
) -> Score:
    """Train one student from the cache; the teacher is not in memory."""
    torch.manual_seed(seed)
    run = kdcache.train_student(
        Student(width),
        DigitsData(labels_per_class=LABELS_PER_CLASS, seed=seed),
        cache,
        losses=objective.losses,
        temperature=objective.temperature or 1.0,
        learning_rate=LEARNING_RATE,
        scheduler=lambda adam: torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=epochs),
        output=output,
        seed=seed,
        progress=False,
        # Scored once, at the end, so that no student is chosen by its test accuracy.
        trainer={"max_epochs": epochs, "check_val_every_n_epoch": epochs, "accelerator": "cpu"},
    )
    return Score(
        seed=seed,
        accuracy=run.metrics["test_accuracy"],
        teacher_kl=run.metrics["test_teacher_kl"],
        teacher_agreement=run.metrics["test_teacher_agreement"],
        seconds=run.seconds,
        weights=str(run.student),
    )


def train_students(
    cache: Path, folder: Path, *, num_seeds: int, epochs: int, console: Console
) -> list[SizedRow]:
    """Every width with every objective, with the same seeds."""
    kinds = list(itertools.product(WIDTHS, OBJECTIVES))
    rows = []
    for number, (width, objective) in enumerate(kinds):
        title = f"width {width}, {objective.name}"
        scores = []
        with console.status("") as status:
            for seed in range(num_seeds):
                student = number * num_seeds + seed + 1
                status.update(f"student {student} of {len(kinds) * num_seeds}: {title}")
                output = folder / f"width{width}-{objective.slug}-seed{seed}"
                score = train_one(
                    cache, output, width=width, objective=objective, seed=seed, epochs=epochs
                )
                scores.append(score)
        rows.append(
            SizedRow(
                width=width,
                name=objective.name,
                temperature=objective.temperature,
                losses=objective.losses,
                parameters=count_parameters(Student(width)),
                scores=tuple(scores),
            )
        )
        accuracies = "  ".join(f"{score.accuracy:.1%}" for score in scores)
        console.print(f"students  {title:<25}  {accuracies}")
    return rows


def run(options: argparse.Namespace) -> None:
    """Teacher, cache, students, then what came out of them."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # models this small only wait for each other's threads
    started = time.monotonic()
    console = Console()
    out: Path = options.out
    cache = make_cache(out, teacher_epochs=options.teacher_epochs, console=console)
    students = new_folder(out / "students")
    rows = train_students(
        cache.path, students, num_seeds=options.seeds, epochs=options.epochs, console=console
    )
    report = cache.inspect()
    teacher = {
        "accuracy": report["splits"]["test"]["teacher"]["accuracy"],
        "parameters": count_parameters(Teacher()),
    }
    seconds = time.monotonic() - started
    console.print()
    print_students(console, teacher, rows)
    print_cache(console, report)
    settings = {
        "labels": LABELS_PER_CLASS * len(DigitsData.class_names),
        "epochs": options.epochs,
        "learning_rate": LEARNING_RATE,
        "versions": versions(kdcache, torch, pl),
    }
    write_results(out / "results.json", teacher, rows, report, {**settings, "seconds": seconds})
    draw(out / "accuracy.png", teacher, rows, num_labels=settings["labels"])
    console.print(
        f"{seconds:.0f} s in all. Wrote {out / 'results.json'} and {out / 'accuracy.png'}",
        soft_wrap=True,
    )


def main(words: Sequence[str] | None = None) -> None:
    try:
        run(parse_arguments(words))
    except kdcache.KdcacheError as error:
        sys.exit(f"error: {error}")  # it says what is wrong and what to do: no traceback


if __name__ == "__main__":
    main()
