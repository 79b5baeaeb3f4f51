"""How far a teacher's logits depend on the other utterances of its batch, by its kind of norm.

python -m examples.speech.drift --data FOLDER --out runs/speech

A group norm over time, which the base checkpoints of wav2vec 2.0 have, takes padding for silence.
Two teachers that differ in their norm alone are measured as ``kdcache dump-teacher`` measures one
before its first shard: utterances together in a batch, and each alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader

import kdcache
from examples.speech.data import SpeechDataset, collate
from examples.speech.models import Norm, Teacher
from examples.speech.sizes import SIZES
from examples.speech.train_teacher import TEACHER, spoken_numbers, train_teacher
from kdcache.dump.measurements.drift import NUM_SAMPLES, measure_drift
from kdcache.train.pipelines import ErrorRatePipeline, GreedyCtc

BATCH = kdcache.BatchMapping(
    inputs={"input_values": "input_values", "attention_mask": "attention_mask"},
    mask="output:mask",
)
NORMS: tuple[Norm, ...] = ("layer", "group")
ALONE = "1"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A teacher on a data set, in batches of one kind.

    Attributes:
        padding: share of what it hears that is padding.
        mean_kl: KL(in its batch || alone), nats, mean over frames.
        max_kl: of the frame that differs most.
        word_error_rate: errors for each word.
    """

    padding: float
    mean_kl: float
    max_kl: float
    word_error_rate: float


def orders(num_samples: int) -> dict[str, list[list[int]]]:
    """How batches are formed -> the numbers of each, for a data set that is ordered by length."""
    numbers = list(range(num_samples))
    shuffled = random.Random("order").sample(numbers, num_samples)
    return {
        f"{NUM_SAMPLES} of any lengths": _cut(shuffled, NUM_SAMPLES),
        f"{NUM_SAMPLES} of like lengths": _cut(numbers, NUM_SAMPLES),
        ALONE: _cut(numbers, 1),
    }


def _cut(numbers: Sequence[int], size: int) -> list[list[int]]:
    return [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]


@torch.inference_mode()
def measure(
    teacher: nn.Module, dataset: SpeechDataset, batches: Sequence[Sequence[int]]
) -> Measured:
    """Run batches together, and each of their utterances alone.

    Args:
        teacher: in eval mode.
        dataset: of utterances.
        batches: numbers of each batch's utterances.
    """
    nats, worst, num_frames, heard, filled = 0.0, 0.0, 0, 0, 0
    for numbers in batches:
        samples = [dataset[number] for number in numbers]
        lengths = [len(sample["input_values"]) for sample in samples]
        heard, filled = heard + sum(lengths), filled + max(lengths) * len(lengths)
        drift = measure_drift(
            lambda batch: kdcache.forward(teacher, BATCH, batch).widened(),
            collate,
            samples,
            numbers,
        )
        if drift is not None:  # one alone drifts from nothing
            nats, num_frames = nats + drift.mean_kl * drift.positions, num_frames + drift.positions
            worst = max(worst, drift.max_kl)
    loader = DataLoader(dataset, batch_sampler=list(map(list, batches)), collate_fn=collate)
    errors = ErrorRatePipeline(GreedyCtc(dataset.alphabet), batch=BATCH)
    return Measured(
        padding=1 - heard / filled,
        mean_kl=nats / max(1, num_frames),
        max_kl=worst,
        word_error_rate=errors.run_inference_pipeline(teacher, loader)["word_error_rate"],
    )


def table(found: Mapping[tuple[Norm, str], Measured]) -> Table:
    """For people."""
    shown = Table(
        title="A teacher in its batch and alone: KL in nats a frame, errors for 100 words",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name in ("norm", "batches of"):
        shown.add_column(name, no_wrap=True)
    for name in ("padding %", "mean KL", "max KL", "errors %"):
        shown.add_column(name, justify="right")
    for (norm, how), one in found.items():
        drift = ("0", "0") if how == ALONE else (f"{one.mean_kl:.2g}", f"{one.max_kl:.2g}")
        rate = f"{100 * one.word_error_rate:.1f}"
        shown.add_row(norm, how, f"{100 * one.padding:.1f}", *drift, rate)
    return shown


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure what padding does to a teacher.")
    parser.add_argument("--data", required=True, help="folder with fsdd.zip; see recordings.py")
    parser.add_argument("--out", type=Path, default=Path("runs/speech"))
    parser.add_argument("--size", choices=SIZES, default="small")
    options = parser.parse_args(words)
    size = SIZES[options.size]
    data = spoken_numbers(options.data, size)
    found: dict[tuple[Norm, str], Measured] = {}
    try:
        dataset = data.splits["test"]
        for norm in NORMS:
            folder = options.out / (TEACHER if norm == size.teacher.norm else f"{TEACHER}-{norm}")
            if not folder.exists():
                print(f"training {folder}")
                shape = dataclasses.replace(size.teacher, norm=norm)
                train_teacher(folder, data, dataclasses.replace(size, teacher=shape))
            teacher = Teacher(str(folder)).eval()
            for how, batches in orders(len(dataset)).items():
                found[norm, how] = measure(teacher, dataset, batches)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    Console().print(table(found))


if __name__ == "__main__":
    main()
