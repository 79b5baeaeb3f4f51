"""A student from the cache in a plain PyTorch loop, without Lightning: one short function a step.

    python -m examples.language_model.plain_loop --data FOLDER --out runs/language_model

It takes the tokenizer and the top-k cache of the demo. Micro-batches are accumulated exactly:
their gradient is that of the joint batch, however many tokens each of them has. A mean of their
means would weigh a token of a short one more.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import kdcache
from examples.language_model.data import TextData, collate
from examples.language_model.perplexity import BATCH
from examples.language_model.schedule import share_of_peak
from examples.language_model.sizes import SIZES, Size
from examples.language_model.train_teacher import MAX_NORM, TOKENIZER
from kdcache.losses import Objective
from kdcache.train.pipelines import AccuracyPipeline

OBJECTIVE = Objective(losses={"kd_loss": 0.9, "student_loss": 0.1}, temperature=1.0)
TOP_K_CACHE = "top-k.zarr"  # in the demo's folder

Window = Sequence[kdcache.JoinedBatch]


def windows(batches: Iterable[kdcache.JoinedBatch], size: int) -> Iterator[Window]:
    """The micro-batches of one optimiser step after another; the last may have fewer."""
    source = iter(batches)
    while window := list(itertools.islice(source, size)):
        yield window


def accumulate(student: nn.Module, window: Window, objective: Objective = OBJECTIVE) -> float:
    """Add one step's gradient to the student's; returns its loss, nats per position."""
    counts, loss = kdcache.step_counts(window, BATCH), 0.0
    for batch, targets in window:
        output = kdcache.forward(student, BATCH, batch)
        evaluation = objective.evaluate(
            output.all_logits, targets, output.labels, rows=output.rows, counts=counts
        )
        evaluation.total.backward()
        loss += evaluation.total.item()
    return loss


def train(
    student: nn.Module,
    loader: DataLoader[Any],
    *,
    epochs: int,
    learning_rate: float,
    micro_batches: int,
) -> list[float]:
    """Train a student, ``micro_batches`` joined batches a step; returns the loss of each step."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate, weight_decay=0.1)
    steps = epochs * -(-len(loader) // micro_batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: share_of_peak(n, steps))
    student.train()
    losses = []
    for _ in range(epochs):
        for window in windows(loader, micro_batches):
            optimizer.zero_grad()
            losses.append(accumulate(student, window))
            nn.utils.clip_grad_norm_(student.parameters(), MAX_NORM)
            optimizer.step()
            schedule.step()
    return losses


def joined_splits(
    options: argparse.Namespace, size: Size
) -> tuple[kdcache.CachedDataset, kdcache.CachedDataset]:
    """Training and validation sequences with their top-k targets, checked against the cache."""
    data = TextData(
        folder=options.data,
        tokenizer=str(options.out / TOKENIZER),
        max_length=size.student.max_length,
        num_paragraphs=size.num_paragraphs,
    )
    train_split, val_split = (
        kdcache.CachedDataset(
            dataset, options.out / TOP_K_CACHE, split=split, batch=BATCH, collate_fn=collate
        )
        for split, dataset in zip(("train", "val"), data.splits, strict=True)
    )
    return train_split, val_split


def parse_arguments(words: Sequence[str] | None, about: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--data", help="folder of the text, as the demo was given it")
    parser.add_argument("--out", type=Path, default=Path("runs/language_model"))
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--micro-batches", type=int, default=2, help="of one optimiser step")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    options = parse_arguments(words, "Train a student from the demo's cache in a plain loop.")
    size = SIZES[options.size]
    train_split, val_split = joined_splits(options, size)
    torch.manual_seed(options.seed)
    student = size.student.make()
    # Smaller micro-batches, the same optimiser step as in the demo.
    rows = size.batch_size // options.micro_batches
    loader = DataLoader(
        train_split, batch_size=rows, shuffle=True, collate_fn=train_split.collate_fn
    )
    losses = train(
        student,
        loader,
        epochs=size.learning.epochs,
        learning_rate=size.learning.learning_rate,
        micro_batches=options.micro_batches,
    )
    val = DataLoader(val_split, batch_size=size.batch_size, collate_fn=val_split.collate_fn)
    scores = AccuracyPipeline(BATCH).run_inference_pipeline(student, val)
    print(f"{len(losses)} steps, the last with a loss of {losses[-1]:.3f}")
    print(", ".join(f"{name} {score:.4f}" for name, score in scores.items()))


if __name__ == "__main__":
    main()
