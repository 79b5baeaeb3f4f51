"""What the teacher adds where labels are few: the same students with and without it, five seeds.

    python -m examples.mnist.seeds --data FOLDER --cache runs/mnist/teacher.zarr

Every seed has its own first weights and its own labelled images; they are the same for each way of
training, so that differences are paired. All take about as many optimiser steps. Prints a table in
Markdown, mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import kdcache
from examples.mnist.data import MnistData
from examples.mnist.resnet import small_student
from examples.reports.rows import deviation
from examples.reports.tables import mean_and_deviation

NUMBERS = {"accuracy": 100.0, "teacher_kl": 1.0, "teacher_agreement": 100.0}  # and their factors
LABELS_ONLY = {"student_loss": 1.0}


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way of training.

    Attributes:
        title: its row.
        losses: loss name -> coefficient.
        data: arguments for MnistData.
    """

    title: str
    losses: Mapping[str, float]
    data: Mapping[str, Any] = field(default_factory=dict)


WAYS = (
    Way(title="labels only, batches of all images", losses=LABELS_ONLY),
    Way(
        title="labels only, batches of labelled images",
        losses=LABELS_ONLY,
        data={"only_labelled": True},
    ),
    Way(title="labels and the cached teacher", losses={"kd_loss": 0.9, "student_loss": 0.1}),
)


def score(way: Way, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Test scores of one student, and of the teacher, as they are logged."""
    data = MnistData(
        root=arguments.data, num_labelled=arguments.num_labelled, seed=seed, **way.data
    )
    whole = -(-len(data.train_set) // data.batch_size) * arguments.epochs
    epochs = max(1, round(whole / len(data.train_dataloader())))
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        run = kdcache.train_student(
            small_student(width=arguments.width),
            data,
            arguments.cache,
            losses=way.losses,
            temperature=4.0,
            learning_rate=3e-3,
            output=Path(folder) / "run",
            seed=seed,
            progress=False,
            tracking={"loggers": []},
            trainer={
                "max_epochs": epochs,
                "check_val_every_n_epoch": epochs,
                "accelerator": "cpu",
                "enable_checkpointing": False,
            },
        )
    return dict(run.scores["test"])


def table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Rows of all ways, and the paired difference of the last two."""
    lines = [
        "| Learns from | Test accuracy, % | KL(teacher ‖ student), nats | Agreement, % |",
        "|---|---|---|---|",
        f"| (the teacher) | {100 * next(iter(found.values()))[0]['teacher_accuracy']:.2f} | | |",
    ]
    values = {
        title: {name: [run[name] * k for run in runs] for name, k in NUMBERS.items()}
        for title, runs in found.items()
    }
    lines += [_row(title, numbers) for title, numbers in values.items()]
    *_, before, after = values.values()
    paired = {
        name: [b - a for a, b in zip(before[name], after[name], strict=True)] for name in NUMBERS
    }
    return "\n".join([*lines, _row("difference of the last two, paired", paired)])


def _row(title: str, numbers: Mapping[str, Sequence[float]]) -> str:
    digits = {"accuracy": 2, "teacher_kl": 4, "teacher_agreement": 2}
    cells = [
        mean_and_deviation(statistics.mean(values), deviation(values), digits=n)
        for values, n in ((numbers[name], n) for name, n in digits.items())
    ]
    return f"| {title} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Students with and without the teacher.")
    parser.add_argument("--data", required=True, help="folder with MNIST's four IDX files")
    parser.add_argument("--cache", default="runs/mnist/teacher.zarr")
    parser.add_argument("--num-labelled", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=2, help="over all images")
    parser.add_argument("--width", type=int, default=8, help="of the student")
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {way.title: [] for way in WAYS}
    for seed in range(arguments.seeds):
        for way in WAYS:
            scores = score(way, seed, arguments)
            found[way.title].append(scores)
            print(f"seed {seed}, {way.title}: accuracy {scores['accuracy']:.4f}", flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
