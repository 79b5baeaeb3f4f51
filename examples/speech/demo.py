"""One small wav2vec 2.0, run once over spoken numbers; students learn from its cache.

    python -m examples.speech --data FOLDER --out runs/speech

Students begin with the teacher's convolutions, its lowest transformer layers and its head. Three
ways to go on: from the few transcripts that they know, from what the teacher said of every frame,
from both. Students of one seed share everything random. Teacher and cache are made once and reused
by later runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import transformers
from rich.console import Console

import kdcache
from examples.demos import new_folder, positive
from examples.reports.results import count_parameters, versions
from examples.reports.rows import Row
from examples.speech.data import SpokenNumbers
from examples.speech.models import Student, Teacher
from examples.speech.report import Results, Score, print_cache, print_students, write_results
from examples.speech.sizes import SIZES, Size
from examples.speech.train_teacher import MAX_NORM, TEACHER, spoken_numbers, train_teacher
from kdcache.store import open_cache
from kdcache.train.pipelines import ErrorRatePipeline, GreedyCtc

SOUND = {"input_values": "input_values", "attention_mask": "attention_mask"}
BATCH = {
    "teacher": {"inputs": SOUND, "mask": "output:mask"},
    "student": {"inputs": {**SOUND, "labels": "labels"}, "mask": "output:mask"},
}
FINGERPRINT = "field:input_values"  # the teacher hears sound; which texts are known may differ
CACHE = "teacher.zarr"
LOCAL_COPIES = "local"  # beside the cache: whoever removes the folder removes all of it


@dataclass(frozen=True, kw_only=True)
class Way:
    """What a student learns from.

    Attributes:
        name: for people and folders.
        losses: loss name -> coefficient; temperature 1.
        all_sound: whether it hears what it has no transcript of.
    """

    name: str
    losses: dict[str, float]
    all_sound: bool


WAYS = (
    Way(name="transcripts", losses={"student_loss": 1.0}, all_sound=False),
    Way(name="teacher", losses={"kd_loss": 1.0}, all_sound=True),
    Way(name="both", losses={"kd_loss": 1.0, "student_loss": 0.1}, all_sound=True),
)


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.speech",
        description="Distil a small wav2vec 2.0 that hears spoken digits into shallower ones.",
    )
    parser.add_argument("--data", required=True, help="folder with fsdd.zip; see recordings.py")
    parser.add_argument("--out", type=Path, default=Path("runs/speech"))
    parser.add_argument("--size", choices=SIZES, default="small", help="tiny takes seconds")
    parser.add_argument("--seeds", type=positive, default=3, help="students of each kind")
    parser.add_argument("--labelled", type=float, help="share of transcripts; else the size's")
    return parser.parse_args(words)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """One run of the example: where it writes, how large it is, what it reads."""

    out: Path
    size: Size
    folder: str
    console: Console

    @property
    def teacher(self) -> str:
        return str(self.out / TEACHER)

    @property
    def cache(self) -> Path:
        return self.out / CACHE

    def data(self, seed: int = 0, *, all_sound: bool = True) -> SpokenNumbers:
        """What students hear; the seed orders the training batches."""
        return spoken_numbers(
            self.folder, self.size, labelled=self.size.labelled, all_sound=all_sound, seed=seed
        )

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)

    def make_teacher(self) -> None:
        """Train it on all transcripts, where it is not there yet."""
        if Path(self.teacher).exists():
            self.say(f"teacher   reused, {self.teacher}")
            return
        started = time.monotonic()
        train_teacher(
            Path(self.teacher), spoken_numbers(self.folder, self.size), self.size, say=self.say
        )
        self.say(f"teacher   trained in {time.monotonic() - started:.0f} s, {self.teacher}")

    def make_cache(self) -> None:
        """Run the teacher once; a complete cache is left as it is."""
        started = time.monotonic()
        kdcache.dump_teacher(
            functools.partial(Teacher, self.teacher),
            self.data(),
            self.cache,
            batch=BATCH,
            key="content",  # so that students may be given a part of the utterances
            fingerprint=FINGERPRINT,
            accelerator="cpu",
        )
        self.say(f"cache     {self.cache} is complete, {time.monotonic() - started:.0f} s")

    def new_student(self) -> Student:
        return Student(self.teacher, layers=self.size.student_layers)

    def train_student(self, way: Way, seed: int, output: Path) -> tuple[Score, float]:
        """Train one student from the cache; also the teacher's word error rate, read from there."""
        torch.manual_seed(seed)
        data = self.data(seed, all_sound=way.all_sound)
        steps = self.size.learning.epochs * -(-self.size.num_train // self.size.batch_size)
        epochs = -(-steps // len(data.train_dataloader()))
        run = kdcache.train_student(
            self.new_student(),
            data,
            self.cache,
            losses=way.losses,
            batch=BATCH,
            optimizer="adamW_distilBert",
            learning_rate=self.size.learning.learning_rate,
            scheduler="linear_decay_with_warm_up",
            pipelines={"test": ErrorRatePipeline(GreedyCtc(data.class_names))},
            output=output,
            local_copy=self.out / LOCAL_COPIES,
            seed=seed,
            progress=False,
            trainer={
                "max_epochs": epochs,
                "max_steps": steps,
                # Scored once, at the end, so that no student is chosen by its errors.
                "check_val_every_n_epoch": epochs,
                "gradient_clip_val": MAX_NORM,
                "accelerator": "cpu",
            },
        )
        score = Score(
            seed=seed,
            word_error_rate=run.metrics["test_word_error_rate"],
            teacher_kl=run.metrics["test_teacher_kl"],
            teacher_agreement=run.metrics["test_teacher_agreement"],
            steps=run.steps,
            seconds=run.seconds,
            weights=str(run.student),
        )
        return score, run.metrics["test_teacher_word_error_rate"]

    def train_students(self, num_seeds: int) -> tuple[tuple[Row[Score], ...], float]:
        """Every way with the same seeds; also the teacher's word error rate."""
        folder, rows, taught = new_folder(self.out / "students"), [], float("nan")
        for way in WAYS:
            scores = []
            for seed in range(num_seeds):
                title = f"student from {way.name}, seed {seed} of {num_seeds} (from 0)"
                with self.console.status(title):
                    score, taught = self.train_student(way, seed, folder / f"{way.name}-{seed}")
                scores.append(score)
            rows.append(Row(name=way.name, losses=way.losses, scores=tuple(scores)))
            rates = "  ".join(f"{100 * score.word_error_rate:.1f} %" for score in scores)
            self.say(f"students  from {way.name:<11} word errors {rates}")
        return tuple(rows), taught


def run(options: argparse.Namespace) -> None:
    """Teacher, cache, students, then what came out of them."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    started, size = time.monotonic(), SIZES[options.size]
    if options.labelled is not None:
        size = dataclasses.replace(size, labelled=options.labelled)
    demo = Demo(out=options.out, size=size, folder=options.data, console=Console())
    dataset = demo.data().splits["train"]
    demo.say(
        f"data      {len(dataset):,} utterances to train on, {len(dataset.labelled):,} of them "
        f"with a transcript for students; {size.num_test:,} to test on"
    )
    demo.make_teacher()
    demo.make_cache()
    rows, taught = demo.train_students(options.seeds)
    settings: dict[str, Any] = {
        "size": options.size,
        "labelled": size.labelled,
        "threads": torch.get_num_threads(),
        "seconds": round(time.monotonic() - started, 1),
        "versions": versions(kdcache, torch, pl, transformers),
    }
    results = Results(
        teacher_word_error_rate=taught,
        teacher_parameters=count_parameters(Teacher(demo.teacher)),
        student_parameters=count_parameters(demo.new_student()),
        num_labelled=len(dataset.labelled),
        num_train=len(dataset),
        rows=rows,
        cache=open_cache(demo.cache).inspect(),
        settings=settings,
    )
    demo.say("")
    print_students(demo.console, results)
    print_cache(demo.console, results)
    write_results(demo.out / "results.json", results)
    demo.say(f"{time.monotonic() - started:.0f} s in all. Wrote {demo.out / 'results.json'}")


def main(words: Sequence[str] | None = None) -> None:
    try:
        run(parse_arguments(words))
    except (kdcache.KdcacheError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")  # it says what is wrong and what to do: no traceback


if __name__ == "__main__":
    main()
