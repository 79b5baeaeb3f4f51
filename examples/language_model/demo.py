"""One small language model, run once over its text; students learn from its caches.

    python -m examples.language_model --data FOLDER --out runs/language_model

Three ways to learn: from the text alone, from the teacher's 32 likeliest tokens of every position,
from all of its logits. Students of one seed share their first weights and order of batches,
whichever way. Tokenizer, teacher and caches are made once and reused by later runs.
"""

from __future__ import annotations

import argparse
import dataclasses
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
from safetensors.torch import load_model

import kdcache
from examples.demos import new_folder, positive
from examples.language_model.data import TextData
from examples.language_model.perplexity import BATCH, AgainstDenseTargets
from examples.language_model.picture import draw
from examples.language_model.report import (
    Results,
    Score,
    Teacher,
    print_caches,
    print_students,
    write_results,
)
from examples.language_model.schedule import WarmUpThenCosine
from examples.language_model.sizes import SIZES, Size
from examples.language_model.train_teacher import (
    MAX_NORM,
    TOKENIZER,
    WEIGHTS,
    make_tokenizer,
    train_teacher,
)
from examples.reports.results import count_parameters, versions
from examples.reports.rows import Row
from kdcache.codecs import Codec
from kdcache.store import open_cache

TOP_K, DENSE = "top-k", "dense"
LOCAL_COPIES = "local"  # beside the caches: whoever removes the folder removes all of it
TAUGHT = {"kd_loss": 0.9, "student_loss": 0.1}


@dataclass(frozen=True, kw_only=True)
class Way:
    """What a student learns from.

    Attributes:
        name: for people and folders.
        cache: which one its batches are joined with (its loss may not look at the targets).
        losses: loss name -> coefficient; temperature 1.
    """

    name: str
    cache: str
    losses: dict[str, float]


WAYS = (
    Way(name="text", cache=TOP_K, losses={"student_loss": 1.0}),
    Way(name=TOP_K, cache=TOP_K, losses=TAUGHT),
    Way(name=DENSE, cache=DENSE, losses=TAUGHT),
)


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.language_model",
        description="Distil a small GPT-2 into smaller ones, from a top-k and from a dense cache.",
    )
    parser.add_argument(
        "--data", help="folder with wikitext2-test.txt and wikitext2-valid.txt; else Python's texts"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/language_model"))
    parser.add_argument("--size", choices=SIZES, default="small", help="tiny takes seconds")
    parser.add_argument("--seeds", type=positive, default=3, help="students of each kind")
    parser.add_argument("--epochs", type=positive, help="of each student; else the size's")
    return parser.parse_args(words)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """One run of the example: where it writes, how large it is, what it reads."""

    out: Path
    size: Size
    folder: str | None
    console: Console

    def data(self, seed: int = 0) -> TextData:
        """Loaders; the seed orders the training batches."""
        return TextData(
            folder=self.folder,
            tokenizer=str(self.out / TOKENIZER),
            max_length=self.size.student.max_length,
            batch_size=self.size.batch_size,
            num_paragraphs=self.size.num_paragraphs,
            seed=seed,
        )

    def cache(self, name: str) -> Path:
        """Where the cache of a kind is."""
        return self.out / f"{name}.zarr"

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)

    def make_teacher(self) -> torch.nn.Module:
        """Train tokenizer and teacher where they are not there yet."""
        weights = self.out / WEIGHTS
        make_tokenizer(self.out / TOKENIZER, folder=self.folder, size=self.size)
        data = self.data()
        self.say(f"text      {data.text.source}")
        train, val = (f"{split.num_predicted:,}" for split in data.splits)
        self.say(f"tokens    {train} to train on, {val} to validate on")
        if weights.exists():
            self.say(f"teacher   reused, {weights}")
        else:
            started = time.monotonic()
            train_teacher(weights, data, self.size, say=self.say)
            self.say(f"teacher   trained in {time.monotonic() - started:.0f} s, {weights}")
        teacher = self.size.teacher.make()
        load_model(teacher, weights)
        return teacher

    def make_caches(self) -> None:
        """Run the teacher once for each cache; what is complete is left as it is."""
        teacher = self.make_teacher()
        codecs: dict[str, Codec] = {
            TOP_K: kdcache.TopKCodec(k=self.size.top_k, temperatures=(1.0, 2.0)),
            DENSE: kdcache.DenseCodec(dtype="float16"),
        }
        for name, codec in codecs.items():
            started, path = time.monotonic(), self.cache(name)
            kdcache.dump_teacher(
                teacher, self.data(), path, codec=codec, batch=BATCH, accelerator="cpu"
            )
            self.say(f"cache     {path} is complete, {time.monotonic() - started:.0f} s")

    def train_student(self, way: Way, seed: int, output: Path) -> Score:
        """Train one student from a cache; the teacher is not in memory."""
        torch.manual_seed(seed)
        local_copy = self.out / LOCAL_COPIES
        run = kdcache.train_student(
            self.size.student.make(),
            self.data(seed),
            self.cache(way.cache),
            losses=way.losses,
            batch=BATCH,
            optimizer=lambda parameters: torch.optim.AdamW(
                parameters, lr=self.size.learning.learning_rate, weight_decay=0.1
            ),
            pipelines={
                "val": AgainstDenseTargets(str(self.cache(DENSE)), local_copy=str(local_copy))
            },
            output=output,
            local_copy=local_copy,
            seed=seed,
            progress=False,
            trainer={
                "max_epochs": self.size.learning.epochs,
                # Scored once, at the end, so that no student is chosen by its perplexity.
                "check_val_every_n_epoch": self.size.learning.epochs,
                "callbacks": [WarmUpThenCosine()],
                "gradient_clip_val": MAX_NORM,
                "accelerator": "cpu",
            },
        )
        return Score(
            seed=seed,
            cross_entropy=run.metrics["val_cross_entropy"],
            teacher_kl=run.metrics["val_dense_teacher_kl"],
            teacher_agreement=run.metrics["val_dense_teacher_agreement"],
            seconds=run.seconds,
            weights=str(run.student),
        )

    def train_students(self, num_seeds: int) -> tuple[Row[Score], ...]:
        """Every way with the same seeds."""
        folder, rows = new_folder(self.out / "students"), []
        for way in WAYS:
            scores = []
            for seed in range(num_seeds):
                title = f"student from {way.name}, seed {seed} of {num_seeds} (from 0)"
                with self.console.status(title):
                    scores.append(self.train_student(way, seed, folder / f"{way.name}-{seed}"))
            rows.append(Row(name=way.name, losses=way.losses, scores=tuple(scores)))
            perplexities = "  ".join(f"{score.perplexity:.1f}" for score in scores)
            self.say(f"students  from {way.name:<6} perplexity {perplexities}")
        return tuple(rows)


def collect(demo: Demo, rows: tuple[Row[Score], ...], settings: dict[str, Any]) -> Results:
    """The rows with what the caches say of themselves and of the teacher."""
    caches = {name: open_cache(demo.cache(name)).inspect() for name in (TOP_K, DENSE)}
    taught = caches[DENSE]["splits"]["val"]["teacher"]
    data = demo.data()
    return Results(
        source=data.text.source,
        tokens_per_word=data.tokens_per_word,
        teacher=Teacher(
            cross_entropy=taught["cross_entropy"],
            parameters=count_parameters(demo.size.teacher.make()),
            remarks=tuple(caches[DENSE]["remarks"]),
        ),
        student_parameters=count_parameters(demo.size.student.make()),
        rows=rows,
        caches=caches,
        settings=settings,
    )


def run(options: argparse.Namespace) -> None:
    """Tokenizer, teacher, caches, students, then what came out of them."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    started, size = time.monotonic(), SIZES[options.size]
    learning = dataclasses.replace(size.learning, epochs=options.epochs or size.learning.epochs)
    size = dataclasses.replace(size, learning=learning)
    demo = Demo(out=options.out, size=size, folder=options.data, console=Console())
    demo.make_caches()
    rows = demo.train_students(options.seeds)
    settings = {
        "size": options.size,
        "seeds": options.seeds,
        "epochs": learning.epochs,
        "threads": torch.get_num_threads(),
        "seconds": round(time.monotonic() - started, 1),
        "versions": versions(kdcache, torch, pl, transformers),
    }
    results = collect(demo, rows, settings)
    demo.say("")
    print_students(demo.console, results)
    print_caches(demo.console, results)
    write_results(demo.out / "results.json", results)
    draw(demo.out / "perplexity.png", results)
    demo.say(
        f"{time.monotonic() - started:.0f} s in all. Wrote {demo.out / 'results.json'} and "
        f"{demo.out / 'perplexity.png'}"
    )


def main(words: Sequence[str] | None = None) -> None:
    try:
        run(parse_arguments(words))
    except (kdcache.KdcacheError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")  # it says what is wrong and what to do: no traceback


if __name__ == "__main__":
    main()
