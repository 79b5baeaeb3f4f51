"""Train the teacher on all transcripts, by CTC alone: plain PyTorch, nothing of kdcache.

python -m examples.speech.train_teacher --data FOLDER --out runs/speech

Writes the folder ``teacher``: config.json, model.safetensors, vocab.json, as any checkpoint of
wav2vec 2.0. The same seed, machine and number of threads give the same one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from examples.speech.alphabet import write_alphabet
from examples.speech.data import SpokenNumbers
from examples.speech.models import ctc_loss, frames
from examples.speech.sizes import SIZES, Size

TEACHER = "teacher"
WARM_UP = 0.1  # of all steps
MAX_NORM = 1.0  # of the gradient


def train_teacher(
    folder: Path,
    data: SpokenNumbers,
    size: Size,
    *,
    seed: int = 0,
    say: Callable[[str], object] = print,
) -> None:
    """Train a teacher and write its folder.

    Args:
        folder: to write.
        data: its loaders.
        size: of the teacher, and how it learns.
        seed: of weights and dropout; the order of batches is the data's.
        say: is told how it goes, once an epoch.
    """
    torch.manual_seed(seed)
    batches, model = data.train_dataloader(), size.teacher.make()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=size.teaching.learning_rate, betas=(0.9, 0.98), eps=1e-6
    )
    steps = size.teaching.epochs * len(batches)
    schedule = LambdaLR(optimizer, lambda step: share_of_peak(step, steps))
    model.train()
    for epoch in range(1, size.teaching.epochs + 1):
        started, nats = time.monotonic(), 0.0
        for batch in batches:
            sound = at_another_speed(
                batch["input_values"], batch["attention_mask"], size.speed_range
            )
            _, logits, mask = frames(model, *sound)
            loss = ctc_loss(logits, mask, batch["labels"])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            schedule.step()
            nats += loss.item() / len(batches)
        say(
            f"  epoch {epoch}/{size.teaching.epochs}: CTC {nats:.3f} nats a character, "
            f"{time.monotonic() - started:.0f} s"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_alphabet(folder, data.class_names)
    model.save_pretrained(folder)


def at_another_speed(
    input_values: Tensor, attention_mask: Tensor, speed_range: float
) -> tuple[Tensor, Tensor]:
    """A batch played faster or slower, pitch and all: the usual augmentation of few recordings.

    It is the teacher's own training that varies what is heard. The dump, and students, hear every
    utterance as it is.

    Args:
        input_values: (B, L) float32.
        attention_mask: (B, L).
        speed_range: share by which the length grows or shrinks at most.

    Returns:
        Both with another length, the same for the whole batch.
    """
    factor = 1 + speed_range * (2 * float(torch.rand(())) - 1)
    size = round(input_values.shape[1] * factor)
    sound = F.interpolate(input_values.unsqueeze(1), size=size, mode="linear").squeeze(1)
    lengths = (attention_mask.sum(dim=1) * factor).long().clamp(max=size)
    return sound, (torch.arange(size) < lengths.unsqueeze(1)).long()


def share_of_peak(step: int, steps: int) -> float:
    """What the learning rate of a step (from 0) is multiplied with: up, then down to nearly 0."""
    rising = max(1, round(WARM_UP * steps))
    if step < rising:
        return (step + 1) / rising
    return (steps - step) / (steps + 1 - rising)


def spoken_numbers(
    folder: str, size: Size, *, labelled: float = 1.0, all_sound: bool = True, seed: int = 0
) -> SpokenNumbers:
    """The data of a size: all transcripts for the teacher, a share for its students."""
    return SpokenNumbers(
        folder=folder,
        num_train=size.num_train,
        num_test=size.num_test,
        most=size.most,
        labelled=labelled,
        all_sound=all_sound,
        batch_size=size.batch_size,
        seed=seed,
    )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the speech example's teacher.")
    parser.add_argument("--data", required=True, help="folder with fsdd.zip; see recordings.py")
    parser.add_argument("--out", type=Path, default=Path("runs/speech"))
    parser.add_argument("--size", choices=SIZES, default="small")
    options = parser.parse_args(words)
    folder, size = options.out / TEACHER, SIZES[options.size]
    if folder.exists():
        print(f"{folder} is there; reused")
        return
    try:
        train_teacher(folder, spoken_numbers(options.data, size), size)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
